//! Random kills, stops and cancels under a mixed load, with all invariants.
//!
//! `MANYHANDS_SEED` replays a storm's choices (not its timing), `MANYHANDS_STORM` multiplies its length.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{cancel_waiting, signal, until, until_stats, wait, worker_pids};
use crate::crash_table::site::{Job, LARGE, Site};
use crate::crash_table::tally::Tally;
use manyhands_runtime::{Cause, Definition, Pool};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::scenario(
            "storm: 300 workers killed",
            "at most one task lost per kill, none twice",
            kills,
        ),
        Case::scenario("storm: workers stopped", "every task runs once", stops),
        Case::scenario(
            "storm: zygotes and workers killed",
            "at most one task lost per kill",
            zygote_kills,
        ),
        Case::scenario(
            "storm: cancels and kills",
            "cancelled tasks never run",
            cancels,
        ),
        Case::scenario(
            "storm: closes and kills",
            "nothing is left of 60 pools",
            closes,
        ),
        Case::scenario(
            "storm: three threads and kills",
            "each gets its results",
            threads,
        ),
    ];
    cases.extend(parent_killed_cases(
        "storm",
        "no process left, no task run twice",
        6,
        parent_killed,
    ));
    cases
}

/// So many cases in which the driver is killed, each with its number.
pub(crate) fn parent_killed_cases(
    storm: &str,
    expectation: &str,
    count: u64,
    body: fn(&Site, u64),
) -> impl Iterator<Item = Case> {
    (0..count).map(move |number| Case {
        name: format!("{storm}: parent killed {number}"),
        expectation: expectation.to_owned(),
        driver_dies: true,
        body: Box::new(move |site| body(site, number)),
    })
}

/// A small generator of numbers: xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(salt: u64) -> Self {
        let seed = match std::env::var("MANYHANDS_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => manyhands_os::monotonic_nanos(),
        };
        println!("MANYHANDS_SEED={seed}");
        Self((seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub(crate) fn pause(&mut self, most_micros: u64) {
        std::thread::sleep(Duration::from_micros(self.below(most_micros)));
    }
}

pub(crate) fn times(count: usize) -> usize {
    let factor = std::env::var("MANYHANDS_STORM")
        .ok()
        .and_then(|factor| factor.parse().ok());
    count * factor.unwrap_or(1)
}

/// Submits one task of a mixed load.
pub(crate) fn submit_any(
    site: &Site,
    pool: &Pool,
    random: &mut Random,
    definitions: &[Arc<Definition>],
) -> Job {
    match random.below(100) {
        0..60 => site.submit(pool, &format!("echo:{}", random.below(1000))),
        60..72 => {
            let index = random.below(definitions.len() as u64) as usize;
            site.submit_definition(pool, &definitions[index])
        }
        72..80 => site.submit(pool, &format!("sleep:{}", random.below(3))),
        80..86 => site.submit(pool, &format!("big:{}", random.below(80_000))),
        86..92 => site.submit_bytes(pool, 40_000 + random.below(40_000) as usize),
        92..94 => site.submit(pool, &format!("big:{LARGE}")),
        94..96 => site.submit_bytes(pool, LARGE + random.below(2) as usize),
        96..98 => site.submit_mirror(pool, 200_000),
        _ => site.submit(pool, "error:as it should"),
    }
}

pub(crate) fn definitions() -> Vec<Arc<Definition>> {
    let base = Definition::new("base", Box::from(&b"base"[..]), Box::from([]));
    (0..8)
        .map(|index| {
            let bytes = format!("definition {index}").repeat(1 + 1000 * index);
            Definition::new("d", bytes.into_bytes().into(), Box::from([base.clone()]))
        })
        .collect()
}

/// Kills so many workers in a row at the most before a task ends: pools give up where nothing ever does.
const MOST_IN_A_ROW: u32 = 10;

/// The kills of a storm.
#[derive(Default)]
pub(crate) struct Kills {
    pub(crate) pids: HashSet<i32>,
    in_a_row: u32,
    /// How many tasks had ended at the last kill.
    done: u64,
}

/// Kills a worker of the pool that was not killed before; whether there was one.
pub(crate) fn kill_one(pool: &Pool, random: &mut Random, kills: &Mutex<Kills>) -> bool {
    let mut kills = kills.lock().unwrap();
    let stats = pool.stats();
    if stats.done != kills.done {
        (kills.done, kills.in_a_row) = (stats.done, 0);
    }
    let pids = stats.workers.iter().filter_map(|worker| worker.pid);
    let pids: Vec<i32> = pids.filter(|pid| !kills.pids.contains(pid)).collect();
    if pids.is_empty() || kills.in_a_row >= MOST_IN_A_ROW {
        return false;
    }
    let pid = pids[random.below(pids.len() as u64) as usize];
    signal(pid, libc::SIGKILL);
    kills.pids.insert(pid);
    kills.in_a_row += 1;
    true
}

/// Kills 300 workers, one now and then.
pub(crate) fn kill_workers(pool: &Pool, random: &mut Random, kills: &Mutex<Kills>) {
    let mut count = 0;
    while count < times(300) {
        random.pause(6000);
        count += usize::from(kill_one(pool, random, kills));
    }
}

/// Stops workers and lets them go on, so many times; both pauses in microseconds at the most.
pub(crate) fn stop_workers(
    pool: &Pool,
    random: &mut Random,
    count: usize,
    stopped: u64,
    between: u64,
) {
    for _ in 0..times(count) {
        let pids = worker_pids(pool);
        if !pids.is_empty() {
            let pid = pids[random.below(pids.len() as u64) as usize];
            signal(pid, libc::SIGSTOP);
            random.pause(stopped);
            signal(pid, libc::SIGCONT);
        }
        random.pause(between);
    }
}

/// Kills this process at a random instant.
pub(crate) fn kill_self_soon(site: &Site, random: &mut Random) {
    site.touch("crashed");
    let micros = random.below(60_000);
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_micros(micros));
        manyhands_os::kill_self();
    });
}

