//! Workers that give way to fresh ones, and pools that become larger and smaller.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, submit_blocker, until, until_stats, worker_pids};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::stream::Items;
use manyhands_runtime::{Breakage, Outcome, Recycling};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "recycle, a worker per task",
            "each task once, each in a process of its own",
            one_task_each,
        ),
        scenario(
            "recycle, spares are killed",
            "each task once, no process left",
            spares_are_killed,
        ),
        scenario(
            "recycle, all are killed",
            "each task once or lost with its worker",
            all_are_killed,
        ),
        scenario(
            "recycle, a limit below what a fresh worker has",
            "the pool breaks and says both numbers",
            limit_too_low,
        ),
        scenario(
            "resize under load",
            "each task and item once",
            resize_under_load,
        ),
        scenario(
            "resize, who runs something finishes it",
            "it ends, what it held goes to others",
            shrink_while_running,
        ),
        scenario(
            "idle workers leave",
            "none is left, and they come back",
            idle_workers_leave,
        ),
    ]
}

pub(crate) fn after(tasks: usize) -> Recycling {
    Recycling {
        after_tasks: Some(tasks),
        ..Recycling::default()
    }
}

fn one_task_each(site: &Site) {
    let pool = site.pool_of_recycled(2, None, after(1));
    let jobs = site.submit_echoes(&pool, 30);
    assert_eq!(site.settle(&pool, &jobs).values, 30);
    until_stats(&pool, |stats| stats.recycled >= 30);
    let mut items = Items::new(true);
    items.send(site, &pool, &["echo:x"; 20]);
    assert_eq!(items.settle(site, &pool).values, 20);
    until_stats(&pool, |stats| stats.recycled >= 50);
    drop(jobs);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn spares_are_killed(site: &Site) {
    let pool = site.pool_of_recycled(2, Some("echo:ready"), after(5));
    for round in 0..20 {
        let jobs = site.submit_echoes(&pool, 11);
        assert_eq!(site.settle(&pool, &jobs).values, 11, "round {round}");
        // Idle workers and spares alike: none of them holds anything.
        if round % 3 == 0 {
            for pid in worker_pids(&pool).into_iter().skip(round % 2) {
                signal(pid, libc::SIGKILL);
            }
        }
    }
    site.finish(pool);
}

fn all_are_killed(site: &Site) {
    let pool = site.pool_of_recycled(3, None, after(3));
    let mut jobs: Vec<Job> = Vec::new();
    for round in 0..15 {
        jobs.extend((0..12).map(|_| site.submit(&pool, "sleep:1")));
        if round % 2 == 0 {
            for pid in worker_pids(&pool) {
                signal(pid, libc::SIGKILL);
            }
        }
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values + tally.died.len(), 180, "{tally:?}");
    site.assert_usable(&pool);
    drop(jobs);
    site.finish(pool);
}

fn limit_too_low(site: &Site) {
    let recycling = Recycling {
        above: Some(1),
        ..Recycling::default()
    };
    let pool = site.pool_of_recycled(2, None, recycling);
    let job = loop {
        match site.try_submit(&pool, "sleep:20") {
            Ok(job) => {
                site.settle(&pool, std::slice::from_ref(&job));
                if matches!(job.task.outcome(), Some(Outcome::Broken(_))) {
                    break Some(job);
                }
            }
            Err(_) => break None,
        }
    };
    let Err(manyhands_runtime::Refused::Broken(why)) = pool.check_open() else {
        panic!("the pool is broken");
    };
    let Breakage::Limit(text) = &*why else {
        panic!("{why:?}");
    };
    assert!(text.contains("recycle_rss=1:"), "{text}");
    assert!(text.contains(" bytes of memory of its own"), "{text}");
    drop(job);
    assert!(site.finish(pool).recycled <= 2);
}

fn resize_under_load(site: &Site) {
    let pool = site.pool(2);
    let mut streams = [Items::new(true), Items::new(false)];
    let mut jobs: Vec<Job> = Vec::new();
    for width in [8, 2, 1, 5, 2] {
        for items in &mut streams {
            for _ in 0..4 {
                items.send(
                    site,
                    &pool,
                    &[&["echo:x"; 20][..], &["sleep:1"; 3]].concat(),
                );
            }
        }
        jobs.extend((0..20).map(|_| site.submit(&pool, "sleep:1")));
        assert!(pool.resize(width));
        assert_eq!(pool.width(), width);
    }
    assert_eq!(site.settle(&pool, &jobs).values, 100);
    for items in &mut streams {
        let all = items.len();
        assert_eq!(items.settle(site, &pool).values, all);
    }
    until_stats(&pool, |stats| stats.workers.len() <= 2);
    site.assert_all_usable(&pool, 2);
    drop((jobs, streams));
    let stats = site.finish(pool);
    assert_eq!((stats.deaths, stats.recycled), (0, 0));
}

fn shrink_while_running(site: &Site) {
    let pool = site.pool(2);
    let blockers = [
        submit_blocker(site, &pool, "go"),
        submit_blocker(site, &pool, "go"),
    ];
    assert!(pool.resize(1));
    assert_eq!(pool.stats().workers.len(), 2);
    let jobs = site.submit_echoes(&pool, 50);
    site.touch("go");
    assert_eq!(site.settle(&pool, &blockers).values, 2);
    assert_eq!(site.settle(&pool, &jobs).values, 50);
    until_stats(&pool, |stats| stats.workers.len() == 1);
    assert!(pool.resize(3));
    site.assert_all_usable(&pool, 3);
    drop((jobs, blockers));
    assert_eq!(site.finish(pool).deaths, 0);
}

fn idle_workers_leave(site: &Site) {
    let recycling = Recycling {
        idle_for: Some(Duration::from_millis(50).as_nanos() as u64),
        ..Recycling::default()
    };
    let pool = site.pool_of_recycled(2, None, recycling);
    for _ in 0..3 {
        let jobs = site.submit_echoes(&pool, 40);
        assert_eq!(site.settle(&pool, &jobs).values, 40);
        until(|| pool.stats().workers.is_empty());
    }
    let stats = site.finish(pool);
    assert_eq!((stats.deaths, stats.recycled), (0, 0));
}
