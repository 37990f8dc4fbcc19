//! What a worker does just now: its stack, as its language writes it, or what the kernel says of it.
//!
//! A worker is asked by a signal (`manyhands_os::dump_signal`), since nothing else reaches one that sits in a
//! library call and holds its language's lock. What writes the stack is the face's handler of that
//! signal, which writes to the descriptor of the control block. Ours comes before it: it says where to
//! write, and afterwards that it was written (`manyhands_shm::DumpWords`). The open file is one with the
//! parent's, so both see the same position, and nothing is opened for it.
//!
//! The face's handler reads frames, which may be just changing where the signal comes: it may end the worker
//! (python/cpython#116008). So the first signal of a question only has the language run `resume_dump` when it
//! comes to a place where its threads stand still, which sends the signal to its own thread. One that does not
//! come to such a place sits in a library call, and its frames stand still: the parent sends the signal again and
//! again, and what comes when the worker has used the processor for so long, or not at all, is answered at once.
//!
//! | case | what comes of it |
//! |---|---|
//! | its frames change, in another thread, when such a signal comes | the stack is written all the same; in the worst case that ends the worker |
//! | a task has put a handler of its own there, or none | no answer; a worker without a handler is sent no signal, which would end it |
//! | a module that was preloaded has a handler | ours is not put before it: no answer |
//! | a task has closed all descriptors, and opened others | the handler looks which file it is, and writes nothing |
//! | a child that a task forked gets the signal | it is not the worker, and writes nothing |
//! | two threads of the worker get two signals at once | one of them answers both |
//! | the worker is stopped, frozen, or in uninterruptible sleep | no answer within `PATIENCE`: what the kernel says of it |

use crate::fail_point::fail_point;
use crate::pool::PoolStats;
use manyhands_os::{KernelState, Process, dump_signal, kernel_state, monotonic_nanos};
use manyhands_shm::ControlBlock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a worker has to answer, in nanoseconds.
pub(crate) const PATIENCE: u64 = 1_000_000_000;
/// How long the parent waits between two signals.
const SOON: u64 = 100_000_000;
/// For so many nanoseconds nothing but a library call uses the processor, with the language's threads standing still.
const LONG: u64 = 20_000_000;
/// Who has used less than that in so many nanoseconds waits in a library call.
const VERY_LONG: u64 = 350_000_000;

// ---- The worker's side ----------------------------------------------------------------------

/// Who answers: set once in a worker's life.
static ANSWERER: OnceLock<Answerer> = OnceLock::new();
/// A thread writes an answer.
static ANSWERS: AtomicBool = AtomicBool::new(false);
/// The language was asked to come to a place where its threads stand still, and has not yet; when that was, and how
/// much processor time the worker had used then, in nanoseconds.
static DEFERRED: AtomicBool = AtomicBool::new(false);
static SINCE: AtomicU64 = AtomicU64::new(0);
static USED_THEN: AtomicU64 = AtomicU64::new(0);
/// It has come there.
static STANDS: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Answerer {
    control: Arc<ControlBlock>,
    /// Which process it is, and which file its descriptor names.
    pid: u32,
    identity: (u64, u64),
    /// Has `resume_dump` called soon; false if it may be called wherever the signal comes.
    defer: fn() -> bool,
}

/// From here on this worker answers, by the handler that the signal has now. `defer` is called in a signal's
/// handler, and has `resume_dump` called by the thread that runs tasks; false if that need not be.
pub(crate) fn answer_dumps(
    control: &Arc<ControlBlock>,
    defer: fn() -> bool,
) -> std::io::Result<bool> {
    let answerer = Answerer {
        control: control.clone(),
        pid: std::process::id(),
        identity: control.identity()?,
        defer,
    };
    if ANSWERER.set(answerer).is_err() {
        return Ok(false); // a worker is born once
    }
    manyhands_os::wrap_handler(dump_signal(), answer)
}

/// At a place where the threads of the language stand still: answers what was asked.
pub fn resume_dump() {
    // Who gets another signal meanwhile, in whichever thread, may answer as well.
    STANDS.store(true, Ordering::Relaxed);
    manyhands_os::raise(dump_signal());
    STANDS.store(false, Ordering::Relaxed);
    DEFERRED.store(false, Ordering::Relaxed);
}

