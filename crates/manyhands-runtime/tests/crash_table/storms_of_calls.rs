//! Random kills, stops, cancels and closes while tasks submit tasks that submit tasks.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, until, until_stats, wait};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::storms::{
    Kills, Random, kill_one, kill_self_soon, kill_workers, parent_killed_cases, stop_workers,
    times, while_it_storms,
};
use crate::crash_table::tally::Tally;
use manyhands_runtime::{Limits, Pool};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::scenario(
            "storm of calls: 300 workers killed",
            "at most one tree lost per kill",
            kills,
        ),
        Case::scenario(
            "storm of calls: workers stopped",
            "every call runs once",
            stops,
        ),
        Case::scenario(
            "storm of calls: cancels and kills",
            "each ends once, the pool is whole",
            cancels,
        ),
        Case::scenario(
            "storm of calls: closes and kills",
            "nothing is left of 40 pools",
            closes,
        ),
    ];
    cases.extend(parent_killed_cases(
        "storm of calls",
        "no process left, no task run twice",
        4,
        parent_killed,
    ));
    cases
}

/// Submits a task that asks for others, now and then deeply.
fn submit_tree(site: &Site, pool: &Pool, random: &mut Random) -> Job {
    let leaf = match random.below(10) {
        0..6 => format!("echo:{}", random.below(1000)),
        6..8 => format!("sleep:{}", random.below(3)),
        8 => format!("big:{}", random.below(80_000)),
        _ => "sleep:1".to_owned(),
    };
    let mut command = leaf;
    for _ in 0..random.below(4) {
        let how = if random.below(4) == 0 {
            "ask_in_turn"
        } else {
            "ask"
        };
        command = format!("{how}:{} {command}", 1 + random.below(3));
    }
    if random.below(20) == 0 {
        command = "ask_mirror:200000".into();
    }
    if random.below(20) == 0 {
        command = format!("ask_and_leave:3 {command}");
    }
    let limits = Limits {
        time: None,
        grace: random.below(3) * 5_000_000,
        ..Limits::default()
    };
    site.submit_limited(pool, &command, limits)
}

/// Keeps trees on their way while it storms, and settles them.
fn under_load(
    site: &Site,
    pool: &Pool,
    salt: u64,
    storm: impl FnOnce(&mut Random) + Send,
) -> Tally {
    let (mut jobs, mut waited) = (Vec::new(), 0);
    while_it_storms(salt, storm, |random, _| {
        while jobs.len() - waited < 20 {
            jobs.push(submit_tree(site, pool, random));
        }
        let job: &Job = &jobs[waited];
        if random.below(4) == 0 {
            // Results are taken by the supervisor while nobody waits.
            until(|| job.task.is_done());
        } else {
            wait(pool, &job.task);
        }
        waited += 1;
    });
    let tally = site.settle(pool, &jobs);
    println!(
        "{} trees, {} askers and {} calls lost",
        jobs.len(),
        tally.died.len(),
        tally.calls_died
    );
    assert_eq!(
        tally.values + tally.died.len() + tally.calls_died,
        jobs.len(),
        "{tally:?}"
    );
    assert_no_call_twice(site);
    tally
}

