//! What becomes of processes: zygotes that die, stop or refuse, workers that cannot be started, pools
//! that come and go.

use crate::crash_table::case::Case;
use crate::crash_table::processes;
use crate::crash_table::site::{Job, LARGE, Site, signal, until, until_stats, wait, worker_pids};
use crate::crash_table::worker::{REFUSE_FROM, REFUSED, SLOW_FORK, THREAD_MODULE};
use manyhands_runtime::{Breakage, Cause, Launcher, Outcome, Pool};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "zygote killed",
            "running tasks end, the next birth starts another",
            zygote_killed,
        ),
        scenario(
            "zygote stopped",
            "running tasks end, births wait",
            zygote_stopped,
        ),
        scenario(
            "close, then the zygote is killed",
            "nothing is left",
            close_then_zygote_killed,
        ),
        scenario(
            "close while the zygote is stopped",
            "nothing is left",
            close_while_zygote_stopped,
        ),
        scenario(
            "kill while workers are being born",
            "nothing is left",
            kill_while_born,
        ),
        scenario(
            "fork refused for one worker",
            "the other does the work",
            one_refused,
        ),
        scenario(
            "fork refused for all",
            "the pool gives up, saying why",
            all_refused,
        ),
        scenario(
            "forked workers die at their start",
            "the pool gives up",
            forked_die_at_start,
        ),
        scenario(
            "spawned workers die at their start",
            "the pool gives up",
            spawned_die_at_start,
        ),
        scenario(
            "spawned zygotes die at once",
            "the pool gives up",
            spawned_zygotes_die,
        ),
        scenario("zygotes die at once", "the pool gives up", zygotes_die),
        scenario(
            "no program to start",
            "the pool gives up, naming it",
            no_program,
        ),
        scenario(
            "spawned workers killed",
            "each death loses one task",
            spawned_killed,
        ),
        scenario("40 workers at once", "all are born", many_workers),
        scenario(
            "40 workers, zygote killed amid",
            "all are born",
            many_workers_zygote_killed,
        ),
        scenario("two pools, one zygote killed", "both go on", two_pools),
        scenario(
            "100 pools, one after the other",
            "no descriptor, no process is left",
            many_pools,
        ),
        scenario(
            "supervisor stopped and used again",
            "it starts anew",
            stopped_and_used,
        ),
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
        scenario("a worker writes nonsense", "its parent goes on", nonsense),
        scenario(
            "a worker's child outlives it",
            "a new worker comes",
            grandchild,
        ),
    ]
}

/// Waits until the zygote has reported so many workers, which may run before: each has two pidfds
/// here, the zygote one.
fn until_reported(workers: usize) {
    until(|| {
        let descriptors = processes::descriptors();
        let pidfds = descriptors.iter().filter(|link| link.contains("pidfd"));
        pidfds.count() > 2 * workers
    });
}

