//! Workers that are read no further, because they yield and nobody takes their results.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, take_tokens, until, until_stats, worker_pids};
use crate::crash_table::site::Site;
use crate::crash_table::stream::Items;
use manyhands_runtime::{Cause, Pool};
use std::fmt::Display;
use std::time::Duration;

/// What a task yields at a time; so many of them fill what may wait, and one more ring.
const SIZE: usize = 10_000;
const FULL: usize = 1750;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "results nobody takes",
            "are read when somebody does",
            taken_late,
        ),
        scenario(
            "results nobody takes, worker killed",
            "one item lost, all results there",
            killed,
        ),
        scenario("results nobody takes, close", "all is read", closed),
        scenario(
            "results nobody takes, a future is polled",
            "it is done in the end",
            polled,
        ),
        scenario(
            "results nobody takes, a future is observed",
            "the observer is told",
            observed,
        ),
        scenario(
            "results nobody takes, another map",
            "it gets its results",
            another_stream,
        ),
        scenario(
            "results nobody takes, cancelled",
            "they are dropped, the worker goes on",
            cancelled,
        ),
        scenario(
            "results without end, cancelled",
            "the item ends, the worker goes on",
            endless_cancelled,
        ),
        scenario(
            "results without end, the pool is left",
            "what was there, then an error",
            endless_left,
        ),
    ]
}

fn yielding(count: impl Display) -> String {
    format!("yield:{count} {SIZE} echo:x")
}

/// A stream of which so much has come that its worker is read no further.
fn stalled(site: &Site, pool: &Pool) -> Items {
    stalled_by(site, pool, 2 * FULL, true)
}

/// The same, by an item that yields so often.
fn stalled_by(site: &Site, pool: &Pool, count: impl Display, ordered: bool) -> Items {
    let mut items = Items::new(ordered);
    let commands = [yielding(count), "echo:y".into(), "echo:z".into()];
    items.send(site, pool, &commands);
    // Before, a slow machine may have it stand still for a while.
    until(|| items.stream.unread() * SIZE >= 16 << 20);
    until_still(&items);
    let waiting = items.stream.unread() * SIZE;
    assert!((16 << 20..18 << 20).contains(&waiting), "{waiting} bytes");
    items
}

/// Waits until nothing more comes.
fn until_still(items: &Items) {
    let mut before = 0;
    until(|| {
        std::thread::sleep(Duration::from_millis(30));
        let unread = items.stream.unread();
        unread > 0 && std::mem::replace(&mut before, unread) == unread
    });
}

fn taken_late(site: &Site) {
    let pool = site.pool(1);
    let mut items = stalled(site, &pool);
    assert_eq!(items.settle(site, &pool).values, 3);
    let mut items = stalled(site, &pool);
    items.take();
    assert_eq!(items.settle(site, &pool).values, 3);
    assert_eq!(site.finish(pool).late_wakes, 0);
}

fn killed(site: &Site) {
    let pool = site.pool(1);
    let never = format!("until:{}", site.path("never"));
    let mut items = Items::new(true);
    // The last results of the first item, and those of the next ones, stay in the ring.
    let mut commands = vec![yielding(16 * 1024 * 1024 / SIZE + 20)];
    commands.extend(["echo:a".into(), "echo:b".into(), never, "echo:c".into()]);
    items.send(site, &pool, &commands);
    until(|| items.runs_of(site, 3) == 1);
    until_still(&items);
    signal(worker_pids(&pool)[0], libc::SIGKILL);
    until_stats(&pool, |stats| stats.deaths == 1);
    let tally = items.settle(site, &pool);
    assert_eq!((tally.values, tally.died.len()), (4, 1), "{tally:?}");
    let (number, _, cause) = tally.died[0];
    assert_eq!(
        (number, cause),
        (items.number(3), Cause::Signal(libc::SIGKILL))
    );
    assert_eq!(site.finish(pool).deaths, 1);
}

fn closed(site: &Site) {
    let pool = site.pool(1);
    let mut items = stalled(site, &pool);
    pool.close(false, false);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    assert_eq!(items.settle(site, &pool).values, 3);
    site.finish_closed(pool);
}

fn polled(site: &Site) {
    let pool = site.pool(1);
    let mut items = stalled(site, &pool);
    let job = site.submit(&pool, "echo:behind");
    until(|| pool.poll(&job.task));
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    assert_eq!(items.settle(site, &pool).values, 3);
    site.finish(pool);
}

fn observed(site: &Site) {
    let pool = site.pool(1);
    let mut items = stalled(site, &pool);
    let job = site.submit(&pool, "echo:behind");
    assert!(pool.observe(&job.task, 5));
    assert_eq!(take_tokens(site.supervisor.completions(), 1), [5]);
    assert_eq!(items.settle(site, &pool).values, 3);
    site.finish(pool);
}

fn another_stream(site: &Site) {
    let pool = site.pool(1);
    let mut items = stalled(site, &pool);
    let mut others = Items::new(false);
    others.send(site, &pool, &["echo:a", "yield:3 5 echo:b"]);
    assert_eq!(others.settle(site, &pool).values, 2);
    assert_eq!(items.settle(site, &pool).values, 3);
    site.finish(pool);
}

fn endless_cancelled(site: &Site) {
    let pool = site.pool(1);
    for ordered in [true, false] {
        let items = stalled_by(site, &pool, "endless", ordered);
        items.stream.abandon();
        items.cancel(&pool);
        drop(items);
        let job = site.submit(&pool, "echo:behind");
        assert_eq!(site.settle(&pool, &[job]).values, 1);
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn endless_left(site: &Site) {
    let pool = site.pool(1);
    let mut items = stalled_by(site, &pool, "endless", true);
    items.expect_error(0, "no room");
    items.stream.leave(true);
    pool.close(false, false);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    let tally = items.settle(site, &pool);
    assert_eq!(tally.values, 3, "an error is one, too: {tally:?}");
    assert!(items.yielded(0) * SIZE > 16 << 20);
    site.finish_closed(pool);
}

/// Nobody will take these results any more.
fn cancelled(site: &Site) {
    let pool = site.pool(1);
    let items = stalled(site, &pool);
    items.cancel(&pool);
    items.stream.abandon();
    drop(items);
    let job = site.submit(&pool, "echo:behind");
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    site.finish(pool);
}
