//! What cases do again and again.

use crate::crash_table::site::{Job, Site};
use manyhands_runtime::{Awaited, Breakage, Bytes, Completions, Outcome, Pool, PoolStats, Task};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// Waits for a task or a block; the watchdog ends it if it never comes.
pub(crate) fn wait(pool: &Pool, task: &Arc<impl Awaited>) {
    let waited = pool.wait::<Infallible>(task, None, || Ok(()));
    assert!(waited.unwrap());
}

/// Waits until something holds; the watchdog ends it if it never does.
#[track_caller]
pub(crate) fn until(mut condition: impl FnMut() -> bool) {
    let caller = std::panic::Location::caller();
    let mut rounds = 0;
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
        rounds += 1;
        if rounds == 15_000 {
            eprintln!("waiting at {caller}");
        }
    }
}

/// Waits until the pool's statistics are as wanted.
#[track_caller]
pub(crate) fn until_stats(pool: &Pool, mut wanted: impl FnMut(&PoolStats) -> bool) {
    until(|| wanted(&pool.stats()));
}

/// Pids of the workers that are born.
pub(crate) fn worker_pids(pool: &Pool) -> Vec<i32> {
    let workers = pool.stats().workers;
    workers.iter().filter_map(|worker| worker.pid).collect()
}

/// Cancels a task if it has not started; whether it is cancelled.
pub(crate) fn cancel_waiting(pool: &Pool, task: &Arc<Task>) -> bool {
    pool.cancel_all(std::slice::from_ref(task));
    matches!(task.outcome(), Some(Outcome::Cancelled))
}

/// Sends a signal.
pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, signal) };
}

/// Takes all tokens that come until there are so many.
pub(crate) fn take_tokens(completions: &Completions, count: usize) -> Vec<u64> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        tokens.extend(completions.wait(Duration::from_millis(100)));
    }
    tokens
}

/// An outcome in words.
pub(crate) fn show(outcome: &Outcome) -> String {
    let text = |bytes: &Bytes| {
        let shown =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        bytes.with(shown).unwrap()
    };
    match outcome {
        Outcome::Value(_, bytes) => format!("the value {:?}", text(bytes)),
        Outcome::Error(_, bytes) => format!("the error {:?}", text(bytes)),
        Outcome::Died { deaths, .. } => {
            format!(
                "the death of {} by {:?}",
                deaths.last.pid, deaths.last.cause
            )
        }
        Outcome::OverMemory { limit, pid, .. } => format!("more than {limit} bytes in {pid}"),
        Outcome::TimedOut { limit, pid, .. } => format!("the end of its {limit} ns in {pid}"),
        Outcome::Cancelled => "its cancelling".into(),
        Outcome::Broken(why) => match &**why {
            Breakage::Initializer(_, bytes) => format!("a failed initializer: {:?}", text(bytes)),
            other => format!("a broken pool: {other:?}"),
        },
        Outcome::Failed(why) => format!("a failure: {why}"),
    }
}

/// Has the pool know that tasks are short, so that its workers hold many.
pub(crate) fn warm(site: &Site, pool: &Pool) {
    let jobs: Vec<Job> = (0..40).map(|_| site.submit(pool, "echo:warm")).collect();
    assert_eq!(site.settle(pool, &jobs).values, 40);
}

/// Submits a task that runs until the file is there, and waits until it runs.
pub(crate) fn submit_blocker(site: &Site, pool: &Pool, file: &str) -> Job {
    let job = site.submit(pool, &format!("until:{}", site.path(file)));
    until(|| site.runs_of(&job) == 1);
    assert!(pool.is_running(&job.task));
    job
}

/// Has both workers of a pool run until the file is there.
pub(crate) fn submit_two_blockers(site: &Site, pool: &Pool, file: &str) -> [Job; 2] {
    [
        submit_blocker(site, pool, file),
        submit_blocker(site, pool, file),
    ]
}
