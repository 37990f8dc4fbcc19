//! A pool: its tasks, its workers' memory, and how results come home.
//!
//! One lock guards everything that changes. Whoever holds it never waits for anything else: not for a
//! process, not for a reader, not for the language on top. Three kinds of threads come here: those
//! that submit, those that wait (`drain_role`), and the supervisor.

use crate::definition::Definition;
use crate::drain_role::{DrainRole, Duty, HandOver};
use crate::fail_point::fail_point;
use crate::protocol::{
    self, FLAG_FILE, FLAG_SECTIONS, FLAG_UNREAD, HEAD, LONGEST_RECORD, MOST_FILES_AHEAD, Malformed,
    ResultHead, ResultKind, SECTION_FORGET, TaskHead, TaskKind, WorkerKey, padded,
};
use crate::scheduler::{Scheduler, Slot};
use crate::supervisor::{Command, Supervisor};
use crate::task::{Breakage, Bytes, Cause, Entry, Outcome, Task};
use manyhands_os::{
    Event, MessageFile, Process, Received, Socket, Waited, futex_wait_private, futex_wake_private,
    monotonic_nanos,
};
use manyhands_shm::{
    ControlBlock, Parked, PoolPage, QueueWord, RESULT_AREA, RingReader, TASK_AREA,
};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// How long a waiting thread spins before it sleeps, where a core is free for it.
const SPIN_NANOS: u64 = 50_000;
/// The longest sleep of a waiting thread. A signal that comes just before a sleep interrupts nothing,
/// and is looked for after this time.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// How long a waiting thread lets results gather while they come in a stream.
const NAP: Duration = Duration::from_micros(50);
/// After so many births in a row without a finished task, the pool gives up.
const MOST_FAILED_BIRTHS: u32 = 3;
/// After so many in a row that were killed from outside, which is no fault of the program's.
const MOST_KILLED_BIRTHS: u32 = 20;
/// The same on all architectures of Linux and the BSDs.
const SIGKILL: i32 = 9;
/// Births that fail within so many nanoseconds fail for one reason.
const ONE_MOMENT: u64 = 2_000_000;
/// Message files that may wait in this process before results are copied out of them.
const MOST_MESSAGE_FILES: usize = 64;
/// How often a submitting thread drains while tasks queue up.
const SUBMITS_PER_DRAIN: u64 = 64;

/// What a pool is made of.
#[derive(Debug)]
pub struct PoolOptions {
    /// The most workers that it has.
    pub workers: usize,
    /// What every worker runs before its first task.
    pub initializer: Option<Initializer>,
    /// How many cores the pool's processes share with its parent.
    pub cores: usize,
}

/// What every worker runs before its first task.
#[derive(Debug)]
pub struct Initializer {
    /// What to run.
    pub definition: Option<Arc<Definition>>,
    /// What else has to be known.
    pub needs: Vec<Arc<Definition>>,
    /// How the payload is encoded.
    pub tag: u8,
    /// The arguments.
    pub payload: Vec<u8>,
}

/// Why a task was not taken.
#[derive(Debug)]
pub enum Refused {
    /// The pool is closed.
    Closed,
    /// The pool can run nothing any more.
    Broken(Arc<Breakage>),
}

/// Whether a pool still takes work.
#[derive(Debug, Clone)]
enum Phase {
    Open,
    /// Takes no more; ends when all is done. With `true` it kills instead of waiting.
    Closing(bool),
    Broken(Arc<Breakage>),
}

/// A worker as its parent keeps it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) control: ControlBlock,
    reader: RingReader,
    socket: Socket,
    /// Closing it kills the worker.
    #[expect(dead_code, reason = "held for its closing")]
    life_line: LifeLine,
    pub(crate) process: Option<Process>,
    pub(crate) generation: u32,
    /// What it was sent; whatever is dead there is forgotten in time.
    known: HashMap<u32, Weak<Definition>>,
    /// The last id found in `known`: most tasks run what the task before ran.
    known_last: u32,
    /// How large `known` may grow before it is looked through.
    known_limit: usize,
    forget: Vec<u32>,
    /// Number of the oldest record without a result.
    oldest: u32,
    /// Number that the next record gets.
    next: u32,
    /// Where the next record goes.
    write_position: u64,
    /// Records written and not yet published.
    unpublished: u32,
    /// Number of the message file that was sent last.
    files_sent: u64,
    /// Number of the message file that a finished task has asked for last.
    files_taken: u64,
    /// Bytes of results since the worker was last looked after.
    consumed: usize,
    finished: u64,
    busy_nanos: u64,
    born_at: u64,
    leaving: bool,
    violation: bool,
}

/// What the supervisor sends to a new worker.
#[derive(Debug)]
pub(crate) struct WorkerEnds {
    pub(crate) control: OwnedFd,
    pub(crate) socket: Socket,
    pub(crate) life_line: OwnedFd,
}

/// The parent's end of a life line, known to `close_life_lines_after_fork`.
#[derive(Debug)]
pub(crate) struct LifeLine {
    end: OwnedFd,
    entry: usize,
}

/// What a person may want to know of a worker.
#[derive(Debug, Clone)]
pub struct WorkerStats {
    /// Its slot.
    pub slot: u32,
    /// Its process id, 0 while it is being born.
    pub pid: i32,
    /// How many workers the slot had before.
    pub restarts: u32,
    /// Tasks finished.
    pub done: u64,
    /// Time spent in tasks, in nanoseconds.
    pub busy_nanos: u64,
    /// Age of the running task, in nanoseconds, if one runs.
    pub task_age: Option<u64>,
    /// Index of the running task.
    pub task_index: Option<u64>,
    /// Tasks that it holds besides the running one.
    pub waiting: usize,
    /// Its age in nanoseconds.
    pub age: u64,
}

/// What a person may want to know of a pool.
#[derive(Debug, Clone)]
pub struct PoolStats {
    /// Its workers.
    pub workers: Vec<WorkerStats>,
    /// Tasks that no worker has.
    pub queued: usize,
    /// Tasks that have not ended.
    pub pending: usize,
    /// Tasks that ended.
    pub done: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Sleeps that ended by time although work was there: always 0 but for killed wakers.
    pub late_wakes: u64,
}

#[derive(Debug)]
enum Seat {
    Vacant,
    /// The supervisor was asked for a worker.
    Asked,
    Taken(Box<Worker>),
}

#[derive(Debug)]
pub(crate) struct State {
    scheduler: Scheduler<Entry>,
    seats: Vec<Seat>,
    generations: Vec<u32>,
    phase: Phase,
    role: DrainRole<Arc<Follower>>,
    pending: usize,
    done: u64,
    deaths: u64,
    submits: u64,
    /// Grows with every drain that found something.
    drains: u64,
    failed_births: u32,
    last_failed_birth: u64,
    /// Births in a row that were killed before they finished a task.
    killed_births: u32,
    /// Tokens of observers whose tasks ended, not yet handed to the face.
    ended: Vec<u64>,
    late_wakes: u64,
    /// A task waits for nothing but the kernel: the supervisor tries again soon.
    try_again: bool,
}

