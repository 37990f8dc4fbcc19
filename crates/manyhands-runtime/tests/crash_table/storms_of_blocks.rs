//! As `storms`, with streams of items in blocks among the tasks.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{cancel_waiting, until, wait};
use crate::crash_table::site::{LARGE, Site};
use crate::crash_table::storms::{
    Kills, Random, check_losses, definitions, finish_after_kills, in_three_threads, kill_one,
    kill_self_soon, kill_workers, parent_killed_cases, stop_workers, submit_any, times,
    while_it_storms,
};
use crate::crash_table::stream::Items;
use crate::crash_table::tally::Tally;
use manyhands_runtime::{Definition, Pool};
use std::sync::{Arc, Mutex};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::scenario(
            "storm of blocks: 300 workers killed",
            "at most one item lost per kill, none twice",
            kills,
        ),
        Case::scenario(
            "storm of blocks: workers stopped",
            "every item runs once",
            stops,
        ),
        Case::scenario(
            "storm of blocks: cancels and kills",
            "cancelled items never run",
            cancels,
        ),
        Case::scenario(
            "storm of blocks: closes and kills",
            "nothing is left of 40 pools",
            closes,
        ),
        Case::scenario(
            "storm of blocks: three threads and kills",
            "each gets its results",
            threads,
        ),
    ];
    cases.extend(parent_killed_cases(
        "storm of blocks",
        "no process left, no item run twice",
        3,
        parent_killed,
    ));
    cases
}

fn any_command(random: &mut Random) -> String {
    match random.below(100) {
        0..80 => format!("echo:{}", random.below(1000)),
        80..84 => format!("sleep:{}", random.below(3)),
        84..88 => format!("big:{}", random.below(20_000)),
        88..90 => format!("big:{}", random.below(80_000)),
        90..97 => format!("yield:{} {} echo:x", random.below(5), random.below(20_000)),
        _ => "error:as it should".into(),
    }
}

/// Sends a block or two to a stream of no definition, or one to one with.
fn send_any(site: &Site, pool: &Pool, random: &mut Random, items: &mut Items) {
    if items.stream.options.definition.is_some() {
        let commands = vec!["define:x"; 1 + random.below(40) as usize];
        items.send(site, pool, &commands);
        return;
    }
    let commands: Vec<String> = (0..1 + random.below(60))
        .map(|_| any_command(random))
        .collect();
    items.send(site, pool, &commands);
    match random.below(40) {
        0 => items.send_bytes(site, pool, LARGE + random.below(2) as usize),
        1..4 => items.send_bytes(site, pool, 17_000 + random.below(80_000) as usize),
        4..6 => items.send_single(site, pool, "yield:3 30000 echo:"),
        _ => {}
    }
}

fn any_stream(random: &mut Random, definitions: &[Arc<Definition>]) -> Items {
    let definition = (random.below(3) == 0)
        .then(|| definitions[random.below(definitions.len() as u64) as usize].clone());
    Items::of(definition, random.below(2) == 0)
}

/// How all items of the streams ended, and how many there are.
fn tally_items(site: &Site, streams: &mut [Items]) -> (Tally, usize) {
    let (runs, mut tally) = (site.runs(), Tally::default());
    for items in streams.iter_mut() {
        tally.merge(items.tally(&runs));
    }
    (tally, streams.iter().map(Items::len).sum())
}

/// Keeps blocks and tasks on their way while `storm` runs in another thread; gives how all ended, and
/// how many there were.
fn under_load(
    site: &Site,
    pool: &Pool,
    salt: u64,
    storm: impl FnOnce(&mut Random) + Send,
) -> (Tally, usize) {
    let (mut all, mut jobs) = (Vec::new(), Vec::new());
    while_it_storms(salt, storm, |random, definitions| {
        let mut streams: Vec<Items> = (0..3).map(|_| any_stream(random, definitions)).collect();
        for _ in 0..12 {
            let items = &mut streams[random.below(3) as usize];
            send_any(site, pool, random, items);
            if random.below(3) == 0 {
                jobs.push(submit_any(site, pool, random, definitions));
            }
            if random.below(4) == 0 {
                streams[random.below(3) as usize].take();
            }
        }
        let nobody_waits = random.below(4) == 0;
        for items in &mut streams {
            if nobody_waits {
                // Results are taken by the supervisor.
                until(|| items.take() | (items.ended() == items.len()));
            }
            items.take_until(pool, items.len() * 9 / 10);
        }
        all.append(&mut streams);
    });
    let mut tally = site.settle(pool, &jobs);
    for items in &mut all {
        items.take_until(pool, items.len());
    }
    let (of_items, count) = tally_items(site, &mut all);
    tally.merge(of_items);
    (tally, jobs.len() + count)
}

