//! Tasks whose arguments and results are in blocks of the store.
//!
//! The content of a buffer follows from its length, and no two tasks of a case have buffers of one length:
//! who looks at another's block sees that it is not what it should be. At the end no block is left.

use crate::crash_table::case::Case;
use crate::crash_table::helpers::{
    cancel_waiting, signal, submit_blocker, until, until_stats, wait, warm, worker_pids,
};
use crate::crash_table::site::{Job, Site};
use crate::crash_table::stream::Items;
use crate::crash_table::worker::pattern;
use manyhands_runtime::{Buffer, Filled, Limits, Outcome, Pool, Retry, Views, WorkerEnd};
use std::sync::Arc;

/// The shortest buffer.
const SHORTEST: usize = 130_000;
/// Longer arguments travel as a file, beside their buffers.
const LONG: usize = 100_000;

/// What a buffer of that length holds.
pub(crate) fn content(len: usize) -> Vec<u8> {
    pattern(len, len)
}

/// Checks that buffers hold what they should.
pub(crate) fn check(views: &Arc<Views>, buffers: &[Buffer]) -> Result<(), String> {
    for buffer in buffers {
        let part = buffer.reference();
        let view = views.open(part).unwrap();
        // SAFETY: the view lives, and the block stays as long as the buffer does.
        let bytes = unsafe { std::slice::from_raw_parts(view.ptr().as_ptr(), view.len()) };
        if bytes != content(part.len) {
            return Err(format!(
                "a buffer of {} bytes holds something else",
                part.len
            ));
        }
    }
    Ok(())
}

/// The length of what a task of this command writes.
pub(crate) fn written(command: &str) -> Vec<usize> {
    let count = command["stored:".len()..].split(' ').next().unwrap();
    let count: usize = count.parse().unwrap();
    Some(count).filter(|&count| count > 0).into_iter().collect()
}

/// In a worker: the buffers of a result, which are those that came, and one of so many bytes if that is
/// not 0.
pub(crate) fn fill(
    end: &mut WorkerEnd,
    came: Vec<Buffer>,
    count: usize,
) -> Result<Vec<Filled>, String> {
    check(end.views(), &came)?;
    let mut filled: Vec<_> = came.into_iter().map(Filled::Came).collect();
    if count > 0 {
        let room = end.reserve(count).ok_or("no room")?;
        let window = end.window();
        window.map().unwrap();
        let to = window.shared().unwrap().as_ptr();
        // SAFETY: the block is this worker's to write, and as long as was asked for.
        unsafe {
            let to = to.add(usize::try_from(room.offset).unwrap());
            std::ptr::copy_nonoverlapping(content(count).as_ptr(), to, count);
        }
        let len = room.len;
        filled.push(room.filled(0, len, count.is_multiple_of(2)));
    }
    Ok(filled)
}

/// Tasks with buffers, whose results hand these back, are written to blocks, or both.
pub(crate) fn submit(site: &Site, pool: &Pool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for index in 0..8 {
        let len = SHORTEST + 10 * index;
        let lengths = [len, len + 1];
        let lengths = &lengths[..index % 3];
        let count = if index % 4 == 1 { 0 } else { len + 2 };
        jobs.push(site.submit_stored(pool, lengths, &format!("stored:{count} echo:{index}")));
        jobs.push(site.submit(pool, "echo:between"));
    }
    jobs
}

pub(crate) fn cases() -> Vec<Case> {
    let scenario = Case::scenario;
    vec![
        scenario(
            "buffers, killed before it is heard",
            "its blocks are free at once",
            killed_unheard,
        ),
        scenario(
            "buffers, killed with a grant",
            "its blocks are free at once",
            killed_with_a_grant,
        ),
        scenario(
            "buffers, the worker stands still between",
            "its blocks stay until it goes on",
            stopped_with_leases,
        ),
        scenario("buffers, tasks run again", "each run gets them", runs_again),
        scenario(
            "buffers, cancelled while they run",
            "what comes late is free",
            cancelled,
        ),
        scenario("buffers, time is up", "their blocks are free", timed_out),
        scenario(
            "buffers, taken back",
            "who is left gets its own",
            taken_back,
        ),
        scenario(
            "buffers, arguments that cannot be read",
            "their leases are returned",
            unread,
        ),
        scenario("buffers of answers", "the asker gives them back", answers),
        scenario(
            "buffers of calls",
            "the asker holds them until they are answered",
            calls,
        ),
        scenario(
            "buffers of a call, the asker is killed",
            "its blocks are free",
            killed_with_a_call,
        ),
        scenario(
            "buffers of a map",
            "an idle worker has told what it released",
            singles,
        ),
        scenario(
            "buffers, held by a thread",
            "are given back while the worker sleeps",
            held,
        ),
        scenario(
            "buffers of tasks that fail",
            "what was written is free",
            failures,
        ),
    ]
}

/// It has asked, and nobody has heard.
fn killed_unheard(site: &Site) {
    killed_at(site, "worker.block_asked", 1);
}