/// A thread that follows the draining one.
#[derive(Debug)]
struct Follower {
    word: AtomicU32,
    task: Arc<Task>,
}

/// A pool of workers.
#[derive(Debug)]
pub struct Pool {
    pub(crate) id: u32,
    cores: usize,
    initializer: Option<Initializer>,
    page: PoolPage,
    pub(crate) event: Event,
    state: Mutex<State>,
    /// Something ended: for those who wait for the pool as a whole.
    quiet: Condvar,
    supervisor: Arc<Supervisor>,
    /// Nanoseconds of spinning that waiting threads allow themselves now.
    spin: AtomicU64,
}

impl Pool {
    /// Makes a pool without workers; they come with the first tasks.
    pub fn new(supervisor: Arc<Supervisor>, options: PoolOptions) -> io::Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let PoolOptions {
            workers,
            initializer,
            cores,
        } = options;
        let pool = Arc::new(Self {
            // Relaxed: only distinct numbers are wanted.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            cores,
            initializer,
            page: PoolPage::create()?,
            event: Event::new()?,
            state: Mutex::new(State {
                scheduler: Scheduler::new(workers),
                seats: (0..workers).map(|_| Seat::Vacant).collect(),
                generations: vec![0; workers],
                phase: Phase::Open,
                role: DrainRole::default(),
                pending: 0,
                done: 0,
                deaths: 0,
                submits: 0,
                drains: 0,
                failed_births: 0,
                last_failed_birth: 0,
                killed_births: 0,
                ended: Vec::new(),
                late_wakes: 0,
                try_again: false,
            }),
            quiet: Condvar::new(),
            supervisor,
            spin: AtomicU64::new(SPIN_NANOS),
        });
        pool.page.parent().announce(Parked::Event);
        pool.supervisor.add_pool(&pool)?;
        Ok(pool)
    }

    /// The lock. A panic under it is a bug of ours that leaves nothing to trust: it aborts.
    fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            Err(_) => crate::bug("a thread panicked while it held a pool"),
        }
    }

    /// Takes a task. The arguments are encoded already; from here on the task needs no thread of
    /// the caller's.
    pub fn submit(&self, entry: Entry) -> Result<(), Refused> {
        let mut state = self.lock();
        match &state.phase {
            Phase::Open => {}
            Phase::Closing(_) => return Err(Refused::Closed),
            Phase::Broken(why) => return Err(Refused::Broken(why.clone())),
        }
        state.pending += 1;
        state.submits += 1;
        if state.scheduler.queued() == 0
            && let Some(slot) = state.scheduler.choose()
        {
            let behind_another = state.scheduler.held_count(slot) > 0;
            match self.write(&mut state, slot, entry) {
                None => self.publish(&mut state, slot),
                Some(entry) => state.scheduler.add(entry),
            }
            if behind_another || state.scheduler.queued() > 0 {
                self.ask_for_workers(&mut state);
            }
        } else {
            state.scheduler.add(entry);
            self.ask_for_workers(&mut state);
            if state.submits.is_multiple_of(SUBMITS_PER_DRAIN) && !state.role.is_held() {
                self.drain(&mut state);
            }
        }
        Ok(())
    }

    /// Asks for as many workers as tasks wait for one, here or behind another task.
    fn ask_for_workers(&self, state: &mut State) {
        let behind: usize = (0..state.seats.len())
            .map(|index| {
                state
                    .scheduler
                    .held_count(Slot(index as u32))
                    .saturating_sub(1)
            })
            .sum();
        let queued = state.scheduler.queued() + behind;
        let coming = state
            .seats
            .iter()
            .filter(|seat| matches!(seat, Seat::Asked))
            .count();
        let mut wanted = queued.saturating_sub(coming);
        let mut asked = false;
        for seat in &mut state.seats {
            if wanted == 0 {
                break;
            }
            if matches!(seat, Seat::Vacant) {
                *seat = Seat::Asked;
                wanted -= 1;
                asked = true;
            }
        }
        if asked {
            self.supervisor.command(Command::Births(self.id));
        }
    }

    /// Asks for all workers at once.
    pub fn start_all(&self) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Open) {
            return;
        }
        for seat in &mut state.seats {
            if matches!(seat, Seat::Vacant) {
                *seat = Seat::Asked;
            }
        }
        self.supervisor.command(Command::Births(self.id));
    }

    // ---- Publishing -------------------------------------------------------------------------

    /// Writes a task's record to a worker; gives the entry back if there is no room.
    fn write(&self, state: &mut State, slot: Slot, mut entry: Entry) -> Option<Entry> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            crate::bug("a task was given to an empty seat");
        };
        if u32::try_from(entry.payload.len()).is_err() {
            self.lose(state, slot, entry, "its arguments are larger than 4 GiB");
            return None;
        }
        let sections = worker.sections(&mut entry);
        let free_from = state
            .scheduler
            .oldest(slot)
            .map_or(worker.write_position, |e| e.position);
        let body_len = match &sections {
            Some(sections) => 4 + sections.len() + entry.payload.len(),
            None => entry.payload.len(),
        };
        let by_file = HEAD + body_len > LONGEST_RECORD || matches!(entry.payload, Bytes::File(_));
        let length = padded(HEAD + if by_file { 8 } else { body_len });
        let room = TASK_AREA as u64 - (worker.write_position - free_from);
        if length as u64 > room {
            worker.unlearn(&mut entry);
            return Some(entry);
        }
        let mut flags = if sections.is_some() { FLAG_SECTIONS } else { 0 };
        if by_file {
            flags |= FLAG_FILE;
            match worker.send_body(sections.as_deref(), &entry.payload) {
                Ok(true) => entry.file = worker.files_sent,
                // Its socket is full of files of tasks that run before, or were taken back.
                Ok(false) => {
                    worker.unlearn(&mut entry);
                    if worker.next == worker.oldest {
                        if worker.files_sent > worker.files_taken {
                            self.discard_files(state, slot);
                        } else {
                            // The kernel has no room; nothing that happens here will tell when it has.
                            state.try_again = true;
                            self.supervisor.command(Command::TryAgain(self.id));
                        }
                    }
                    return Some(entry);
                }
                // It is dead and not buried: whatever it holds returns to the queue in a moment.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    worker.unlearn(&mut entry);
                    state.scheduler.close(slot);
                    return Some(entry);
                }
                Err(error) => {
                    let why = format!("{body_len} bytes of arguments could not be sent: {error}");
                    self.lose(state, slot, entry, &why);
                    return None;
                }
            }
        }
        let head = TaskHead {
            length: length as u32,
            kind: entry.kind,
            tag: entry.tag,
            flags,
            attempt: 1,
            definition: entry
                .definition
                .as_ref()
                .map_or(0, |definition| definition.id()),
            payload: entry.payload.len() as u32,
            index: entry.task.as_ref().map_or(entry.file, |task| task.index),
        };
        entry.position = worker.write_position;
        entry.length = length as u32;
        let head = head.encode();
        let position = worker.write_position;
        // SAFETY: the bytes from `write_position` on are beyond the last record and, as `room`
        // says, before the oldest one without a result.
        let written = unsafe {
            if by_file {
                let number = entry.file.to_ne_bytes();
                worker.control.write_task(position, &head, &number);
                Ok(())
            } else if let Some(sections) = &sections {
                worker
                    .control
                    .write_task(position, &head, &(sections.len() as u32).to_ne_bytes());
                let after = position + HEAD as u64 + 4;
                entry
                    .payload
                    .with(|payload| worker.control.write_task(after, sections, payload))
            } else {
                entry
                    .payload
                    .with(|payload| worker.control.write_task(position, &head, payload))
            }
        };
        if let Err(error) = written {
            // Only a message file can fail to map, and those go by file.
            crate::bug(&format!("a short payload could not be read: {error}"));
        }
        fail_point("parent.record_written");
        worker.write_position += length as u64;
        if let Some(task) = &entry.task {
            task.set_place(Some((slot.0, worker.next)));
        }
        worker.next = QueueWord::advance(worker.next, 1);
        worker.unpublished += 1;
        state.scheduler.published(slot, entry);
        None
    }

    /// Has an idle worker empty its socket of the files of tasks that were taken back.
    fn discard_files(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return;
        };
        let mut entry = Entry::new(
            None,
            TaskKind::Discard,
            None,
            Vec::new(),
            0,
            Bytes::default(),
        );
        entry.file = worker.files_sent;
        // It is idle, so there is room, and nothing is written that was not published.
        if self.write(state, slot, entry).is_none() {
            self.publish(state, slot);
        }
    }

    /// Ends a task that could not be given to a worker.
    fn lose(&self, state: &mut State, slot: Slot, mut entry: Entry, why: &str) {
        if let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] {
            worker.unlearn(&mut entry);
        }
        if let Some(task) = entry.task.take() {
            self.complete(state, &task, Outcome::Failed(why.to_owned()));
        }
    }

    /// Lets the worker start what was written, and wakes it if it sleeps.
    fn publish(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return;
        };
        let count = std::mem::take(&mut worker.unpublished);
        if count > 0 {
            self.page.set_busy(state.scheduler.busy_count() as u32);
            worker.control.queue().publish(count);
            fail_point("parent.task_published");
            worker.wake();
        }
    }

    /// Gives a worker more, if it is low and there is more.
    fn refill(&self, state: &mut State, slot: Slot) {
        if state.scheduler.queued() == 0 || !state.scheduler.is_low(slot) {
            return;
        }
        let open = state
            .seats
            .iter()
            .filter(|seat| matches!(seat, Seat::Taken(_)))
            .count();
        // Each round hands out half of the rest, so that the last tasks come in small portions.
        let share = state.scheduler.queued().div_ceil(2 * open.max(1));
        for _ in 0..state.scheduler.room(slot).min(share) {
            let Some(entry) = state.next_entry() else {
                break;
            };
            if let Some(entry) = self.write(state, slot, entry) {
                state.scheduler.put_first(entry);
                break;
            }
        }
        self.publish(state, slot);
    }

    /// Gives everybody work who can take some, taking it from others where nothing is queued.
    fn balance(&self, state: &mut State) {
        for index in 0..state.seats.len() {
            self.refill(state, Slot(index as u32));
        }
        while let Some((victim, count)) = state.scheduler.steal() {
            let taken = self.take_back(state, victim, count);
            if taken == 0 {
                break;
            }
            while let Some(slot) = state.scheduler.choose()
                && state.scheduler.held_count(slot) == 0
                && state.scheduler.queued() > 0
            {
                self.fill_idle(state, slot, taken);
            }
            if state.scheduler.queued() > 0 {
                break;
            }
        }
    }

    /// Gives an idle worker up to `count` tasks.
    fn fill_idle(&self, state: &mut State, slot: Slot, count: usize) {
        if !state.scheduler.is_open(slot) {
            return;
        }
        for _ in 0..count.min(state.scheduler.room(slot)) {
            let Some(entry) = state.next_entry() else {
                break;
            };
            if let Some(entry) = self.write(state, slot, entry) {
                state.scheduler.put_first(entry);
                break;
            }
        }
        self.publish(state, slot);
    }

    /// Takes back up to `count` of the last tasks of a worker that have not started; gives how many.
    fn take_back(&self, state: &mut State, slot: Slot, count: usize) -> usize {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return 0;
        };
        debug_assert_eq!(worker.unpublished, 0);
        let count = count as u32;
        let from = QueueWord::distance(count, worker.next);
        let end = worker.control.queue().revoke(from);
        let taken = QueueWord::distance(end, worker.next);
        if taken > count {
            // The worker wrote nonsense to the word: who knows what it ran. Its death tells.
            worker.violation = true;
            if let Some(process) = &worker.process {
                process.kill();
            }
            return 0;
        }
        worker.next = end;
        fail_point("parent.revoked");
        state.scheduler.revoked(slot, taken as usize, |entry| {
            worker.write_position = entry.position;
            worker.unlearn(entry);
            if let Some(task) = &entry.task {
                task.set_place(None);
            }
        });
        taken as usize
    }

    // ---- Results ----------------------------------------------------------------------------

    /// Takes all results that have come, gives their workers more, and tells who waits.
    fn drain(&self, state: &mut State) -> bool {
        let mut found = false;
        for index in 0..state.seats.len() {
            if self.drain_seat(state, index) {
                found = true;
                self.refill(state, Slot(index as u32));
            }
        }
        if found {
            self.page.set_busy(state.scheduler.busy_count() as u32);
            state.drains += 1;
            if state.scheduler.queued() == 0 {
                self.balance(state);
            }
            self.tell(state);
        }
        found
    }

    fn drain_seat(&self, state: &mut State, index: usize) -> bool {
        let slot = Slot(index as u32);
        let mut found = false;
        loop {
            let Seat::Taken(worker) = &mut state.seats[index] else {
                return found;
            };
            if worker.violation {
                return found;
            }
            // A position that makes no sense decodes as little as a record that does not.
            let unread = worker.reader.unread();
            if unread.is_some_and(<[u8]>::is_empty) {
                return found;
            }
            let unread = unread.unwrap_or_default();
            let taken = ResultHead::decode(unread).and_then(|(head, payload)| {
                if head.number != worker.oldest {
                    return Err(Malformed);
                }
                let payload = if head.flags & FLAG_FILE == 0 {
                    Ok(Bytes::copy_of(payload))
                } else {
                    worker.receive_file()?
                };
                Ok((head, payload))
            });
            let Ok((head, payload)) = taken else {
                worker.violation = true;
                if let Some(process) = &worker.process {
                    process.kill();
                }
                return found;
            };
            found = true;
            worker.reader.consume(head.length as usize);
            worker.oldest = QueueWord::advance(worker.oldest, 1);
            worker.finished += 1;
            worker.busy_nanos += head.duration;
            worker.consumed += head.length as usize;
            if worker.consumed > RESULT_AREA / 4 {
                // It may sleep because its ring was full.
                worker.consumed = 0;
                worker.wake();
            }
            fail_point("parent.result_taken");
            let Some(entry) = state.scheduler.finished(slot, Some(head.duration)) else {
                crate::bug("a result came for a task that nobody holds");
            };
            worker.files_taken = worker.files_taken.max(entry.file);
            if head.flags & FLAG_UNREAD != 0 {
                // It never saw the definitions that came with the arguments. All are sent anew.
                worker.known.clear();
                worker.known_last = 0;
                worker.forget.clear();
            }
            (state.failed_births, state.killed_births) = (0, 0);
            self.take_result(state, entry, head, payload);
        }
    }

    fn take_result(
        &self,
        state: &mut State,
        entry: Entry,
        head: ResultHead,
        payload: Result<Bytes, String>,
    ) {
        if entry.kind == TaskKind::Initialize {
            if head.kind == ResultKind::Error {
                let payload = payload.unwrap_or_default();
                self.break_down(state, Arc::new(Breakage::Initializer(head.tag, payload)));
            }
            return;
        }
        let Some(task) = entry.task else { return };
        let outcome = match (payload, head.kind) {
            (Ok(payload), ResultKind::Value) => Outcome::Value(head.tag, payload),
            (Ok(payload), ResultKind::Error) => Outcome::Error(head.tag, payload),
            (Err(why), _) => Outcome::Failed(why),
        };
        self.complete(state, &task, outcome);
    }

    /// Ends a task.
    fn complete(&self, state: &mut State, task: &Task, outcome: Outcome) {
        if task.is_done() {
            return;
        }
        if let Some(token) = task.complete(outcome) {
            state.ended.push(token);
        }
        state.pending -= 1;
        state.done += 1;
        if state.pending == 0 {
            self.quiet.notify_all();
            self.leave_if_closing(state);
        }
    }

    /// Tells observers and followers what ended (R2), and the draining thread to look again.
    fn tell(&self, state: &mut State) {
        if !state.ended.is_empty() {
            self.supervisor.completions().push(&mut state.ended);
        }
        for follower in state.role.followers() {
            if follower.task.is_done() {
                follower.tell();
            }
        }
    }

    /// After something ended by other means than a drain: also wakes the draining thread.
    fn tell_all(&self, state: &mut State) {
        self.tell(state);
        if state.role.is_held() {
            // Woken even if the mark is gone: who took it may have died before it woke anybody.
            let _mark = self.page.parent().take_sleeper();
            self.page.parent().wake();
        }
    }

    // ---- Waiting ----------------------------------------------------------------------------

    /// Takes what has come, without waiting; whether the task has ended.
    pub fn poll(&self, task: &Task) -> bool {
        if task.is_done() {
            return true;
        }
        let mut state = self.lock();
        if !state.role.is_held() {
            self.drain(&mut state);
        }
        task.is_done()
    }

    /// Waits until the task has ended (true) or the time is up (false). `interrupted` runs after
    /// a signal; its error ends the wait.
    pub fn wait<E>(
        &self,
        task: &Arc<Task>,
        deadline: Option<u64>,
        mut interrupted: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut state = self.lock();
        loop {
            if task.is_done() || is_past(deadline) {
                if !state.role.is_held() {
                    let next = state.role.leave(|_| false);
                    self.hand_over(&mut state, next);
                }
                return Ok(task.is_done());
            }
            let mut follower = None;
            let duty = state.role.enter(|| {
                let me = Arc::new(Follower {
                    word: AtomicU32::new(0),
                    task: task.clone(),
                });
                follower.insert(me).clone()
            });
            match (duty, follower) {
                (Duty::Follow, Some(me)) => {
                    drop(state);
                    let waited = futex_wait_private(&me.word, 0, Some(limit(deadline)));
                    let answer = match waited {
                        Waited::Interrupted | Waited::TimedOut => interrupted(),
                        Waited::Woken => Ok(()),
                    };
                    state = self.lock();
                    if let Err(error) = answer {
                        let next = state.role.leave(|follower| Arc::ptr_eq(follower, &me));
                        self.hand_over(&mut state, next);
                        return Err(error);
                    }
                    state.role.look(|follower| Arc::ptr_eq(follower, &me));
                }
                _ => {
                    state = self.drain_until(state, task, deadline);
                    let next = state.role.give_up();
                    self.hand_over(&mut state, next);
                    if task.is_done() || is_past(deadline) {
                        return Ok(task.is_done());
                    }
                    // Without the role: this may wait for whoever holds the language's lock.
                    drop(state);
                    interrupted()?;
                    state = self.lock();
                }
            }
        }
    }

    fn hand_over(&self, state: &mut State, next: HandOver<Arc<Follower>>) {
        match next {
            HandOver::Tell(follower) => follower.tell(),
            HandOver::ArmSupervisor => self.arm_supervisor(state),
            HandOver::Nothing => {}
        }
    }

    /// Makes the supervisor the one that drains. Whatever came before it was armed is taken here.
    pub(crate) fn arm_supervisor(&self, state: &mut State) {
        for _ in 0..4 {
            self.page.parent().announce(Parked::Event);
            if !state.has_unread() {
                return;
            }
            self.page.parent().awake();
            self.drain(state);
        }
        // Results come as fast as they are taken: that is the supervisor's work.
        self.event.signal();
    }

    /// Drains until the task has ended, the time is up, or it is time to look for signals.
    fn drain_until<'pool>(
        &'pool self,
        mut state: MutexGuard<'pool, State>,
        task: &Task,
        deadline: Option<u64>,
    ) -> MutexGuard<'pool, State> {
        self.page.parent().awake();
        let look_for_signals = monotonic_nanos() + LONGEST_SLEEP.as_nanos() as u64;
        loop {
            let found = self.drain(&mut state);
            if task.is_done() || is_past(deadline) || is_past(Some(look_for_signals)) {
                return state;
            }
            let may_spin = state.scheduler.busy_count() < self.cores;
            drop(state);
            let mut waited = Waited::Woken;
            if may_spin && self.spin_until(task) {
                // There is something: drain it.
            } else if found {
                // Results come in a stream: they gather while this thread naps, and the workers,
                // which find no mark, wake nobody.
                waited = self.page.parent().nap(NAP);
            } else {
                self.page.parent().announce(Parked::Futex);
                let state = self.lock();
                let come = task.is_done() || state.has_unread();
                drop(state);
                if !come {
                    waited = self.page.parent().sleep(Some(limit(deadline)));
                }
                self.page.parent().awake();
            }
            state = self.lock();
            match waited {
                Waited::Interrupted => return state,
                Waited::TimedOut if !found => state.late_wakes += u64::from(state.has_unread()),
                _ => {}
            }
        }
    }

    /// Looks for results for a while; whether there are any. How long it looks follows how often
    /// that paid.
    fn spin_until(&self, task: &Task) -> bool {
        // Relaxed: a figure for tuning.
        let budget = self.spin.load(Ordering::Relaxed);
        let start = monotonic_nanos();
        loop {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            if task.is_done() || self.state.try_lock().is_ok_and(|state| state.has_unread()) {
                let wanted = budget + budget / 4 + 1_000;
                self.spin.store(wanted.min(SPIN_NANOS), Ordering::Relaxed);
                return true;
            }
            if monotonic_nanos() - start >= budget {
                let wanted = budget - budget / 16;
                self.spin
                    .store(wanted.max(SPIN_NANOS / 16), Ordering::Relaxed);
                return false;
            }
        }
    }

    /// Has the face told when the task has ended, under a token; false if it has ended already.
    pub fn observe(&self, task: &Task, token: u64) -> bool {
        let _state = self.lock();
        if task.is_done() {
            return false;
        }
        task.set_observer(token);
        true
    }

    // ---- Cancelling and closing -------------------------------------------------------------

    /// Cancels a task that has not started; whether it is cancelled now.
    pub fn cancel(&self, task: &Arc<Task>) -> bool {
        self.cancel_all(std::slice::from_ref(task));
        matches!(task.outcome(), Some(Outcome::Cancelled))
    }

    /// Cancels those of the tasks that have not started.
    pub fn cancel_all(&self, tasks: &[Arc<Task>]) {
        let mut state = self.lock();
        for task in tasks {
            if task.is_done() {
                continue;
            }
            if let Some((slot, number)) = task.place()
                && let Seat::Taken(worker) = &state.seats[slot as usize]
            {
                let slot = Slot(slot);
                let behind = QueueWord::distance(number, worker.next) as usize;
                if behind <= state.scheduler.held_count(slot) {
                    self.take_back(&mut state, slot, behind);
                }
            }
            if task.place().is_none() {
                self.complete(&mut state, task, Outcome::Cancelled);
            }
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
    }

    /// Whether workers could take more than what is queued.
    pub fn wants_more(&self) -> bool {
        let state = self.lock();
        let workers = state.seats.len();
        state.scheduler.queued() < workers * state.scheduler.credit().max(2) * 2
    }

    /// Whether the task has been started by a worker.
    pub fn is_running(&self, task: &Task) -> bool {
        let state = self.lock();
        let (false, Some((slot, number))) = (task.is_done(), task.place()) else {
            return false;
        };
        match &state.seats[slot as usize] {
            Seat::Taken(worker) => {
                let next = worker.control.queue().state().next;
                QueueWord::distance(worker.oldest, number)
                    < QueueWord::distance(worker.oldest, next)
            }
            _ => false,
        }
    }

    fn cancel_waiting(&self, state: &mut State) {
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            if !state.is_leaving(slot) {
                let held = state.scheduler.held_count(slot);
                self.take_back(state, slot, held);
            }
        }
        for entry in state.scheduler.take_queue() {
            if let Some(task) = &entry.task {
                self.complete(state, task, Outcome::Cancelled);
            }
        }
    }

    /// Takes no more tasks. With `cancel` those that have not started never do; with `kill` those
    /// that run are ended too. The workers leave when all is done.
    pub fn close(&self, cancel: bool, kill: bool) {
        let mut state = self.lock();
        let was_killing = matches!(state.phase, Phase::Closing(true));
        if !matches!(state.phase, Phase::Broken(_)) {
            state.phase = Phase::Closing(kill || was_killing);
        }
        if cancel || kill {
            self.cancel_waiting(&mut state);
        }
        if kill {
            for seat in &mut state.seats {
                if let Seat::Taken(worker) = seat {
                    worker.control.queue().freeze();
                    worker.leaving = true;
                    if let Some(process) = &worker.process {
                        process.kill();
                    }
                }
            }
        }
        self.leave_if_closing(&mut state);
        self.tell_all(&mut state);
        drop(state);
        self.supervisor.command(Command::Closing(self.id));
    }

    fn leave_if_closing(&self, state: &mut State) {
        if state.pending > 0 || matches!(state.phase, Phase::Open) {
            return;
        }
        self.supervisor.command(Command::Closing(self.id));
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            match &mut state.seats[index] {
                Seat::Taken(worker) if !worker.leaving => {
                    worker.leaving = true;
                    state.scheduler.close(slot);
                    let exit =
                        Entry::new(None, TaskKind::Exit, None, Vec::new(), 0, Bytes::default());
                    if self.write(state, slot, exit).is_none() {
                        self.publish(state, slot);
                    }
                }
                seat @ Seat::Asked => *seat = Seat::Vacant,
                _ => {}
            }
        }
        self.quiet.notify_all();
    }

    /// Waits until all tasks have ended and, with `workers`, all workers are gone, or the time is
    /// up; whether that is so.
    pub fn wait_quiet(&self, workers: bool, time: Duration) -> bool {
        let state = self.lock();
        let busy = |state: &mut State| state.pending > 0 || (workers && state.has_workers());
        match self.quiet.wait_timeout_while(state, time, busy) {
            Ok((_, waited)) => !waited.timed_out(),
            Err(_) => crate::bug("a thread panicked while it held a pool"),
        }
    }

    /// Tasks that have not ended.
    pub fn pending(&self) -> usize {
        self.lock().pending
    }

    /// What there is to know.
    pub fn stats(&self) -> PoolStats {
        let state = self.lock();
        let now = monotonic_nanos();
        let mut workers = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            let Seat::Taken(worker) = seat else { continue };
            let slot = Slot(index as u32);
            let queue = worker.control.queue().state();
            let started = QueueWord::distance(worker.oldest, queue.next) as usize;
            let held = state.scheduler.held_count(slot);
            let running = (started > 0)
                .then(|| state.scheduler.held(slot).nth(started - 1))
                .flatten();
            workers.push(WorkerStats {
                slot: slot.0,
                // A worker may run before the zygote has told of it.
                pid: worker.pid(),
                restarts: worker.generation - 1,
                done: worker.finished,
                busy_nanos: worker.busy_nanos,
                task_age: running.map(|_| now.saturating_sub(worker.control.started_at())),
                task_index: running
                    .and_then(|entry| entry.task.as_ref())
                    .map(|task| task.index),
                waiting: held.saturating_sub(started),
                age: now.saturating_sub(worker.born_at),
            });
        }
        PoolStats {
            workers,
            queued: state.scheduler.queued(),
            pending: state.pending,
            done: state.done,
            deaths: state.deaths,
            late_wakes: state.late_wakes,
        }
    }

    // ---- For the supervisor -----------------------------------------------------------------

    /// Empties the rings for the supervisor; whether to look again soon. It looks again while
    /// results keep coming, so that a busy pool costs a poll now and then and not a system call
    /// per result; then it is armed.
    pub(crate) fn supervise(&self, last_drains: &mut u64) -> bool {
        let mut state = self.lock();
        if std::mem::take(&mut state.try_again) {
            self.balance(&mut state);
            self.tell_all(&mut state);
        }
        if state.role.is_held() {
            return state.try_again;
        }
        self.page.parent().awake();
        self.drain(&mut state);
        if state.try_again {
            return true;
        }
        if state.drains != *last_drains && state.pending > 0 {
            *last_drains = state.drains;
            return true;
        }
        self.arm_supervisor(&mut state);
        false
    }

    /// Seats for which a worker was asked, with the generation that it will be.
    pub(crate) fn seats_asked(&self) -> Vec<WorkerKey> {
        let state = self.lock();
        let asked = state
            .seats
            .iter()
            .enumerate()
            .filter(|(_, seat)| matches!(seat, Seat::Asked));
        asked
            .map(|(index, _)| WorkerKey {
                pool: self.id,
                slot: index as u32,
                generation: state.generations[index] + 1,
            })
            .collect()
    }

    /// Makes the memory and the lines of a worker, and gives its first tasks to it; what the new
    /// process needs is returned.
    pub(crate) fn prepare(&self, key: WorkerKey) -> io::Result<Option<WorkerEnds>> {
        let control = ControlBlock::create()?;
        fail_point("parent.block_made");
        let (socket, workers_socket) = Socket::pair()?;
        let (life_line, workers_life_line) = LifeLine::new()?;
        let ends = WorkerEnds {
            control: control.as_fd().try_clone_to_owned()?,
            socket: workers_socket,
            life_line: workers_life_line,
        };
        // SAFETY: the only reader of this block, which lives in the same value.
        let reader = unsafe { control.result_reader() };
        let mut state = self.lock();
        let index = key.slot as usize;
        if !matches!(state.seats[index], Seat::Asked) {
            return Ok(None); // not wanted any more
        }
        state.generations[index] = key.generation;
        state.seats[index] = Seat::Taken(Box::new(Worker {
            control,
            reader,
            socket,
            life_line,
            process: None,
            generation: key.generation,
            known: HashMap::new(),
            known_last: 0,
            known_limit: 64,
            forget: Vec::new(),
            oldest: 0,
            next: 0,
            write_position: 0,
            unpublished: 0,
            files_sent: 0,
            files_taken: 0,
            consumed: 0,
            finished: 0,
            busy_nanos: 0,
            born_at: monotonic_nanos(),
            leaving: false,
            violation: false,
        }));
        let slot = Slot(key.slot);
        state.scheduler.open(slot, self.initializer.is_some());
        if let Some(initializer) = &self.initializer {
            let entry = Entry::new(
                None,
                TaskKind::Initialize,
                initializer.definition.clone(),
                initializer.needs.clone(),
                initializer.tag,
                Bytes::copy_of(&initializer.payload),
            );
            let unwritten = self.write(&mut state, slot, entry);
            if unwritten.is_some() || state.scheduler.held_count(slot) != 1 {
                // A worker that was not initialized may run nothing.
                state.scheduler.close(slot);
                state.seats[index] = Seat::Vacant;
                return Err(io::Error::other("the initializer could not be sent"));
            }
            self.publish(&mut state, slot);
        }
        self.balance(&mut state);
        self.ask_for_workers(&mut state);
        self.tell_all(&mut state);
        Ok(Some(ends))
    }

    pub(crate) fn page(&self) -> &PoolPage {
        &self.page
    }

    /// The worker runs. If it is not wanted any more, it is told to leave or killed.
    pub(crate) fn born(&self, key: WorkerKey, process: Process) -> io::Result<Option<OwnedFd>> {
        let mut state = self.lock();
        let killing = matches!(state.phase, Phase::Closing(true));
        let Some(worker) = state.worker(key) else {
            process.kill();
            return Ok(None);
        };
        if killing || worker.violation {
            process.kill();
        }
        let watch = process
            .descriptor()
            .map(|pidfd| pidfd.try_clone_to_owned())
            .transpose()?;
        worker.process = Some(process);
        state.scheduler.born(Slot(key.slot));
        if state.pending == 0 {
            self.leave_if_closing(&mut state);
        } else {
            self.balance(&mut state);
            self.tell_all(&mut state);
        }
        Ok(watch)
    }

    /// The worker is gone: what it had started is lost, the rest goes on.
    pub(crate) fn died(&self, key: WorkerKey, cause: Cause) {
        self.bury(key, cause, true);
    }

    fn bury(&self, key: WorkerKey, cause: Cause, again: bool) {
        let mut state = self.lock();
        if state.worker(key).is_none() {
            return;
        }
        let index = key.slot as usize;
        // Frozen first: a worker that lives unseen, its zygote dead, publishes nothing after that
        // but the result of what it runs.
        if let Some(worker) = state.worker(key) {
            worker.control.queue().freeze();
        }
        self.drain_seat(&mut state, index);
        let seat = std::mem::replace(&mut state.seats[index], Seat::Vacant);
        let Seat::Taken(mut worker) = seat else {
            return;
        };
        self.page.end_spin(key.slot);
        let slot = Slot(key.slot);
        let queue = worker.control.queue().state();
        let started = QueueWord::distance(worker.oldest, queue.next) as usize;
        let loss = state.scheduler.died(slot, started, |entry| {
            worker.unlearn(entry);
            if let Some(task) = &entry.task {
                task.set_place(None);
            }
        });
        let cause = if worker.violation {
            Cause::Protocol
        } else {
            cause
        };
        let pid = worker.pid();
        let killing = matches!(state.phase, Phase::Closing(true));
        let (mut blamed, mut initializing) = (false, false);
        let mut leaving = worker.leaving;
        for entry in loss.started {
            match (entry.kind, entry.task) {
                (TaskKind::Run, Some(task)) => {
                    blamed = true;
                    let outcome = if killing {
                        Outcome::Cancelled
                    } else {
                        Outcome::Died {
                            pid,
                            cause,
                            tag: entry.tag,
                            payload: entry.payload,
                        }
                    };
                    self.complete(&mut state, &task, outcome);
                }
                (TaskKind::Exit, _) => leaving = true,
                (TaskKind::Initialize, _) => initializing = true,
                _ => {}
            }
        }
        // Start-up and exit messages that were never read go with the worker.
        let mut returned = state.scheduler.take_queue();
        returned.retain(|entry| entry.kind == TaskKind::Run);
        for entry in returned {
            state.scheduler.add(entry);
        }
        // A worker that was never born did not die, unless it ran unseen and a task is lost.
        if !leaving && (blamed || worker.process.is_some()) {
            state.deaths += 1;
            if worker.finished == 0 && !blamed {
                match cause {
                    // Unknown: nobody is left who could tell what killed it, but something did.
                    Cause::Signal(SIGKILL) | Cause::Unknown if !initializing => {
                        state.killed_births += 1;
                    }
                    _ => state.count_failed_birth(),
                }
            }
        }
        // A pool that has finished tasks before can start workers: it is more patient.
        let most = if state.done > 0 && !initializing {
            MOST_KILLED_BIRTHS
        } else {
            MOST_FAILED_BIRTHS
        };
        let too_many = state.failed_births >= most || state.killed_births >= MOST_KILLED_BIRTHS;
        if too_many && matches!(state.phase, Phase::Open | Phase::Closing(false)) {
            let breakage = if self.initializer.is_some() {
                Breakage::InitializerDied(pid, cause)
            } else {
                Breakage::Start(format!(
                    "{} workers in a row died while they started ({cause:?})",
                    state.failed_births + state.killed_births
                ))
            };
            self.break_down(&mut state, Arc::new(breakage));
        }
        let wanted = match state.phase {
            // One that could not even be started is asked for again by the next task.
            Phase::Open => !leaving && again,
            Phase::Closing(false) => state.pending > 0,
            _ => false,
        };
        if wanted {
            state.seats[index] = Seat::Asked;
            self.supervisor.command(Command::Births(self.id));
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
        self.quiet.notify_all();
    }

    /// A worker could not be started. While others run they do its work; else the pool breaks,
    /// after a few attempts.
    pub(crate) fn not_born(&self, key: WorkerKey, why: &str) {
        let mut state = self.lock();
        let index = key.slot as usize;
        if matches!(state.seats[index], Seat::Asked) {
            state.seats[index] = Seat::Vacant;
        }
        let others = state.seats.iter().enumerate().any(|(other, seat)| {
            other != index && matches!(seat, Seat::Taken(worker) if worker.process.is_some())
        });
        drop(state);
        if !others {
            self.birth_failed(why);
        }
        self.bury(key, Cause::Start, !others);
        if !others {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Open | Phase::Closing(false)) {
                self.ask_for_workers(&mut state);
            }
        }
    }

    /// Counts a birth that failed; after a few in a row the pool breaks.
    pub(crate) fn birth_failed(&self, why: &str) {
        let mut state = self.lock();
        state.count_failed_birth();
        if state.failed_births >= MOST_FAILED_BIRTHS {
            let why = format!("workers could not be started: {why}");
            self.break_down(&mut state, Arc::new(Breakage::Start(why)));
            self.tell_all(&mut state);
        }
    }

    fn break_down(&self, state: &mut State, why: Arc<Breakage>) {
        if matches!(state.phase, Phase::Broken(_)) {
            return;
        }
        state.phase = Phase::Broken(why.clone());
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            if !state.is_leaving(slot) {
                let held = state.scheduler.held_count(slot);
                self.take_back(state, slot, held);
            }
        }
        for entry in state.scheduler.take_queue() {
            if let Some(task) = &entry.task {
                self.complete(state, task, Outcome::Broken(why.clone()));
            }
        }
        self.leave_if_closing(state);
    }

    /// Kills the workers that have not left, for the end of the time that they were given; those that
    /// are not even born are returned, to be buried: whoever was asked for them does not answer.
    #[must_use]
    pub(crate) fn kill_leaving(&self) -> Vec<WorkerKey> {
        let state = self.lock();
        let mut unborn = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            if let Seat::Taken(worker) = seat
                && worker.leaving
            {
                match &worker.process {
                    Some(process) => process.kill(),
                    None => unborn.push(WorkerKey {
                        pool: self.id,
                        slot: index as u32,
                        generation: worker.generation,
                    }),
                }
            }
        }
        unborn
    }

    /// Whether the pool is closing and its last task has ended.
    pub(crate) fn is_leaving(&self) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Open) && state.pending == 0
    }

    /// Whether the pool is closed and its last worker gone.
    pub(crate) fn is_gone(&self) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Open) && state.pending == 0 && !state.has_workers()
    }

    /// Workers without a process: their birth was asked of a zygote that is gone.
    pub(crate) fn unborn(&self) -> Vec<WorkerKey> {
        let state = self.lock();
        let mut keys = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            if let Seat::Taken(worker) = seat
                && worker.process.is_none()
            {
                let (slot, generation) = (index as u32, worker.generation);
                keys.push(WorkerKey {
                    pool: self.id,
                    slot,
                    generation,
                });
            }
        }
        keys
    }
}

