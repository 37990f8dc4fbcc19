//! The thread engine: a queue, and threads that work from it.
//!
//! The queue is Rust's, the threads are Python's (`threading.Thread`, started when there is work for
//! them), so that everything that looks at threads sees them. An *entry* of the queue is a task or a map
//! that has items waiting; a map is in the queue at most once.
//!
//! **Locks.** A mutex here is held for a few instructions: its holder runs no Python, drops no object and
//! waits for nothing, above all not for the GIL. Whoever sleeps has let go of the GIL and of every mutex
//! but the one that the condition variable gives back. No two mutexes are held at once.
//!
//! **Sleep and wake.** Who is woken when an entry comes is decided by `Wakes` of the runtime, which has the steps PUSH,
//! POP and REST. A thread that has a map in its hand puts it back, which is a PUSH, before it starts the item, if the
//! map has more. So an item that takes its time holds nothing up: what has not started can be taken.
//!
//! A thread that has slept for the pool's `idle_timeout` takes itself out of those that idle and leaves, unless an
//! entry or a permit is there; so does one that finds more threads than places, and who works when it comes
//! back to the queue. From then on it is leaving, and counts no more. Who adds an entry hires after that.
//!
//! A thread that works looks at the queue before it sleeps, and one that was started before it sleeps for the first
//! time. Those that are being started are counted apart, as `coming`, so that no more are started than are needed;
//! they have no duty, since their initializer may take its time. So no entry waits while a thread could have it.

use crate::asking::{Runner, What, Why};
use crate::bystanders::{detach, enter_always, is_ending};
use crate::crew_map::CrewMap;
use crate::crew_nesting::{DEEPEST, Runs, depth_below};
use crate::crew_task::{Call, CrewTask, End};
use crate::engine::{Engine, MapCall, TaskOptions};
use crate::events::{Sink, here, label_of};
use crate::future::{Known, TaskFuture, Work};
use crate::local::{self, Turn};
use crate::pool::Initializer;
use crate::results::Source;
use crate::{clock, context, hooks, process};
use manyhands_os::{coarse_nanos, monotonic_nanos};
use manyhands_runtime::{Event, EventKind, Rank, Ranked, RankedQueue, Unseen, Wakes};
use pyo3::exceptions::{PyRuntimeError, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

thread_local! {
    /// The crew that this thread works for, as an address; 0 for other threads.
    static CREW: Cell<usize> = const { Cell::new(0) };
}

/// The threads of a pool, and what they work on.
pub(crate) struct Crew {
    generation: u32,
    /// The most threads. Changed with the queue's mutex.
    most: AtomicUsize,
    /// How many there are, but for those that leave. Changed with the queue's mutex.
    working: AtomicUsize,
    /// After how many nanoseconds without a task a thread leaves, if it does.
    idle_for: Option<u64>,
    /// The priority of what has none of its own.
    priority: i32,
    shows_args: bool,
    name: String,
    initializer: Option<(Py<PyAny>, Py<PyTuple>)>,
    /// Where it is told what happens, if somebody listens.
    events: Option<Sink>,
    queue: Mutex<Queue>,
    /// Places that are lent, see `crew_nesting`. Changed with the queue's mutex.
    lent: AtomicUsize,
    /// The number of the rank of what comes first in the queue, `i64::MIN` if that is empty. Changed with the
    /// queue's mutex.
    first_rank: AtomicI64,
    /// Where idle threads sleep.
    wake: Condvar,
    /// Where those sleep who wait for the end of all tasks, or of the threads.
    quiet: Condvar,
    /// Tasks and items that have not ended.
    pending: AtomicUsize,
    /// Tasks and items that have.
    done: AtomicU64,
    /// The number of the next task.
    index: AtomicU64,
    /// Whether the pool is closed; as in the queue, for a look without the mutex.
    closed: AtomicBool,
    pub(crate) unseen: Unseen<String>,
}

struct Queue {
    entries: RankedQueue<Entry>,
    /// Who sleeps, and who was woken.
    wakes: Wakes,
    /// Threads that were started and have not come to the queue yet.
    coming: usize,
    /// Threads that were started and have not left, also those that are about to.
    members: Vec<Arc<Member>>,
    /// Their `threading.Thread`s, and those of some that have left, each with its slot.
    threads: Vec<(usize, Py<PyAny>)>,
    /// Threads whose tasks did not end when they were asked to.
    left_behind: u64,
    /// The number of the next thread.
    slot: usize,
    closed: bool,
    /// Whether what has not started is to be cancelled.
    cancelled: bool,
    /// What the initializer raised.
    broken: Option<Arc<Py<PyAny>>>,
}

/// What a thread takes from the queue.
pub(crate) enum Entry {
    Task(Arc<CrewTask>),
    Map(Arc<CrewMap>),
}

impl Ranked for Entry {
    #[inline]
    fn rank(&self) -> Rank {
        match self {
            Self::Task(task) => task.rank,
            Self::Map(map) => map.rank,
        }
    }
}

/// Why something does not run.
pub(crate) enum Refused {
    Closed,
    Cancelled,
    Broken(Arc<Py<PyAny>>),
}

impl Refused {
    pub(crate) fn into_error(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Closed => {
                PyRuntimeError::new_err("cannot schedule new tasks: the pool is shut down")
            }
            Self::Cancelled => crate::future::cancelled(py),
            Self::Broken(error) => PyErr::from_value(error.bind(py).clone()),
        }
    }

    /// What broke the pool, if that is why.
    pub(crate) fn breakage(&self) -> Option<&Arc<Py<PyAny>>> {
        match self {
            Self::Broken(error) => Some(error),
            _ => None,
        }
    }
}

