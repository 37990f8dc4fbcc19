//! Calls: tasks that a task submits to the pool that runs it.

use crate::crash_table::case::Case;
use crate::crash_table::descriptors::limit_descriptors;
use crate::crash_table::helpers::{show, signal, until, until_stats, wait, warm, worker_pids};
use crate::crash_table::site::{Job, LARGE, Site};
use crate::crash_table::stream::Items;
use crate::crash_table::worker::{LEFT, REFUSE_FROM};
use manyhands_runtime::{Breakage, Limits, Outcome, Pool};
use std::sync::Arc;
use std::time::Duration;

const MILLISECOND: u64 = 1_000_000;

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    let mut cases = vec![
        scenario(
            "calls, far more than workers",
            "every one runs once",
            far_more_than_workers,
        ),
        scenario(
            "calls in turn of many tasks",
            "no more tasks begin than wait",
            in_turn_of_many,
        ),
        scenario("calls of items", "every item ends once", of_items),
        scenario(
            "calls that are too deep",
            "they fail, the rest goes on",
            too_deep,
        ),
        scenario("calls with large arguments", "they return them", large),
        scenario(
            "an asker is killed",
            "its calls are ended or never run",
            asker_killed,
        ),
        scenario("a call dies", "its asker sees it, others go on", call_dies),
        scenario(
            "a call dies and runs again",
            "its asker gets its value",
            call_runs_again,
        ),
        scenario(
            "a call's time is up",
            "its asker sees it",
            call_takes_too_long,
        ),
        scenario("an asker is cancelled", "its calls with it", |site| {
            asker_stopped(site, None, 60_000)
        }),
        scenario(
            "an asker is cancelled and does not listen",
            "its calls with it",
            |site| asker_stopped(site, None, 0),
        ),
        scenario("an asker's time is up", "its calls end with it", |site| {
            asker_stopped(site, Some(100 * MILLISECOND), 60_000)
        }),
        scenario(
            "an asker's time is up, it does not listen",
            "its calls end with it",
            |site| asker_stopped(site, Some(100 * MILLISECOND), 0),
        ),
        scenario(
            "calls are cancelled at once",
            "nothing is left of them",
            asks_and_leaves,
        ),
        scenario(
            "close while calls are open",
            "all is done",
            close_with_calls,
        ),
        scenario(
            "close and cancel while calls are open",
            "what has not started never does",
            close_and_cancel,
        ),
        scenario(
            "close and kill while calls are open",
            "nothing is left",
            close_and_kill,
        ),
        scenario(
            "a worker asks when it was told to leave",
            "it leaves nevertheless",
            asks_when_told_to_leave,
        ),
        scenario(
            "a thread asks while nothing runs",
            "it is answered",
            nothing_runs,
        ),
        scenario("an initializer asks", "it fails", initializer_asks),
        scenario(
            "calls end before a spare is initialized",
            "it is nevertheless",
            spare_is_initialized,
        ),
        scenario("no spare can be born", "the pool gives up", no_spare),
        scenario(
            "no spare can be born, others are there",
            "they run the calls",
            no_spare_but_others,
        ),
        scenario(
            "no descriptors for a line",
            "the call fails, later ones do not",
            no_descriptors_for_a_line,
        ),
        scenario(
            "no descriptors for a call",
            "it fails, later ones do not",
            no_descriptors_for_a_call,
        ),
        scenario(
            "no descriptors in an asker",
            "its calls fail, later ones do not",
            no_descriptors_in_an_asker,
        ),
    ];
    for what in ["empty", "short", "kind", "cut", "file", "twice"] {
        cases.push(Case {
            name: format!("an asker writes nonsense: {what}"),
            expectation: "it is killed, or its calls are ended".into(),
            driver_dies: false,
            body: Box::new(move |site| nonsense(site, what)),
        });
    }
    cases
}

