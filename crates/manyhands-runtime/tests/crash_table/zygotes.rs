//! Zygotes that die or stop, and pools that come and go.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{signal, until, until_stats, wait};
use crate::crash_table::processes;
use crate::crash_table::site::{Job, Site};
use crate::crash_table::worker::{SLOW_FORK, SLOW_REPORT};
use manyhands_runtime::{Cause, Limits, Pool};
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "zygote killed",
            "running tasks end, the next birth starts another",
            zygote_killed,
        ),
        scenario(
            "zygote stopped",
            "running tasks end, births wait",
            zygote_stopped,
        ),
        scenario(
            "zygote stands still before it reports",
            "how its worker dies is known",
            zygote_silent,
        ),
        scenario(
            "the same, and the task is cancelled",
            "its worker is killed",
            zygote_silent_and_task_cancelled,
        ),
        scenario(
            "zygote stands still, then it reports",
            "the worker has died once",
            zygote_silent_for_a_while,
        ),
        scenario(
            "close, then the zygote is killed",
            "nothing is left",
            close_then_zygote_killed,
        ),
        scenario(
            "close while the zygote is stopped",
            "nothing is left",
            close_while_zygote_stopped,
        ),
        scenario(
            "kill while workers are being born",
            "nothing is left",
            kill_while_born,
        ),
        scenario("40 workers at once", "all are born", many_workers),
        scenario(
            "40 workers, zygote killed amid",
            "all are born",
            many_workers_zygote_killed,
        ),
        scenario("two pools, one zygote killed", "both go on", two_pools),
        scenario(
            "100 pools, one after the other",
            "no descriptor, no process is left",
            many_pools,
        ),
        scenario(
            "supervisor stopped and used again",
            "it starts anew",
            stopped_and_used,
        ),
    ]
}

/// Waits until the zygote has reported so many workers, which may run before: each has two pidfds
/// here, the zygote one.
fn until_reported(workers: usize) {
    until(|| {
        let descriptors = processes::descriptors();
        let pidfds = descriptors.iter().filter(|link| link.contains("pidfd"));
        pidfds.count() > 2 * workers
    });
}