fn zygote_killed(site: &Site) {
    let pool = site.pool(2);
    let blocker = site.submit(&pool, &format!("until:{}", site.path("go")));
    until(|| site.runs_of(&blocker) == 1);
    // A worker that its zygote has not reported is lost with it.
    until_reported(1);
    let first = site.supervisor.zygote_pid();
    signal(first, libc::SIGKILL);
    until(|| site.supervisor.zygote_pid() != first);
    let jobs: Vec<Job> = (0..20)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    site.touch("go");
    let tally = site.settle(&pool, &[blocker]);
    assert_eq!(tally.values, 1, "{tally:?}");
    // Nobody is left who could tell how a worker of the first zygote ends.
    let dies = site.submit(&pool, "exit:9");
    let tally = site.settle(&pool, &[dies]);
    assert!(
        matches!(tally.died[..], [(_, _, Cause::Unknown | Cause::Exit(9))]),
        "{tally:?}"
    );
    site.assert_usable(&pool);
    assert_ne!(site.supervisor.zygote_pid(), first);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn zygote_stopped(site: &Site) {
    let pool = site.pool(1);
    site.assert_usable(&pool);
    // Without a report nobody knows of the worker's death until the zygote goes on.
    until_reported(1);
    let zygote = site.supervisor.zygote_pid();
    signal(zygote, libc::SIGSTOP);
    site.assert_usable(&pool);
    let dies = site.submit(&pool, "kill:");
    let tally = site.settle(&pool, &[dies]);
    assert_eq!(tally.died.len(), 1);
    assert_eq!(
        tally.died[0].2,
        Cause::Unknown,
        "the zygote cannot tell now"
    );
    let job = site.submit(&pool, "echo:late");
    assert!(!job.task.is_done());
    signal(zygote, libc::SIGCONT);
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn close_then_zygote_killed(site: &Site) {
    for _ in 0..5 {
        site.supervisor.warm().unwrap();
        until(|| site.supervisor.zygote_pid() != 0);
        let zygote = site.supervisor.zygote_pid();
        signal(zygote, libc::SIGSTOP);
        let pool = site.pool(2);
        pool.start_all();
        until_stats(&pool, |stats| stats.workers.len() == 2);
        pool.close(false, false);
        signal(zygote, libc::SIGKILL);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        until(|| site.supervisor.pools().is_empty());
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// Takes the time that workers are given to leave.
fn close_while_zygote_stopped(site: &Site) {
    site.supervisor.warm().unwrap();
    until(|| site.supervisor.zygote_pid() != 0);
    let zygote = site.supervisor.zygote_pid();
    signal(zygote, libc::SIGSTOP);
    let pool = site.pool(2);
    let job = site.submit(&pool, "echo:never");
    until_stats(&pool, |stats| stats.workers.len() == 1);
    pool.close(true, false);
    assert_eq!(site.settle(&pool, &[job]).cancelled, 1);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    until(|| site.supervisor.pools().is_empty());
    site.forget(pool);
    // What it was asked for is not wanted any more.
    signal(zygote, libc::SIGCONT);
    let pool = site.pool(2);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn kill_while_born(site: &Site) {
    site.launch_with(&[(SLOW_FORK, "20")]);
    for round in 0..6 {
        let pool = site.pool(3);
        let jobs: Vec<Job> = (0..20)
            .map(|i| site.submit(&pool, &format!("echo:{i}")))
            .collect();
        std::thread::sleep(Duration::from_millis(round * 10));
        pool.close(true, true);
        let tally = site.settle(&pool, &jobs);
        assert_eq!(tally.values + tally.cancelled, 20, "{tally:?}");
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn one_refused(site: &Site) {
    site.launch_with(&[(REFUSE_FROM, "1")]);
    let pool = site.pool(2);
    let jobs: Vec<Job> = (0..200).map(|_| site.submit(&pool, "sleep:1")).collect();
    assert_eq!(site.settle(&pool, &jobs).values, 200);
    let refused = site.runs().get(REFUSED).copied().unwrap_or(0);
    assert!(
        (1..=400).contains(&refused),
        "asked {refused} times for 200 tasks"
    );
    assert!(pool.stats().workers.len() <= 2);
    site.finish(pool);
}

/// The reason why all these tasks did not run.
fn breakage(site: &Site, pool: &Pool, count: usize) -> String {
    let jobs: Vec<Job> = (0..count)
        .filter_map(|index| site.try_submit(pool, &format!("echo:{index}")).ok())
        .collect();
    assert!(!jobs.is_empty());
    let tally = site.settle(pool, &jobs);
    assert_eq!(tally.broken, jobs.len(), "{tally:?}");
    let Some(Outcome::Broken(why)) = jobs[0].task.outcome() else {
        unreachable!()
    };
    match &**why {
        Breakage::Start(why) => why.clone(),
        other => panic!("{other:?}"),
    }
}

fn all_refused(site: &Site) {
    site.launch_with(&[(REFUSE_FROM, "0")]);
    let pool = site.pool(2);
    let why = breakage(site, &pool, 10);
    assert!(why.contains("the test says so"), "{why}");
    site.finish(pool);
    let refused = site.runs()[REFUSED];
    assert!((3..100).contains(&refused), "asked {refused} times");
}

fn forked_die_at_start(site: &Site) {
    site.always_crash_at("worker.started");
    let pool = site.pool(2);
    breakage(site, &pool, 10);
    let deaths = site.finish(pool).deaths;
    assert!((3..100).contains(&deaths), "{deaths} deaths");
}

fn spawned_die_at_start(site: &Site) {
    site.supervisor.preload(vec![THREAD_MODULE.into()]);
    site.always_crash_at("worker.started");
    let pool = site.pool(2);
    breakage(site, &pool, 10);
    let deaths = site.finish(pool).deaths;
    assert!((3..100).contains(&deaths), "{deaths} deaths");
}

/// The zygote has threads, so that zygotes become workers; these die when they are asked to.
fn spawned_zygotes_die(site: &Site) {
    site.supervisor.preload(vec![THREAD_MODULE.into()]);
    let pool = site.pool(2);
    site.assert_usable(&pool);
    site.always_crash_at("zygote.request_read");
    for pid in worker_pids(&pool) {
        signal(pid, libc::SIGKILL);
    }
    breakage(site, &pool, 1);
    site.finish(pool);
}

fn zygotes_die(site: &Site) {
    site.always_crash_at("zygote.request_read");
    let pool = site.pool(2);
    let why = breakage(site, &pool, 10);
    assert!(why.contains("zygote"), "{why}");
    site.finish(pool);
}

fn no_program(site: &Site) {
    site.supervisor.set_launcher(Launcher {
        argv: vec!["/nowhere/python".into()],
        environment: None,
    });
    let pool = site.pool(2);
    let why = breakage(site, &pool, 10);
    assert!(why.contains("/nowhere/python"), "{why}");
    site.finish(pool);
}

fn spawned_killed(site: &Site) {
    site.supervisor.preload(vec![THREAD_MODULE.into()]);
    let pool = site.pool(2);
    let mut jobs = Vec::new();
    for index in 0..100 {
        let command = if index % 25 == 13 {
            "kill:".into()
        } else {
            format!("echo:{index}")
        };
        jobs.push(site.submit(&pool, &command));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.died.len()), (96, 4));
    site.assert_usable(&pool);
    site.finish(pool);
}

/// 40 tasks meet, each at a worker of its own; how many of them return.
fn meet(site: &Site, pool: &Pool) -> usize {
    let folder = site.path("meeting");
    std::fs::create_dir(&folder).unwrap();
    let jobs: Vec<Job> = (0..40)
        .map(|_| site.submit(pool, &format!("meet:{folder} 40")))
        .collect();
    site.settle(pool, &jobs).values
}

fn many_workers(site: &Site) {
    let pool = site.pool(40);
    assert_eq!(meet(site, &pool), 40);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn many_workers_zygote_killed(site: &Site) {
    site.launch_with(&[(SLOW_FORK, "2")]);
    let pool = site.pool(40);
    pool.start_all();
    until_reported(10);
    signal(site.supervisor.zygote_pid(), libc::SIGKILL);
    // A worker that was forked and not reported may have started one.
    assert!(meet(site, &pool) >= 39);
    site.finish(pool);
}

fn two_pools(site: &Site) {
    let pools = [site.pool(2), site.pool_with(1, Some("echo:ready"))];
    let mut jobs = [Vec::new(), Vec::new()];
    for round in 0..100 {
        for (pool, jobs) in pools.iter().zip(&mut jobs) {
            jobs.push(site.submit(pool, &format!("echo:{round}")));
        }
        if round == 50 {
            until(|| site.supervisor.zygote_pid() != 0);
            signal(site.supervisor.zygote_pid(), libc::SIGKILL);
        }
    }
    for (pool, jobs) in pools.iter().zip(&jobs) {
        let tally = site.settle(pool, jobs);
        // A worker that was forked and not reported may have started one.
        assert!(tally.died.len() <= 1 && tally.values >= 99, "{tally:?}");
        site.assert_usable(pool);
    }
    let [first, second] = pools;
    first.close(false, false);
    until(|| first.wait_quiet(true, Duration::from_millis(100)));
    drop(first);
    site.assert_usable(&second);
    site.finish(second);
}

fn many_pools(site: &Site) {
    let mut most = 0;
    for round in 0..100 {
        let pool = site.pool(2);
        let job = site.submit(&pool, "echo:one of many");
        if round % 3 > 0 {
            wait(&pool, &job.task);
        }
        pool.close(false, false);
        if round % 2 == 0 {
            until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        }
        assert_eq!(site.settle(&pool, &[job]).values, 1);
        site.forget(pool);
        until(|| site.supervisor.pools().len() <= 3);
        most = most.max(processes::descriptors().len());
    }
    assert!(most < 100, "{most} descriptors");
    let pool = site.pool(1);
    site.finish(pool);
}

fn stopped_and_used(site: &Site) {
    for _ in 0..5 {
        let pool = site.pool(1);
        site.assert_usable(&pool);
        // It ends when the pool is gone, or not at all when another comes first.
        site.supervisor.stop();
        site.assert_usable(&pool);
        pool.close(false, false);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// What keeps a process from opening descriptors.
struct Limited {
    before: libc::rlimit,
    _plugs: Vec<std::fs::File>,
}

/// Lets this process open only so many more descriptors, until the answer is dropped.
fn limit_descriptors(more: usize) -> Limited {
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
            .filter(|worker| worker.pid != 0)
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

/// Whatever a worker writes, its parent goes on: what the worker held ends or runs elsewhere.
fn nonsense(site: &Site) {
    let pool = site.pool(2);
    for word in ["tail", "record", "queue"] {
        let warm: Vec<Job> = (0..40).map(|_| site.submit(&pool, "echo:warm")).collect();
        assert_eq!(site.settle(&pool, &warm).values, 40);
        let mut jobs: Vec<Job> = (0..20)
            .map(|i| site.submit(&pool, &format!("echo:{i}")))
            .collect();
        jobs.push(site.submit(&pool, &format!("scribble:{word}")));
        jobs.extend((0..20).map(|i| site.submit(&pool, &format!("echo:{i}"))));
        let tally = site.settle(&pool, &jobs);
        let lost = tally.died.len();
        assert!(lost >= 1, "{word}: {tally:?}");
        assert_eq!(tally.values, 41 - lost, "{word}: {tally:?}");
        // What it had finished and nobody had read is lost with the word.
        let protocol = tally
            .died
            .iter()
            .all(|(_, _, cause)| *cause == Cause::Protocol);
        assert!(word == "queue" || protocol, "{word}: {tally:?}");
        site.assert_usable(&pool);
    }
    assert_eq!(site.finish(pool).deaths, 3);
}

/// A process that a task started keeps the descriptors of its worker.
fn grandchild(site: &Site) {
    let pool = site.pool(1);
    let job = site.submit(&pool, "fork:then die");
    let tally = site.settle(&pool, &[job]);
    assert_eq!(tally.died.len(), 1);
    site.assert_usable(&pool);
    site.finish(pool);
}
