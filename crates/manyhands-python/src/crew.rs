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
//! **Sleep and wake.** A thread goes to sleep only when, under the mutex, it finds the queue empty; it
//! counts itself `idle`. Waking takes it out of that count, leaves a permit, and counts it as `waking`
//! until it has looked at the queue. What holds whenever the mutex is free:
//!
//! > if the queue is not empty, then no thread is idle, or one is waking.
//!
//! - PUSH adds an entry and, if nobody is waking, wakes an idle thread. If somebody is waking, that one
//!   will see the entry.
//! - POP by a waking thread hands its duty on: if entries are left and a thread is idle, it wakes that
//!   one, else nobody is waking any more. So a burst of tasks costs one wake-up in the thread that
//!   submits it, and the threads come one after another, each as soon as the one before has work.
//! - A thread that has a map in its hand puts it back, which is a PUSH, before it starts the item, if the
//!   map has more. So an item that takes its time holds nothing up: what has not started can be taken.
//!
//! A thread that works looks at the queue before it sleeps, and those that are being started count as
//! waking from before they exist. So no entry waits while a thread could have it.

use crate::bystanders::{detach, enter_always};
use crate::crew_map::CrewMap;
use crate::crew_task::{Call, CrewTask, End};
use crate::engine::{Engine, MapCall, TaskOptions};
use crate::future::{TaskFuture, Work};
use crate::local::Turn;
use crate::pool::Initializer;
use crate::results::Source;
use crate::{hooks, process};
use manyhands_os::{coarse_nanos, monotonic_nanos};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

thread_local! {
    /// The crew that this thread works for, as an address; 0 for other threads.
    static CREW: Cell<usize> = const { Cell::new(0) };
}

/// The threads of a pool, and what they work on.
pub(crate) struct Crew {
    generation: u32,
    /// The most threads.
    most: usize,
    shows_args: bool,
    name: String,
    initializer: Option<(Py<PyAny>, Py<PyTuple>)>,
    queue: Mutex<Queue>,
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
}

struct Queue {
    entries: VecDeque<Entry>,
    /// Threads that sleep and were not woken.
    idle: usize,
    /// Wake-ups that no thread has taken yet.
    permits: usize,
    /// Threads on their way to the queue: woken, or being started.
    waking: usize,
    /// Threads that were started and have not left.
    members: Vec<Arc<Member>>,
    /// Their `threading.Thread`s, and those of some that have left.
    threads: Vec<Py<PyAny>>,
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
}

