//! What becomes of tasks: deaths that are their own, and who runs what.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, take_tokens, until, wait, warm, worker_pids};
use crate::crash_table::site::{Job, Site};
use manyhands_runtime::{Cause, Pool};

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "task exits",
            "it alone is lost; the status is known",
            a_task_exits,
        ),
        scenario(
            "task kills its worker",
            "it alone is lost, the rest once",
            a_task_kills_its_worker,
        ),
        scenario(
            "task stops its worker",
            "what waits there runs elsewhere",
            a_task_stops_its_worker,
        ),
        scenario(
            "tasks that need each other",
            "both workers run one",
            tasks_that_need_each_other,
        ),
        scenario(
            "short task, then a long one",
            "the short one's result comes at once",
            short_then_long,
        ),
        scenario(
            "short, then long, nobody waits",
            "the observer is told at once",
            short_then_long_observed,
        ),
        scenario(
            "a worker's child outlives it",
            "a new worker comes",
            grandchild,
        ),
    ]
}

fn a_task_exits(site: &Site) {
    let pool = site.pool(2);
    let mut jobs = site.submit_echoes(&pool, 50);
    jobs.push(site.submit(&pool, "exit:3"));
    jobs.extend(site.submit_echoes(&pool, 50));
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values, 100);
    assert_eq!(tally.died.len(), 1);
    assert_eq!((tally.died[0].0, tally.died[0].2), (50, Cause::Exit(3)));
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn a_task_kills_its_worker(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut jobs = Vec::new();
    for index in 0..200 {
        let command = if index % 40 == 20 {
            "kill:".into()
        } else {
            format!("echo:{index}")
        };
        jobs.push(site.submit(&pool, &command));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.values, 195);
    assert_eq!(tally.died.len(), 5);
    for (number, pid, cause) in tally.died {
        assert_eq!(cause, Cause::Signal(libc::SIGKILL));
        assert!(
            site.run_order().contains(&(number, pid)),
            "{pid} did not run task {number}"
        );
    }
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 5);
}

fn a_task_stops_its_worker(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let stopper = site.submit(&pool, "stop:");
    let jobs = site.submit_echoes(&pool, 100);
    assert_eq!(site.settle(&pool, &jobs).values, 100);
    assert!(!stopper.task.is_done());
    // Its worker may be the slower one.
    until(|| site.runs_of(&stopper) == 1);
    let order = site.run_order();
    let (_, pid) = order
        .iter()
        .find(|(number, _)| *number == stopper.number)
        .unwrap();
    until(|| {
        signal(*pid, libc::SIGCONT);
        stopper.task.is_done()
    });
    assert_eq!(site.settle(&pool, &[stopper]).values, 1);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn tasks_that_need_each_other(site: &Site) {
    let pool = site.pool(2);
    // Only one worker is born so far, and its tasks are short.
    for _ in 0..5 {
        site.assert_usable(&pool);
    }
    for round in 0..5 {
        let folder = site.path(&format!("meeting{round}"));
        std::fs::create_dir(&folder).unwrap();
        let jobs: Vec<Job> = (0..2)
            .map(|_| site.submit(&pool, &format!("meet:{folder} 2")))
            .collect();
        assert_eq!(site.settle(&pool, &jobs).values, 2);
        if round > 1 {
            // They need each other also when one of the workers is new.
            signal(worker_pids(&pool)[round % 2], libc::SIGKILL);
        }
    }
    site.finish(pool);
}

/// Stops the one worker, gives it a short and a long task, and lets it go on.
fn short_and_long(site: &Site, pool: &Pool, token: u64) -> [Job; 2] {
    warm(site, pool);
    let pid = worker_pids(pool)[0];
    signal(pid, libc::SIGSTOP);
    until(|| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    });
    let jobs = [
        site.submit(pool, "echo:short"),
        site.submit(pool, &format!("until:{}", site.path("go"))),
    ];
    if token != 0 {
        assert!(pool.observe(&jobs[0].task, token));
    }
    signal(pid, libc::SIGCONT);
    jobs
}

fn short_then_long(site: &Site) {
    let pool = site.pool(1);
    let jobs = short_and_long(site, &pool, 0);
    wait(&pool, &jobs[0].task);
    site.touch("go");
    assert_eq!(site.settle(&pool, &jobs).values, 2);
    assert_eq!(
        site.finish(pool).late_wakes,
        0,
        "the short one's result came late"
    );
}

fn short_then_long_observed(site: &Site) {
    let pool = site.pool(1);
    let jobs = short_and_long(site, &pool, 17);
    assert_eq!(take_tokens(site.supervisor.completions(), 1), [17]);
    site.touch("go");
    assert_eq!(site.settle(&pool, &jobs).values, 2);
    site.finish(pool);
}

/// A process that a task started keeps the descriptors of its worker.
fn grandchild(site: &Site) {
    let pool = site.pool(1);
    let job = site.submit(&pool, "fork:then die");
    let tally = site.settle(&pool, &[job]);
    assert_eq!(tally.died.len(), 1);
    site.assert_usable(&pool);
    site.finish(pool);
}