/// Waits until nothing is open, no slot lent, and no more workers take tasks than the pool has.
#[track_caller]
fn until_quiet(pool: &Pool) {
    until_stats(pool, |stats| {
        stats.pending == 0 && stats.lent == 0 && stats.queued == 0
    });
}

/// The pool is as if nobody had asked: so many tasks, and not more, meet.
fn assert_width(site: &Site, pool: &Pool, width: usize) {
    until_quiet(pool);
    let folder = site.path(&format!("width{}", site.next_number()));
    std::fs::create_dir(&folder).unwrap();
    let meet = format!("meet:{folder} {width}");
    let jobs: Vec<Job> = (0..width).map(|_| site.submit(pool, &meet)).collect();
    assert_eq!(site.settle(pool, &jobs).values, width);
    // One more than the pool has begins when another has ended.
    let go = format!("until:{folder}/go");
    let jobs: Vec<Job> = (0..=width).map(|_| site.submit(pool, &go)).collect();
    let running = || jobs.iter().filter(|job| site.runs_of(job) == 1).count();
    until(|| running() == width);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(running(), width, "tasks that run");
    std::fs::File::create(format!("{folder}/go")).unwrap();
    assert_eq!(site.settle(pool, &jobs).values, width + 1);
}

/// Closes a pool of which everything has ended, and checks that no slot is lent.
fn finish(site: &Site, pool: Arc<Pool>) -> u64 {
    until_quiet(&pool);
    let stats = site.finish(pool);
    assert_eq!(stats.lent, 0);
    stats.deaths
}

/// How a job has failed, in its own words.
fn error_of(pool: &Pool, job: &Job) -> String {
    wait(pool, &job.task);
    match job.task.outcome().unwrap() {
        Outcome::Error(_, why) => {
            let text = |why: &[u8]| String::from_utf8_lossy(why).into_owned();
            why.with(text).unwrap()
        }
        outcome => panic!("{} ended with {}", job.command, show(outcome)),
    }
}

/// How often calls ran: all that are no job of the driver's.
fn runs_of_calls(site: &Site) -> usize {
    let runs = site.runs();
    let calls = runs.iter().filter(|(number, _)| number.contains('-'));
    calls.map(|(_, count)| count).sum()
}

/// Pid of the process in which the job runs.
fn pid_of(site: &Site, job: &Job) -> i32 {
    until(|| site.runs_of(job) == 1);
    let order = site.run_order();
    order.iter().find(|run| run.0 == job.number).unwrap().1
}

fn far_more_than_workers(site: &Site) {
    let pool = site.pool(2);
    let jobs: Vec<Job> = (0..6)
        .map(|_| site.submit(&pool, "ask:3 ask:3 ask:3 echo:x"))
        .chain((0..20).map(|_| site.submit(&pool, "echo:y")))
        .collect();
    assert_eq!(site.settle(&pool, &jobs).values, 26);
    assert_eq!(runs_of_calls(site), 6 * (3 + 9 + 27));
    assert_width(site, &pool, 2);
    assert_eq!(finish(site, pool), 0);
}

fn in_turn_of_many(site: &Site) {
    for workers in [1, 2] {
        let pool = site.pool(workers);
        warm(site, &pool);
        let jobs: Vec<Job> = (0..40)
            .map(|_| site.submit(&pool, "ask_in_turn:5 sleep:1"))
            .collect();
        assert_eq!(site.settle(&pool, &jobs).values, 40);
        let stats = pool.stats();
        // As many as wait, as many as run, and a few at the edges.
        assert!(
            stats.workers.len() <= 4 * workers,
            "{} workers for {workers}",
            stats.workers.len()
        );
        assert_width(site, &pool, workers);
        pool.close(false, false);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        site.forget(pool);
    }
    let pool = site.pool(1);
    site.finish(pool);
}