/// No task is sent twice that may not run again.
fn assert_no_call_twice(site: &Site) {
    let runs = site.runs();
    let twice: Vec<_> = runs.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// Nothing is open, no slot is lent, the pool is usable, and ends.
fn finish(site: &Site, pool: Arc<Pool>) -> u64 {
    until_stats(&pool, |stats| stats.pending == 0 && stats.lent == 0);
    site.assert_usable(&pool);
    let job = site.submit(&pool, "ask:3 ask:3 echo:x");
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    let stats = site.finish(pool);
    assert_eq!(stats.lent, 0);
    stats.deaths
}

fn check_kills(tally: &Tally, killed: &Mutex<Kills>) {
    let killed = &killed.lock().unwrap().pids;
    let mut blamed = HashSet::new();
    for &(number, pid, _) in &tally.died {
        assert!(
            killed.contains(&pid),
            "task {number} died with {pid}, which nobody killed"
        );
        assert!(blamed.insert(pid), "two tasks died with {pid}");
    }
    let lost = tally.died.len() + tally.calls_died;
    assert!(
        lost <= killed.len(),
        "{lost} lost by {} kills",
        killed.len()
    );
}

fn kills(site: &Site) {
    let pool = site.pool(2);
    let killed = Mutex::new(Kills::default());
    let storm = |random: &mut Random| kill_workers(&pool, random, &killed);
    let tally = under_load(site, &pool, 60, storm);
    check_kills(&tally, &killed);
    let kills = killed.lock().unwrap().pids.len() as u64;
    // Who was ended with its asker when it was killed is nobody's death.
    assert!(finish(site, pool) <= kills);
}

fn stops(site: &Site) {
    let pool = site.pool(2);
    let storm = |random: &mut Random| stop_workers(&pool, random, 100, 10_000, 3000);
    let tally = under_load(site, &pool, 61, storm);
    assert_eq!(tally.died.len() + tally.calls_died, 0);
    assert_eq!(finish(site, pool), 0);
}

fn cancels(site: &Site) {
    let pool = site.pool(2);
    let mut random = Random::new(62);
    let killed = Mutex::new(Kills::default());
    let mut jobs = Vec::new();
    for _ in 0..times(40) {
        let batch: Vec<Job> = (0..12)
            .map(|_| submit_tree(site, &pool, &mut random))
            .collect();
        random.pause(4000);
        for _ in 0..4 {
            let job = &batch[random.below(12) as usize];
            let cancelled = pool.cancel(&job.task);
            assert!(!cancelled || job.task.is_done());
            random.pause(1000);
        }
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        wait(&pool, &batch[0].task);
        jobs.extend(batch);
    }
    let tally = site.settle(&pool, &jobs);
    println!("{} of {} cancelled", tally.cancelled, jobs.len());
    assert_eq!(
        tally.values + tally.died.len() + tally.calls_died + tally.cancelled,
        jobs.len(),
        "{tally:?}"
    );
    check_kills(&tally, &killed);
    assert_no_call_twice(site);
    finish(site, pool);
}

fn closes(site: &Site) {
    let mut random = Random::new(63);
    for _ in 0..times(40) {
        let pool = site.pool(1 + random.below(3) as usize);
        let killed = Mutex::new(Kills::default());
        let count = random.below(10);
        let jobs: Vec<Job> = (0..count)
            .map(|_| submit_tree(site, &pool, &mut random))
            .collect();
        random.pause(8000);
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        let (cancel, kill) = (random.below(2) == 0, random.below(3) == 0);
        pool.close(cancel, kill);
        random.pause(1000);
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        if random.below(6) == 0 {
            let zygote = site.supervisor.zygote_pid();
            if zygote != 0 {
                signal(zygote, libc::SIGKILL);
            }
        }
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        let stats = pool.stats();
        assert_eq!((stats.pending, stats.lent), (0, 0));
        assert!(jobs.iter().all(|job| job.task.is_done()));
        site.forget(pool);
    }
    assert_no_call_twice(site);
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// The driver is killed at a random instant, now and then while a worker is stopped.
fn parent_killed(site: &Site, number: u64) {
    let pool = site.pool(2);
    let mut random = Random::new(70 + number);
    kill_self_soon(site, &mut random);
    loop {
        let jobs: Vec<Job> = (0..10)
            .map(|_| submit_tree(site, &pool, &mut random))
            .collect();
        if number % 2 == 1
            && let Some(worker) = pool.stats().workers.iter().find(|worker| worker.done > 0)
        {
            signal(worker.pid.unwrap(), libc::SIGSTOP);
        }
        wait(&pool, &jobs[0].task);
    }
}
