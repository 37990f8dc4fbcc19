//! What becomes of tasks: deaths that are the task's own, cancelling, waiting, closing, initializers.

use crate::crash_table::case::Case;
use crate::crash_table::site::{
    Job, LARGE, Site, signal, take_tokens, until, until_stats, wait, worker_pids,
};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{Breakage, Bytes, Cause, Definition, Outcome, Pool, Refused};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
            "cancel, queued and published",
            "cancelled tasks never run",
            cancelling,
        ),
        scenario(
            "cancel, large arguments",
            "no task gets another's arguments",
            large_arguments_taken_back,
        ),
        scenario(
            "cancel, hundreds of large ones",
            "the next one comes through",
            many_large_taken_back,
        ),
        scenario(
            "cancel, definitions",
            "who needs them still gets them",
            definitions_taken_back,
        ),
        scenario(
            "steal, large arguments",
            "no task gets another's arguments",
            large_arguments_stolen,
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
        scenario(
            "close, cancel",
            "what runs ends, what waits does not start",
            close_with_cancel,
        ),
        scenario("close, kill", "nothing runs any more", close_with_kill),
        scenario("close, then kill", "nothing runs any more", close_then_kill),
        scenario(
            "close without a task",
            "nothing is left",
            close_without_a_task,
        ),
        scenario("initializer fails", "that error, once", initializer_fails),
        scenario("initializer dies", "the pool gives up", initializer_dies),
        scenario(
            "initializer, then deaths",
            "every worker ran it",
            initializer_and_deaths,
        ),
    ]
}

/// Has the pool know that tasks are short, so that its workers hold many.
fn warm(site: &Site, pool: &Pool) {
    let jobs: Vec<Job> = (0..40).map(|_| site.submit(pool, "echo:warm")).collect();
    assert_eq!(site.settle(pool, &jobs).values, 40);
}

/// Submits a task that runs until the file is there, and waits until it runs.
fn submit_blocker(site: &Site, pool: &Pool, file: &str) -> Job {
    let job = site.submit(pool, &format!("until:{}", site.path(file)));
    until(|| site.runs_of(&job) == 1);
    assert!(pool.is_running(&job.task));
    job
}

fn a_task_exits(site: &Site) {
    let pool = site.pool(2);
    let mut jobs: Vec<Job> = (0..50)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    jobs.push(site.submit(&pool, "exit:3"));
    jobs.extend((0..50).map(|i| site.submit(&pool, &format!("echo:{i}"))));
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
    let jobs: Vec<Job> = (0..100)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    assert_eq!(site.settle(&pool, &jobs).values, 100);
    assert!(!stopper.task.is_done());
    let order = site.run_order();
    let (_, pid) = order
        .iter()
        .find(|(number, _)| *number == stopper.number)
        .unwrap();
    signal(*pid, libc::SIGCONT);
    assert_eq!(site.settle(&pool, &[stopper]).values, 1);
    assert_eq!(site.finish(pool).deaths, 0);
}

fn cancelling(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let blocker = submit_blocker(site, &pool, "go");
    let jobs: Vec<Job> = (0..3000)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    let waiting = pool.stats().workers[0].waiting;
    assert!(
        (1..3000).contains(&waiting),
        "{waiting}: some published, some queued"
    );
    assert!(!pool.cancel(&blocker.task), "it runs");
    let chosen = [0, 1, 7, 8, waiting - 1, waiting, waiting + 1, 2998, 2999];
    for index in chosen {
        assert!(pool.cancel(&jobs[index].task));
        assert!(pool.cancel(&jobs[index].task), "it stays cancelled");
    }
    site.touch("go");
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.cancelled, tally.cancelled_runs), (chosen.len(), 0));
    assert_eq!(tally.values, 3000 - chosen.len());
    let order: Vec<u64> = site.run_order().iter().map(|(number, _)| *number).collect();
    assert!(
        order.is_sorted(),
        "what was taken back returned to its place"
    );
    assert!(!pool.cancel(&jobs[3].task), "it has ended");
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn large_arguments_taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let blocker = submit_blocker(site, &pool, "go");
    let jobs: Vec<Job> = (0..6)
        .map(|i| site.submit_bytes(&pool, 100_000 + i / 2))
        .collect();
    assert!(pool.cancel(&jobs[0].task));
    assert!(pool.cancel(&jobs[3].task));
    site.touch("go");
    let tally = site.settle(&pool, &jobs);
    assert_eq!(
        (tally.values, tally.cancelled, tally.cancelled_runs),
        (4, 2, 0)
    );
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    site.finish(pool);
}