fn of_items(site: &Site) {
    let pool = site.pool(2);
    warm(site, &pool);
    for ordered in [true, false] {
        let mut items = Items::new(ordered);
        items.send(site, &pool, &["ask:2 echo:x"; 10]);
        items.send(site, &pool, &["echo:y"; 50]);
        items.send(
            site,
            &pool,
            &["ask:2 ask:2 echo:x", "echo:z", "ask:1 echo:y"],
        );
        assert_eq!(items.settle(site, &pool).values, 63);
    }
    assert_width(site, &pool, 2);
    assert_eq!(finish(site, pool), 0);
}

fn too_deep(site: &Site) {
    let pool = site.pool(2);
    let deep = |depth: usize| format!("{}echo:x", "ask:1 ".repeat(depth));
    let fits = site.submit(&pool, &deep(10));
    assert_eq!(site.settle(&pool, &[fits]).values, 1);
    let job = site.submit(&pool, &deep(11));
    let why = error_of(&pool, &job);
    assert!(why.contains("up to 10 deep"), "{why}");
    // It is what they run that counts, not how long they have been there.
    let fits = site.submit(&pool, &deep(10));
    assert_eq!(site.settle(&pool, &[fits]).values, 1);
    assert_width(site, &pool, 2);
    assert_eq!(finish(site, pool), 0);
}

fn large(site: &Site) {
    let pool = site.pool(2);
    let mut jobs = Vec::new();
    for size in [10, 20_000, 40_000, 90_000, 200_000, 600_000, LARGE] {
        jobs.push(site.submit(&pool, &format!("ask_mirror:{size}")));
        jobs.push(site.submit(&pool, &format!("ask:3 big:{size}")));
    }
    assert_eq!(site.settle(&pool, &jobs).values, 14);
    assert_eq!(finish(site, pool), 0);
}

fn asker_killed(site: &Site) {
    let pool = site.pool(2);
    let never = format!("until:{}", site.path("never"));
    for _ in 0..5 {
        let before = runs_of_calls(site);
        let job = site.submit(&pool, &format!("ask:6 ask:1 {never}"));
        // Two run at a time, and as many wait: the deepest go first.
        until(|| runs_of_calls(site) >= before + 4);
        assert_eq!(pool.stats().lent, 3);
        let pid = pid_of(site, &job);
        signal(pid, libc::SIGKILL);
        let tally = site.settle(&pool, &[job]);
        assert_eq!(tally.died.len(), 1);
        assert_eq!(tally.died[0].1, pid);
        until_quiet(&pool);
        assert_eq!(runs_of_calls(site), before + 4, "calls of the dead ran");
        assert_width(site, &pool, 2);
    }
    assert_eq!(
        finish(site, pool),
        5,
        "what was ended with its asker is nobody's death"
    );
}

fn call_dies(site: &Site) {
    let pool = site.pool(2);
    let others = site.submit_echoes(&pool, 20);
    let dies = site.submit(&pool, "ask:1 ask:1 kill:");
    let asks = site.submit(&pool, "ask:3 ask:3 echo:x");
    let why = error_of(&pool, &dies);
    assert!(why.contains("a call died"), "{why}");
    assert_eq!(site.settle(&pool, &others).values, 20);
    assert_eq!(site.settle(&pool, &[asks]).values, 1);
    assert_width(site, &pool, 2);
    assert_eq!(finish(site, pool), 1);
}

fn call_runs_again(site: &Site) {
    let pool = site.pool(1);
    for command in ["die_until:3", "fail_until:4"] {
        let jobs: Vec<Job> = (0..3)
            .map(|_| site.submit(&pool, &format!("ask_again:{command}")))
            .collect();
        for job in &jobs {
            wait(&pool, &job.task);
            let shown = show(job.task.outcome().unwrap());
            let value = command.rsplit(':').next().unwrap();
            assert_eq!(shown, format!("the value {value:?}"));
        }
    }
    assert_width(site, &pool, 1);
    assert_eq!(finish(site, pool), 6);
}

