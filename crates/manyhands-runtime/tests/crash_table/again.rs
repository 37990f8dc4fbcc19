//! Tasks that run again.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{until, until_stats, wait, warm};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::storms::{Kills, Random, kill_workers};
use manyhands_runtime::{Limits, Outcome, Pool, Retry};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MILLISECOND: u64 = 1_000_000;
const HOUR: u64 = 3_600_000 * MILLISECOND;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "tasks that fail run again",
            "as often as they may, others once",
            failures,
        ),
        scenario(
            "tasks that kill their workers run again",
            "as often as they may, others once",
            deaths,
        ),
        scenario("time is up, runs again", "each run gets its time", timeouts),
        scenario(
            "cancelled before it runs again",
            "it is cancelled at once",
            cancelled,
        ),
        scenario(
            "closed before a task runs again",
            "it is cancelled at once",
            closed_early,
        ),
        scenario(
            "closed, and a task runs again",
            "the pool waits for it",
            closed_late,
        ),
        scenario(
            "cancelled while it fails",
            "no run begins after the close",
            closed_while_it_fails,
        ),
        scenario(
            "storm: tasks run again, workers killed",
            "all return",
            kills,
        ),
    ]
}

fn retry(failures: u32, deaths: u32, backoff: u64) -> Arc<Retry> {
    Arc::new(Retry {
        failures,
        deaths,
        timeouts: true,
        memory: true,
        backoff,
        longest: HOUR,
        jitter: 0.5,
        policy: None,
    })
}

/// Tasks that fail, that kill their workers and that take too long, and run again, at once or after a
/// pause.
pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = Vec::new();
    let limits = Limits {
        time: Some(20 * MILLISECOND),
        grace: 0,
        ..Limits::default()
    };
    let never = format!("until:{}", site.path("never"));
    for backoff in [0, MILLISECOND] {
        let often = retry(3, 5, backoff);
        for command in ["fail_until:2", "fail_until:3", "die_until:2"] {
            jobs.push(site.submit_again(pool, command, Limits::default(), &often));
            jobs.extend(site.submit_echoes(pool, 5));
        }
        let once_more = retry(1, 5, backoff);
        jobs.push(site.submit_again(pool, &never, limits, &once_more));
    }
    jobs
}

/// How many of these their time ends.
pub(crate) const TIMED_OUT: usize = 2;

fn failures(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut jobs = Vec::new();
    for backoff in [0, MILLISECOND] {
        let retry = retry(2, 0, backoff);
        for run in 1..=4 {
            let command = format!("fail_until:{run}");
            jobs.push(site.submit_again(&pool, &command, Limits::default(), &retry));
            jobs.extend(site.submit_echoes(&pool, 20));
        }
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.failed), (166, 2), "{tally:?}");
    let runs = jobs.iter().step_by(21).map(|job| site.runs_of(job));
    assert_eq!(runs.collect::<Vec<_>>(), [1, 2, 3, 3, 1, 2, 3, 3]);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn deaths(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let retry = retry(0, 2, MILLISECOND);
    let mut jobs = Vec::new();
    for run in 1..=4 {
        let command = format!("die_until:{run}");
        jobs.push(site.submit_again(&pool, &command, Limits::default(), &retry));
        jobs.extend(site.submit_echoes(&pool, 20));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.died.len()), (83, 1), "{tally:?}");
    let Some(Outcome::Died {
        attempts, deaths, ..
    }) = jobs[63].task.outcome()
    else {
        panic!("{:?}", jobs[63].task.outcome());
    };
    assert_eq!(*attempts, 3);
    let pids: HashSet<_> = deaths.all().map(|death| death.pid).collect();
    assert_eq!(pids.len(), 3, "{deaths:?}");
    assert!(
        deaths.all().all(|death| death.cause == deaths.last.cause),
        "{deaths:?}"
    );
    site.assert_usable(&pool);
    until_stats(&pool, |stats| stats.deaths == 6);
    site.finish(pool);
}

fn timeouts(site: &Site) {
    let pool = site.pool(2);
    let limits = Limits {
        time: Some(20 * MILLISECOND),
        grace: 0,
        ..Limits::default()
    };
    let never = format!("until:{}", site.path("never"));
    let job = site.submit_again(&pool, &never, limits, &retry(2, 0, 0));
    let tally = site.settle(&pool, std::slice::from_ref(&job));
    assert_eq!((tally.timed_out, site.runs_of(&job)), (1, 3));
    assert_eq!(site.finish(pool).deaths, 0);
}

/// A task that has failed once, and runs again in an hour.
fn submit_delayed(site: &Site, pool: &Pool) -> Job {
    let job = site.submit_again(
        pool,
        "fail_until:2",
        Limits::default(),
        &retry(1, 0, 2 * HOUR),
    );
    until(|| site.runs_of(&job) == 1);
    site.assert_usable(pool);
    job
}

fn cancelled(site: &Site) {
    let pool = site.pool(1);
    let job = submit_delayed(site, &pool);
    assert!(pool.cancel(&job.task));
    assert_eq!(site.settle(&pool, &[job]).cancelled, 1);
    let another = submit_delayed(site, &pool);
    pool.cancel_all(std::slice::from_ref(&another.task));
    assert_eq!(site.settle(&pool, &[another]).cancelled, 1);
    site.finish(pool);
}

fn closed_early(site: &Site) {
    for kill in [false, true] {
        let pool = site.pool(1);
        let job = submit_delayed(site, &pool);
        pool.close(true, kill);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        assert_eq!(site.tally(&[job]).cancelled, 1);
        site.forget(pool);
    }
    let pool = site.pool(1);
    site.finish(pool);
}

fn closed_late(site: &Site) {
    let pool = site.pool(1);
    let retry = retry(2, 0, 50 * MILLISECOND);
    let job = site.submit_again(&pool, "fail_until:3", Limits::default(), &retry);
    pool.close(false, false);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    assert_eq!(site.tally(&[job]).values, 1);
    site.finish_closed(pool);
}

fn closed_while_it_fails(site: &Site) {
    let mut random = Random::new(200);
    for _ in 0..20 {
        let pool = site.pool(1);
        let retry = retry(u32::MAX, 0, 0);
        let job = site.submit_again(&pool, "fail_until:255", Limits::default(), &retry);
        until(|| site.runs_of(&job) > 0);
        random.pause(2000);
        pool.close(true, false);
        wait(&pool, &job.task);
        let runs = site.runs_of(&job);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        assert_eq!(site.runs_of(&job), runs);
        site.forget(pool);
    }
    let pool = site.pool(1);
    site.finish(pool);
}

fn kills(site: &Site) {
    let pool = site.pool(2);
    let retry = retry(2, u32::MAX, 0);
    let killed = Mutex::new(Kills::default());
    let over = AtomicBool::new(false);
    let mut jobs = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            kill_workers(&pool, &mut Random::new(201), &killed);
            over.store(true, Ordering::SeqCst);
        });
        while !over.load(Ordering::SeqCst) {
            let first = jobs.len();
            for run in 1..=3 {
                let command = format!("fail_until:{run}");
                jobs.push(site.submit_again(&pool, &command, Limits::default(), &retry));
            }
            wait(&pool, &jobs[first.saturating_sub(90)].task);
        }
    });
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values + tally.failed, jobs.len(), "{tally:?}");
    assert_eq!(tally.failed, 0, "a death is no failure");
    site.assert_usable(&pool);
    site.finish(pool);
}