fn many_large_taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    for round in 0..2 {
        let file = format!("go{round}");
        let blocker = submit_blocker(site, &pool, &file);
        for _ in 0..400 {
            let job = site.submit_bytes(&pool, 50_000);
            assert!(pool.cancel(&job.task));
        }
        let jobs: Vec<Job> = (0..5)
            .map(|i| site.submit_bytes(&pool, 60_000 + i))
            .collect();
        site.touch(&file);
        assert_eq!(site.settle(&pool, &jobs).values, 5);
        assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    }
    site.finish(pool);
}

fn definitions_taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let base = Definition::new("base", Box::from(&b"base"[..]), Box::from([]));
    let large = Definition::new("large", vec![7; 70_000].into(), Box::from([base.clone()]));
    for definition in [&base, &large] {
        let file = format!("go{}", definition.id());
        let blocker = submit_blocker(site, &pool, &file);
        let jobs: Vec<Job> = (0..5)
            .map(|_| site.submit_definition(&pool, definition))
            .collect();
        assert!(
            pool.cancel(&jobs[0].task),
            "the one that carries the definition"
        );
        assert!(pool.cancel(&jobs[2].task));
        site.touch(&file);
        let tally = site.settle(&pool, &jobs);
        assert_eq!(
            (tally.values, tally.cancelled, tally.cancelled_runs),
            (3, 2, 0)
        );
        assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    }
    site.finish(pool);
}

fn large_arguments_stolen(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let blockers = [
        submit_blocker(site, &pool, "go0"),
        submit_blocker(site, &pool, "go1"),
    ];
    let jobs: Vec<Job> = (0..20)
        .map(|i| site.submit_bytes(&pool, 100_000 + i / 4))
        .collect();
    // One worker gets free and takes what waits at the other.
    site.touch("go0");
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    // The other passes over what was taken from it.
    let jobs: Vec<Job> = (0..20)
        .map(|i| site.submit_bytes(&pool, 100_000 + i / 4))
        .collect();
    site.touch("go1");
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    let more: Vec<Job> = (0..20)
        .map(|i| site.submit_bytes(&pool, 100_000 + i / 4))
        .collect();
    assert_eq!(site.settle(&pool, &more).values, 20);
    assert_eq!(site.settle(&pool, &blockers).values, 2);
    site.finish(pool);
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
    let mut jobs: Vec<Job> = (0..500)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    jobs.push(site.submit(&pool, "kill:"));
    jobs.push(site.submit(&pool, &format!("big:{LARGE}")));
    let blocker = submit_blocker(site, &pool, "go");
    let behind: Vec<Job> = (0..10).map(|_| site.submit(&pool, "sleep:1")).collect();
    let mut observed = 0;
    for job in jobs.iter().chain(&behind).chain([&blocker]) {
        observed += usize::from(pool.observe(&job.task, job.number + 1));
    }
    for job in &behind {
        pool.cancel(&job.task);
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

fn close_with_cancel(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let blockers = [
        submit_blocker(site, &pool, "go"),
        submit_blocker(site, &pool, "go"),
    ];
    let jobs: Vec<Job> = (0..3000)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    pool.close(true, false);
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.cancelled, tally.cancelled_runs), (3000, 0));
    assert!(matches!(
        site.try_submit(&pool, "echo:late"),
        Err(Refused::Closed)
    ));
    site.touch("go");
    assert_eq!(site.settle(&pool, &blockers).values, 2);
    assert_eq!(site.finish_closed(pool).deaths, 0);
}