/// It was given a block that it has not written.
fn killed_with_a_grant(site: &Site) {
    killed_at(site, "worker.block_granted", 2);
}

fn killed_at(site: &Site, point: &str, blocks: usize) {
    site.stall_at(point, 1);
    let pool = site.pool(2);
    let command = format!("stored:{} echo:x", SHORTEST + 1);
    let job = site.submit_stored(&pool, &[SHORTEST], &command);
    site.wait_for_crash();
    assert_eq!(site.supervisor.store().stats().blocks, blocks);
    signal(site.run_order()[0].1, libc::SIGKILL);
    assert_eq!(site.settle(&pool, std::slice::from_ref(&job)).died.len(), 1);
    drop(job);
    site.assert_no_blocks();
    site.assert_usable(&pool);
    site.finish(pool);
}

fn stopped_with_leases(site: &Site) {
    let pool = site.pool(1);
    let job = site.submit_stored(
        &pool,
        &[SHORTEST],
        &format!("stored:{} stop:", SHORTEST + 1),
    );
    until(|| site.supervisor.store().stats().blocks == 2);
    let pid = worker_pids(&pool)[0];
    signal(pid, libc::SIGCONT);
    until(|| {
        // It stops itself after it was granted the block.
        signal(pid, libc::SIGCONT);
        job.task.is_done()
    });
    assert_eq!(site.settle(&pool, std::slice::from_ref(&job)).values, 1);
    assert_eq!(
        site.supervisor.store().stats().blocks,
        2,
        "the outcome has them"
    );
    drop(job);
    site.assert_no_blocks();
    site.finish(pool);
}

fn runs_again(site: &Site) {
    let pool = site.pool(2);
    let retry = Arc::new(Retry {
        failures: 3,
        deaths: 3,
        timeouts: true,
        memory: true,
        backoff: 0,
        longest: 1,
        jitter: 0.0,
        policy: None,
    });
    let mut jobs = Vec::new();
    for (index, rest) in ["die_until:2", "fail_until:3", "die_until:3", "fail_until:2"]
        .into_iter()
        .enumerate()
    {
        let len = SHORTEST + 10 * index;
        let command = format!("stored:{} {rest}", len + 1);
        jobs.push(
            site.submit_stored_with(&pool, &[len, len + 2], &command, |entry| {
                entry.retry = Some(retry.clone());
            }),
        );
    }
    assert_eq!(site.settle(&pool, &jobs).values, 4);
    drop(jobs);
    site.assert_no_blocks();
    until_stats(&pool, |stats| stats.deaths == 3);
    site.finish(pool);
}

/// One ends by itself when it is asked to, one returns its buffers though it is cancelled, one is killed.
fn cancelled(site: &Site) {
    let pool = site.pool(1);
    for (index, (rest, grace)) in [
        ("listen:0", 10_000_000_000),
        ("sleep:50", 10_000_000_000),
        ("sleep:60000", 1_000_000),
    ]
    .into_iter()
    .enumerate()
    {
        let len = SHORTEST + 10 * index;
        let command = format!("stored:{} {rest}", len + 1);
        let limits = Limits {
            grace,
            ..Limits::default()
        };
        let job = site.submit_stored_with(&pool, &[len], &command, |entry| entry.limits = limits);
        let waits = site.submit_stored(&pool, &[len + 2], &format!("stored:{} echo:x", len + 3));
        until(|| site.supervisor.store().stats().blocks == 3);
        assert!(pool.cancel(&job.task), "{rest}");
        wait(&pool, &waits.task);
        assert_eq!(site.settle(&pool, &[waits]).values, 1);
        drop(job);
        site.assert_no_blocks();
    }
    site.finish(pool);
}

fn timed_out(site: &Site) {
    let pool = site.pool(2);
    let mut jobs = Vec::new();
    for (index, grace) in [0, 10_000_000_000].into_iter().enumerate() {
        let len = SHORTEST + 10 * index;
        let limits = Limits {
            time: Some(30_000_000),
            grace,
            ..Limits::default()
        };
        let command = format!("stored:{} sleep:300", len + 1);
        jobs.push(site.submit_stored_with(&pool, &[len], &command, |entry| entry.limits = limits));
    }
    assert_eq!(site.settle(&pool, &jobs).timed_out, 2);
    drop(jobs);
    site.assert_no_blocks();
    site.finish(pool);
}

fn taken_back(site: &Site) {
    let pool = site.pool(1);
    warm(site, &pool);
    let blocker = submit_blocker(site, &pool, "go");
    let jobs: Vec<Job> = (0..8)
        .map(|index| {
            let len = SHORTEST + 10 * index;
            site.submit_stored(
                &pool,
                &[len, len + 1],
                &format!("stored:{} echo:x", len + 2),
            )
        })
        .collect();
    for index in [0, 3, 7] {
        assert!(cancel_waiting(&pool, &jobs[index].task));
    }
    site.touch("go");
    site.settle(&pool, &jobs).assert_cancelled(5, 3);
    assert_eq!(site.settle(&pool, &[blocker]).values, 1);
    drop(jobs);
    site.assert_no_blocks();
    site.finish(pool);
}

