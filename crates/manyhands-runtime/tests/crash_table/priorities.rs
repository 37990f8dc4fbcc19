//! Tasks of several priorities, which give way to each other at their workers.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, until, wait, warm, worker_pids};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::storms::{
    Kills, Random, check_losses, finish_after_kills, kill_workers, stop_workers,
};
use manyhands_runtime::Pool;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::scenario(
            "killed while it holds what is urgent",
            "one task lost, the rest runs once",
            holds_urgent,
        ),
        Case::scenario(
            "storm: priorities, workers killed",
            "at most one task lost per kill, none twice",
            kills,
        ),
        Case::scenario(
            "storm: priorities, workers stopped",
            "every task runs once",
            stops,
        ),
    ]
}

fn holds_urgent(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let pid = worker_pids(&pool)[0];
    let mut jobs = vec![site.submit_urgent(&pool, "sleep:60000", 5)];
    until(|| pool.is_running(&jobs[0].task));
    for priority in [0, 5, -5, 7, 5] {
        jobs.extend((0..10).map(|_| site.submit_urgent(&pool, "echo:x", priority)));
    }
    signal(pid, libc::SIGKILL);
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.died.len()), (50, 1), "{tally:?}");
    site.finish(pool);
}

/// Keeps tasks of many priorities on their way while `storm` runs in another thread; gives all jobs.
fn under_load(
    site: &Site,
    pool: &Pool,
    salt: u64,
    storm: impl FnOnce(&mut Random) + Send,
) -> Vec<Job> {
    let over = AtomicBool::new(false);
    let mut jobs = Vec::new();
    let mut random = Random::new(salt);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            storm(&mut Random::new(salt + 1));
            over.store(true, Ordering::SeqCst);
        });
        while !over.load(Ordering::SeqCst) {
            let first = jobs.len();
            for _ in 0..40 {
                let command = match random.below(10) {
                    0 => format!("sleep:{}", random.below(3)),
                    1 => format!("big:{}", random.below(80_000)),
                    _ => format!("echo:{}", random.below(1000)),
                };
                let priority = random.below(7) as i32 - 3;
                jobs.push(site.submit_urgent(pool, &command, priority));
            }
            wait(pool, &jobs[first.saturating_sub(120)].task);
        }
    });
    jobs
}

fn kills(site: &Site) {
    let pool = site.pool(2);
    let killed = Mutex::new(Kills::default());
    let storm = |random: &mut Random| kill_workers(&pool, random, &killed);
    let jobs = under_load(site, &pool, 61, storm);
    let tally = site.settle(&pool, &jobs);
    check_losses(&tally, jobs.len(), &killed);
    finish_after_kills(site, pool, &killed);
}

fn stops(site: &Site) {
    let pool = site.pool(3);
    let storm = |random: &mut Random| stop_workers(&pool, random, 60, 10_000, 3000);
    let jobs = under_load(site, &pool, 71, storm);
    assert_eq!(site.settle(&pool, &jobs).values, jobs.len());
    assert_eq!(site.finish(pool).deaths, 0);
}