fn close_with_kill(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    let mut jobs = vec![
        submit_blocker(site, &pool, "never"),
        submit_blocker(site, &pool, "never"),
    ];
    jobs.extend((0..100).map(|i| site.submit(&pool, &format!("echo:{i}"))));
    pool.close(false, true);
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.cancelled, tally.cancelled_runs), (102, 2));
    site.finish_closed(pool);
}

fn close_then_kill(site: &Site) {
    let pool = site.pool(2);
    let mut jobs = vec![
        submit_blocker(site, &pool, "never"),
        submit_blocker(site, &pool, "never"),
    ];
    jobs.extend((0..100).map(|i| site.submit(&pool, &format!("echo:{i}"))));
    pool.close(false, false);
    assert!(!pool.wait_quiet(false, std::time::Duration::from_millis(5)));
    pool.close(true, false);
    pool.close(false, true);
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.cancelled, tally.cancelled_runs), (102, 2));
    site.finish_closed(pool);
}

fn close_without_a_task(site: &Site) {
    for started in [false, true] {
        let pool = site.pool(2);
        if started {
            pool.start_all();
        }
        pool.close(false, false);
        until(|| pool.wait_quiet(true, std::time::Duration::from_millis(100)));
    }
    let pool = site.pool(2);
    pool.start_all();
    site.finish(pool);
}

fn initializer_fails(site: &Site) {
    let pool = site.pool_with(2, Some("error:no database"));
    let jobs: Vec<Job> = (0..20)
        .filter_map(|i| site.try_submit(&pool, &format!("echo:{i}")).ok())
        .collect();
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.broken, jobs.len());
    let Some(Outcome::Broken(why)) = jobs[0].task.outcome() else {
        unreachable!()
    };
    assert!(is_failed_initializer(why, b"no database"), "{why:?}");
    let Err(Refused::Broken(why)) = site.try_submit(&pool, "echo:late") else {
        panic!("the pool is broken");
    };
    assert!(is_failed_initializer(&why, b"no database"), "{why:?}");
    let runs = site.runs()["init"];
    assert!(runs <= 2, "the initializer ran {runs} times on two workers");
    drop(jobs);
    site.finish(pool);
    assert!(site.runs()["init"] <= 2, "no worker is started anew");
}

fn is_failed_initializer(why: &Arc<Breakage>, text: &[u8]) -> bool {
    let same = |bytes: &Bytes| bytes.with(|bytes| bytes == text).unwrap();
    matches!(&**why, Breakage::Initializer(1, bytes) if same(bytes))
}

fn initializer_dies(site: &Site) {
    let pool = site.pool_with(2, Some("exit:7"));
    let jobs: Vec<Job> = (0..20)
        .map(|i| site.submit(&pool, &format!("echo:{i}")))
        .collect();
    let tally = site.settle(&pool, &jobs);
    assert_eq!(tally.broken, 20);
    let Some(Outcome::Broken(why)) = jobs[0].task.outcome() else {
        unreachable!()
    };
    assert!(
        matches!(**why, Breakage::InitializerDied(_, Cause::Exit(7))),
        "{why:?}"
    );
    site.finish(pool);
    let runs = site.runs()["init"];
    assert!((3..100).contains(&runs), "the initializer ran {runs} times");
}

fn initializer_and_deaths(site: &Site) {
    let pool = site.pool_with(2, Some("echo:ready"));
    let mut jobs = Vec::new();
    for index in 0..200 {
        jobs.push(site.submit(
            &pool,
            if index % 50 == 25 {
                "kill:"
            } else {
                "initialized:"
            },
        ));
    }
    let tally = site.settle(&pool, &jobs);
    assert_eq!((tally.values, tally.died.len()), (196, 4));
    assert_eq!(site.finish(pool).deaths, 4);
}
