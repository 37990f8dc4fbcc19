//! Tasks and items that are ended while they run. Workers here do not listen when they are asked, but
//! at the next result that they yield.

use crate::crash_table::blocks::around;
use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, submit_blocker, until, wait, warm, worker_pids};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::stream::Items;
use crate::crash_table::worker::SLOW_REPORT;
use manyhands_runtime::{Limits, Outcome, Pool};
use std::ops::RangeInclusive;
use std::time::Duration;

const MILLISECOND: u64 = 1_000_000;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "time is up",
            "that task alone ends, its worker is killed",
            time_is_up,
        ),
        scenario(
            "time is up, ends by itself",
            "its result is dropped, the worker goes on",
            ends_by_itself,
        ),
        scenario(
            "time is up in a block",
            "those items alone, the others once",
            items_of_a_block,
        ),
        scenario(
            "time is up while results are yielded",
            "those until then, then that",
            yields_for_too_long,
        ),
        scenario(
            "limits that equal the durations",
            "each ends once, nobody else is hit",
            limits_that_equal_the_durations,
        ),
        scenario(
            "cancel what runs",
            "its worker is killed, what waits runs elsewhere",
            cancel_what_runs,
        ),
        scenario(
            "time is up, it listens",
            "it ends when it is asked",
            it_listens,
        ),
        scenario(
            "cancel before the pool knows its worker",
            "it is asked as soon as it does",
            asked_late,
        ),
        scenario(
            "cancel at any instant",
            "cancelled or done, nobody else is hit",
            cancel_at_any_instant,
        ),
        scenario(
            "cancel, then the worker dies",
            "it is cancelled, the rest runs once",
            cancelled_and_killed,
        ),
        scenario("cancel, then close", "the pool ends", cancelled_and_closed),
        scenario(
            "a worker stands still, time is up",
            "it is killed",
            stands_still,
        ),
    ]
}

fn limits(milliseconds: u64, grace: u64) -> Limits {
    Limits {
        time: Some(milliseconds * MILLISECOND),
        grace: grace * MILLISECOND,
        ..Limits::default()
    }
}

fn never(site: &Site) -> String {
    format!("until:{}", site.path("never"))
}

/// Tasks that are ended while they run, by their time or by who cancels them, when they hear it or with their
/// worker, among such that end by themselves. Where
/// there is one worker it runs the first two.
pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let limited = |command: &str, limits| site.submit_limited(pool, command, limits);
    let mut jobs = Vec::new();
    for _ in 0..2 {
        jobs.push(limited("listen:0", limits(10, 60_000)));
    }
    jobs.extend(site.submit_echoes(pool, 10));
    for (command, grace) in [("listen:0", 60_000), (&*never(site), 0)] {
        let unlimited = Limits {
            grace: grace * MILLISECOND,
            ..Limits::default()
        };
        let job = limited(command, unlimited);
        // It is done if it was lost.
        until(|| site.runs_of(&job) == 1 || job.task.is_done());
        pool.cancel(&job.task);
        jobs.push(job);
        jobs.extend(site.submit_echoes(pool, 10));
    }
    jobs.push(limited(&never(site), limits(10, 0)));
    jobs.push(limited("listen:0", limits(10, 60_000)));
    jobs.push(limited(&never(site), limits(5, 10)));
    jobs.extend(site.submit_echoes(pool, 10));
    jobs
}

/// The same as items in the midst of others, whose time may be up, too.
pub(crate) fn submit_streams(site: &Site, pool: &Pool) -> Vec<Items> {
    let mut hears = Items::limited(true, limits(50, 60_000));
    hears.send(site, pool, &around(5, "listen:0", 5));
    let mut is_killed = Items::limited(false, limits(50, 0));
    is_killed.send(site, pool, &around(5, &never(site), 5));
    vec![hears, is_killed]
}

