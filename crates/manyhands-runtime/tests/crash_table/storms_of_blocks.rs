//! As `storms`, with streams of items in blocks among the tasks.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{cancel_waiting, signal, until, until_stats, wait, worker_pids};
use crate::crash_table::site::{LARGE, Site};
use crate::crash_table::storms::{
    Kills, Random, check_losses, definitions, kill_one, submit_any, times,
};
use crate::crash_table::stream::Items;
use crate::crash_table::tally::Tally;
use manyhands_runtime::{Definition, Pool};
use std::sync::atomic::{AtomicBool, Ordering};
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
    for number in 0..3_u64 {
        cases.push(Case {
            name: format!("storm of blocks: parent killed {number}"),
            expectation: "no process left, no item run twice".into(),
            driver_dies: true,
            body: Box::new(move |site| parent_killed(site, number)),
        });
    }
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
    if items.stream.definition.is_some() {
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

/// Keeps blocks and tasks on their way while `storm` runs in another thread; gives how all ended, and
/// how many there were.
fn under_load(
    site: &Site,
    pool: &Pool,
    salt: u64,
    storm: impl FnOnce(&mut Random) + Send,
) -> (Tally, usize) {
    let mut random = Random::new(salt);
    let definitions = definitions();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            storm(&mut Random::new(salt + 1));
            over.store(true, Ordering::SeqCst);
        });
        let (mut all, mut jobs) = (Vec::new(), Vec::new());
        while !over.load(Ordering::SeqCst) {
            let mut streams: Vec<Items> = (0..3)
                .map(|_| any_stream(&mut random, &definitions))
                .collect();
            for _ in 0..12 {
                let items = &mut streams[random.below(3) as usize];
                send_any(site, pool, &mut random, items);
                if random.below(3) == 0 {
                    jobs.push(submit_any(site, pool, &mut random, &definitions));
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
        }
        let mut tally = site.settle(pool, &jobs);
        let count = jobs.len() + all.iter().map(Items::len).sum::<usize>();
        for items in &mut all {
            items.take_until(pool, items.len());
        }
        let runs = site.runs();
        for items in &mut all {
            tally.merge(items.tally(&runs));
        }
        (tally, count)
    })
}

fn kills(site: &Site) {
    let pool = site.pool(2);
    let killed = Mutex::new(Kills::default());
    let (tally, all) = under_load(site, &pool, 101, |random| {
        let mut count = 0;
        while count < times(300) {
            random.pause(6000);
            count += usize::from(kill_one(&pool, random, &killed));
        }
    });
    check_losses(&tally, all, &killed);
    assert_eq!(tally.cancelled, 0);
    let kills = killed.lock().unwrap().pids.len() as u64;
    until_stats(&pool, |stats| stats.deaths >= kills);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, kills);
}

fn stops(site: &Site) {
    let pool = site.pool(3);
    let (tally, all) = under_load(site, &pool, 102, |random| {
        for _ in 0..times(150) {
            let pids = worker_pids(&pool);
            if !pids.is_empty() {
                let pid = pids[random.below(pids.len() as u64) as usize];
                signal(pid, libc::SIGSTOP);
                random.pause(8000);
                signal(pid, libc::SIGCONT);
            }
            random.pause(2000);
        }
    });
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
    let runs = site.runs();
    for items in &mut all {
        tally.merge(items.tally(&runs));
    }
    let count = jobs.len() + all.iter().map(Items::len).sum::<usize>();
    println!("{} cancelled", tally.cancelled);
    check_losses(&tally, count, &killed);
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
    let runs = site.runs();
    let mut tally = Tally::default();
    for items in &mut all {
        // What a killed worker had started is cancelled with its pool.
        tally.merge(items.tally(&runs));
    }
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
    let left = std::sync::atomic::AtomicUsize::new(3);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (pool, all, left) = (&pool, &all, &left);
            scope.spawn(move || {
                let mut random = Random::new(110 + thread);
                let definitions = definitions();
                for _ in 0..times(40) {
                    let mut items = any_stream(&mut random, &definitions);
                    for _ in 0..1 + random.below(5) {
                        send_any(site, pool, &mut random, &mut items);
                    }
                    items.take_until(pool, items.len());
                    all.lock().unwrap().push(items);
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut random = Random::new(120);
        while left.load(Ordering::SeqCst) > 0 {
            random.pause(20_000);
            kill_one(&pool, &mut random, &killed);
        }
    });
    let (runs, mut tally, mut count) = (site.runs(), Tally::default(), 0);
    for items in all.into_inner().unwrap().iter_mut() {
        count += items.len();
        tally.merge(items.tally(&runs));
    }
    check_losses(&tally, count, &killed);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// The driver is killed at a random instant.
fn parent_killed(site: &Site, number: u64) {
    let pool = site.pool(3);
    let mut random = Random::new(130 + number);
    site.touch("crashed");
    let micros = random.below(60_000);
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_micros(micros));
        manyhands_os::kill_self();
    });
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
