//! Tasks and items that take too much memory, and pools whose tasks may take only so much together.

use crate::crash_table::blocks::around;
use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, until, warm, worker_pids};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::stream::Items;
use manyhands_runtime::{Limits, Pool, Retry};
use std::sync::Arc;

const MEGABYTE: u64 = 1 << 20;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "too much memory",
            "that task alone ends, with its worker",
            too_much,
        ),
        scenario(
            "too much memory in a block",
            "those items alone, the others once",
            items_of_a_block,
        ),
        scenario(
            "too much memory, runs again",
            "as often as it may",
            runs_again,
        ),
        scenario(
            "little memory for all, workers die",
            "all that waits runs once",
            held_back_and_killed,
        ),
        scenario(
            "little memory for all, cancel what runs",
            "what waits takes its place",
            held_back_and_cancelled,
        ),
        scenario(
            "little memory for all, then close",
            "the pool ends",
            held_back_and_closed,
        ),
    ]
}

fn limits(megabytes: u64) -> Limits {
    Limits {
        memory: Some(megabytes * MEGABYTE),
        grace: 0,
        ..Limits::default()
    }
}

/// Tasks that take too much memory, among others.
pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = site.submit_echoes(pool, 10);
    for _ in 0..OVER_MEMORY {
        jobs.push(site.submit_limited(pool, "swallow:", limits(20)));
        jobs.extend(site.submit_echoes(pool, 10));
    }
    jobs
}

/// How many of these do.
pub(crate) const OVER_MEMORY: usize = 2;

fn too_much(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut jobs = vec![site.submit_limited(&pool, "swallow:", limits(20))];
    jobs.extend(site.submit_echoes(&pool, 100));
    jobs.push(site.submit_limited(&pool, "swallow:", limits(5)));
    jobs.extend((0..100).map(|i| site.submit_limited(&pool, &format!("echo:{i}"), limits(50))));
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.over_memory), (200, 2), "{tally:?}");
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 0, "nobody's fault");
}

fn items_of_a_block(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    for ordered in [true, false] {
        let mut items = Items::limited(ordered, limits(20));
        items.send(site, &pool, &around(30, "swallow:", 30));
        items.send(site, &pool, &around(0, "swallow:", 3));
        items.send_single(site, &pool, "swallow:");
        items.send(site, &pool, &around(3, "swallow:", 0));
        let tally = items.settle(site, &pool);
        assert_eq!((tally.values, tally.over_memory), (66, 4), "{tally:?}");
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn runs_again(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let retry = |memory| {
        Arc::new(Retry {
            failures: 2,
            deaths: 0,
            timeouts: false,
            memory,
            backoff: 0,
            longest: 1,
            jitter: 0.0,
            policy: None,
        })
    };
    let again = site.submit_again(&pool, "swallow:", limits(10), &retry(true));
    let once = site.submit_again(&pool, "swallow:", limits(10), &retry(false));
    let tally = site.settle(&pool, &[again, once]);
    assert_eq!(
        (tally.over_memory, tally.over_memory_runs),
        (2, 4),
        "{tally:?}"
    );
    assert_eq!(site.finish(pool).deaths, 0);
}

fn held_back_and_killed(site: &Site) {
    let pool = site.pool_with_memory(4, 100 * MEGABYTE);
    let mut jobs = Vec::new();
    for number in 0..200 {
        let command = match number % 20 {
            3 => "kill:".to_owned(),
            11 => "sleep:5".to_owned(),
            _ => format!("echo:{number}"),
        };
        let megabytes = if number % 50 == 17 { 100 } else { 40 };
        jobs.push(site.submit_limited(&pool, &command, limits(megabytes)));
    }
    for pid in worker_pids(&pool) {
        signal(pid, libc::SIGKILL);
    }
    let tally = site.settle(&pool, &jobs);
    assert!(tally.died.len() >= 10, "{tally:?}");
    assert_eq!(tally.values + tally.died.len(), 200, "{tally:?}");
    site.assert_usable(&pool);
    site.finish(pool);
}

fn held_back_and_cancelled(site: &Site) {
    let pool = site.pool_with_memory(4, 100 * MEGABYTE);
    warm(site, &pool);
    let never = format!("until:{}", site.path("never"));
    let jobs: Vec<_> = (0..6)
        .map(|_| site.submit_limited(&pool, &never, limits(40)))
        .collect();
    for _ in 0..3 {
        // Which two does not matter: what was taken back may have changed its place.
        // A worker takes a task before it notes that it runs it.
        let runs = |job: &&Job| pool.is_running(&job.task) && site.runs_of(job) == 1;
        let running = || jobs.iter().filter(runs);
        until(|| running().count() == 2);
        let running: Vec<_> = running().collect();
        assert_eq!(running.len(), 2, "there is memory for two");
        assert!(running.iter().all(|job| pool.cancel(&job.task)));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.cancelled, tally.cancelled_runs), (6, 6), "{tally:?}");
    site.assert_usable(&pool);
    site.finish(pool);
}

fn held_back_and_closed(site: &Site) {
    let pool = site.pool_with_memory(4, 100 * MEGABYTE);
    let jobs: Vec<_> = (0..40)
        .map(|_| site.submit_limited(&pool, "sleep:5", limits(60)))
        .collect();
    pool.close(false, false);
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values, 40, "{tally:?}");
    site.finish(pool);
}