/// How many of the tasks their time ends, and how many are cancelled.
pub(crate) const TIMED_OUT: usize = 5;
pub(crate) const CANCELLED: usize = 2;
/// How many of the items their time must end, and how many it may.
pub(crate) const TIMED_OUT_ITEMS: RangeInclusive<usize> = 2..=22;

fn time_is_up(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut jobs = vec![site.submit_limited(&pool, &never(site), limits(20, 10))];
    jobs.extend(site.submit_echoes(&pool, 100));
    jobs.push(site.submit_limited(&pool, &never(site), limits(5, 0)));
    jobs.extend(
        (0..100).map(|i| site.submit_limited(&pool, &format!("echo:{i}"), limits(5000, 0))),
    );
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.timed_out), (200, 2), "{tally:?}");
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 0, "nobody's fault");
}

fn ends_by_itself(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let pids = worker_pids(&pool);
    let late = site.submit_limited(&pool, "sleep:60", limits(10, 60_000));
    let large = site.submit_limited(&pool, "big:3000000", limits(60_000, 0));
    let behind = site.submit(&pool, "echo:behind");
    let tally = site.settle(&pool, &[late, large, behind]);
    assert_eq!((tally.values, tally.timed_out), (2, 1), "{tally:?}");
    assert_eq!(worker_pids(&pool), pids);
    site.finish(pool);
}