fn call_takes_too_long(site: &Site) {
    let pool = site.pool(1);
    let job = site.submit(&pool, &format!("ask_limited:until:{}", site.path("never")));
    let why = error_of(&pool, &job);
    assert!(why.contains("too long"), "{why}");
    assert_width(site, &pool, 1);
    assert_eq!(finish(site, pool), 0);
}

/// With a grace the asker listens, cancels its calls and ends by itself.
fn asker_stopped(site: &Site, time: Option<u64>, grace: u64) {
    let pool = site.pool(2);
    let never = format!("until:{}", site.path("never"));
    for _ in 0..3 {
        let before = runs_of_calls(site);
        let limits = Limits {
            time,
            grace: grace * MILLISECOND,
            ..Limits::default()
        };
        let job = site.submit_limited(&pool, &format!("ask:4 ask:1 {never}"), limits);
        until(|| runs_of_calls(site) > before || job.task.is_done());
        if time.is_none() {
            assert!(pool.cancel(&job.task));
        }
        let tally = site.settle(&pool, &[job]);
        assert_eq!(tally.cancelled + tally.timed_out, 1, "{tally:?}");
        until_quiet(&pool);
        assert_width(site, &pool, 2);
    }
    assert_eq!(finish(site, pool), 0);
}

fn asks_and_leaves(site: &Site) {
    let pool = site.pool(2);
    let jobs: Vec<Job> = (0..100)
        .map(|index| {
            let command = if index % 2 == 0 {
                "echo:x"
            } else {
                "ask:2 sleep:1"
            };
            site.submit(&pool, &format!("ask_and_leave:5 {command}"))
        })
        .collect();
    assert_eq!(site.settle(&pool, &jobs).values, 100);
    // What a task left may be heard of when it has ended.
    let asks = site.submit(&pool, "ask:3 ask:3 echo:x");
    assert_eq!(site.settle(&pool, &[asks]).values, 1);
    finish(site, pool);
}

fn close_with_calls(site: &Site) {
    let pool = site.pool(2);
    let go = format!("ask:4 ask:1 until:{}", site.path("go"));
    let jobs: Vec<Job> = (0..4).map(|_| site.submit(&pool, &go)).collect();
    until(|| runs_of_calls(site) >= 4);
    pool.close(false, false);
    site.touch("go");
    assert_eq!(site.settle(&pool, &jobs).values, 4);
    assert_eq!(runs_of_calls(site), 4 * 8);
    let stats = site.finish_closed(pool);
    assert_eq!((stats.deaths, stats.lent), (0, 0));
}

fn close_and_cancel(site: &Site) {
    let pool = site.pool(2);
    let job = site.submit(&pool, &format!("ask:9 until:{}", site.path("go")));
    until(|| runs_of_calls(site) == 2);
    let queued = site.submit(&pool, "ask:1 echo:x");
    pool.close(true, false);
    site.touch("go");
    let why = error_of(&pool, &job);
    assert!(why.contains("a call was cancelled"), "{why}");
    assert_eq!(site.settle(&pool, &[queued]).cancelled, 1);
    assert_eq!(runs_of_calls(site), 2);
    let stats = site.finish_closed(pool);
    assert_eq!((stats.deaths, stats.lent), (0, 0));
}

fn close_and_kill(site: &Site) {
    for round in 0..10 {
        let pool = site.pool(2);
        let never = format!("ask:3 ask:3 until:{}", site.path("never"));
        let jobs: Vec<Job> = (0..3).map(|_| site.submit(&pool, &never)).collect();
        let before = runs_of_calls(site);
        until(|| runs_of_calls(site) >= before + round % 4);
        pool.close(true, true);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        assert_eq!(site.tally(&jobs).cancelled, 3);
        let stats = pool.stats();
        assert_eq!((stats.pending, stats.lent), (0, 0));
        site.forget(pool);
    }
    let pool = site.pool(1);
    site.finish(pool);
}