fn is_past(deadline: Option<u64>) -> bool {
    deadline.is_some_and(|deadline| monotonic_nanos() >= deadline)
}

fn limit(deadline: Option<u64>) -> Duration {
    deadline.map_or(LONGEST_SLEEP, |deadline| {
        Duration::from_nanos(deadline.saturating_sub(monotonic_nanos())).min(LONGEST_SLEEP)
    })
}

impl Follower {
    fn tell(&self) {
        // Release and the wait's Acquire in the lock that follows: the word only says "look".
        self.word.store(1, Ordering::Release);
        futex_wake_private(&self.word, 1);
    }
}

impl State {
    /// The first task of the queue that was not cancelled while it was there. Other records than
    /// tasks are their worker's, and of no use when they were taken back.
    fn next_entry(&mut self) -> Option<Entry> {
        loop {
            let entry = self.scheduler.take_first()?;
            let cancelled = entry.task.as_ref().is_some_and(|task| task.is_done());
            if entry.kind == TaskKind::Run && !cancelled {
                return Some(entry);
            }
        }
    }

    fn has_unread(&self) -> bool {
        self.seats.iter().any(|seat| match seat {
            Seat::Taken(worker) => worker.reader.has_unread() && !worker.violation,
            _ => false,
        })
    }

    /// Counts a birth that failed. Those of one moment have one cause, and count once.
    fn count_failed_birth(&mut self) {
        let now = monotonic_nanos();
        if now - self.last_failed_birth > ONE_MOMENT {
            self.failed_births += 1;
            self.last_failed_birth = now;
        }
    }

