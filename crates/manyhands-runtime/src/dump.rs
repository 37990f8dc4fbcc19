//! What a worker does just now: its stack, as its language writes it, or what the kernel says of it.
//!
//! A worker is asked by a signal (`manyhands_os::dump_signal`), since nothing else reaches one that sits in a
//! library call and holds its language's lock. What writes the stack is the face's handler of that
//! signal, which writes to the descriptor of the control block. Ours comes before it: it says where to
//! write, and afterwards that it was written (`manyhands_shm::DumpWords`). The open file is one with the
//! parent's, so both see the same position, and nothing is opened for it.
//!
//! | case | what comes of it |
//! |---|---|
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long a worker has to answer, in nanoseconds.
pub(crate) const PATIENCE: u64 = 1_000_000_000;

// ---- The worker's side ----------------------------------------------------------------------

/// Who answers: set once in a worker's life.
static ANSWERER: OnceLock<Answerer> = OnceLock::new();
/// A thread writes an answer.
static ANSWERS: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Answerer {
    control: Arc<ControlBlock>,
    /// Which process it is, and which file its descriptor names.
    pid: u32,
    identity: (u64, u64),
}

/// From here on this worker answers, by the handler that the signal has now.
pub(crate) fn answer_dumps(control: &Arc<ControlBlock>) -> std::io::Result<bool> {
    let answerer = Answerer {
        control: control.clone(),
        pid: std::process::id(),
        identity: control.identity()?,
    };
    if ANSWERER.set(answerer).is_err() {
        return Ok(false); // a worker is born once
    }
    manyhands_os::wrap_handler(dump_signal(), answer)
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
    pid: i32,
    /// Its number; none if the worker cannot answer.
    number: Option<u32>,
    until: u64,
}

impl Question {
    /// Asks a worker.
    pub(crate) fn new(control: Arc<ControlBlock>, process: &Process) -> Self {
        let number = control.dump().ask();
        fail_point("parent.stack_asked");
        let is_sent = process.send_handled(dump_signal());
        Self {
            control,
            pid: process.pid(),
            number: is_sent.then_some(number),
            until: monotonic_nanos() + PATIENCE,
        }
    }

    /// The answer, if it is there or will not come.
    pub(crate) fn poll(&self) -> Option<Answer> {
        let stack = self
            .number
            .and_then(|number| self.control.read_dump(number));
        if stack.is_none() && self.number.is_some() && monotonic_nanos() < self.until {
            return None;
        }
        let kernel = match stack {
            Some(_) => None,
            None => Some(kernel_state(self.pid)),
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
                let left = self.until.saturating_sub(monotonic_nanos());
                self.control.dump().wait(number, Duration::from_nanos(left));
            }
        }
    }
}