fn unread(site: &Site) {
    let pool = site.pool(1);
    let limit = site.submit(&pool, "limit_now:");
    wait(&pool, &limit.task);
    let long = "x".repeat(LONG);
    for index in 0..3 {
        let job = site.submit_stored(&pool, &[SHORTEST + index], &format!("stored:0 echo:{long}"));
        wait(&pool, &job.task);
        let outcome = job.task.outcome().unwrap();
        assert!(matches!(outcome, Outcome::Error(..)), "{outcome:?}");
        assert_eq!(site.runs_of(&job), 0);
        let short = site.submit_stored(&pool, &[SHORTEST + 9], "stored:0 echo:x");
        assert_eq!(site.settle(&pool, &[short]).values, 1);
    }
    site.assert_no_blocks();
    assert_eq!(site.finish(pool).deaths, 0);
}

/// The asker ends, and nothing is left of what it sent and was sent.
fn ends_without_blocks(site: &Site, pool: &Pool, job: Job) {
    wait(pool, &job.task);
    site.settle(pool, &[job]);
    site.assert_usable(pool);
    site.assert_no_blocks();
}

fn finish_idle(site: &Site, pool: Arc<Pool>) {
    until(|| {
        // What was cancelled before it was heard is passed over.
        site.assert_usable(&pool);
        pool.stats().queued == 0
    });
    site.finish(pool);
}

fn answers(site: &Site) {
    let pool = site.pool(2);
    let count = SHORTEST + 1;
    for command in [
        format!("ask:3 stored:{count} echo:x"),
        format!("ask_in_turn:3 stored:{count} echo:x"),
        format!("ask_again:stored:{count} fail_until:2"),
        format!("ask_and_leave:3 stored:{count} sleep:5"),
    ] {
        let job = site.submit(&pool, &command);
        ends_without_blocks(site, &pool, job);
    }
    finish_idle(site, pool);
}

fn calls(site: &Site) {
    let pool = site.pool(2);
    let count = SHORTEST + 9;
    for (index, command) in [
        format!("ask:3 stored:{count} echo:x"),
        format!("ask_in_turn:3 stored:{count} echo:x"),
        "ask_again:stored:0 fail_until:2".into(),
        "ask_and_leave:3 stored:0 sleep:5".into(),
        "ask:2 stored:0 ask:2 stored:0 echo:x".into(),
        "ask_again:stored:0 die_until:2".into(),
    ]
    .into_iter()
    .enumerate()
    {
        let lengths = [SHORTEST + 2 * index, SHORTEST + 2 * index + 1];
        let job = site.submit_stored(&pool, &lengths, &format!("stored:0 {command}"));
        ends_without_blocks(site, &pool, job);
    }
    finish_idle(site, pool);
}

/// Before its call is heard, and after.
fn killed_with_a_call(site: &Site) {
    site.stall_at("worker.call_sent", 1);
    let pool = site.pool(2);
    let job = site.submit_stored(&pool, &[SHORTEST], "stored:0 ask:1 stored:0 echo:x");
    site.wait_for_crash();
    signal(site.run_order()[0].1, libc::SIGKILL);
    assert_eq!(site.settle(&pool, std::slice::from_ref(&job)).died.len(), 1);
    drop(job);
    site.assert_no_blocks();
    site.assert_usable(&pool);
    site.finish(pool);
}

fn failures(site: &Site) {
    let pool = site.pool(1);
    let command = |index| format!("stored:{} error:as it should", SHORTEST + 2 * index + 1);
    let jobs: Vec<Job> = (0..4)
        .map(|index| site.submit_stored(&pool, &[SHORTEST + 2 * index], &command(index)))
        .collect();
    assert_eq!(site.settle(&pool, &jobs).values, 4);
    // Nobody asks: a worker that has nothing to do has told what it gave back.
    site.assert_no_blocks();
    assert_eq!(site.finish(pool).deaths, 0);
}

fn singles(site: &Site) {
    let pool = site.pool(1);
    for round in 0..3 {
        let mut items = Items::new(true);
        for index in 0..4 {
            let len = SHORTEST + 2 * index;
            let command = format!("stored:{} echo:{round}", len + 1);
            items.send_stored(site, &pool, &[len], &command);
        }
        assert_eq!(items.settle(site, &pool).values, 4);
        drop(items);
        site.assert_no_blocks();
    }
    site.finish(pool);
}

fn held(site: &Site) {
    let pool = site.pool(1);
    for held in [0, 5, 50] {
        let job = site.submit_stored(&pool, &[SHORTEST], &format!("stored:0 hold:{held}"));
        assert_eq!(site.settle(&pool, &[job]).values, 1);
        site.assert_no_blocks();
    }
    site.finish(pool);
}