fn items_of_a_block(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    for ordered in [true, false] {
        // What is short has to be so on a busy machine, too.
        let mut items = Items::limited(ordered, limits(200, 5));
        items.send(site, &pool, &around(30, &never(site), 30));
        items.send(site, &pool, &around(0, &never(site), 3));
        items.send_single(site, &pool, &never(site));
        items.send(site, &pool, &around(3, &never(site), 0));
        let tally = items.settle(site, &pool);
        assert_eq!((tally.values, tally.timed_out), (66, 4), "{tally:?}");
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn yields_for_too_long(site: &Site) {
    let pool = site.pool(1);
    let mut items = Items::limited(true, limits(60, 60_000));
    items.send(
        site,
        &pool,
        &["echo:a", "yield:endless 10 error:no", "echo:b"],
    );
    let tally = items.settle(site, &pool);
    assert_eq!((tally.values, tally.timed_out), (2, 1), "{tally:?}");
    assert!(items.yielded(1) > 0);
    let stats = site.finish(pool);
    assert!(stats.workers.iter().all(|worker| worker.restarts == 0));
}

fn limits_that_equal_the_durations(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut jobs = Vec::new();
    for _ in 0..400 {
        jobs.push(site.submit_limited(&pool, "sleep:2", limits(2, 60_000)));
        jobs.push(site.submit(&pool, "echo:other"));
    }
    let mut items = Items::limited(false, limits(2, 0));
    items.send(site, &pool, &["sleep:2"; 50]);
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values + tally.timed_out, 800, "{tally:?}");
    assert!(tally.values >= 400);
    let of_items = items.settle(site, &pool);
    assert_eq!(of_items.values + of_items.timed_out, 50, "{of_items:?}");
    println!(
        "{} and {} took too long",
        tally.timed_out, of_items.timed_out
    );
    assert_eq!(site.finish(pool).deaths, 0);
}

fn it_listens(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let pids = worker_pids(&pool);
    let jobs = [
        site.submit_limited(&pool, "listen:0", limits(10, 60_000)),
        site.submit_limited(&pool, "listen:0", limits(1, 60_000)),
        // It was in the wrong place when it was asked before.
        site.submit_limited(&pool, "listen:3", limits(1, 60_000)),
    ];
    assert_eq!(site.settle(&pool, &jobs).timed_out, 3);
    assert_eq!(worker_pids(&pool), pids);
    site.finish(pool);
}

fn asked_late(site: &Site) {
    site.launch_with(&[(SLOW_REPORT, "100")]);
    let pool = site.pool(1);
    let patient = Limits {
        time: None,
        grace: 60_000 * MILLISECOND,
        ..Limits::default()
    };
    let job = site.submit_limited(&pool, "listen:0", patient);
    until(|| site.runs_of(&job) == 1);
    assert!(pool.cancel(&job.task));
    let behind = site.submit(&pool, "echo:behind");
    assert_eq!(site.settle(&pool, &[behind]).values, 1);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn is_cancelled(job: &Job) -> bool {
    matches!(job.task.outcome(), Some(Outcome::Cancelled))
}

fn cancel_what_runs(site: &Site) {
    let pool = site.pool(1);
    for _ in 0..3 {
        let running = site.submit(&pool, &never(site));
        until(|| site.runs_of(&running) == 1);
        let behind: Vec<Job> = (0..20).map(|_| site.submit(&pool, "echo:behind")).collect();
        assert!(pool.cancel(&running.task) && is_cancelled(&running));
        assert!(pool.cancel(&running.task), "once more is no harm");
        assert_eq!(site.settle(&pool, &behind).values, 20);
        assert!(!pool.cancel(&behind[0].task));
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn cancel_at_any_instant(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut cancelled = 0;
    for round in 0..200 {
        let job = site.submit_limited(
            &pool,
            "sleep:1",
            Limits {
                time: None,
                grace: 60_000 * MILLISECOND,
                ..Limits::default()
            },
        );
        let others: Vec<Job> = (0..3).map(|_| site.submit(&pool, "echo:other")).collect();
        std::thread::sleep(Duration::from_micros(round * 10));
        let ended = pool.cancel(&job.task);
        assert_eq!(ended, is_cancelled(&job));
        cancelled += usize::from(ended);
        assert_eq!(site.settle(&pool, &others).values, 3);
        let tally = site.settle(&pool, &[job]);
        assert_eq!(
            (tally.values, tally.cancelled),
            (usize::from(!ended), usize::from(ended))
        );
    }
    println!("{cancelled} of 200 cancelled");
    assert_eq!(site.finish(pool).deaths, 0);
}

fn cancelled_and_killed(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let grace = Limits {
        time: None,
        grace: 60_000 * MILLISECOND,
        ..Limits::default()
    };
    let running = site.submit_limited(&pool, &never(site), grace);
    until(|| site.runs_of(&running) == 1);
    let order = site.run_order();
    let (_, pid) = *order
        .iter()
        .find(|(number, _)| *number == running.number)
        .unwrap();
    let jobs: Vec<Job> = (0..50).map(|_| site.submit(&pool, "echo:x")).collect();
    assert!(pool.cancel(&running.task));
    signal(pid, libc::SIGKILL);
    assert_eq!(site.settle(&pool, &jobs).values, 50);
    assert_eq!(site.settle(&pool, &[running]).cancelled, 1);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn cancelled_and_closed(site: &Site) {
    let pool = site.pool(2);
    let blocker = submit_blocker(site, &pool, "go");
    let running = site.submit(&pool, &never(site));
    until(|| site.runs_of(&running) == 1);
    let behind = site.submit(&pool, "echo:behind");
    assert!(pool.cancel(&running.task));
    pool.close(false, false);
    site.touch("go");
    wait(&pool, &blocker.task);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    assert_eq!(site.settle(&pool, &[behind, blocker]).values, 2);
    site.finish_closed(pool);
}

fn stands_still(site: &Site) {
    let pool: std::sync::Arc<Pool> = site.pool(1);
    let job = site.submit_limited(&pool, &never(site), limits(100, 10));
    until(|| site.runs_of(&job) == 1);
    signal(worker_pids(&pool)[0], libc::SIGSTOP);
    let behind = site.submit(&pool, "echo:behind");
    let tally = site.settle(&pool, &[job, behind]);
    assert_eq!((tally.values, tally.timed_out), (1, 1), "{tally:?}");
    site.finish(pool);
}
