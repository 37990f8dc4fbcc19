//! Workers that cannot be started.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, until, worker_pids};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::worker::{REFUSE_FROM, REFUSED, SLOW_FORK, THREAD_MODULE};
use manyhands_runtime::{Breakage, Launcher, Outcome, Pool};

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "fork refused for one worker",
            "the other does the work",
            one_refused,
        ),
        scenario(
            "fork refused for all",
            "the pool gives up, saying why",
            all_refused,
        ),
        scenario(
            "forked workers die at their start",
            "the pool gives up",
            forked_die_at_start,
        ),
        scenario(
            "spawned workers die at their start",
            "the pool gives up",
            spawned_die_at_start,
        ),
        scenario(
            "spawned zygotes die at once",
            "the pool gives up",
            spawned_zygotes_die,
        ),
        scenario("zygotes die at once", "the pool gives up", zygotes_die),
        scenario(
            "zygotes are killed while they start",
            "each is replaced",
            starting_zygotes_killed,
        ),
        scenario(
            "no program to start",
            "the pool gives up, naming it",
            no_program,
        ),
        scenario(
            "spawned workers killed",
            "each death loses one task",
            spawned_killed,
        ),
    ]
}

fn one_refused(site: &Site) {
    site.launch_with(&[(REFUSE_FROM, "1")]);
    let pool = site.pool(2);
    let jobs: Vec<Job> = (0..200).map(|_| site.submit(&pool, "sleep:1")).collect();
    assert_eq!(site.settle(&pool, &jobs).values, 200);
    let refused = site.runs().get(REFUSED).copied().unwrap_or(0);
    assert!(
        (1..=400).contains(&refused),
        "asked {refused} times for 200 tasks"
    );
    assert!(pool.stats().workers.len() <= 2);
    site.finish(pool);
}

/// The reason why all these tasks did not run.
fn breakage(site: &Site, pool: &Pool, count: usize) -> String {
    let jobs: Vec<Job> = (0..count)
        .filter_map(|index| site.try_submit(pool, &format!("echo:{index}")).ok())
        .collect();
    assert!(!jobs.is_empty());
    let tally = site.settle(pool, &jobs);
    assert_eq!(tally.broken, jobs.len(), "{tally:?}");
    let Some(Outcome::Broken(why)) = jobs[0].task.outcome() else {
        unreachable!()
    };
    match &**why {
        Breakage::Start(why) => why.clone(),
        other => panic!("{other:?}"),
    }
}

fn all_refused(site: &Site) {
    site.launch_with(&[(REFUSE_FROM, "0")]);
    let pool = site.pool(2);
    let why = breakage(site, &pool, 10);
    assert!(why.contains("the test says so"), "{why}");
    site.finish(pool);
    let refused = site.runs()[REFUSED];
    assert!((3..100).contains(&refused), "asked {refused} times");
}

fn forked_die_at_start(site: &Site) {
    site.always_crash_at("worker.started");
    let pool = site.pool(2);
    breakage(site, &pool, 10);
    let deaths = site.finish(pool).deaths;
    assert!((3..100).contains(&deaths), "{deaths} deaths");
}

fn spawned_die_at_start(site: &Site) {
    site.supervisor.preload(vec![THREAD_MODULE.into()]);
    site.always_crash_at("worker.started");
    let pool = site.pool(2);
    breakage(site, &pool, 10);
    let deaths = site.finish(pool).deaths;
    assert!((3..100).contains(&deaths), "{deaths} deaths");
}

/// The zygote has threads, so that zygotes become workers; these die when they are asked to.
fn spawned_zygotes_die(site: &Site) {
    site.supervisor.preload(vec![THREAD_MODULE.into()]);
    let pool = site.pool(2);
    site.assert_usable(&pool);
    site.always_crash_at("zygote.request_read");
    for pid in worker_pids(&pool) {
        signal(pid, libc::SIGKILL);
    }
    breakage(site, &pool, 1);
    site.finish(pool);
}

fn zygotes_die(site: &Site) {
    site.always_crash_at("zygote.request_read");
    let pool = site.pool(2);
    let why = breakage(site, &pool, 10);
    assert!(why.contains("zygote"), "{why}");
    site.finish(pool);
}

/// Somebody kills one zygote after the other before any has forked; that says nothing about the program.
fn starting_zygotes_killed(site: &Site) {
    site.launch_with(&[(SLOW_FORK, "300")]);
    let pool = site.pool(2);
    let jobs: Vec<Job> = (0..10)
        .map(|index| site.submit(&pool, &format!("echo:{index}")))
        .collect();
    let mut last = 0;
    for _ in 0..8 {
        let is_new = || ![0, last].contains(&site.supervisor.zygote_pid());
        until(is_new);
        last = site.supervisor.zygote_pid();
        signal(last, libc::SIGKILL);
    }
    assert_eq!(site.settle(&pool, &jobs).values, 10);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn no_program(site: &Site) {
    site.supervisor.set_launcher(Launcher {
        argv: vec!["/nowhere/python".into()],
        environment: None,
    });
    let pool = site.pool(2);
    let why = breakage(site, &pool, 10);
    assert!(why.contains("/nowhere/python"), "{why}");
    site.finish(pool);
}

fn spawned_killed(site: &Site) {
    site.supervisor.preload(vec![THREAD_MODULE.into()]);
    let pool = site.pool(2);
    let mut jobs = Vec::new();
    for index in 0..100 {
        let command = if index % 25 == 13 {
            "kill:".into()
        } else {
            format!("echo:{index}")
        };
        jobs.push(site.submit(&pool, &command));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.died.len()), (96, 4));
    site.assert_usable(&pool);
    site.finish(pool);
}