/// Whether it was asked long enough ago to come to such a place, and is in a library call, then. A worker that
/// had no processor meanwhile is not.
fn has_had_its_time() -> bool {
    let (now, used) = (monotonic_nanos(), manyhands_os::process_cpu_nanos());
    if !DEFERRED.load(Ordering::Acquire) {
        USED_THEN.store(used, Ordering::Relaxed);
        SINCE.store(now, Ordering::Relaxed);
        DEFERRED.store(true, Ordering::Release);
        return false;
    }
    used.saturating_sub(USED_THEN.load(Ordering::Relaxed)) > LONG
        || now.saturating_sub(SINCE.load(Ordering::Relaxed)) > VERY_LONG
}

/// In the signal's handler.
fn answer(write: &dyn Fn()) {
    let Some(answerer) = ANSWERER.get() else {
        return;
    };
    let is_itself = || answerer.control.identity().ok() == Some(answerer.identity);
    if std::process::id() != answerer.pid || !is_itself() {
        return;
    }
    let words = answerer.control.dump();
    let is_early = words.is_asked() && !STANDS.load(Ordering::Relaxed) && !has_had_its_time();
    if is_early && (answerer.defer)() {
        return;
    }
    while words.is_asked() && !ANSWERS.swap(true, Ordering::AcqRel) {
        answerer.control.write_dump(&|| {
            write();
            fail_point("worker.stack_written");
        });
        ANSWERS.store(false, Ordering::Release);
    }
}

// ---- The parent's side ----------------------------------------------------------------------

/// What is known of what a worker does.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// What its language's handler wrote; none if it did not answer, or was not asked.
    pub stack: Option<Vec<u8>>,
    /// What the kernel says of one that did not answer.
    pub kernel: Option<KernelState>,
}

/// What all workers of a pool did at one moment.
#[derive(Debug, Clone)]
pub struct PoolDump {
    /// What there was to know when they were asked.
    pub stats: PoolStats,
    /// What each of its workers answered, in their order.
    pub answers: Vec<Answer>,
}

/// A worker that was asked.
#[derive(Debug)]
pub(crate) struct Question {
    control: Arc<ControlBlock>,
    process: Arc<Process>,
    /// Its number; none if the worker cannot answer.
    number: Option<u32>,
    until: u64,
    /// When the next signal is sent.
    again_at: AtomicU64,
}

impl Question {
    /// Asks a worker.
    pub(crate) fn new(control: Arc<ControlBlock>, process: Arc<Process>) -> Self {
        let number = control.dump().ask();
        fail_point("parent.stack_asked");
        let is_sent = process.send_handled(dump_signal());
        let now = monotonic_nanos();
        Self {
            control,
            process,
            number: is_sent.then_some(number),
            until: now + PATIENCE,
            again_at: AtomicU64::new(now + SOON),
        }
    }

    /// The answer, if it is there or will not come.
    pub(crate) fn poll(&self) -> Option<Answer> {
        // Before the look: who comes late sees what came in time.
        let now = monotonic_nanos();
        let stack = self
            .number
            .and_then(|number| self.control.read_dump(number));
        if stack.is_none() && self.number.is_some() && now < self.until {
            // Relaxed: one thread polls; of two both would send it.
            if now >= self.again_at.load(Ordering::Relaxed) {
                self.again_at.store(now + SOON, Ordering::Relaxed);
                self.process.send_handled(dump_signal());
            }
            return None;
        }
        let kernel = match stack {
            Some(_) => None,
            None => Some(kernel_state(self.process.pid())),
        };
        Some(Answer { stack, kernel })
    }

    /// Waits for it.
    pub(crate) fn wait(&self) -> Answer {
        loop {
            if let Some(answer) = self.poll() {
                return answer;
            }
            if let Some(number) = self.number {
                let next = self.again_at.load(Ordering::Relaxed).min(self.until);
                let left = next.saturating_sub(monotonic_nanos());
                self.control.dump().wait(number, Duration::from_nanos(left));
            }
        }
    }
}
