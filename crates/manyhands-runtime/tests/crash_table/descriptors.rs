//! Processes that may open no more descriptors.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{until, until_stats, wait};
use crate::crash_table::site::{Job, LARGE, Site};
use manyhands_runtime::Outcome;
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "no descriptors at a birth",
            "tasks end, now or later",
            no_descriptors_at_birth,
        ),
        scenario(
            "no descriptors for results",
            "tasks fail by themselves",
            no_descriptors_for_results,
        ),
        scenario(
            "no descriptors in flight",
            "tasks wait until there are",
            no_descriptors_in_flight,
        ),
    ]
}

/// What keeps a process from opening descriptors.
pub(crate) struct Limited {
    before: libc::rlimit,
    _plugs: Vec<std::fs::File>,
}

/// Lets this process open only so many more descriptors, until the answer is dropped.
pub(crate) fn limit_descriptors(more: usize) -> Limited {
    use std::os::fd::AsRawFd;
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let last: i32 = numbers.max().unwrap();
    // The limit is one of numbers, so those that are free below are taken.
    let null = || std::fs::File::open("/dev/null").unwrap();
    let plugs = std::iter::repeat_with(null)
        .take_while(|file| file.as_raw_fd() <= last)
        .collect();
    // SAFETY: plain system calls with valid pointers.
    unsafe {
        let mut before = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before);
        let rlim_cur = (last as usize + 1 + more) as u64;
        libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur, ..before });
        Limited {
            before,
            _plugs: plugs,
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // SAFETY: a plain system call with a valid pointer.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const self.before) };
    }
}

/// At every number of descriptors that may be left when a worker is born, its tasks end.
fn no_descriptors_at_birth(site: &Site) {
    for more in 0..24 {
        site.supervisor.warm().unwrap();
        until(|| site.supervisor.zygote_pid() != 0);
        let pool = site.pool(2);
        println!("{more} descriptors");
        let limit = limit_descriptors(more);
        let jobs: Vec<Job> = (0..6)
            .filter_map(|index| site.try_submit(&pool, &format!("echo:{index}")).ok())
            .collect();
        let die = site.try_submit(&pool, "kill:");
        for job in &jobs {
            wait(&pool, &job.task);
        }
        // The death of a worker is seen, too.
        if let Ok(die) = &die {
            wait(&pool, &die.task);
        }
        drop(limit);
        let tally = site.tally(&jobs);
        assert_eq!(tally.values + tally.broken, jobs.len(), "{tally:?}");
        pool.close(false, false);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        site.forget(pool);
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn no_descriptors_for_results(site: &Site) {
    let pool = site.pool(2);
    pool.start_all();
    let warm: Vec<Job> = (0..20).map(|_| site.submit(&pool, "sleep:1")).collect();
    site.settle(&pool, &warm);
    let limit = limit_descriptors(0);
    let jobs: Vec<Job> = (0..20)
        .map(|index| {
            site.submit(
                &pool,
                &format!("big:{}", if index % 2 == 0 { LARGE } else { 10 }),
            )
        })
        .collect();
    jobs.iter().for_each(|job| wait(&pool, &job.task));
    drop(limit);
    let failed = jobs
        .iter()
        .filter(|job| matches!(job.task.outcome(), Some(Outcome::Failed(_))));
    assert_eq!(failed.count(), 10);
    let small: Vec<Job> = jobs.into_iter().skip(1).step_by(2).collect();
    assert_eq!(site.settle(&pool, &small).values, 10);
    let large = site.submit(&pool, &format!("big:{LARGE}"));
    assert_eq!(site.settle(&pool, &[large]).values, 1);
    assert_eq!(site.finish(pool).deaths, 0);
}

/// As an ordinary user, who may have only so many descriptors in sockets.
fn no_descriptors_in_flight(site: &Site) {
    use std::os::fd::AsFd;
    let pool = site.pool(2);
    pool.start_all();
    let warm: Vec<Job> = (0..20).map(|_| site.submit(&pool, "sleep:1")).collect();
    site.settle(&pool, &warm);
    until_stats(&pool, |stats| {
        stats
            .workers
            .iter()
            .filter(|worker| worker.pid.is_some())
            .count()
            == 2
    });
    let file = std::fs::File::open("/dev/null").unwrap();
    let limit = limit_descriptors(12);
    // SAFETY: plain system calls. Only this thread's user changes: the one that submits.
    let own = unsafe { libc::geteuid() };
    if own == 0 {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_setresuid, -1, 65_533, -1) };
    }
    let (near, far) = manyhands_os::Socket::pair().unwrap();
    let mut stuffed = 0;
    while near.send(b"x", &[file.as_fd(); 10], false).unwrap() {
        stuffed += 1;
    }
    assert!(stuffed > 0);
    let jobs: Vec<Job> = (0..6).map(|_| site.submit_bytes(&pool, 100_000)).collect();
    std::thread::sleep(Duration::from_millis(20));
    let done = jobs.iter().filter(|job| job.task.is_done()).count();
    restore_user(own);
    drop((near, far, file));
    drop(limit);
    assert_eq!(
        site.settle(&pool, &jobs).values,
        6,
        "{done} were done while there was no room"
    );
    assert_eq!(site.finish(pool).deaths, 0);
}

fn restore_user(own: u32) {
    // SAFETY: a plain system call for the calling thread.
    unsafe { libc::syscall(libc::SYS_setresuid, -1, own, -1) };
}
