//! Streams of items in blocks: deaths, cuts and thefts in their middle.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{
    cancel_waiting, signal, submit_blocker, submit_two_blockers, until, until_stats, warm,
    worker_pids,
};
use crate::crash_table::site::{LARGE, Site};
use crate::crash_table::stream::Items;
use manyhands_runtime::{Cause, Definition, Pool};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario("blocks", "every item ends once, in its place", all_kinds),
        scenario(
            "blocks, nobody waits",
            "all done, beyond the rings",
            nobody_waits,
        ),
        scenario(
            "blocks, the task area goes round",
            "every item ends once",
            area_goes_round,
        ),
        scenario(
            "the third item kills its worker",
            "it alone is lost, the rest once",
            third_kills,
        ),
        scenario(
            "every item kills its worker",
            "each death loses one item",
            every_kills,
        ),
        scenario(
            "an item that yields kills its worker",
            "what it yielded is there",
            yielding_kills,
        ),
        scenario(
            "a block's worker stops in an item",
            "the rest runs elsewhere",
            stops_in_an_item,
        ),
        scenario(
            "a block's worker is stopped, then killed",
            "at most one item lost",
            stopped_then_killed,
        ),
        scenario(
            "a block is cut, then its worker killed",
            "the running item lost",
            |site| cut_and_killed(site, false),
        ),
        scenario(
            "a block's worker is killed, then it is cut",
            "the running item lost",
            |site| cut_and_killed(site, true),
        ),
        scenario(
            "blocks, large definitions",
            "who needs them gets them",
            large_definitions,
        ),
        scenario(
            "blocks, large definitions, kills",
            "the running items lost",
            large_definitions_and_kills,
        ),
        scenario(
            "blocks that cannot be received",
            "their items fail, later ones run",
            unread,
        ),
        scenario(
            "statistics of a block",
            "the running item's index, and counts",
            statistics,
        ),
    ]
}

pub(crate) fn echoes(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("echo:{index}")).collect()
}

/// A block whose first items echo, whose next waits for a file, and whose last echo.
pub(crate) fn around(before: usize, command: &str, after: usize) -> Vec<String> {
    let mut commands = echoes(before);
    commands.push(command.to_owned());
    commands.extend(echoes(after));
    commands
}

/// Sends blocks of all kinds.
pub(crate) fn send_mixture(site: &Site, pool: &Pool, items: &mut Items) {
    for round in 0..6 {
        items.send(site, pool, &echoes(20));
        items.send(site, pool, &["error:as it should", "echo:", "big:0"]);
        items.send(
            site,
            pool,
            &["big:16384", "big:16385", "big:50000", "echo:"],
        );
        items.send(
            site,
            pool,
            &["yield:0 1 echo:", "yield:3 5 echo:", "echo:x"],
        );
        if round % 3 == 1 {
            items.send(site, pool, &["yield:3 20000 echo:", "yield:2 50000 error:"]);
            items.send_bytes(site, pool, LARGE + round);
            items.send_bytes(site, pool, 20_000 + round);
            items.send_single(site, pool, "yield:3 20000 echo:");
            items.send(site, pool, &[format!("big:{LARGE}"), "echo:".into()]);
        }
    }
    items.send(site, pool, &["sleep:20"]);
    items.send(site, pool, &echoes(1));
}

fn all_kinds(site: &Site) {
    let pool = site.pool(2);
    for round in 0..4 {
        let mut items = Items::new(round % 2 == 0);
        send_mixture(site, &pool, &mut items);
        assert_eq!(items.settle(site, &pool).values, items.len());
    }
    let stats = site.finish(pool);
    assert_eq!((stats.deaths, stats.late_wakes), (0, 0));
}

fn nobody_waits(site: &Site) {
    let pool = site.pool(2);
    let mut items = Items::new(true);
    for _ in 0..40 {
        items.send(site, &pool, &["big:40000"; 10]);
        items.send(site, &pool, &["big:10000"; 10]);
        items.send(site, &pool, &echoes(100));
    }
    until_stats(&pool, |stats| stats.pending == 0);
    items.take();
    assert_eq!(items.tally(&site.runs()).values, items.len());
    site.finish(pool);
}

