//! The worker's side of calls.
//!
//! One thread of the process, made with its first call, takes the answers. Threads that wait for one sleep on
//! a word that grows with each.

use super::answer::{self, Answer};
use super::ask;
use super::packet::{self, Come, Reader};
use crate::fail_point::fail_point;
use crate::lease::Buffer;
use crate::protocol::WorkerKey;
use crate::supervisor::Supervisor;
use crate::task::{Entry, Outcome, Task};
use manyhands_os::{
    Socket, Waited, block_all_signals, futex_wait_private, futex_wake_private, monotonic_nanos,
};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest sleep of a thread that waits. A signal that comes just before a sleep interrupts nothing,
/// and is looked for after this time.
const LONGEST_SLEEP: u64 = 100_000_000;

/// By which the tasks of a worker submit tasks to the pool that runs them.
#[derive(Debug)]
pub struct Caller {
    requests: Socket,
    key: WorkerKey,
    /// How many workers the pool has.
    width: usize,
    /// Held while something is sent: what was told of definitions goes out in its order.
    sending: Mutex<Sending>,
    calls: Mutex<Calls>,
    /// How many calls are open: to look at without the lock.
    open: AtomicUsize,
    /// Grows with every answer; threads that wait sleep on it.
    answers: AtomicU32,
}

#[derive(Debug, Default)]
struct Sending {
    line: Option<Arc<Socket>>,
    told: ask::Told,
    next: u64,
}

