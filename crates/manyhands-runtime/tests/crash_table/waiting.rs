//! Who waits for results, and nobody.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{
    cancel_waiting, submit_blocker, take_tokens, until, until_stats, wait, warm,
};
use crate::crash_table::site::{Job, LARGE, Site};
use manyhands_os::monotonic_nanos;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "three threads wait",
            "each gets its result, no wake is late",
            three_threads_wait,
        ),
        scenario(
            "three threads wait, a worker dies",
            "each gets its own",
            three_threads_wait_for_a_death,
        ),
        scenario(
            "wait with deadline",
            "false, and later true",
            wait_with_deadline,
        ),
        scenario(
            "wait inside an interrupted wait",
            "both end",
            wait_inside_a_wait,
        ),
        scenario(
            "handler while others wait",
            "they get their results",
            handler_while_others_wait,
        ),
        scenario("nobody waits", "all done, observers told", nobody_waits),
        scenario("result ring full, nobody waits", "all done", full_ring),
    ]
}

fn three_threads_wait(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    for round in 0..200 {
        let jobs: Vec<Job> = (0..3)
            .map(|index| match (round + index) % 3 {
                0 => site.submit(&pool, "echo:a"),
                1 => site.submit(&pool, "big:60000"),
                _ => site.submit(&pool, "sleep:1"),
            })
            .collect();
        std::thread::scope(|scope| {
            for job in &jobs {
                let pool = &pool;
                scope.spawn(move || wait(pool, &job.task));
            }
        });
        assert_eq!(site.tally(&jobs).values, 3);
    }
    assert_eq!(site.finish(pool).late_wakes, 0);
}

fn three_threads_wait_for_a_death(site: &Site) {
    let pool = site.pool(3);
    for round in 0..20 {
        let jobs = [
            site.submit(
                &pool,
                &format!("until:{}", site.path(&format!("go{round}"))),
            ),
            site.submit(&pool, "sleep:2"),
            site.submit(&pool, "kill:"),
        ];
        std::thread::scope(|scope| {
            let threads: Vec<_> = jobs
                .iter()
                .map(|job| {
                    let pool = &pool;
                    scope.spawn(move || wait(pool, &job.task))
                })
                .collect();
            until(|| threads[1].is_finished() && threads[2].is_finished());
            site.touch(&format!("go{round}"));
        });
        let tally = site.tally(&jobs);
        assert_eq!((tally.values, tally.died.len()), (2, 1));
    }
    site.finish(pool);
}

fn wait_with_deadline(site: &Site) {
    let pool = site.pool(1);
    let job = submit_blocker(site, &pool, "go");
    for _ in 0..10 {
        let deadline = monotonic_nanos() + 2_000_000;
        let waited = pool.wait::<Infallible>(&job.task, Some(deadline), || Ok(()));
        assert!(!waited.unwrap());
        assert!(monotonic_nanos() >= deadline);
    }
    let past = Some(monotonic_nanos());
    assert!(!pool.wait::<Infallible>(&job.task, past, || Ok(())).unwrap());
    // A thread whose time is up hands the role of draining on.
    std::thread::scope(|scope| {
        let impatient = scope.spawn(|| {
            let deadline = Some(monotonic_nanos() + 50_000_000);
            pool.wait::<Infallible>(&job.task, deadline, || Ok(()))
                .unwrap()
        });
        let patient = scope.spawn(|| wait(&pool, &job.task));
        assert!(!impatient.join().unwrap());
        site.touch("go");
        patient.join().unwrap();
    });
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    assert_eq!(site.finish(pool).late_wakes, 0);
}

extern "C" fn nothing(_signal: i32) {}

/// Has SIGUSR1 interrupt system calls.
fn handle_signals() {
    // SAFETY: the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

/// Interrupts a thread until it has noticed.
fn interrupt(thread: libc::pthread_t, noticed: impl Fn() -> bool) {
    until(|| {
        // SAFETY: the caller vouches for the thread.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
        noticed()
    });
}

fn this_thread() -> libc::pthread_t {
    // SAFETY: a plain call.
    unsafe { libc::pthread_self() }
}

/// A signal handler that waits for another task of the same pool, as one in Python may.
fn wait_inside_a_wait(site: &Site) {
    handle_signals();
    let pool = site.pool(2);
    let outer = submit_blocker(site, &pool, "outer");
    let inner = submit_blocker(site, &pool, "inner");
    let main = this_thread();
    let entered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            interrupt(main, || entered.load(Ordering::SeqCst));
            site.touch("inner");
        });
        let waited = pool.wait::<Infallible>(&outer.task, None, || {
            if !entered.swap(true, Ordering::SeqCst) {
                wait(&pool, &inner.task);
                site.touch("outer");
            }
            Ok(())
        });
        assert!(waited.unwrap());
    });
    assert_eq!(site.settle(&pool, &[outer, inner]).values, 2);
    site.finish(pool);
}

/// A signal handler that takes its time, in the draining thread and in a following one.
fn handler_while_others_wait(site: &Site) {
    handle_signals();
    let pool = site.pool(2);
    let blocker = submit_blocker(site, &pool, "go");
    let main = this_thread();
    // 0: the waiting thread is to be interrupted, 1: its handler runs, 2: the handler may return.
    let step = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            interrupt(main, || step.load(Ordering::SeqCst) == 1);
            let job = site.submit(&pool, "echo:other");
            wait(&pool, &job.task);
            step.store(2, Ordering::SeqCst);
        });
        let waited = pool.wait(&blocker.task, None, || {
            step.store(1, Ordering::SeqCst);
            until(|| step.load(Ordering::SeqCst) == 2);
            Err(())
        });
        assert_eq!(waited, Err(()), "the handler's error ends the wait");
    });
    site.touch("go");
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn nobody_waits(site: &Site) {
    let pool = site.pool(2);
    let mut jobs = site.submit_echoes(&pool, 500);
    jobs.push(site.submit(&pool, "kill:"));
    jobs.push(site.submit(&pool, &format!("big:{LARGE}")));
    let blocker = submit_blocker(site, &pool, "go");
    let behind: Vec<Job> = (0..10).map(|_| site.submit(&pool, "sleep:1")).collect();
    let mut observed = 0;
    for job in jobs.iter().chain(&behind).chain([&blocker]) {
        observed += usize::from(pool.observe(&job.task, job.number + 1));
    }
    for job in &behind {
        cancel_waiting(&pool, &job.task);
    }
    site.touch("go");
    let mut tokens = take_tokens(site.supervisor.completions(), observed);
    until_stats(&pool, |stats| stats.pending == 0);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), observed, "each observer is told once");
    let tally = site.tally(&jobs);
    assert_eq!((tally.values, tally.died.len()), (501, 1));
    assert!(!pool.observe(&jobs[0].task, 1), "it has ended");
    site.finish(pool);
}

fn full_ring(site: &Site) {
    let pool = site.pool(2);
    let jobs: Vec<Job> = (0..600).map(|_| site.submit(&pool, "big:40000")).collect();
    until_stats(&pool, |stats| stats.pending == 0);
    assert_eq!(site.tally(&jobs).values, 600);
    site.finish(pool);
}
