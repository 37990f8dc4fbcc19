//! Definitions whose buffers are in blocks of the store: a worker has leases of these until it has dropped the
//! definition, or is dead.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{
    cancel_waiting, signal, submit_blocker, until, until_stats, wait, warm, worker_pids,
};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::stream::Items;
use manyhands_runtime::{Definition, Outcome, Pool};
use std::sync::Arc;

/// The shortest buffer.
const SHORTEST: usize = 140_000;
/// Longer arguments travel as a file.
const LONG: usize = 100_000;

/// A definition with two buffers, and what it needs with another.
fn define(site: &Site, index: usize) -> Arc<Definition> {
    let len = SHORTEST + 10 * index;
    let make = |bytes: String, lengths: &[usize], needs: Vec<Arc<Definition>>| {
        let buffers = site.stored(lengths).into();
        Definition::keeping("d", bytes.into_bytes().into(), buffers, needs.into(), None)
    };
    let base = make(format!("base {index}"), &[len], Vec::new());
    make(format!("over {index}"), &[len + 1, len + 2], vec![base])
}

/// Tasks with definitions that are dropped once these are submitted.
pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for index in 0..4 {
        let definition = define(site, index);
        jobs.extend((0..4).map(|_| site.submit_definition(pool, &definition)));
        jobs.push(site.submit(pool, "echo:between"));
    }
    jobs
}

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "definitions with buffers, killed when it had read them",
            "their blocks are free at once",
            killed_reading,
        ),
        scenario(
            "definitions with buffers, killed while it holds them",
            "their blocks are free at once",
            killed_holding,
        ),
        scenario(
            "definitions with buffers, dropped",
            "their blocks are free when all have heard of it",
            dropped,
        ),
        scenario(
            "definitions with buffers, dropped when all is done",
            "idle workers hear of it",
            dropped_at_rest,
        ),
        scenario(
            "definitions with buffers, recalled",
            "they come again",
            recalled,
        ),
        scenario(
            "definitions with buffers, taken back",
            "who needs them still gets them",
            taken_back,
        ),
        scenario(
            "definitions with buffers that cannot be read",
            "their leases are returned",
            unread,
        ),
    ]
}

fn blocks(site: &Site) -> usize {
    site.supervisor.store().stats().blocks
}

fn killed_reading(site: &Site) {
    site.stall_at("worker.body_read", 1);
    let pool = site.pool(1);
    let job = site.submit_definition(&pool, &define(site, 0));
    site.wait_for_crash();
    assert_eq!(blocks(site), 3);
    signal(worker_pids(&pool)[0], libc::SIGKILL);
    assert_eq!(site.settle(&pool, &[job]).died.len(), 1);
    site.assert_no_blocks();
    site.assert_usable(&pool);
    site.finish(pool);
}

fn killed_holding(site: &Site) {
    let pool = site.pool(1);
    let definition = define(site, 0);
    let job = site.submit_definition(&pool, &definition);
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    until_stats(&pool, |stats| stats.workers[0].leases == 3);
    signal(worker_pids(&pool)[0], libc::SIGKILL);
    until_stats(&pool, |stats| stats.deaths == 1);
    drop(definition);
    site.assert_no_blocks();
    site.assert_usable(&pool);
    site.finish(pool);
}

fn dropped(site: &Site) {
    let pool = site.pool(2);
    for round in 0..3 {
        let jobs = submit(site, &pool);
        let mut items = Items::of(Some(define(site, 9)), round % 2 == 0);
        items.send(site, &pool, &["define:a", "define:b", "define:c"]);
        assert_eq!(site.settle(&pool, &jobs).values, jobs.len());
        assert_eq!(items.settle(site, &pool).values, 3);
        drop((jobs, items));
        site.assert_all_usable(&pool, 2);
        site.assert_no_blocks();
    }
    assert_eq!(site.finish(pool).deaths, 0);
}

fn dropped_at_rest(site: &Site) {
    let pool = site.pool(2);
    let jobs = submit(site, &pool);
    assert_eq!(site.settle(&pool, &jobs).values, jobs.len());
    drop(jobs);
    site.assert_no_blocks();
    assert_eq!(site.finish(pool).deaths, 0);
}

fn recalled(site: &Site) {
    let pool = site.pool(1);
    let definition = define(site, 0);
    for _ in 0..3 {
        let jobs = [(); 3].map(|()| site.submit_definition(&pool, &definition));
        assert_eq!(site.settle(&pool, &jobs).values, 3);
        definition.needs()[0].recall();
    }
    drop(definition);
    site.assert_usable(&pool);
    site.assert_no_blocks();
    assert_eq!(site.finish(pool).deaths, 0);
}

/// The task that carries a definition is taken back, and so is one that carries it again since it was
/// recalled between.
fn taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let definition = define(site, 0);
    for round in 0..3 {
        let file = format!("go{round}");
        let blocker = submit_blocker(site, &pool, &file);
        let mut jobs = Vec::new();
        for _ in 0..4 {
            jobs.push(site.submit_definition(&pool, &definition));
            definition.recall();
        }
        assert!(cancel_waiting(&pool, &jobs[0].task));
        assert!(cancel_waiting(&pool, &jobs[2].task));
        site.touch(&file);
        site.settle(&pool, &jobs).assert_cancelled(2, 2);
        assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    }
    drop(definition);
    site.assert_usable(&pool);
    site.assert_no_blocks();
    assert_eq!(site.finish(pool).deaths, 0);
}

fn unread(site: &Site) {
    let pool = site.pool(1);
    let limit = site.submit(&pool, "limit_now:");
    wait(&pool, &limit.task);
    let long = "x".repeat(LONG);
    for index in 0..3 {
        let definition = define(site, index);
        let job = site.submit_definition_with(&pool, &definition, &long);
        wait(&pool, &job.task);
        let outcome = job.task.outcome().unwrap();
        assert!(matches!(outcome, Outcome::Error(..)), "{outcome:?}");
        assert_eq!(site.runs_of(&job), 0);
        let mut items = Items::of(Some(definition.clone()), true);
        let text = format!("define:{long}");
        items.send(site, &pool, &[&text, "define:b", "define:c"]);
        until(|| pool.stats().pending == 0);
        let short = site.submit_definition(&pool, &definition);
        assert_eq!(site.settle(&pool, &[short]).values, 1);
    }
    site.assert_usable(&pool);
    site.assert_no_blocks();
    assert_eq!(site.finish(pool).deaths, 0);
}