impl Member {
    /// Says what runs now.
    #[inline]
    pub(crate) fn starts(&self, index: u64) {
        // Relaxed, here and below: figures to show.
        self.index.store(index, Ordering::Relaxed);
        self.started_at.store(coarse_nanos(), Ordering::Relaxed);
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
        name: &str,
    ) -> Arc<Self> {
        Arc::new(Self {
            generation: process::generation(),
            most: workers,
            shows_args: show_args,
            name: name.to_owned(),
            initializer: initializer.map(|(function, args)| (function.unbind(), args.unbind())),
            queue: Mutex::new(Queue {
                entries: VecDeque::new(),
                idle: 0,
                permits: 0,
                waking: 0,
                members: Vec::new(),
                threads: Vec::new(),
                slot: 0,
                closed: false,
                cancelled: false,
                broken: None,
            }),
            wake: Condvar::new(),
            quiet: Condvar::new(),
            pending: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            index: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shows_args(&self) -> bool {
        self.shows_args
    }

    /// The most threads.
    pub(crate) fn most(&self) -> usize {
        self.most
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

    #[inline]
    fn add(&self, mut queue: MutexGuard<'_, Queue>, entry: Entry) {
        queue.entries.push_back(entry);
        let wakes = queue.waking == 0 && queue.wake_one();
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
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
        queue.members.len() < self.most
            && (queue.members.is_empty() || waiting > queue.idle + queue.waking)
    }

    #[cold]
    fn hire_one(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let mut queue = self.queue();
        if queue.members.len() >= self.most {
            return Ok(());
        }
        let member = Arc::new(Member {
            slot: queue.slot,
            born: monotonic_nanos(),
            done: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            started_at: AtomicU64::new(0),
            cpu_since: AtomicU64::new(0),
            index: AtomicU64::new(0),
        });
        queue.slot += 1;
        queue.members.push(member.clone());
        queue.waking += 1;
        drop(queue);
        let name = format!("{}-{}", self.name, member.slot);
        let handle = CrewMember {
            crew: self.clone(),
            member: member.clone(),
            place: format!("worker {name}, attempt 1"),
        };
        let started = hooks::start_thread(py).and_then(|hook| hook.call1((handle, name)));
        match started {
            Ok(thread) => {
                self.queue().threads.push(thread.unbind());
                Ok(())
            }
            Err(error) => {
                let mut queue = self.queue();
                queue.members.retain(|other| !Arc::ptr_eq(other, &member));
                queue.waking -= 1;
                let is_alone = queue.members.is_empty();
                drop(queue);
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
        }
    }

    /// Step POP; none if the queue is empty.
    #[inline]
    fn pop(&self, is_waking: &mut bool) -> Option<Entry> {
        let mut queue = self.queue();
        let entry = queue.entries.pop_front();
        if entry.is_some() && *is_waking {
            *is_waking = false;
            queue.waking -= 1;
            let wakes = !queue.entries.is_empty() && queue.waking == 0 && queue.wake_one();
            drop(queue);
            if wakes {
                self.wake.notify_one();
            }
        }
        entry
    }

    /// Sleeps until there may be something in the queue; false if the thread is to leave. The caller does
    /// not hold the GIL.
    fn sleep(&self, is_waking: &mut bool) -> bool {
        let mut queue = self.queue();
        if *is_waking {
            *is_waking = false;
            queue.waking -= 1;
        }
        if !queue.entries.is_empty() {
            return true;
        }
        if queue.closed {
            return false;
        }
        queue.idle += 1;
        while queue.permits == 0 && !queue.closed {
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if queue.permits > 0 {
            queue.permits -= 1;
            *is_waking = true;
        } else {
            queue.idle -= 1;
        }
        true
    }

    /// The loop of a thread.
    fn work(self: &Arc<Self>, py: Python<'_>, member: &Arc<Member>, place: &str) {
        CREW.set(Arc::as_ptr(self).addr());
        let mut is_waking = true;
        let mut turn = Turn::default();
        turn.begin(monotonic_nanos());
        loop {
            match self.pop(&mut is_waking) {
                Some(Entry::Task(task)) => {
                    let start = monotonic_nanos();
                    member.starts(task.index());
                    member.cpu_since.store(0, Ordering::Relaxed);
                    task.run(py, place);
                    drop(task);
                    member.ends(1, monotonic_nanos() - start);
                }
                Some(Entry::Map(map)) => map.run_lap(py, member, place),
                None => {
                    member.cpu_since.store(0, Ordering::Relaxed);
                    if !detach(py, || self.sleep(&mut is_waking)) {
                        break;
                    }
                    turn.begin(monotonic_nanos());
                    continue;
                }
            }
            if self.is_of_other_process() {
                return; // a child that a task forked came back from it
            }
            if let Err(error) = turn.pass(py, monotonic_nanos()) {
                // Between two tasks it is meant for none of them.
                error.write_unraisable(py, None);
            }
        }
    }

    /// Whether what has failed is not to run again, whatever was asked.
    pub(crate) fn ends_early(&self) -> bool {
        self.is_of_other_process() || self.queue().cancelled
    }

    fn leave(&self, member: &Arc<Member>) {
        let mut queue = self.queue();
        queue.members.retain(|other| !Arc::ptr_eq(other, member));
        drop(queue);
        self.quiet.notify_all();
    }

    /// Ends all that has not started.
    fn end_waiting(&self, py: Python<'_>, why: Option<&Arc<Py<PyAny>>>) {
        loop {
            let Some(entry) = self.queue().entries.pop_front() else {
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

impl Queue {
    fn refusal(&self) -> Refused {
        match &self.broken {
            Some(error) => Refused::Broken(error.clone()),
            None => Refused::Closed,
        }
    }

    /// Leaves a permit for an idle thread, if there is one; who holds the mutex then notifies.
    #[inline]
    fn wake_one(&mut self) -> bool {
        if self.idle == 0 {
            return false;
        }
        self.idle -= 1;
        self.permits += 1;
        self.waking += 1;
        true
    }
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
        let future = hooks::future(py)?.call0()?;
        // Relaxed: a number for messages.
        let index = self.index.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            function: function.clone().unbind(),
            args: args.clone().unbind(),
            kwargs: kwargs.map(|kwargs| kwargs.clone().unbind()),
            plan: options.plan,
        };
        let task = CrewTask::new(self.clone(), index, call);
        future
            .cast::<TaskFuture>()?
            .get()
            .fill(Work::Thread(task.clone()));
        self.came(1);
        if let Err(refused) = self.push(Entry::Task(task.clone())) {
            self.forget(1);
            return Err(refused.into_error(py));
        }
        if let Err(error) = self.hire(py, || self.queue().entries.len()) {
            task.cancel();
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
        CrewMap::source(self.clone(), function, call)
    }

    fn start(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        for _ in 0..self.most {
            self.hire_one(function.py())?;
        }
        Ok(())
    }

    fn close(&self, py: Python<'_>, cancel: bool, _kill: bool) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.cancelled |= cancel;
        drop(queue);
        self.closed.store(true, Ordering::Relaxed);
        self.wake.notify_all();
        if cancel {
            self.end_waiting(py, None);
        }
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
                hooks::join_threads(py)?.call1((PyList::new(py, threads)?,))?;
            }
        }
        Ok(over)
    }

    fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let now = monotonic_nanos();
        let (members, maps, mut queued) = {
            let queue = self.queue();
            let mut maps = Vec::new();
            let mut tasks = 0;
            for entry in &queue.entries {
                match entry {
                    Entry::Task(_) => tasks += 1,
                    Entry::Map(map) => maps.push(map.clone()),
                }
            }
            (queue.members.clone(), maps, tasks)
        };
        queued += maps.iter().map(|map| map.waiting()).sum::<usize>();
        let workers = members
            .iter()
            .map(|member| {
                let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let item = PyDict::new(py);
                let started_at = get(&member.started_at);
                let runs = started_at > 0;
                // The clock that says when a task started may be some milliseconds behind.
                let started_at = started_at.max(member.born);
                let task_age = runs.then(|| now.saturating_sub(started_at) as f64 / 1e9);
                item.set_item("slot", member.slot)?;
                item.set_item("pid", std::process::id())?;
                item.set_item("restarts", 0)?;
                item.set_item("done", get(&member.done))?;
                item.set_item("busy", get(&member.busy_nanos) as f64 / 1e9)?;
                item.set_item("task_age", task_age)?;
                item.set_item("task_index", runs.then(|| get(&member.index)))?;
                item.set_item("task", py.None())?;
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
        answer.set_item("late_wakes", 0)?;
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
    /// What runs before the first task: function and arguments, or None.
    #[getter]
    fn initializer(&self, py: Python<'_>) -> Option<(Py<PyAny>, Py<PyTuple>)> {
        let (function, args) = self.crew.initializer.as_ref()?;
        Some((function.clone_ref(py), args.clone_ref(py)))
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