    /// Whether the worker was told to leave: what it holds is the word to do so.
    fn is_leaving(&self, slot: Slot) -> bool {
        matches!(&self.seats[slot.0 as usize], Seat::Taken(worker) if worker.leaving)
    }

    fn has_workers(&self) -> bool {
        self.seats.iter().any(|seat| matches!(seat, Seat::Taken(_)))
    }

    fn worker(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        match self.seats.get_mut(key.slot as usize) {
            Some(Seat::Taken(worker)) if worker.generation == key.generation => Some(worker),
            _ => None,
        }
    }
}

impl Worker {
    /// Its process id for messages; a worker that nobody reported yet says it itself.
    fn pid(&self) -> i32 {
        match &self.process {
            Some(process) => process.pid(),
            None => self.control.pid().cast_signed(),
        }
    }

    /// What has to travel with the task: definitions that the worker lacks, in the order of their
    /// needs, ids that it may forget, and the ids of further needs.
    fn sections(&mut self, entry: &mut Entry) -> Option<Vec<u8>> {
        let main = entry.definition.as_ref();
        if entry.needs.is_empty()
            && self.forget.is_empty()
            && main.is_none_or(|definition| definition.id() == self.known_last)
        {
            return None;
        }
        let mut sections = Vec::new();
        let mut carried = Vec::new();
        for definition in entry.needs.iter().chain(main) {
            self.teach(definition, &mut sections, &mut carried);
        }
        if let Some(definition) = main {
            self.known_last = definition.id();
        }
        if !entry.needs.is_empty() {
            protocol::put_needs(&mut sections, &entry.needs);
        }
        if self.known.len() > self.known_limit {
            let dead: Vec<u32> = self
                .known
                .iter()
                .filter(|(_, definition)| definition.strong_count() == 0)
                .map(|(&id, _)| id)
                .collect();
            for id in &dead {
                self.known.remove(id);
            }
            self.known_limit = 64 + 2 * self.known.len();
            self.forget.extend(dead);
        }
        if !self.forget.is_empty() {
            entry.forgets = std::mem::take(&mut self.forget);
            protocol::put_ids(&mut sections, SECTION_FORGET, entry.forgets.iter().copied());
        }
        entry.carried = carried;
        (!sections.is_empty()).then_some(sections)
    }