fn kills(site: &Site) {
    let pool = site.pool(2);
    let killed = Mutex::new(Kills::default());
    let storm = |random: &mut Random| kill_workers(&pool, random, &killed);
    let (tally, all) = under_load(site, &pool, 101, storm);
    check_losses(&tally, all, &killed);
    assert_eq!(tally.cancelled, 0);
    finish_after_kills(site, pool, &killed);
}

fn stops(site: &Site) {
    let pool = site.pool(3);
    let storm = |random: &mut Random| stop_workers(&pool, random, 150, 8000, 2000);
    let (tally, all) = under_load(site, &pool, 102, storm);
    println!("{all} tasks and items");
    assert_eq!(tally.values, all);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn cancels(site: &Site) {
    let pool = site.pool(2);
    let mut random = Random::new(104);
    let definitions = definitions();
    let killed = Mutex::new(Kills::default());
    let (mut jobs, mut all) = (Vec::new(), Vec::new());
    for _ in 0..times(60) {
        let mut streams: Vec<Items> = (0..4)
            .map(|_| any_stream(&mut random, &definitions))
            .collect();
        for _ in 0..8 {
            let items = &mut streams[random.below(4) as usize];
            send_any(site, &pool, &mut random, items);
            let job = submit_any(site, &pool, &mut random, &definitions);
            if random.below(8) == 0 {
                cancel_waiting(&pool, &job.task);
            }
            jobs.push(job);
        }
        random.pause(3000);
        streams[0].cancel(&pool);
        streams[1].take();
        streams[1].cancel(&pool);
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        wait(&pool, &jobs[jobs.len() - 8].task);
        if random.below(2) == 0 {
            streams[2].cancel(&pool);
        }
        for items in &mut streams {
            items.take_until(&pool, items.len());
        }
        all.append(&mut streams);
    }
    let mut tally = site.settle(&pool, &jobs);
    let (of_items, count) = tally_items(site, &mut all);
    tally.merge(of_items);
    println!("{} cancelled", tally.cancelled);
    check_losses(&tally, jobs.len() + count, &killed);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn closes(site: &Site) {
    let mut random = Random::new(105);
    let definitions = definitions();
    let (mut all, mut killed) = (Vec::new(), 0);
    for _ in 0..times(40) {
        let pool = site.pool(1 + random.below(3) as usize);
        let kills = Mutex::new(Kills::default());
        let mut streams = [
            any_stream(&mut random, &definitions),
            any_stream(&mut random, &definitions),
        ];
        for _ in 0..random.below(8) {
            let items = &mut streams[random.below(2) as usize];
            send_any(site, &pool, &mut random, items);
        }
        random.pause(4000);
        for _ in 0..2 {
            if random.below(2) == 0 {
                kill_one(&pool, &mut random, &kills);
            }
            let (cancel, kill) = (random.below(2) == 0, random.below(3) == 0);
            pool.close(cancel, kill);
            random.pause(1000);
        }
        until(|| pool.wait_quiet(true, std::time::Duration::from_millis(100)));
        assert_eq!(pool.pending(), 0);
        killed += kills.lock().unwrap().pids.len();
        site.forget(pool);
        all.extend(streams);
    }
    // What a killed worker had started is cancelled with its pool.
    let (tally, _) = tally_items(site, &mut all);
    println!(
        "{} values, {} lost with {killed} workers, {} cancelled",
        tally.values,
        tally.died.len(),
        tally.cancelled
    );
    assert!(tally.died.len() <= killed);
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn threads(site: &Site) {
    let pool = site.pool(3);
    let killed = Mutex::new(Kills::default());
    let all = Mutex::new(Vec::new());
    in_three_threads(&pool, 110, &killed, |random, definitions| {
        let mut items = any_stream(random, definitions);
        for _ in 0..1 + random.below(5) {
            send_any(site, &pool, random, &mut items);
        }
        items.take_until(&pool, items.len());
        all.lock().unwrap().push(items);
    });
    let (tally, count) = tally_items(site, &mut all.into_inner().unwrap());
    check_losses(&tally, count, &killed);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// The driver is killed at a random instant.
fn parent_killed(site: &Site, number: u64) {
    let pool = site.pool(3);
    let mut random = Random::new(130 + number);
    kill_self_soon(site, &mut random);
    let definitions = definitions();
    let killed = Mutex::new(Kills::default());
    loop {
        let mut items = any_stream(&mut random, &definitions);
        for _ in 0..5 {
            send_any(site, &pool, &mut random, &mut items);
        }
        match number {
            0 => drop(kill_one(&pool, &mut random, &killed)),
            1 => items.cancel(&pool),
            _ => {}
        }
        items.take_until(&pool, items.len());
    }
}