/// A thread, as `stats` shows it.
pub(crate) struct Member {
    slot: usize,
    born: u64,
    pub(crate) done: AtomicU64,
    pub(crate) busy_nanos: AtomicU64,
    /// When its running task started, 0 while none runs; and its number.
    pub(crate) started_at: AtomicU64,
    /// Its processor time at the end of its last lap, 0 if it has done something else since.
    pub(crate) cpu_since: AtomicU64,
    pub(crate) index: AtomicU64,
    /// Its thread, once that runs.
    runner: OnceLock<Arc<Runner>>,
    /// What `threading.get_ident` gives there, 0 before it runs.
    ident: AtomicU64,
    /// Whether it takes no more tasks. Changed with the queue's mutex.
    is_leaving: AtomicBool,
    /// Whether it is no longer `coming`. Changed with the queue's mutex.
    has_come: AtomicBool,
}

impl Member {
    /// Its place among the threads of its pool.
    pub(crate) fn slot(&self) -> u32 {
        self.slot as u32
    }

    /// Says what runs now.
    #[inline]
    pub(crate) fn starts(&self, index: u64) {
        // Relaxed, here and below: figures to show.
        self.index.store(index, Ordering::Relaxed);
        self.started_at.store(coarse_nanos(), Ordering::Relaxed);
    }

    /// Whether that thread is this one.
    fn is(&self, runner: &Arc<Runner>) -> bool {
        self.runner
            .get()
            .is_some_and(|mine| Arc::ptr_eq(mine, runner))
    }

    /// What it does, for people.
    fn dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let item = PyDict::new(py);
        let started_at = self.started_at.load(Ordering::Relaxed);
        let runs = started_at > 0;
        // The clock that says when a task started may be some milliseconds behind.
        let started_at = started_at.max(self.born);
        let age = || monotonic_nanos().saturating_sub(started_at) as f64 / 1e9;
        item.set_item("slot", self.slot)?;
        item.set_item("pid", std::process::id())?;
        item.set_item("task_age", runs.then(age))?;
        let index = || self.index.load(Ordering::Relaxed);
        item.set_item("task_index", runs.then(index))?;
        let what = self.runner.get().and_then(|runner| runner.what());
        item.set_item("task", what.and_then(|what| what.label(py)))?;
        Ok(item)
    }

    /// So many tasks have ended, which took so long.
    #[inline]
    pub(crate) fn ends(&self, count: u64, nanos: u64) {
        self.started_at.store(0, Ordering::Relaxed);
        // One thread writes.
        let add = |counter: &AtomicU64, more| {
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        };
        add(&self.done, count);
        add(&self.busy_nanos, nanos);
    }
}