    fn teach(
        &mut self,
        definition: &Arc<Definition>,
        sections: &mut Vec<u8>,
        carried: &mut Vec<u32>,
    ) {
        if self.known.contains_key(&definition.id()) {
            return;
        }
        for need in definition.needs() {
            self.teach(need, sections, carried);
        }
        protocol::put_definition(sections, definition);
        self.known
            .insert(definition.id(), Arc::downgrade(definition));
        carried.push(definition.id());
    }

    /// The record did not go out, or was taken back: the worker never saw what it carried.
    fn unlearn(&mut self, entry: &mut Entry) {
        for id in entry.carried.drain(..) {
            self.known.remove(&id);
        }
        self.forget.append(&mut entry.forgets);
        self.known_last = 0;
        entry.file = 0; // numbers of files are the worker's
    }

    /// Sends a body by message file, whose number is `files_sent` then; false if the socket is full.
    fn send_body(&mut self, sections: Option<&[u8]>, payload: &Bytes) -> io::Result<bool> {
        if self.files_sent - self.files_taken >= MOST_FILES_AHEAD {
            return Ok(false);
        }
        let number = (self.files_sent + 1).to_ne_bytes();
        if let (None, Bytes::File(file)) = (sections, payload) {
            let sent = self.socket.send(&number, &[file.as_fd()], false)?;
            self.files_sent += u64::from(sent);
            return Ok(sent);
        }
        let mut body = Vec::new();
        let len = sections.map_or(0, |sections| 4 + sections.len()) + payload.len();
        body.try_reserve_exact(len)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        if let Some(sections) = sections {
            body.extend_from_slice(&(sections.len() as u32).to_ne_bytes());
            body.extend_from_slice(sections);
        }
        payload.with(|payload| body.extend_from_slice(payload))?;
        let file = MessageFile::new(&body)?;
        let sent = self.socket.send(&number, &[file.as_fd()], false)?;
        self.files_sent += u64::from(sent);
        Ok(sent)
    }