fn zygote_killed(site: &Site) {
    let pool = site.pool(2);
    let blocker = site.submit(&pool, &format!("until:{}", site.path("go")));
    until(|| site.runs_of(&blocker) == 1);
    // A worker that its zygote has not reported is lost with it.
    until_reported(1);
    let first = site.supervisor.zygote_pid();
    signal(first, libc::SIGKILL);
    until(|| site.supervisor.zygote_pid() != first);
    let jobs = site.submit_echoes(&pool, 20);
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    site.touch("go");
    let tally = site.settle(&pool, &[blocker]);
    assert_eq!(tally.values, 1, "{tally:?}");
    // Nobody is left who could tell how a worker of the first zygote ends.
    let dies = site.submit(&pool, "exit:9");
    let tally = site.settle(&pool, &[dies]);
    assert!(
        matches!(tally.died[..], [(_, _, Cause::Unknown | Cause::Exit(9))]),
        "{tally:?}"
    );
    site.assert_usable(&pool);
    assert_ne!(site.supervisor.zygote_pid(), first);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn zygote_stopped(site: &Site) {
    let pool = site.pool(1);
    site.assert_usable(&pool);
    let zygote = site.supervisor.zygote_pid();
    signal(zygote, libc::SIGSTOP);
    site.assert_usable(&pool);
    let dies = site.submit(&pool, "kill:");
    let tally = site.settle(&pool, &[dies]);
    assert_eq!(tally.died.len(), 1);
    assert_eq!(
        tally.died[0].2,
        Cause::Signal(9),
        "the zygote cannot tell now, but the kernel can"
    );
    let job = site.submit(&pool, "echo:late");
    assert!(!job.task.is_done());
    signal(zygote, libc::SIGCONT);
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn zygote_silent(site: &Site) {
    site.stall_at("zygote.forked", 1);
    let pool = site.pool(1);
    site.assert_usable(&pool);
    let zygote = site.supervisor.zygote_pid();
    let dies = site.submit(&pool, "kill:");
    let tally = site.settle(&pool, &[dies]);
    assert_eq!(tally.died.len(), 1, "{tally:?}");
    assert_eq!(tally.died[0].2, Cause::Signal(9));
    // It never goes on by itself. The next one does.
    signal(zygote, libc::SIGKILL);
    until(|| site.supervisor.zygote_pid() != zygote);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn zygote_silent_and_task_cancelled(site: &Site) {
    site.stall_at("zygote.forked", 1);
    let pool = site.pool(1);
    let never = format!("until:{}", site.path("never"));
    let job = site.submit_limited(&pool, &never, Limits::default());
    until(|| site.runs_of(&job) == 1);
    assert!(pool.cancel(&job.task));
    until_stats(&pool, |stats| {
        stats.workers.iter().any(|worker| worker.restarts == 1)
    });
    signal(site.supervisor.zygote_pid(), libc::SIGKILL);
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 0, "it was killed on purpose");
}

fn zygote_silent_for_a_while(site: &Site) {
    site.launch_with(&[(SLOW_REPORT, "1500")]);
    let pool = site.pool(1);
    let dies = site.submit(&pool, "kill:");
    let tally = site.settle(&pool, &[dies]);
    assert_eq!(tally.died.len(), 1, "{tally:?}");
    assert_eq!(tally.died[0].2, Cause::Signal(9));
    site.assert_usable(&pool);
    assert_eq!(site.finish(pool).deaths, 1);
}

fn close_then_zygote_killed(site: &Site) {
    for _ in 0..5 {
        site.supervisor.warm().unwrap();
        until(|| site.supervisor.zygote_pid() != 0);
        let zygote = site.supervisor.zygote_pid();
        signal(zygote, libc::SIGSTOP);
        let pool = site.pool(2);
        pool.start_all();
        until_stats(&pool, |stats| stats.workers.len() == 2);
        pool.close(false, false);
        signal(zygote, libc::SIGKILL);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        until(|| site.supervisor.pools().is_empty());
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// Takes the time that workers are given to leave.
fn close_while_zygote_stopped(site: &Site) {
    site.supervisor.warm().unwrap();
    until(|| site.supervisor.zygote_pid() != 0);
    let zygote = site.supervisor.zygote_pid();
    signal(zygote, libc::SIGSTOP);
    let pool = site.pool(2);
    let job = site.submit(&pool, "echo:never");
    until_stats(&pool, |stats| stats.workers.len() == 1);
    pool.close(true, false);
    assert_eq!(site.settle(&pool, &[job]).cancelled, 1);
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    until(|| site.supervisor.pools().is_empty());
    site.forget(pool);
    // What it was asked for is not wanted any more.
    signal(zygote, libc::SIGCONT);
    let pool = site.pool(2);
    site.assert_usable(&pool);
    site.finish(pool);
}

fn kill_while_born(site: &Site) {
    site.launch_with(&[(SLOW_FORK, "20")]);
    for round in 0..6 {
        let pool = site.pool(3);
        let jobs = site.submit_echoes(&pool, 20);
        std::thread::sleep(Duration::from_millis(round * 10));
        pool.close(true, true);
        let tally = site.settle(&pool, &jobs);
        assert_eq!(tally.values + tally.cancelled, 20, "{tally:?}");
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}

/// 40 tasks meet, each at a worker of its own; how many of them return.
fn meet(site: &Site, pool: &Pool) -> usize {
    let folder = site.path("meeting");
    std::fs::create_dir(&folder).unwrap();
    let jobs: Vec<Job> = (0..40)
        .map(|_| site.submit(pool, &format!("meet:{folder} 40")))
        .collect();
    site.settle(pool, &jobs).values
}

fn many_workers(site: &Site) {
    let pool = site.pool(40);
    assert_eq!(meet(site, &pool), 40);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn many_workers_zygote_killed(site: &Site) {
    site.launch_with(&[(SLOW_FORK, "2")]);
    let pool = site.pool(40);
    pool.start_all();
    until_reported(10);
    signal(site.supervisor.zygote_pid(), libc::SIGKILL);
    // A worker that was forked and not reported may have started one.
    assert!(meet(site, &pool) >= 39);
    site.finish(pool);
}

fn two_pools(site: &Site) {
    let pools = [site.pool(2), site.pool_with(1, Some("echo:ready"))];
    let mut jobs = [Vec::new(), Vec::new()];
    for round in 0..100 {
        for (pool, jobs) in pools.iter().zip(&mut jobs) {
            jobs.push(site.submit(pool, &format!("echo:{round}")));
        }
        if round == 50 {
            until(|| site.supervisor.zygote_pid() != 0);
            signal(site.supervisor.zygote_pid(), libc::SIGKILL);
        }
    }
    for (pool, jobs) in pools.iter().zip(&jobs) {
        let tally = site.settle(pool, jobs);
        // A worker that was forked and not reported may have started one.
        assert!(tally.died.len() <= 1 && tally.values >= 99, "{tally:?}");
        site.assert_usable(pool);
    }
    let [first, second] = pools;
    first.close(false, false);
    until(|| first.wait_quiet(true, Duration::from_millis(100)));
    drop(first);
    site.assert_usable(&second);
    site.finish(second);
}

fn many_pools(site: &Site) {
    let mut most = 0;
    for round in 0..100 {
        let pool = site.pool(2);
        let job = site.submit(&pool, "echo:one of many");
        if round % 3 > 0 {
            wait(&pool, &job.task);
        }
        pool.close(false, false);
        if round % 2 == 0 {
            until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        }
        assert_eq!(site.settle(&pool, &[job]).values, 1);
        site.forget(pool);
        until(|| site.supervisor.pools().len() <= 3);
        most = most.max(processes::descriptors().len());
    }
    assert!(most < 100, "{most} descriptors");
    let pool = site.pool(1);
    site.finish(pool);
}

fn stopped_and_used(site: &Site) {
    for _ in 0..5 {
        let pool = site.pool(1);
        site.assert_usable(&pool);
        // It ends when the pool is gone, or not at all when another comes first.
        site.supervisor.stop();
        site.assert_usable(&pool);
        pool.close(false, false);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    }
    let pool = site.pool(1);
    site.assert_usable(&pool);
    site.finish(pool);
}