#[derive(Debug, Default)]
struct Calls {
    open: HashMap<u64, Arc<Task>>,
    /// What the arguments are in of calls that the parent has not answered, be they open or not: it may still
    /// have to look them up among what this worker holds.
    held: HashMap<u64, Vec<Buffer>>,
    /// Whom observers of a call's end are told by.
    supervisor: Option<Arc<Supervisor>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Caller {
    pub(crate) fn new(requests: OwnedFd, key: WorkerKey, width: usize) -> Self {
        Self {
            requests: Socket::from_descriptor(requests),
            key,
            width,
            sending: Mutex::default(),
            calls: Mutex::default(),
            open: AtomicUsize::new(0),
            answers: AtomicU32::new(0),
        }
    }

    /// The pool that runs this worker.
    pub fn pool(&self) -> u32 {
        self.key.pool
    }

    /// How many workers the pool has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many calls are open.
    #[inline]
    pub fn open(&self) -> usize {
        // Relaxed: threads that care have waited for what they submitted, or submitted it themselves.
        self.open.load(Ordering::Relaxed)
    }

    /// Asks to run what `entry` says; its task ends by an answer.
    pub fn submit(self: &Arc<Self>, entry: &Entry) {
        let Some(task) = &entry.task else {
            crate::bug("a call without a task");
        };
        let mut sending = lock(&self.sending);
        sending.next += 1;
        let call = sending.next;
        task.set_place(Some(((call >> 32) as u32, call as u32)));
        // Counted first: from then on others may end it.
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut calls = lock(&self.calls);
        calls.open.insert(call, task.clone());
        let buffers = entry.payload.buffers();
        if !buffers.is_empty() {
            calls.held.insert(call, buffers.to_vec());
        }
        drop(calls);
        let sent = self.line(&mut sending).and_then(|line| {
            let packet = ask::submit(call, entry, &mut sending.told)?;
            fail_point("worker.call_packed");
            packet.send(&line, true)
        });
        if sent.is_err() {
            // What it told did not come.
            sending.told.forget();
        }
        drop(sending);
        fail_point("worker.call_sent");
        if let Err(error) = sent {
            let why = format!("it could not be submitted: {error}");
            self.answered(call, Outcome::Failed(why));
        }
    }

    /// The line to the parent, made with the first call.
    fn line(self: &Arc<Self>, sending: &mut Sending) -> io::Result<Arc<Socket>> {
        if let Some(line) = &sending.line {
            return Ok(line.clone());
        }
        let (line, parents) = Socket::pair()?;
        let hello = hello(self.key);
        self.requests.send(&hello, &[parents.as_fd()], true)?;
        fail_point("worker.line_sent");
        drop(parents);
        let line = Arc::new(line);
        let (caller, listening) = (self.clone(), line.clone());
        std::thread::Builder::new()
            .name("manyhands-calls".into())
            .stack_size(256 * 1024)
            .spawn(move || caller.listen(&listening))?;
        sending.line = Some(line.clone());
        Ok(line)
    }

    /// Takes answers, until the parent is gone.
    fn listen(&self, line: &Socket) {
        block_all_signals();
        loop {
            match packet::receive(line, true) {
                Ok(Come::Packet(records, mut file)) => {
                    let mut reader = Reader(records.as_slice());
                    while !reader.is_empty() {
                        match answer::read(&mut reader, &mut file) {
                            Ok((call, Answer::Ended(outcome))) => self.answered(call, outcome),
                            Ok((call, Answer::Unread)) => {
                                lock(&self.sending).told.forget();
                                let why = "its arguments were lost: the process that runs the pool \
                                           has too many open files, or no memory";
                                self.answered(call, Outcome::Failed(why.into()));
                            }
                            Err(_) => crate::bug("an answer makes no sense"),
                        }
                    }
                }
                Ok(Come::Lost(call)) => {
                    let why =
                        "its result was lost: this worker has too many open files, or no memory";
                    self.answered(call, Outcome::Failed(why.into()));
                }
                Ok(Come::Nothing) => {}
                // The parent is gone, and this process is in a moment; or it could not take the line.
                Ok(Come::Closed) | Err(_) => {
                    let mut sending = lock(&self.sending);
                    sending.line = None;
                    sending.told.forget();
                    // Before another line can be made: calls of that one stay open.
                    let mut calls = lock(&self.calls);
                    let open: Vec<u64> = calls.open.keys().copied().collect();
                    let held = std::mem::take(&mut calls.held);
                    drop(calls);
                    drop(held);
                    drop(sending);
                    for call in open {
                        let why =
                            "the process that runs the pool is gone, or has too many open files";
                        self.ended(call, Outcome::Failed(why.into()));
                    }
                    return;
                }
            }
        }
    }

    /// The parent will look for nothing of a call any more.
    fn answered(&self, call: u64, outcome: Outcome) {
        let held = lock(&self.calls).held.remove(&call);
        drop(held);
        self.ended(call, outcome);
    }

    /// Ends a call, if it is open.
    fn ended(&self, call: u64, outcome: Outcome) {
        let mut calls = lock(&self.calls);
        let Some(task) = calls.open.remove(&call) else {
            return; // cancelled
        };
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(token) = task.complete(outcome)
            && let Some(supervisor) = &calls.supervisor
        {
            supervisor.completions().push(&mut vec![token]);
        }
        drop(calls);
        // Release: who sees the number sees the task's end; the word only says "look".
        self.answers.fetch_add(1, Ordering::Release);
        futex_wake_private(&self.answers, u32::MAX >> 1);
    }

    /// Waits until something is so that answers bring about (true) or the time is up (false). `interrupted`
    /// runs after a signal; its error ends the wait.
    pub fn wait<E>(
        &self,
        is_ready: impl Fn() -> bool,
        deadline: Option<u64>,
        mut interrupted: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        loop {
            let seen = self.answers.load(Ordering::Acquire);
            if is_ready() {
                return Ok(true);
            }
            let left = deadline.map_or(u64::MAX, |at| at.saturating_sub(monotonic_nanos()));
            if left == 0 {
                return Ok(false);
            }
            let limit = Duration::from_nanos(left.min(LONGEST_SLEEP));
            match futex_wait_private(&self.answers, seen, Some(limit)) {
                Waited::Woken => {}
                Waited::Interrupted | Waited::TimedOut => interrupted()?,
            }
        }
    }

    /// Cancels a call: it has ended here, and its parent ends it there. Whether it is cancelled now.
    pub fn cancel(&self, task: &Task) -> bool {
        if let (false, Some((high, low))) = (task.is_done(), task.place()) {
            let call = (u64::from(high) << 32) | u64::from(low);
            self.ended(call, Outcome::Cancelled);
            let line = lock(&self.sending).line.clone();
            if matches!(task.outcome(), Some(Outcome::Cancelled))
                && let (Some(line), Ok(packet)) = (line, ask::cancel(call))
            {
                // Without a parent nothing runs that would have to be ended.
                let _sent = packet.send(&line, true);
            }
        }
        matches!(task.outcome(), Some(Outcome::Cancelled))
    }

    /// Cancels all calls that are open.
    pub fn cancel_all(&self) {
        let open: Vec<_> = lock(&self.calls).open.values().cloned().collect();
        for task in open {
            self.cancel(&task);
        }
    }

    /// Has the face told when the call has ended, under a token, by this supervisor; false if it has ended
    /// already.
    pub fn observe(&self, task: &Task, token: u64, supervisor: &Arc<Supervisor>) -> bool {
        let mut calls = lock(&self.calls);
        if task.is_done() {
            return false;
        }
        task.set_observer(token);
        calls.supervisor.get_or_insert_with(|| supervisor.clone());
        true
    }
}

/// What a worker sends with the parent's end of its line.
fn hello(key: WorkerKey) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&key.slot.to_ne_bytes());
    bytes[4..].copy_from_slice(&key.generation.to_ne_bytes());
    bytes
}

/// Whose line it is that came with this: slot and generation.
pub(crate) fn read_hello(bytes: &[u8]) -> Option<(u32, u32)> {
    let (slot, generation) = bytes.split_at_checked(4)?;
    Some((
        u32::from_ne_bytes(slot.try_into().ok()?),
        u32::from_ne_bytes(generation.try_into().ok()?),
    ))
}