    /// Takes the message file that belongs to the result just read.
    fn receive_file(&self) -> Result<Result<Bytes, String>, Malformed> {
        let lost = |why: String| Ok(Err(format!("the result could not be received: {why}")));
        match self.socket.receive(&mut [0], false) {
            Ok(Received::Message(_, mut descriptors)) => {
                let file = descriptors.pop().ok_or(Malformed)?;
                match MessageFile::from_descriptor(file) {
                    Ok(file) if MessageFile::count() <= MOST_MESSAGE_FILES => {
                        Ok(Ok(Bytes::File(file)))
                    }
                    Ok(file) => match file.read() {
                        Ok(bytes) => Ok(Ok(Bytes::Heap(bytes.into_boxed_slice()))),
                        Err(error) => lost(error.to_string()),
                    },
                    Err(error) => lost(error.to_string()),
                }
            }
            Ok(Received::DescriptorsLost(_)) => lost("this process has too many open files".into()),
            // Its message is still there, or never was: no later one would be told apart.
            Ok(Received::Nothing | Received::Closed) | Err(_) => Err(Malformed),
        }
    }

    /// Wakes the worker if it sleeps.
    fn wake(&self) {
        if self.control.worker().take_sleeper().is_some() {
            self.control.worker().wake();
        }
    }
}

