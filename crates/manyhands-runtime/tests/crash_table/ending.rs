//! How pools end: closing, killing, initializers that fail.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{submit_two_blockers, until, warm};
use crate::crash_table::site::{Job, Site};
use manyhands_runtime::{Breakage, Bytes, Cause, Outcome, Pool, Refused};
use std::sync::Arc;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "close, cancel",
            "what runs ends, what waits does not start",
            close_with_cancel,
        ),
        scenario("close, kill", "nothing runs any more", close_with_kill),
        scenario("close, then kill", "nothing runs any more", close_then_kill),
        scenario(
            "close without a task",
            "nothing is left",
            close_without_a_task,
        ),
        scenario("initializer fails", "that error, once", initializer_fails),
        scenario("initializer dies", "the pool gives up", initializer_dies),
        scenario(
            "initializer, then deaths",
            "every worker ran it",
            initializer_and_deaths,
        ),
    ]
}

fn close_with_cancel(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let blockers = submit_two_blockers(site, &pool, "go");
    let jobs = site.submit_echoes(&pool, 3000);
    pool.close(true, false);
    site.settle(&pool, &jobs).assert_cancelled(0, 3000);
    assert!(matches!(
        site.try_submit(&pool, "echo:late"),
        Err(Refused::Closed)
    ));
    site.touch("go");
    assert_eq!(site.settle(&pool, &blockers).values, 2);
    assert_eq!(site.finish_closed(pool).deaths, 0);
}

/// Two tasks that run for ever, and a hundred behind them.
fn submit_and_hold_up(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = submit_two_blockers(site, pool, "never").to_vec();
    jobs.extend(site.submit_echoes(pool, 100));
    jobs
}

/// The two that ran were killed, the others never ran.
fn assert_killed(site: &Site, pool: Arc<Pool>, jobs: &[Job]) {
    let tally = site.settle(&pool, jobs);
    assert_eq!((tally.cancelled, tally.cancelled_runs), (102, 2));
    site.finish_closed(pool);
}

fn close_with_kill(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let jobs = submit_and_hold_up(site, &pool);
    pool.close(false, true);
    assert_killed(site, pool, &jobs);
}

fn close_then_kill(site: &Site) {
    let pool = site.pool(2);
    let jobs = submit_and_hold_up(site, &pool);
    pool.close(false, false);
    assert!(!pool.wait_quiet(false, std::time::Duration::from_millis(5)));
    pool.close(true, false);
    pool.close(false, true);
    assert_killed(site, pool, &jobs);
}

fn close_without_a_task(site: &Site) {
    for started in [false, true] {
        let pool = site.pool(2);
        if started {
            pool.start_all();
        }
        pool.close(false, false);
        until(|| pool.wait_quiet(true, std::time::Duration::from_millis(100)));
    }
    let pool = site.pool(2);
    pool.start_all();
    site.finish(pool);
}

fn initializer_fails(site: &Site) {
    let pool = site.pool_with(2, Some("error:no database"));
    let jobs: Vec<Job> = (0..20)
        .filter_map(|i| site.try_submit(&pool, &format!("echo:{i}")).ok())
        .collect();
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.broken, jobs.len());
    let Some(Outcome::Broken(why)) = jobs[0].task.outcome() else {
        unreachable!()
    };
    assert!(is_failed_initializer(why, b"no database"), "{why:?}");
    let Err(Refused::Broken(why)) = site.try_submit(&pool, "echo:late") else {
        panic!("the pool is broken");
    };
    assert!(is_failed_initializer(&why, b"no database"), "{why:?}");
    let runs = site.runs()["init"];
    assert!(runs <= 2, "the initializer ran {runs} times on two workers");
    drop(jobs);
    site.finish(pool);
    assert!(site.runs()["init"] <= 2, "no worker is started anew");
}

fn is_failed_initializer(why: &Arc<Breakage>, text: &[u8]) -> bool {
    let same = |bytes: &Bytes| bytes.with(|bytes| bytes == text).unwrap();
    matches!(&**why, Breakage::Initializer(1, bytes) if same(bytes))
}

fn initializer_dies(site: &Site) {
    let pool = site.pool_with(2, Some("exit:7"));
    let jobs = site.submit_echoes(&pool, 20);
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.broken, 20);
    let Some(Outcome::Broken(why)) = jobs[0].task.outcome() else {
        unreachable!()
    };
    assert!(
        matches!(**why, Breakage::InitializerDied(_, Cause::Exit(7))),
        "{why:?}"
    );
    site.finish(pool);
    let runs = site.runs()["init"];
    assert!((3..100).contains(&runs), "the initializer ran {runs} times");
}

fn initializer_and_deaths(site: &Site) {
    let pool = site.pool_with(2, Some("echo:ready"));
    let mut jobs = Vec::new();
    for index in 0..200 {
        jobs.push(site.submit(
            &pool,
            if index % 50 == 25 {
                "kill:"
            } else {
                "initialized:"
            },
        ));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.died.len()), (196, 4));
    assert_eq!(site.finish(pool).deaths, 4);
}
