//! Pools in which nothing happens any more, and what workers say that they do.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{
    signal, submit_blocker, submit_two_blockers, until, wait, worker_pids,
};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::worker::{SLOW_REPORT, STACK};
use manyhands_runtime::{Breakage, Outcome, Pool, PoolDump, Refused};
use std::time::Duration;

/// How long the pools here wait.
const SOON: Duration = Duration::from_millis(200);

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "a worker never looks again",
            "the pool breaks, with what it does",
            never_looks_again,
        ),
        scenario(
            "a worker never looks again and is stopped",
            "no stall until it goes on",
            stopped,
        ),
        scenario(
            "a worker never looks again, another does",
            "that one does the work",
            another_looks,
        ),
        scenario(
            "a dump of workers that run and that are idle",
            "who runs answers",
            dumped,
        ),
        scenario(
            "a dump of a worker whose birth nobody has reported",
            "it answers",
            dumped_early,
        ),
        scenario(
            "a worker is killed while it is asked",
            "the dump says that it is gone",
            killed_meanwhile,
        ),
        scenario("a stuck task", "is logged once, with its stack", stuck),
    ]
}

/// Both workers run something and are asked what they do until one of them has died of it, or who asks.
pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = submit_two_blockers(site, pool, "go on").to_vec();
    while !site.crash_mark().exists() {
        pool.dump();
    }
    site.touch("go on");
    jobs.extend(site.submit_echoes(pool, 20));
    jobs
}

fn stacks(dump: &PoolDump) -> Vec<Option<&[u8]>> {
    let answers = dump.answers.iter();
    answers.map(|answer| answer.stack.as_deref()).collect()
}

/// Has the one worker stand still after its first sleep.
fn never_looks_again(site: &Site) {
    site.stall_at("worker.woken", 1);
    let pool = site.impatient_pool(1, SOON);
    site.assert_usable(&pool);
    until(|| pool.stats().workers[0].task_age.is_none());
    let mut jobs = Vec::new();
    // Each wakes it, if it slept already.
    while !site.crash_mark().exists() {
        jobs.push(site.submit(&pool, "echo:x"));
        std::thread::sleep(Duration::from_millis(1));
    }
    let last = site.try_submit(&pool, "echo:y").unwrap();
    wait(&pool, &last.task);
    let Some(Outcome::Broken(why)) = last.task.outcome() else {
        panic!("{:?}", last.task.outcome());
    };
    let Breakage::Stalled(_, dump) = &**why else {
        panic!("{why:?}");
    };
    assert_eq!(stacks(dump), [Some(STACK)]);
    assert!(dump.stats.pending > 0);
    assert!(jobs.iter().all(|job| job.task.is_done()));
    assert!(matches!(
        site.try_submit(&pool, "echo:z"),
        Err(Refused::Broken(_))
    ));
    pool.close(true, true);
    site.finish_closed(pool);
}

fn stopped(site: &Site) {
    site.stall_at("worker.woken", 1);
    let pool = site.impatient_pool(1, 5 * SOON);
    site.assert_usable(&pool);
    while !site.crash_mark().exists() {
        site.submit(&pool, "echo:x");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(worker_pids(&pool)[0], libc::SIGSTOP);
    let job = site.submit(&pool, "echo:y");
    // Longer than it takes to find a stall and to ask.
    std::thread::sleep(15 * SOON);
    assert!(!job.task.is_done());
    signal(worker_pids(&pool)[0], libc::SIGCONT);
    wait(&pool, &job.task);
    let outcome = job.task.outcome();
    assert!(matches!(outcome, Some(Outcome::Broken(_))), "{outcome:?}");
    pool.close(true, true);
    site.finish_closed(pool);
}

fn another_looks(site: &Site) {
    site.stall_at("worker.woken", 1);
    let pool = site.impatient_pool(2, SOON);
    pool.start_all();
    until(|| worker_pids(&pool).len() == 2);
    let jobs = site.submit_echoes(&pool, 50);
    assert_eq!(site.settle(&pool, &jobs).values, 50);
    site.wait_for_crash();
    let jobs = site.submit_echoes(&pool, 50);
    assert_eq!(site.settle(&pool, &jobs).values, 50);
    pool.close(true, true);
    site.finish_closed(pool);
}

fn dumped(site: &Site) {
    let pool = site.pool(2);
    assert!(pool.dump().answers.is_empty());
    let blocker = submit_blocker(site, &pool, "go on");
    site.assert_usable(&pool);
    until(|| {
        pool.stats()
            .workers
            .iter()
            .filter(|worker| worker.task_age.is_none())
            .count()
            == 1
    });
    let mut answered = 0;
    for _ in 0..100 {
        let dump = pool.dump();
        if dump.answers.iter().any(|answer| answer.kernel.is_some()) {
            continue; // a busy machine
        }
        let mut found = stacks(&dump);
        found.sort();
        assert_eq!(found, [None, Some(STACK)]);
        answered += 1;
    }
    assert!(answered > 0);
    site.touch("go on");
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn dumped_early(site: &Site) {
    site.launch_with(&[(SLOW_REPORT, "1000")]);
    let pool = site.pool(1);
    let blocker = submit_blocker(site, &pool, "go on");
    until(|| site.runs_of(&blocker) == 1);
    assert_eq!(stacks(&pool.dump()), [Some(STACK)]);
    site.touch("go on");
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn killed_meanwhile(site: &Site) {
    let pool = site.pool(1);
    let blocker = submit_blocker(site, &pool, "go on");
    let pid = worker_pids(&pool)[0];
    signal(pid, libc::SIGSTOP);
    let dump = std::thread::scope(|scope| {
        let asker = scope.spawn(|| pool.dump());
        std::thread::sleep(Duration::from_millis(50));
        signal(pid, libc::SIGKILL);
        asker.join().unwrap()
    });
    assert!(stacks(&dump).iter().all(Option::is_none));
    assert_eq!(site.settle(&pool, &[blocker]).died.len(), 1);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn stuck(site: &Site) {
    let pool = site.impatient_pool(1, SOON);
    let blocker = submit_blocker(site, &pool, "go on");
    until(|| pool.has_logs());
    let lines = site.supervisor.take_logs();
    let [line] = &*lines else { panic!("{lines:?}") };
    assert!(line.warning);
    assert!(
        line.text.starts_with("task 0 has run for "),
        "{}",
        line.text
    );
    assert_eq!(line.stack.as_deref(), Some(STACK));
    std::thread::sleep(4 * SOON);
    assert_eq!(site.supervisor.take_logs(), []);
    site.touch("go on");
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}
