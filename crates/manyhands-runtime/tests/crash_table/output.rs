//! What workers put out for people: in front of results, however workers end, and whoever reads.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, until, warm, worker_pids};
use crate::crash_table::site::{Job, Site};
use manyhands_runtime::{Outlet, Pool};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// In a worker: what its end is used under, but for `WorkerEnd::wait`.
pub(crate) static IN_USE: Mutex<()> = Mutex::new(());

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "output, before its result",
            "all of it is there when the task has ended",
            before_its_result,
        ),
        scenario(
            "output, then killed",
            "what was put out before is there",
            then_killed,
        ),
        scenario(
            "output, more than anybody reads",
            "the task ends, and what is lost is counted",
            more_than_anybody_reads,
        ),
        scenario(
            "output, by a thread of an idle worker, more than there is room for",
            "all of it comes, and the worker need not be given a task for that",
            of_an_idle_worker,
        ),
        scenario(
            "output, its reader leaves and workers are killed",
            "tasks end as ever",
            reader_leaves,
        ),
    ]
}

/// What `put:count size` puts out.
pub(crate) fn put(outlet: &Arc<Outlet>, argument: &str) {
    let (count, size) = argument.split_once(' ').unwrap();
    for number in 0..count.parse::<u32>().unwrap() {
        let mut bytes = number.to_ne_bytes().to_vec();
        bytes.resize(size.parse().unwrap(), 7);
        if number.is_multiple_of(2) {
            // SAFETY: this is the thread of the worker's end.
            unsafe { outlet.put(5, &bytes) };
        } else {
            // Any thread may, and this one is not the worker's own, which waits for it.
            let outlet = outlet.clone();
            // SAFETY: the thread of the worker's end waits meanwhile.
            std::thread::spawn(move || unsafe { outlet.put(5, &bytes) })
                .join()
                .unwrap();
        }
    }
}

/// The same, by a thread that begins once its worker is idle.
pub(crate) fn put_when_idle(outlet: Arc<Outlet>, argument: String) {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let _in_use = IN_USE.lock().unwrap();
        put(&outlet, &argument);
    });
}

pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for _ in 0..20 {
        jobs.push(site.submit(pool, "put:3 50"));
        jobs.push(site.submit(pool, "echo:x"));
    }
    jobs
}

/// Takes what has come: the numbers of the notes, and how many were lost.
fn take(pool: &Pool) -> (Vec<u32>, u64) {
    let (mut numbers, mut lost) = (Vec::new(), 0);
    let output = pool.output().unwrap();
    while let Some((notes, more)) = output.take(100, Duration::ZERO) {
        if notes.is_empty() && more == 0 {
            break;
        }
        lost += more;
        for note in notes {
            assert_eq!(note.tag, 5);
            assert!(note.pid > 0);
            numbers.push(u32::from_ne_bytes(note.bytes[..4].try_into().unwrap()));
        }
    }
    (numbers, lost)
}

fn before_its_result(site: &Site) {
    let pool = site.pool(1);
    for size in [4, 50, 40_000] {
        let jobs = [site.submit(&pool, &format!("put:20 {size}"))];
        assert_eq!(site.settle(&pool, &jobs).values, 1);
        assert_eq!(take(&pool), ((0..20).collect(), 0));
    }
    site.finish(pool);
}

fn then_killed(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let jobs = [site.submit(&pool, "put_and_die:12 100")];
    assert_eq!(site.settle(&pool, &jobs).died.len(), 1);
    assert_eq!(take(&pool), ((0..12).collect(), 0));
    site.assert_usable(&pool);
    site.finish(pool);
}

fn more_than_anybody_reads(site: &Site) {
    let pool = site.pool(1);
    let jobs = [site.submit(&pool, "put:1000 40000")];
    assert_eq!(site.settle(&pool, &jobs).values, 1);
    let (numbers, lost) = take(&pool);
    assert!(!numbers.is_empty() && lost > 0, "{lost}");
    assert_eq!(numbers.len() as u64 + lost, 1000);
    assert!(numbers.is_sorted());
    // Somebody reads again: nothing is lost.
    let jobs = [site.submit(&pool, "put:10 40000")];
    assert_eq!(site.settle(&pool, &jobs).values, 1);
    assert_eq!(take(&pool), ((0..10).collect(), 0));
    site.finish(pool);
}

fn of_an_idle_worker(site: &Site) {
    let pool = site.pool(1);
    // What is asleep for good, and what has just begun to wait.
    for round in 0..3 {
        let jobs = [site.submit(&pool, "put_when_idle:35 40000")];
        assert_eq!(site.settle(&pool, &jobs).values, 1);
        let mut numbers = Vec::new();
        until(|| {
            let (more, lost) = take(&pool);
            assert_eq!(lost, 0);
            numbers.extend(more);
            numbers.len() == 35
        });
        assert_eq!(numbers, (0..35).collect::<Vec<_>>(), "{round}");
    }
    site.finish(pool);
}

fn reader_leaves(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    pool.output().unwrap().finish();
    let jobs = submit(site, &pool);
    for pid in worker_pids(&pool) {
        signal(pid, libc::SIGKILL);
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values + tally.died.len(), jobs.len(), "{tally:?}");
    pool.output().unwrap().settle();
    until(|| take(&pool).0.is_empty());
    site.assert_usable(&pool);
    site.finish(pool);
}