/// Does a turn of the load again and again while `storm` runs in another thread.
pub(crate) fn while_it_storms(
    salt: u64,
    storm: impl FnOnce(&mut Random) + Send,
    mut turn: impl FnMut(&mut Random, &[Arc<Definition>]),
) {
    let mut random = Random::new(salt);
    let definitions = definitions();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            storm(&mut Random::new(salt + 1));
            over.store(true, Ordering::SeqCst);
        });
        while !over.load(Ordering::SeqCst) {
            turn(&mut random, &definitions);
        }
    });
}

/// Does 40 turns in each of three threads, which use one pool, and kills workers meanwhile.
pub(crate) fn in_three_threads(
    pool: &Pool,
    salt: u64,
    kills: &Mutex<Kills>,
    turn: impl Fn(&mut Random, &[Arc<Definition>]) + Sync,
) {
    let left = AtomicUsize::new(3);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (turn, left) = (&turn, &left);
            scope.spawn(move || {
                let mut random = Random::new(salt + thread);
                let definitions = definitions();
                for _ in 0..times(40) {
                    turn(&mut random, &definitions);
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut random = Random::new(salt + 10);
        while left.load(Ordering::SeqCst) > 0 {
            random.pause(20_000);
            kill_one(pool, &mut random, kills);
        }
    });
}

/// Keeps up to 200 tasks on their way while `storm` runs in another thread; gives all jobs.
fn under_load(
    site: &Site,
    pool: &Pool,
    salt: u64,
    storm: impl FnOnce(&mut Random) + Send,
) -> Vec<Job> {
    let (mut jobs, mut waited) = (Vec::new(), 0);
    while_it_storms(salt, storm, |random, definitions| {
        while jobs.len() - waited < 200 {
            jobs.push(submit_any(site, pool, random, definitions));
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
    jobs
}

/// What must hold after workers were killed.
fn check_kills(site: &Site, pool: &Pool, jobs: &[Job], killed: &Mutex<Kills>) {
    let tally = site.settle(pool, jobs);
    check_losses(&tally, jobs.len(), killed);
}

/// At most one task or item is lost with each worker that was killed, and all others came.
pub(crate) fn check_losses(tally: &Tally, all: usize, killed: &Mutex<Kills>) {
    let killed = &killed.lock().unwrap().pids;
    let mut blamed = HashSet::new();
    for &(number, pid, cause) in &tally.died {
        assert!(
            killed.contains(&pid),
            "task {number} died with {pid}, which nobody killed"
        );
        assert!(blamed.insert(pid), "two tasks died with {pid}");
        assert!(
            matches!(cause, Cause::Signal(libc::SIGKILL) | Cause::Unknown),
            "{cause:?}"
        );
    }
    assert_eq!(
        tally.values + tally.died.len() + tally.cancelled,
        all,
        "{tally:?}"
    );
    assert_eq!(tally.cancelled_runs, 0);
    println!(
        "{all} tasks, {} lost, {} kills",
        tally.died.len(),
        killed.len()
    );
}

/// The pool is usable and ends, and has counted each kill.
pub(crate) fn finish_after_kills(site: &Site, pool: Arc<Pool>, killed: &Mutex<Kills>) {
    let kills = killed.lock().unwrap().pids.len() as u64;
    until_stats(&pool, |stats| stats.deaths >= kills);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, kills);
}

fn kills(site: &Site) {
    let pool = site.pool(2);
    let killed = Mutex::new(Kills::default());
    let storm = |random: &mut Random| kill_workers(&pool, random, &killed);
    let jobs = under_load(site, &pool, 1, storm);
    check_kills(site, &pool, &jobs, &killed);
    finish_after_kills(site, pool, &killed);
}

fn stops(site: &Site) {
    let pool = site.pool(3);
    let storm = |random: &mut Random| stop_workers(&pool, random, 100, 10_000, 3000);
    let jobs = under_load(site, &pool, 2, storm);
    assert_eq!(site.settle(&pool, &jobs).values, jobs.len());
    assert_eq!(site.finish(pool).deaths, 0);
}

fn zygote_kills(site: &Site) {
    let pool = site.pool(2);
    let killed = Mutex::new(Kills::default());
    let jobs = under_load(site, &pool, 3, |random| {
        for _ in 0..times(30) {
            random.pause(20_000);
            kill_one(&pool, random, &killed);
            random.pause(3000);
            let pid = site.supervisor.zygote_pid();
            // A worker must finish something now and then, or the pool gives up, as it should.
            let done = pool.stats().done;
            if pid != 0 {
                signal(pid, libc::SIGKILL);
            }
            until_stats(&pool, |stats| stats.done > done);
        }
    });
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values + tally.died.len(), jobs.len());
    assert!(tally.died.len() <= 2 * times(30), "{tally:?}");
    let killed = killed.into_inner().unwrap().pids;
    for (number, pid, cause) in &tally.died {
        // A worker that was forked and not reported is lost with its zygote.
        let known = *cause == Cause::Start || killed.contains(pid);
        assert!(known, "task {number} died with {pid}, which nobody killed");
    }
    site.assert_usable(&pool);
    site.finish(pool);
}

fn cancels(site: &Site) {
    let pool = site.pool(2);
    let mut random = Random::new(4);
    let definitions = definitions();
    let killed = Mutex::new(Kills::default());
    let mut jobs = Vec::new();
    for _ in 0..times(60) {
        let batch: Vec<Job> = (0..60)
            .map(|_| submit_any(site, &pool, &mut random, &definitions))
            .collect();
        random.pause(2000);
        for _ in 0..10 {
            let job = &batch[random.below(60) as usize];
            let cancelled = cancel_waiting(&pool, &job.task);
            assert!(!cancelled || job.task.is_done());
        }
        let tasks: Vec<_> = batch[50..].iter().map(|job| job.task.clone()).collect();
        pool.cancel_all(&tasks);
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        jobs.extend(batch);
        wait(&pool, &jobs[jobs.len() - 60].task);
    }
    check_kills(site, &pool, &jobs, &killed);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn closes(site: &Site) {
    let mut random = Random::new(5);
    let definitions = definitions();
    let mut all = Vec::new();
    for _ in 0..times(60) {
        let pool = site.pool(1 + random.below(3) as usize);
        let killed = Mutex::new(Kills::default());
        let count = random.below(40);
        all.extend((0..count).map(|_| submit_any(site, &pool, &mut random, &definitions)));
        random.pause(4000);
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        let (cancel, kill) = (random.below(2) == 0, random.below(3) == 0);
        pool.close(cancel, kill);
        random.pause(1000);
        if random.below(2) == 0 {
            kill_one(&pool, &mut random, &killed);
        }
        if random.below(4) == 0 {
            signal(
                site.supervisor.zygote_pid().max(1),
                if random.below(2) == 0 {
                    0
                } else {
                    libc::SIGKILL
                },
            );
        }
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        assert_eq!(pool.pending(), 0);
    }
    let tally = site.tally(&all);
    println!(
        "{} values, {} lost, {} cancelled",
        tally.values,
        tally.died.len(),
        tally.cancelled
    );
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn threads(site: &Site) {
    let pool = site.pool(3);
    let killed = Mutex::new(Kills::default());
    let jobs = Mutex::new(Vec::new());
    in_three_threads(&pool, 10, &killed, |random, definitions| {
        let count = 1 + random.below(20);
        let own: Vec<Job> = (0..count)
            .map(|_| submit_any(site, &pool, random, definitions))
            .collect();
        for job in own.iter().rev() {
            wait(&pool, &job.task);
        }
        jobs.lock().unwrap().extend(own);
    });
    check_kills(site, &pool, &jobs.into_inner().unwrap(), &killed);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// The driver is killed at a random instant, now and then while a worker is stopped or a plain
/// child of it lives.
fn parent_killed(site: &Site, number: u64) {
    let pool = site.pool(3);
    let mut random = Random::new(30 + number);
    if number % 3 == 1 {
        // SAFETY: the child calls what a child of a process with threads may call.
        unsafe {
            if libc::fork() == 0 {
                manyhands_runtime::close_life_lines_after_fork();
                libc::sleep(5);
                libc::_exit(0);
            }
        }
    }
    kill_self_soon(site, &mut random);
    let definitions = definitions();
    let killed = Mutex::new(Kills::default());
    loop {
        let jobs: Vec<Job> = (0..30)
            .map(|_| submit_any(site, &pool, &mut random, &definitions))
            .collect();
        if number.is_multiple_of(3) {
            kill_one(&pool, &mut random, &killed);
        }
        // One that has not come as far as its life line would stand still for ever.
        if number % 3 == 2
            && let Some(worker) = pool.stats().workers.iter().find(|worker| worker.done > 0)
        {
            signal(worker.pid.unwrap(), libc::SIGSTOP);
        }
        wait(&pool, &jobs[0].task);
    }
}