/// Life lines of all pools, for `close_life_lines_after_fork`, which may take no lock.
static LIFE_LINES: [std::sync::atomic::AtomicI32; 4096] =
    [const { std::sync::atomic::AtomicI32::new(-1) }; 4096];

impl LifeLine {
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        use std::os::fd::AsRawFd;
        let (end, other) = manyhands_os::life_line()?;
        let descriptor = end.as_raw_fd();
        // Relaxed: the table is read in a child of fork, which sees all that its parent wrote.
        let entry = LIFE_LINES.iter().position(|entry| {
            entry
                .compare_exchange(-1, descriptor, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        let entry =
            entry.ok_or_else(|| io::Error::other("more than 4096 workers in one process"))?;
        Ok((Self { end, entry }, other))
    }
}

impl Drop for LifeLine {
    fn drop(&mut self) {
        // Out of the table before the descriptor is closed, so that a child never closes a number
        // that has become something else's.
        LIFE_LINES[self.entry].store(-1, Ordering::Relaxed);
        let _closed_by_its_drop = &self.end;
    }
}

/// In a child that the program forked itself: closes its copies of all life lines, so that workers
/// die with their parent even while the child lives. Takes no lock and allocates nothing.
pub fn close_life_lines_after_fork() {
    for entry in &LIFE_LINES {
        let descriptor = entry.swap(-1, Ordering::Relaxed);
        if descriptor >= 0 {
            manyhands_os::close_after_fork(descriptor);
        }
    }
}