/// Something in the worker goes on when its task has ended.
fn asks_when_told_to_leave(site: &Site) {
    let pool = site.pool(1);
    let job = site.submit(&pool, &format!("haunt:{}", site.path("go")));
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    // The word to leave is there, and was not read.
    pool.close(false, false);
    site.touch("go");
    until(|| pool.wait_quiet(true, Duration::from_millis(100)));
    assert_eq!(site.runs().get(LEFT), Some(&1), "it was killed");
    site.finish_closed(pool);
}

fn nothing_runs(site: &Site) {
    let pool = site.pool(1);
    let job = site.submit(&pool, &format!("haunt:{}", site.path("go")));
    assert_eq!(site.settle(&pool, &[job]).values, 1);
    let behind = site.submit(&pool, "echo:behind");
    site.touch("go");
    assert_eq!(site.settle(&pool, &[behind]).values, 1);
    assert_width(site, &pool, 1);
    assert_eq!(finish(site, pool), 0);
}

/// Its call could run nowhere: each worker would wait for another one.
fn initializer_asks(site: &Site) {
    for workers in [1, 3] {
        let pool = site.pool_with(workers, Some("ask:1 echo:x"));
        let job = site.submit(&pool, "echo:y");
        wait(&pool, &job.task);
        let Some(Outcome::Broken(why)) = job.task.outcome() else {
            panic!("{:?}", job.task.outcome());
        };
        let Breakage::Initializer(_, error) = &**why else {
            panic!("{why:?}");
        };
        let said = error.with(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(said.unwrap().contains("initializer"), "{why:?}");
        pool.close(false, false);
        until(|| pool.wait_quiet(true, Duration::from_millis(100)));
        site.forget(pool);
    }
    let pool = site.pool(1);
    site.finish(pool);
}

fn spare_is_initialized(site: &Site) {
    let pool = site.pool_with(1, Some("echo:ready"));
    for _ in 0..5 {
        // A spare is asked for and, when it is there, not wanted any more.
        let job = site.submit(&pool, "ask_and_leave:1 echo:x");
        assert_eq!(site.settle(&pool, &[job]).values, 1);
        until_quiet(&pool);
        let job = site.submit(&pool, "ask:2 initialized:");
        assert_eq!(site.settle(&pool, &[job]).values, 1);
    }
    assert_width(site, &pool, 1);
    assert_eq!(finish(site, pool), 0);
}

fn no_spare(site: &Site) {
    site.launch_with(&[(REFUSE_FROM, "1")]);
    let pool = site.pool(1);
    let job = site.submit(&pool, "ask:1 echo:x");
    let why = error_of(&pool, &job);
    assert!(
        why.contains("a broken pool") && why.contains("the test says so"),
        "{why}"
    );
    until_quiet(&pool);
    site.finish(pool);
}

fn no_spare_but_others(site: &Site) {
    site.launch_with(&[(REFUSE_FROM, "2")]);
    let pool = site.pool(2);
    pool.start_all();
    until(|| worker_pids(&pool).len() == 2);
    let jobs: Vec<Job> = (0..20).map(|_| site.submit(&pool, "sleep:1")).collect();
    let asks = site.submit(&pool, "ask:4 echo:x");
    assert_eq!(site.settle(&pool, &jobs).values, 20);
    assert_eq!(site.settle(&pool, &[asks]).values, 1);
    assert_eq!(finish(site, pool), 0);
}

/// Has both workers of a pool there, so that nobody is born for what comes.
fn two_workers(site: &Site) -> Arc<Pool> {
    let pool = site.pool(2);
    pool.start_all();
    until(|| worker_pids(&pool).len() == 2);
    warm(site, &pool);
    let jobs: Vec<Job> = (0..20).map(|_| site.submit(&pool, "sleep:1")).collect();
    site.settle(&pool, &jobs);
    pool
}

fn no_descriptors_for_a_line(site: &Site) {
    let pool = two_workers(site);
    let limit = limit_descriptors(0);
    for _ in 0..3 {
        let job = site.submit(&pool, "ask:1 echo:x");
        error_of(&pool, &job);
    }
    drop(limit);
    until_quiet(&pool);
    // Until the worker has noticed that its last line is closed, it asks by that one.
    until(|| {
        let job = site.submit(&pool, "ask:3 echo:x");
        wait(&pool, &job.task);
        matches!(job.task.outcome(), Some(Outcome::Value(..)))
    });
    assert_width(site, &pool, 2);
    assert_eq!(finish(site, pool), 0);
}

fn no_descriptors_for_a_call(site: &Site) {
    let pool = two_workers(site);
    // Both have their lines, and there are spares.
    let folder = site.path("meeting");
    std::fs::create_dir(&folder).unwrap();
    let meet = format!("ask:1 meet:{folder} 2");
    let jobs = [site.submit(&pool, &meet), site.submit(&pool, &meet)];
    assert_eq!(site.settle(&pool, &jobs).values, 2);
    let limit = limit_descriptors(0);
    let large = site.submit(&pool, &format!("ask_mirror:{LARGE}"));
    let why = error_of(&pool, &large);
    let short = site.submit(&pool, "ask:2 echo:x");
    wait(&pool, &short.task);
    let defines = site.submit(&pool, "ask_define:90000");
    error_of(&pool, &defines);
    drop(limit);
    assert!(why.contains("open files"), "{why}");
    assert_eq!(site.settle(&pool, &[short]).values, 1);
    for command in [&format!("ask_mirror:{LARGE}"), "ask:2 echo:x"] {
        let job = site.submit(&pool, command);
        assert_eq!(site.settle(&pool, &[job]).values, 1);
    }
    assert_defines(site, &pool);
    assert_defines(site, &pool);
    assert_width(site, &pool, 2);
    assert_eq!(finish(site, pool), 0);
}

/// A call with a definition that its asker has tried to send before.
fn assert_defines(site: &Site, pool: &Pool) {
    let job = site.submit(pool, "ask_define:90000");
    wait(pool, &job.task);
    assert_eq!(show(job.task.outcome().unwrap()), "the value \"90001\"");
}

fn no_descriptors_in_an_asker(site: &Site) {
    let pool = site.pool(1);
    let run = |command: &str| {
        let job = site.submit(&pool, command);
        wait(&pool, &job.task);
        show(job.task.outcome().unwrap())
    };
    // Without a line, then without one of the files.
    for warm in ["echo:x", "ask:1 echo:x"] {
        run(warm);
        run("limit_now:");
        for command in [
            "ask:1 ask:1 echo:x",
            &format!("ask:1 big:{LARGE}"),
            "ask_define:90000",
        ] {
            let shown = run(command);
            assert!(
                warm != "echo:x" || shown.contains("could not be submitted"),
                "{command} ended with {shown}"
            );
        }
        assert_eq!(run("limit:200"), "the value \"limited\"");
        assert_defines(site, &pool);
        assert_eq!(run("ask:2 echo:x"), "the value \"x,x\"");
    }
    assert_width(site, &pool, 1);
    assert_eq!(finish(site, pool), 0);
}

/// Whatever it writes: its task ends, and nothing is left of its calls.
fn nonsense(site: &Site, what: &str) {
    let pool = site.pool(2);
    let job = site.submit(&pool, &format!("babble:{what}"));
    wait(&pool, &job.task);
    match job.task.outcome().unwrap() {
        Outcome::Died { deaths, .. } => {
            assert_eq!(deaths.last.cause, manyhands_runtime::Cause::Protocol);
        }
        outcome @ Outcome::Error(..) if what == "empty" => {
            let why = show(outcome);
            assert!(why.contains("a call failed"), "{why}");
        }
        outcome => panic!("it ended with {}", show(outcome)),
    }
    assert_width(site, &pool, 2);
    let deaths = finish(site, pool);
    assert_eq!(deaths, u64::from(what != "empty"));
}
