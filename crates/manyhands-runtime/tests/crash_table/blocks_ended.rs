//! Streams of items in blocks that are cancelled, or whose pool ends.

use crate::crash_table::blocks::{around, echoes, send_mixture};
use crate::crash_table::case::Case;
use crate::crash_table::helpers::{
    cancel_waiting, submit_blocker, submit_two_blockers, until, warm,
};
use crate::crash_table::site::{LARGE, Site};
use crate::crash_table::stream::Items;
use crate::crash_table::worker::SLOW_FORK;
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "cancel a stream",
            "what runs ends, the rest never runs",
            cancelling,
        ),
        scenario(
            "cancel a stream again and again",
            "cancelled items never run",
            cancelling_often,
        ),
        scenario(
            "cancel a stream, kill what runs",
            "no other item is hit",
            killing,
        ),
        scenario(
            "cancel tasks among blocks",
            "cancelled tasks never run, items once",
            cancelling_tasks,
        ),
        scenario("blocks in a pool that breaks", "all end with that", broken),
        scenario(
            "blocks, initializer fails",
            "all end with that error",
            initializer_fails,
        ),
        scenario("close, cancel, blocks", "what runs ends", close_with_cancel),
        scenario(
            "close, kill, blocks",
            "nothing runs any more",
            close_with_kill,
        ),
        scenario("close, blocks", "all run first", close),
    ]
}

fn cancelling(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    for ordered in [true, false] {
        let file = format!("go{ordered}");
        let until_go = format!("until:{}", site.path(&file));
        let mut items = Items::new(ordered);
        items.send(site, &pool, &around(5, &until_go, 44));
        for _ in 0..4 {
            items.send(site, &pool, &echoes(50));
        }
        until(|| items.runs_of(site, 5) == 1);
        items.take_until(&pool, 5);
        items.cancel(&pool);
        items.cancel(&pool);
        let other = site.submit(&pool, "echo:behind");
        site.touch(&file);
        items.settle(site, &pool).assert_cancelled(6, 244);
        assert_eq!(site.settle(&pool, &[other]).values, 1);
    }
    let stats = site.finish(pool);
    assert_eq!(stats.done, 40 + 2 * 251);
}

/// At any instant, in one worker or two, after thefts and without.
fn cancelling_often(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let (mut values, mut cancelled) = (0, 0);
    for round in 0..60 {
        let mut items = Items::new(round % 2 == 0);
        let mut kept = Items::new(round % 3 == 0);
        for _ in 0..3 {
            items.send(site, &pool, &echoes(40));
            kept.send(site, &pool, &echoes(10));
            items.send(site, &pool, &["sleep:1", "yield:3 5 echo:", "echo:"]);
        }
        std::thread::sleep(Duration::from_micros(40 * round));
        if round % 4 == 0 {
            items.take();
        }
        items.cancel(&pool);
        let tally = items.settle(site, &pool);
        assert_eq!(tally.cancelled_runs, 0);
        assert_eq!(tally.values + tally.cancelled, items.len());
        values += tally.values;
        cancelled += tally.cancelled;
        assert_eq!(kept.settle(site, &pool).values, 30);
    }
    println!("{values} values, {cancelled} cancelled");
    assert_eq!(site.finish(pool).deaths, 0);
}

/// Both workers run an item of the stream, with items of others behind; at any instant.
fn killing(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let never = format!("until:{}", site.path("never"));
    for round in 0..20 {
        let mut items = Items::new(round % 2 == 0);
        let mut kept = Items::new(round % 3 == 0);
        items.send(site, &pool, &around(5, &never, 20));
        kept.send(site, &pool, &echoes(30));
        items.send_single(site, &pool, &never);
        kept.send(site, &pool, &echoes(30));
        let other = site.submit(&pool, "echo:behind");
        std::thread::sleep(Duration::from_micros(200 * round));
        items.kill(&pool);
        let tally = items.settle(site, &pool);
        assert_eq!(tally.values + tally.cancelled, items.len());
        assert!(tally.died.is_empty() && tally.cancelled_runs <= 2);
        assert_eq!(kept.settle(site, &pool).values, 60);
        assert_eq!(site.settle(&pool, &[other]).values, 1);
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn cancelling_tasks(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let blocker = submit_blocker(site, &pool, "go");
    let mut items = Items::new(true);
    let mut jobs = Vec::new();
    for _ in 0..20 {
        items.send(site, &pool, &echoes(20));
        jobs.push(site.submit(&pool, "echo:between"));
    }
    for job in jobs.iter().rev().step_by(2) {
        // All that is behind is taken back with it, and goes out again.
        assert!(cancel_waiting(&pool, &job.task));
    }
    site.touch("go");
    assert_eq!(items.settle(site, &pool).values, 400);
    site.settle(&pool, &jobs).assert_cancelled(10, 10);
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn broken(site: &Site) {
    site.launch_with(&[(SLOW_FORK, "20")]);
    site.always_crash_at("worker.started");
    let pool = site.pool(2);
    let mut streams = [Items::new(true), Items::new(false)];
    for items in &mut streams {
        items.send(site, &pool, &echoes(50));
        items.send_bytes(site, &pool, LARGE);
        items.send(site, &pool, &echoes(50));
    }
    for items in &mut streams {
        assert_eq!(items.settle(site, &pool).broken, 101);
    }
    site.finish(pool);
}

fn initializer_fails(site: &Site) {
    let pool = site.pool_with(2, Some("error:no database"));
    let mut items = Items::new(true);
    items.send(site, &pool, &echoes(50));
    assert_eq!(items.settle(site, &pool).broken, 50);
    site.finish(pool);
}

fn close_with_cancel(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let blockers = submit_two_blockers(site, &pool, "go");
    let mut streams = [Items::new(true), Items::new(false)];
    for items in &mut streams {
        for _ in 0..30 {
            items.send(site, &pool, &echoes(100));
        }
    }
    pool.close(true, false);
    for items in &mut streams {
        items.settle(site, &pool).assert_cancelled(0, 3000);
    }
    site.touch("go");
    assert_eq!(site.settle(&pool, &blockers).values, 2);
    assert_eq!(site.finish_closed(pool).deaths, 0);
}

fn close_with_kill(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let mut items = Items::new(true);
    let until_never = format!("until:{}", site.path("never"));
    items.send(site, &pool, &around(10, &until_never, 20));
    items.send(site, &pool, &echoes(20));
    until(|| items.runs_of(site, 10) == 1);
    pool.close(false, true);
    let tally = items.settle(site, &pool);
    assert_eq!((tally.values, tally.cancelled), (10, 41), "{tally:?}");
    assert_eq!(tally.cancelled_runs, 1);
    site.finish_closed(pool);
}

fn close(site: &Site) {
    let pool = site.pool(2);
    let mut items = Items::new(false);
    send_mixture(site, &pool, &mut items);
    pool.close(false, false);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    assert_eq!(items.tally(&site.runs()).values, items.len());
    assert_eq!(site.finish_closed(pool).deaths, 0);
}