impl Crew {
    pub(crate) fn new(
        workers: usize,
        initializer: Initializer<'_>,
        show_args: bool,
        priority: i32,
        idle_for: Option<u64>,
        name: &str,
        events: Option<Sink>,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: process::generation(),
            most: AtomicUsize::new(workers),
            working: AtomicUsize::new(0),
            idle_for,
            priority,
            shows_args: show_args,
            name: name.to_owned(),
            initializer: initializer.map(|(function, args)| (function.unbind(), args.unbind())),
            events,
            queue: Mutex::new(Queue {
                entries: RankedQueue::default(),
                wakes: Wakes::default(),
                coming: 0,
                members: Vec::new(),
                threads: Vec::new(),
                left_behind: 0,
                slot: 0,
                closed: false,
                cancelled: false,
                broken: None,
            }),
            lent: AtomicUsize::new(0),
            first_rank: AtomicI64::new(i64::MIN),
            wake: Condvar::new(),
            quiet: Condvar::new(),
            pending: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            index: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            unseen: Unseen::default(),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shows_args(&self) -> bool {
        self.shows_args
    }

    #[inline]
    pub(crate) fn events(&self) -> Option<&Sink> {
        self.events.as_ref()
    }

    fn say_of(&self, member: &Member, kind: EventKind) {
        if let Some(events) = &self.events {
            let who = here(Some(member.slot()));
            events.push(Event::now(kind, Some(who), None));
        }
    }

    /// Ends the events, if the pool is closed and all have left.
    fn end_events_if_gone(&self) {
        let Some(events) = &self.events else { return };
        let queue = self.queue();
        let is_gone = queue.closed && queue.members.is_empty();
        drop(queue);
        // Acquire pairs with the decrement.
        if is_gone && self.pending.load(Ordering::Acquire) == 0 {
            events.finish();
        }
    }

    /// The most threads.
    pub(crate) fn most(&self) -> usize {
        // Relaxed, here and below: whoever acts on it looks again with the mutex.
        self.most.load(Ordering::Relaxed)
    }

    /// How many threads there are, but for those that leave.
    fn working(&self) -> usize {
        self.working.load(Ordering::Relaxed)
    }

    /// The priority of what has none of its own.
    pub(crate) fn priority(&self) -> i32 {
        self.priority
    }

    /// Whether the pool takes no more.
    pub(crate) fn is_closed(&self) -> bool {
        // Relaxed: whoever sleeps looks again.
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether this is a child that was forked from the crew's process.
    #[inline]
    pub(crate) fn is_of_other_process(&self) -> bool {
        self.generation != process::generation()
    }

    pub(crate) fn check_process(&self, what: &str) -> PyResult<()> {
        process::check(self.generation, what)
    }

    /// Step PUSH for what is new.
    #[inline]
    pub(crate) fn push(&self, entry: Entry) -> Result<(), Refused> {
        let queue = self.queue();
        if queue.closed {
            return Err(queue.refusal());
        }
        self.add(queue, entry);
        Ok(())
    }

    /// Step PUSH for a map that a thread has in its hand.
    pub(crate) fn put_back(&self, map: &Arc<CrewMap>) -> Result<(), Refused> {
        let queue = self.queue();
        if queue.cancelled {
            return Err(queue.refusal());
        }
        self.add(queue, Entry::Map(map.clone()));
        Ok(())
    }

    /// Why a closed pool takes nothing.
    pub(crate) fn refusal(&self) -> Refused {
        self.queue().refusal()
    }

    /// Whether this thread works for this crew.
    #[inline]
    pub(crate) fn is_mine(self: &Arc<Self>) -> bool {
        CREW.get() == Arc::as_ptr(self).addr()
    }

    /// A thread lends its place: one more may work.
    pub(crate) fn lend(&self) {
        let mut queue = self.queue();
        // Relaxed, here and below: read with the mutex.
        self.lent.fetch_add(1, Ordering::Relaxed);
        let wakes = !queue.entries.is_empty() && queue.wakes.pushed();
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// It has its place again.
    pub(crate) fn give_back(&self) {
        let _queue = self.queue();
        self.lent.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many threads may be there now.
    fn places(&self) -> usize {
        self.most() + self.lent.load(Ordering::Relaxed)
    }

    /// How many tasks and maps wait for a thread.
    pub(crate) fn waiting(&self) -> usize {
        self.queue().entries.len()
    }

    #[inline]
    fn add(&self, mut queue: MutexGuard<'_, Queue>, entry: Entry) {
        queue.entries.push_back(entry);
        self.note_first(&queue);
        let wakes = queue.wakes.pushed();
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Says what comes first in the queue, for those who look without the mutex.
    #[inline]
    fn note_first(&self, queue: &Queue) {
        let first = queue.entries.first_rank().map_or(i64::MIN, Rank::number);
        // Relaxed: whoever reads an old one looks again soon.
        self.first_rank.store(first, Ordering::Relaxed);
    }

    /// Whether a thread that works on something of this rank is to come back to the queue: for something of a
    /// higher one, or to leave.
    #[inline]
    pub(crate) fn wants_thread(&self, rank: Rank) -> bool {
        self.first_rank.load(Ordering::Relaxed) > rank.number() || self.has_too_many()
    }

    /// Starts threads, if more tasks wait than there are threads that idle or are on their way. An error
    /// only if there is no thread at all.
    #[inline]
    pub(crate) fn hire(
        self: &Arc<Self>,
        py: Python<'_>,
        waiting: impl Fn() -> usize,
    ) -> PyResult<()> {
        while self.needs_more(waiting()) {
            // Others run while the thread starts, and may be through with what waits.
            self.hire_one(py)?;
        }
        Ok(())
    }

    #[inline]
    fn needs_more(&self, waiting: usize) -> bool {
        let queue = self.queue();
        // A thread whose initializer has raised is gone again, and nothing waits for another.
        !queue.cancelled
            && self.working() < self.places()
            && (self.working() == 0 || waiting > queue.wakes.at_hand() + queue.coming)
    }

    #[cold]
    fn hire_one(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let mut queue = self.queue();
        if self.working() >= self.places() {
            return Ok(());
        }
        let member = self.enlist(&mut queue);
        drop(queue);
        self.start_member(py, &member)
    }

    /// Starts the thread of one that was enlisted. An error only if there is no thread at all.
    fn start_member(self: &Arc<Self>, py: Python<'_>, member: &Arc<Member>) -> PyResult<()> {
        let name = self.thread_name(member);
        let handle = CrewMember {
            crew: self.clone(),
            member: member.clone(),
            place: format!("worker {name}, attempt 1"),
        };
        let started = hooks::start_thread(py).and_then(|hook| hook.call1((handle, name)));
        match started {
            Ok(thread) => {
                let mut queue = self.queue();
                // Unless it was left behind already, or has left.
                let is_there = queue.members.iter().any(|it| Arc::ptr_eq(it, member));
                let is_left = member.runner.get().is_some_and(|runner| runner.is_left());
                if !is_left && (is_there || queue.closed) {
                    queue.threads.push((member.slot, thread.unbind()));
                }
                Ok(())
            }
            Err(error) => {
                let mut queue = self.queue();
                self.strike(&mut queue, member);
                queue.has_come(member);
                let is_alone = self.working() == 0;
                drop(queue);
                self.end_events_if_gone();
                self.quiet.notify_all();
                // Fewer threads than wanted do the same work.
                if is_alone { Err(error) } else { Ok(()) }
            }
        }
    }

    /// So many tasks or items have come.
    #[inline]
    pub(crate) fn came(&self, count: usize) {
        // Relaxed: what says that they have ended comes later through a mutex.
        self.pending.fetch_add(count, Ordering::Relaxed);
    }

    /// So many have ended.
    #[inline]
    pub(crate) fn ended(&self, count: usize) {
        self.done.fetch_add(count as u64, Ordering::Relaxed);
        self.forget(count);
    }

    /// So many that came will neither start nor end.
    pub(crate) fn forget(&self, count: usize) {
        // AcqRel: whoever sees 0 sees what the others did.
        if count > 0 && self.pending.fetch_sub(count, Ordering::AcqRel) == count {
            // With the mutex, or it would come between a look and a sleep.
            drop(self.queue());
            self.quiet.notify_all();
            self.end_events_if_gone();
        }
    }

    /// Step POP; none if the queue is empty.
    #[inline]
    fn pop(&self, is_waking: &mut bool) -> Option<Entry> {
        let mut queue = self.queue();
        let entry = queue.entries.pop();
        self.note_first(&queue);
        if entry.is_some() && *is_waking {
            let left = queue.entries.len();
            let wakes = queue.wakes.popped(is_waking, left);
            drop(queue);
            if wakes {
                self.wake.notify_one();
            }
        }
        entry
    }

    /// Sleeps until there may be something in the queue; false if the thread is to leave. The caller does
    /// not hold the GIL.
    fn sleep(&self, member: &Member, is_waking: &mut bool) -> bool {
        let mut queue = self.queue();
        let left = queue.entries.len();
        if !queue.wakes.rests(is_waking, left) {
            return true;
        }
        if queue.closed {
            return false;
        }
        queue.wakes.lies_down();
        let until = self
            .idle_for
            .map(|time| monotonic_nanos().saturating_add(time));
        loop {
            if !queue.wakes.may_sleep() || queue.closed {
                *is_waking = queue.wakes.rises();
                return true;
            }
            let left = until.map(|until| until.saturating_sub(monotonic_nanos()));
            let is_over = left == Some(0);
            if is_over || self.has_too_many() {
                // Nobody has woken it, so it takes nobody's duty with it.
                let _was_woken = queue.wakes.rises();
                if is_over && !queue.entries.is_empty() {
                    return true;
                }
                self.take_off(member);
                return false;
            }
            queue = match left {
                None => self.wake.wait(queue),
                Some(left) => self
                    .wake
                    .wait_timeout(queue, Duration::from_nanos(left))
                    .map(|(queue, _)| queue)
                    .map_err(|poisoned| PoisonError::new(poisoned.into_inner().0)),
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The loop of a thread.
    fn work(self: &Arc<Self>, py: Python<'_>, member: &Arc<Member>, place: &str) {
        if self.is_of_other_process() {
            return; // a child that the initializer forked came back from it
        }
        CREW.set(Arc::as_ptr(self).addr());
        let runner = &Runner::of_this_thread();
        let _is_first = member.runner.set(runner.clone());
        if !self.queue().has_come(member) {
            return; // a Ctrl-C came while it was started: nobody counts on it
        }
        let mut is_waking = false;
        let mut turn = Turn::default();
        turn.begin(monotonic_nanos());
        loop {
            if self.has_too_many() && self.resign(member, &mut is_waking) {
                break;
            }
            match self.pop(&mut is_waking) {
                Some(Entry::Task(task)) => {
                    let start = monotonic_nanos();
                    member.starts(task.index());
                    member.cpu_since.store(0, Ordering::Relaxed);
                    let runs = Runs::new(self, task.rank);
                    task.run(py, runner, member.slot(), place);
                    drop(runs);
                    drop(task);
                    member.ends(1, monotonic_nanos() - start);
                }
                Some(Entry::Map(map)) => {
                    let _runs = Runs::new(self, map.rank);
                    map.run_lap(py, member, runner, place);
                }
                None => {
                    member.cpu_since.store(0, Ordering::Relaxed);
                    if !detach(py, || self.sleep(member, &mut is_waking)) {
                        break;
                    }
                    turn.begin(monotonic_nanos());
                    continue;
                }
            }
            if self.is_of_other_process() {
                return; // a child that a task forked came back from it
            }
            if runner.is_left() {
                return; // another has its place
            }
            if let Err(error) = turn.pass(py, monotonic_nanos()) {
                // Between two tasks it is meant for none of them.
                error.write_unraisable(py, None);
            }
        }
    }

    /// Whether there are more threads than places: some were lent and given back, or the pool was made smaller.
    #[inline]
    fn has_too_many(&self) -> bool {
        self.working() > self.places()
    }

    /// Takes the thread off the crew if there are more than places; whether it did. It then leaves.
    #[cold]
    fn resign(&self, member: &Member, is_waking: &mut bool) -> bool {
        let mut queue = self.queue();
        if !self.has_too_many() {
            return false;
        }
        self.take_off(member);
        let left = queue.entries.len();
        let wakes = queue.wakes.popped(is_waking, left);
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
        true
    }

    /// The thread takes no more tasks. With the queue's mutex.
    fn take_off(&self, member: &Member) {
        // Relaxed, here and below: read and changed with the mutex.
        if !member.is_leaving.swap(true, Ordering::Relaxed) {
            self.working.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Adds a thread that is yet to be started.
    fn enlist(&self, queue: &mut Queue) -> Arc<Member> {
        self.working.fetch_add(1, Ordering::Relaxed);
        queue.enlist()
    }

    /// The thread is gone; gives what Python has of it.
    fn strike(&self, queue: &mut Queue, member: &Arc<Member>) -> Option<Py<PyAny>> {
        let at = queue
            .members
            .iter()
            .position(|it| Arc::ptr_eq(it, member))?;
        queue.members.remove(at);
        self.take_off(member);
        let mut threads = queue.threads.iter();
        let at = threads.position(|(slot, _)| *slot == member.slot)?;
        Some(queue.threads.swap_remove(at).1)
    }

    /// Its threads, and how many tasks and items none of them has.
    fn members(&self) -> (Vec<Arc<Member>>, usize) {
        let queue = self.queue();
        let mut maps = Vec::new();
        let mut queued = 0;
        for entry in queue.entries.iter() {
            match entry {
                Entry::Task(_) => queued += 1,
                Entry::Map(map) => maps.push(map.clone()),
            }
        }
        let members = queue.members.clone();
        drop(queue);
        queued += maps.iter().map(|map| map.waiting()).sum::<usize>();
        (members, queued)
    }

    /// Whether what has failed is not to run again, whatever was asked.
    pub(crate) fn ends_early(&self) -> bool {
        self.is_of_other_process() || self.queue().cancelled
    }

    fn thread_name(&self, member: &Member) -> String {
        format!("{}-{}", self.name, member.slot)
    }

    /// The name of a thread of this crew.
    pub(crate) fn thread_of(&self, runner: &Arc<Runner>) -> Option<String> {
        let queue = self.queue();
        let member = queue.members.iter().find(|member| member.is(runner));
        member.map(|member| self.thread_name(member))
    }

    fn runners(&self) -> Vec<Arc<Runner>> {
        let queue = self.queue();
        let runners = queue
            .members
            .iter()
            .filter_map(|member| member.runner.get());
        runners.cloned().collect()
    }

    /// Asks what is meant to end, wherever it runs.
    pub(crate) fn ask(&self, py: Python<'_>, why: Why, is_meant: impl Fn(&What) -> bool) {
        for runner in self.runners() {
            runner.ask(py, why, &is_meant);
        }
    }

    /// Step LEAVE: goes on without a thread, and with another one if there is something to do. As long as the
    /// caller does not run Python, the thread is still in its task.
    #[cold]
    pub(crate) fn leave_behind(&self, runner: &Arc<Runner>) -> Option<LeftBehind> {
        let mut queue = self.queue();
        let at = queue.members.iter().position(|member| member.is(runner))?;
        let member = queue.members[at].clone();
        queue.left_behind += 1;
        let thread = self.strike(&mut queue, &member);
        let successor = (!queue.entries.is_empty()).then(|| self.enlist(&mut queue));
        drop(queue);
        self.say_of(&member, EventKind::Stopped);
        self.quiet.notify_all();
        Some(LeftBehind {
            name: self.thread_name(&member),
            index: member.index.load(Ordering::Relaxed),
            _thread: thread,
            successor,
        })
    }

    /// Says that a thread was left behind with what the text names, and starts its successor.
    pub(crate) fn tell_left(
        self: &Arc<Self>,
        py: Python<'_>,
        left: &LeftBehind,
        what: &str,
        grace: u64,
    ) {
        self.end_events_if_gone();
        let line = format!(
            "{what} has not ended {} s after it was asked to, and a thread cannot be killed: {} is left behind \
             with it, and the pool goes on without that thread",
            grace as f64 / 1e9,
            left.name,
        );
        let told = hooks::left_behind(py).and_then(|hook| hook.call1((line,)));
        let started = left
            .successor
            .as_ref()
            .map(|member| self.start_member(py, member));
        for error in told.err().into_iter().chain(started.and_then(Result::err)) {
            // While the program ends this thread is sent out of here like all others.
            let is_sent_out = is_ending() && error.is_instance_of::<PySystemExit>(py);
            if !is_sent_out {
                // There is nobody else whom to tell.
                error.write_unraisable(py, None);
            }
        }
    }

    /// Asks all that runs to end, for the pool is to end at once.
    fn stop_all(&self, py: Python<'_>) {
        for runner in self.runners() {
            match runner.what() {
                Some(What::Task(task, _)) => {
                    task.cancel(py);
                }
                Some(What::Item(map, ..) | What::Lap(map)) => {
                    runner.ask(py, Why::Cancelled, |what| what.is_of(&map));
                    map.kill();
                }
                Some(What::Inline) | None => {}
            }
        }
    }

    fn leave(&self, member: &Arc<Member>) {
        let is_left = |runner: &Arc<Runner>| runner.is_left();
        if !member.runner.get().is_some_and(is_left) {
            self.say_of(member, EventKind::Left);
        }
        let mut queue = self.queue();
        let thread = self.strike(&mut queue, member);
        queue.has_come(member); // unless it has: its initializer raised
        if queue.closed {
            // Who waits for the end of the pool joins it.
            queue
                .threads
                .extend(thread.map(|thread| (member.slot, thread)));
            drop(queue);
        } else {
            drop(queue);
            drop(thread);
        }
        self.end_events_if_gone();
        self.quiet.notify_all();
    }

    /// Ends all that has not started.
    fn end_waiting(&self, py: Python<'_>, why: Option<&Arc<Py<PyAny>>>) {
        loop {
            let mut queue = self.queue();
            let entry = queue.entries.pop();
            self.note_first(&queue);
            drop(queue);
            let Some(entry) = entry else {
                return;
            };
            match entry {
                Entry::Task(task) => {
                    task.end_unstarted(match why {
                        Some(error) => End::Error(error.clone_ref(py)),
                        None => End::Cancelled,
                    });
                }
                Entry::Map(map) => map.end_waiting(why),
            }
        }
    }

    /// An initializer raised: the pool runs nothing any more.
    fn break_down(&self, py: Python<'_>, error: &Arc<Py<PyAny>>) {
        if self.is_of_other_process() {
            return;
        }
        let mut queue = self.queue();
        queue.broken.get_or_insert_with(|| error.clone());
        queue.closed = true;
        queue.cancelled = true;
        drop(queue);
        self.closed.store(true, Ordering::Relaxed);
        self.wake.notify_all();
        self.end_waiting(py, Some(error));
    }
}

/// A thread that its crew goes on without.
pub(crate) struct LeftBehind {
    pub(crate) name: String,
    /// The number of what it runs.
    pub(crate) index: u64,
    /// Dropped when no lock is held.
    _thread: Option<Py<PyAny>>,
    successor: Option<Arc<Member>>,
}

impl Queue {
    /// Adds a thread that is yet to be started.
    fn enlist(&mut self) -> Arc<Member> {
        let member = Arc::new(Member {
            slot: self.slot,
            born: monotonic_nanos(),
            done: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            started_at: AtomicU64::new(0),
            cpu_since: AtomicU64::new(0),
            index: AtomicU64::new(0),
            runner: OnceLock::new(),
            ident: AtomicU64::new(0),
            is_leaving: AtomicBool::new(false),
            has_come: AtomicBool::new(false),
        });
        self.slot += 1;
        self.members.push(member.clone());
        self.coming += 1;
        member
    }

    /// The thread is not on its way any more; whether it was.
    fn has_come(&mut self, member: &Member) -> bool {
        // Relaxed: with the mutex.
        let was_coming = !member.has_come.swap(true, Ordering::Relaxed);
        self.coming -= usize::from(was_coming);
        was_coming
    }

    fn refusal(&self) -> Refused {
        match &self.broken {
            Some(error) => Refused::Broken(error.clone()),
            None => Refused::Closed,
        }
    }
}

/// What a task ends with that is nested too deep.
#[cold]
fn too_deep<'py>(function: &Bound<'py, PyAny>, index: u64) -> PyResult<Bound<'py, PyAny>> {
    let why = format!("tasks may submit tasks that submit tasks, and so on, up to {DEEPEST} deep");
    hooks::failed(function.py())?.call1((why, local::label_of(function), index))
}

impl Engine for Arc<Crew> {
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        options: TaskOptions,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        if !function.is_callable() {
            return Err(crate::functions::not_callable(function));
        }
        if options.limits.time.is_some() {
            clock::start(py)?;
        }
        let future = hooks::future(py)?.call0()?;
        // Relaxed: a number for messages.
        let index = self.index.fetch_add(1, Ordering::Relaxed);
        if depth_below(self) > DEEPEST {
            let error = too_deep(function, index)?.unbind();
            let known = Known::Error(error);
            future.cast::<TaskFuture>()?.get().end(known, Work::Ended);
            return Ok(future);
        }
        let call = Call {
            function: context::around(function)?.unbind(),
            args: args.clone().unbind(),
            kwargs: kwargs.map(|kwargs| kwargs.clone().unbind()),
            limits: options.limits,
            plan: options.plan,
            origin: options.origin,
            kept: options.kept,
        };
        let label = self.events.as_ref().and_then(|_| label_of(function));
        let task = CrewTask::new(self.clone(), index, label, options.priority, call);
        future
            .cast::<TaskFuture>()?
            .get()
            .fill(Work::Thread(task.clone()));
        self.came(1);
        let is_told = self.events.is_some() && !self.is_closed();
        if is_told {
            task.say(EventKind::Queued); // before a thread can say more
        }
        if let Err(refused) = self.push(Entry::Task(task.clone())) {
            if is_told {
                task.say(EventKind::Cancelled); // it was closed just now
            }
            task.never_came();
            self.forget(1);
            return Err(refused.into_error(py));
        }
        if let Err(error) = self.hire(py, || self.queue().entries.len()) {
            task.cancel(py);
            return Err(error);
        }
        Ok(future)
    }

    fn map(&self, function: &Bound<'_, PyAny>, call: MapCall) -> PyResult<Box<dyn Source>> {
        if !function.is_callable() {
            return Err(crate::functions::not_callable(function));
        }
        if self.is_closed() {
            return Err(self.refusal().into_error(function.py()));
        }
        if depth_below(self) > DEEPEST {
            return Err(PyErr::from_value(too_deep(function, 0)?));
        }
        if call.options.limits.time.is_some() {
            clock::start(function.py())?;
        }
        CrewMap::source(self.clone(), function, call)
    }

    fn start(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        for _ in 0..self.most() {
            self.hire_one(function.py())?;
        }
        Ok(())
    }

    fn close(&self, py: Python<'_>, cancel: bool, kill: bool) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.cancelled |= cancel;
        drop(queue);
        self.closed.store(true, Ordering::Relaxed);
        self.wake.notify_all();
        if cancel {
            self.end_waiting(py, None);
        }
        if kill {
            self.stop_all(py);
        }
        self.end_events_if_gone();
    }

    fn ask(&self, py: Python<'_>) {
        self.stop_all(py);
    }

    fn wait_quiet(&self, py: Python<'_>, workers: bool, time: Duration) -> PyResult<bool> {
        if CREW.get() == Arc::as_ptr(self).addr() {
            return Err(PyRuntimeError::new_err(
                "a task cannot wait for the end of the pool that runs it",
            ));
        }
        let is_quiet = |queue: &Queue| {
            // Acquire pairs with the decrement.
            self.pending.load(Ordering::Acquire) == 0 && (!workers || queue.members.is_empty())
        };
        let over = detach(py, || {
            let queue = self.queue();
            if is_quiet(&queue) {
                return true;
            }
            let (queue, _) = self
                .quiet
                .wait_timeout(queue, time)
                .unwrap_or_else(PoisonError::into_inner);
            is_quiet(&queue)
        });
        if over && workers {
            let threads = std::mem::take(&mut self.queue().threads);
            if !threads.is_empty() {
                let threads = threads.into_iter().map(|(_, thread)| thread);
                let threads = PyList::new(py, threads.collect::<Vec<_>>())?;
                hooks::join_threads(py)?.call1((threads,))?;
            }
        }
        Ok(over)
    }

    fn resize(&self, py: Python<'_>, workers: usize) -> PyResult<bool> {
        let queue = self.queue();
        if queue.closed {
            return Ok(false);
        }
        self.most.store(workers, Ordering::Relaxed);
        drop(queue);
        // Those that sleep and are too many leave.
        self.wake.notify_all();
        let waiting = || self.members().1;
        if waiting() > 0 {
            self.hire(py, waiting)?;
        }
        Ok(true)
    }

    fn take_unseen(&self, _py: Python<'_>, all: bool) -> (u64, Option<String>) {
        self.unseen.take(all)
    }

    fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    fn dump<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (members, queued) = self.members();
        let workers = PyList::empty(py);
        for member in &members {
            let item = member.dict(py)?;
            // By which Python finds its stack.
            item.set_item("ident", member.ident.load(Ordering::Relaxed))?;
            workers.append(item)?;
        }
        let answer = PyDict::new(py);
        answer.set_item("workers", workers)?;
        answer.set_item("queued", queued)?;
        answer.set_item("pending", Engine::pending(self))?;
        Ok(answer)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (members, queued) = self.members();
        let now = monotonic_nanos();
        let workers = members
            .iter()
            .map(|member| {
                let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let item = member.dict(py)?;
                item.set_item("restarts", 0)?;
                item.set_item("done", get(&member.done))?;
                item.set_item("busy", get(&member.busy_nanos) as f64 / 1e9)?;
                item.set_item("transfer", 0.0)?;
                item.set_item("resident", py.None())?;
                item.set_item("waiting", 0)?;
                item.set_item("age", now.saturating_sub(member.born) as f64 / 1e9)?;
                Ok(item)
            })
            .collect::<PyResult<Vec<_>>>()?;
        let answer = PyDict::new(py);
        answer.set_item("workers", workers)?;
        answer.set_item("queued", queued)?;
        answer.set_item("pending", Engine::pending(self))?;
        answer.set_item("done", self.done.load(Ordering::Relaxed))?;
        answer.set_item("deaths", 0)?;
        answer.set_item("recycled", 0)?;
        answer.set_item("late_wakes", 0)?;
        answer.set_item("left_behind", self.queue().left_behind)?;
        Ok(answer)
    }
}

/// What a thread of Python's has of its crew.
#[pyclass(name = "CrewMember", module = "manyhands._core", frozen)]
pub(crate) struct CrewMember {
    crew: Arc<Crew>,
    member: Arc<Member>,
    /// Where its tasks run, in words.
    place: String,
}

#[pymethods]
impl CrewMember {
    /// The thread runs, where `threading.get_ident` gives this: what it does before its first task, function and
    /// arguments, or None.
    fn begin(&self, py: Python<'_>, ident: u64) -> Option<(Py<PyAny>, Py<PyTuple>)> {
        self.member.ident.store(ident, Ordering::Relaxed);
        self.crew.say_of(&self.member, EventKind::Born);
        let (function, args) = self.crew.initializer.as_ref()?;
        Some((function.clone_ref(py), args.clone_ref(py)))
    }

    /// Whether the pool goes on without this thread.
    #[getter]
    fn is_left(&self) -> bool {
        self.member
            .runner
            .get()
            .is_some_and(|runner| runner.is_left())
    }

    /// Runs tasks until the pool wants no more.
    fn work(&self, py: Python<'_>) {
        let _inside = enter_always();
        self.crew.work(py, &self.member, &self.place);
    }

    /// The initializer raised: no task runs any more, and all end with that exception.
    fn break_down(&self, py: Python<'_>, error: Py<PyAny>) {
        self.crew.break_down(py, &Arc::new(error));
    }

    /// The thread ends.
    fn leave(&self) {
        if !self.crew.is_of_other_process() {
            self.crew.leave(&self.member);
        }
    }

    /// Takes no more tasks; with `cancel` what has not started is cancelled.
    fn close(&self, py: Python<'_>, cancel: bool) {
        Engine::close(&self.crew, py, cancel, false);
    }
}