fn area_goes_round(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let text = "x".repeat(1000);
    for ordered in [true, false] {
        let mut items = Items::new(ordered);
        for index in 0..60 {
            let commands: Vec<String> = (0..1 + index % 40)
                .map(|item| format!("echo:{index} {item} {text}"))
                .collect();
            items.send(site, &pool, &commands);
            if index % 7 == 0 {
                items.take_until(&pool, items.len() / 2);
            }
            if index % 5 == 0 {
                // Taking back makes room from the other end.
                let job = site.submit(&pool, "echo:between");
                cancel_waiting(&pool, &job.task);
            }
        }
        assert_eq!(items.settle(site, &pool).values, items.len());
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn third_kills(site: &Site) {
    for (round, ordered) in [true, false].into_iter().enumerate() {
        let pool = site.pool(1 + round);
        warm(site, &pool);
        let mut items = Items::new(ordered);
        items.send(site, &pool, &around(2, "kill:", 7));
        let tally = items.settle(site, &pool);
        assert_eq!((tally.values, tally.died.len()), (9, 1));
        let (number, pid, cause) = tally.died[0];
        assert_eq!(number, items.number(2));
        assert_eq!(cause, Cause::Signal(libc::SIGKILL));
        assert!(site.run_order().contains(&(number, pid)));
        site.assert_usable(&pool);
        pool.close(false, false);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        assert_eq!(pool.stats().deaths, 1);
        site.forget(pool);
    }
    site.finish(site.pool(1));
}

fn every_kills(site: &Site) {
    let pool = site.pool(2);
    let mut items = Items::new(true);
    items.send(site, &pool, &["kill:"; 15]);
    items.send(site, &pool, &around(0, "exit:3", 1));
    let tally = items.settle(site, &pool);
    assert_eq!((tally.values, tally.died.len()), (1, 16));
    assert_eq!(site.finish(pool).deaths, 16);
}

fn yielding_kills(site: &Site) {
    let pool = site.pool(1);
    for size in [10, 20_000, 60_000] {
        let mut items = Items::new(true);
        items.send(site, &pool, &around(2, &format!("yield:3 {size} kill:"), 2));
        let tally = items.settle(site, &pool);
        assert_eq!((tally.values, tally.died.len()), (4, 1));
        assert_eq!(items.yielded(2), 3);
    }
    assert_eq!(site.finish(pool).deaths, 3);
}

fn stops_in_an_item(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut items = Items::new(false);
    items.send(site, &pool, &around(50, "stop:", 150));
    items.send(site, &pool, &echoes(50));
    items.take_until(&pool, 250);
    assert!(!items.has_ended(50));
    let stopped = items.number(50);
    let order = site.run_order();
    let (_, pid) = order.iter().find(|(number, _)| *number == stopped).unwrap();
    signal(*pid, libc::SIGCONT);
    assert_eq!(items.settle(site, &pool).values, 251);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn stopped_then_killed(site: &Site) {
    let pool = site.pool(2);
    let mut lost = 0;
    for round in 0..12 {
        warm(site, &pool);
        let mut items = Items::new(round % 2 == 0);
        let mut commands = echoes(400);
        commands.push("sleep:2".into());
        commands.extend(echoes(100));
        items.send(site, &pool, &commands);
        std::thread::sleep(Duration::from_micros(300 * round));
        let pid = worker_pids(&pool)[0];
        let ordered = round % 2 == 0;
        if ordered {
            // Nothing can come in order while a worker stands still in the first item.
            items.take_until(&pool, 1);
        }
        signal(pid, libc::SIGSTOP);
        if !ordered {
            items.take_until(&pool, 100);
        }
        signal(pid, libc::SIGKILL);
        let tally = items.settle(site, &pool);
        assert!(tally.died.len() <= 1, "{tally:?}");
        assert_eq!(tally.values + tally.died.len(), items.len());
        lost += tally.died.len();
        until_stats(&pool, |stats| stats.deaths > round);
    }
    println!("{lost} items lost with 12 workers");
    assert_eq!(site.finish(pool).deaths, 12);
}

/// One worker is busy, the other is in the middle of a block. Then the first becomes free, which has
/// the block cut, and the other one is killed: a little later, or a little before.
fn cut_and_killed(site: &Site, killed_first: bool) {
    let pool = site.pool(2);
    for round in 0..8 {
        warm(site, &pool);
        let (go, never) = (format!("go{round}"), site.path("never"));
        let blocker = submit_blocker(site, &pool, &go);
        let mut items = Items::new(round % 2 == 0);
        let commands = around(10, &format!("until:{never}"), 100);
        items.send(site, &pool, &commands);
        until(|| items.runs_of(site, 10) == 1);
        let running = items.number(10);
        let order = site.run_order();
        let (_, pid) = order.iter().find(|(number, _)| *number == running).unwrap();
        if killed_first {
            signal(*pid, libc::SIGKILL);
            site.touch(&go);
        } else {
            site.touch(&go);
            std::thread::sleep(Duration::from_micros(200 * round));
            signal(*pid, libc::SIGKILL);
        }
        let tally = items.settle(site, &pool);
        assert_eq!((tally.values, tally.died.len()), (110, 1), "{tally:?}");
        assert_eq!(tally.died[0].0, running);
        assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    }
    assert_eq!(site.finish(pool).deaths, 8);
}

/// A definition that travels by a message file, with one that it needs.
fn large_definition(seed: u8) -> std::sync::Arc<Definition> {
    let base = Definition::new("base", Box::from(&b"base"[..]), Box::from([]));
    Definition::new("large", vec![seed; 70_000].into(), Box::from([base]))
}

fn large_definitions(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut streams: Vec<Items> = (0..12)
        .map(|seed| Items::of(Some(large_definition(seed)), seed % 2 == 0))
        .collect();
    for round in 0..4 {
        let blockers = submit_two_blockers(site, &pool, &format!("go{round}"));
        for items in &mut streams {
            items.send(site, &pool, &["define:a", "define:b", "define:c"]);
        }
        // What carries definitions is taken back, and goes out anew.
        for items in streams.iter().take(round) {
            items.cancel(&pool);
        }
        site.touch(&format!("go{round}"));
        assert_eq!(site.settle(&pool, &blockers).values, 2);
        for items in &mut streams {
            items.take_until(&pool, items.len());
        }
    }
    let runs = site.runs();
    let (mut values, mut cancelled) = (0, 0);
    for items in &mut streams {
        let tally = items.tally(&runs);
        assert_eq!(tally.cancelled_runs, 0);
        values += tally.values;
        cancelled += tally.cancelled;
    }
    // The first was cancelled in three rounds, the second in two, the third in one.
    assert_eq!((values, cancelled), (144 - 18, 18));
    assert_eq!(site.finish(pool).deaths, 0);
}

fn large_definitions_and_kills(site: &Site) {
    let pool = site.pool(2);
    let mut streams: Vec<Items> = (0..10)
        .map(|seed| Items::of(Some(large_definition(seed)), true))
        .collect();
    for items in &mut streams {
        items.send(site, &pool, &["define:a", "define:b", "kill:", "define:c"]);
        items.send(site, &pool, &["define:d"]);
    }
    for items in &mut streams {
        let tally = items.settle(site, &pool);
        assert_eq!((tally.values, tally.died.len()), (4, 1), "{tally:?}");
    }
    assert_eq!(site.finish(pool).deaths, 10);
}

/// The worker may open no descriptor, so what travels by a message file does not arrive.
fn unread(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let definition = large_definition(1);
    let tight = site.submit(&pool, "limit:0");
    assert_eq!(site.settle(&pool, &[tight]).values, 1);
    let mut lost = Items::of(Some(definition.clone()), true);
    lost.send(site, &pool, &["define:a", "define:b", "define:c"]);
    lost.send_bytes(site, &pool, LARGE);
    lost.expect_unread();
    assert_eq!(lost.settle(site, &pool).values, 4);
    let wide = site.submit(&pool, "limit:200");
    assert_eq!(site.settle(&pool, &[wide]).values, 1);
    // The definition travels again.
    let mut items = Items::of(Some(definition), true);
    items.send(site, &pool, &["define:a", "define:b"]);
    items.send_bytes(site, &pool, LARGE);
    assert_eq!(items.settle(site, &pool).values, 3);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn statistics(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let until_go = format!("until:{}", site.path("go"));
    let mut items = Items::new(true);
    items.send(site, &pool, &echoes(5));
    items.send(site, &pool, &around(7, &until_go, 3));
    items.send(site, &pool, &echoes(4));
    until(|| items.runs_of(site, 12) == 1);
    // Whether results were taken or not, the index is that of the item that runs.
    let stats = pool.stats();
    let worker = &stats.workers[0];
    assert_eq!(worker.task_index, Some(12), "{stats:?}");
    items.take_until(&pool, 12);
    let stats = pool.stats();
    let worker = &stats.workers[0];
    assert_eq!(worker.task_index, Some(12), "{stats:?}");
    assert_eq!(worker.waiting + stats.queued, 7, "{stats:?}");
    assert_eq!((worker.done, stats.done, stats.pending), (52, 52, 8));
    site.touch("go");
    assert_eq!(items.settle(site, &pool).values, 20);
    let stats = pool.stats();
    assert_eq!((stats.done, stats.pending, stats.queued), (60, 0, 0));
    assert_eq!(stats.workers[0].task_index, None);
    site.finish(pool);
}
