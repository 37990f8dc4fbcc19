//! A map over the threads of a pool.
//!
//! **Items** wait in one queue per map (`waiting`), from which any thread takes the next; what has not
//! started belongs to nobody. A thread works in *laps*: as many items as took about 50 µs so far, one while
//! nothing is known. Between two items of a lap it holds the map's mutex once, to hand over the end of
//! the one and take the next; it looks at the clock and takes from the pool's queue only between laps. A lap ends
//! early when something of a higher rank waits there, or the pool has too many threads.
//!
//! **The entry.** `queued` says that the map is in the pool's queue, or in the hand of the thread that took
//! it from there; it changes under the map's mutex. Whoever adds items while it is false puts the map into
//! the queue. The thread that takes the map from the queue and finds items left puts it back before it
//! starts its own, else it sets `queued` to false. So items that wait are found.
//!
//! **The consumer** takes from the input, hands over results, and sleeps when there is nothing to do.
//! Before it sleeps it says under the mutex what it waits for (`awaits`), and clears `bell`. Whoever brings
//! that about takes the wish back, unlocks, then sets the bell and wakes it: once for all that happens
//! until the consumer runs again, which with a GIL may be thousands of items later.
//!
//! **Items that are ended** by somebody else than their thread, since their time is up, are in `stopped` until
//! their thread comes back from them: what it brings is dropped then (see `asking.rs`).
//!
//! **What generators yield** is bounded. A thread that finds no room sleeps on `room` until some was
//! taken. For the item whose results come next there is always room for one value.

use crate::asking::{Runner, What, Why};
use crate::bystanders::detach;
use crate::capture::{self, Kept};
use crate::context;
use crate::crew::{Crew, Entry, Member, Refused};
use crate::crew_nesting::{self, Lent};
use crate::engine::{MapCall, Plan};
use crate::events::{Sink, Told, here, label_of};
use crate::input::Input;
use crate::local::{self, Kind, Ran, Shown, Turn, Watched};
use crate::process;
use crate::results::{Counts, Failed, Source, Taken};
use crate::seeds::{self, Origin, Stream};
use manyhands_os::{
    Waited, futex_wait_private, futex_wake_private, monotonic_nanos, thread_cpu_nanos,
};
use manyhands_runtime::{Event, EventKind, How, Label, Limits, Rank, Tasks, number_of_map};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most items of one map that are on their way, where the caller says nothing else.
const WINDOW_ITEMS: u64 = 100_000;
/// The most bytes that items on their way and their results take, as far as can be told. However large they
/// are, each thread has one.
const WINDOW_BYTES: u64 = 64 << 20;
/// How many items a map takes before it returns.
const FIRST_ITEMS: u64 = 64;
/// How long a lap takes, in nanoseconds.
const LAP_NANOS: u64 = 50_000;
/// The most items of a lap.
const LAP_ITEMS: u64 = 4096;
/// For how long items wait at the threads, in nanoseconds: what a change of threads costs is little
/// against that.
const SUPPLY_NANOS: u64 = 1_000_000;
/// How many items are taken from the input before threads get them.
const PULL_ITEMS: u64 = 1024;
/// How long input is taken at a time, in nanoseconds.
const PULL_NANOS: u64 = 1_000_000;
/// The longest sleep before signals, and somebody's wish to stop, are looked for.
const LONGEST_SLEEP: u64 = 100_000_000;
/// The longest sleep of a thread that finds no room, before it looks whether its pool is being left.
const LONGEST_WAIT_FOR_ROOM: Duration = Duration::from_millis(20);

/// The end of an item, or one value of several.
pub(crate) enum End {
    Value(Py<PyAny>),
    /// A generator has ended.
    Nothing,
    Failed(Box<FailedItem>),
    /// It never ran: cancelled, or with what broke the pool.
    Over(Option<Arc<Py<PyAny>>>),
}

impl End {
    /// What it is called that an item has come to this.
    fn kind(&self) -> EventKind {
        match self {
            Self::Value(_) | Self::Nothing => EventKind::Ended(How::Value),
            Self::Failed(failed) if failed.is_timeout => EventKind::Ended(How::TimedOut),
            Self::Failed(_) => EventKind::Ended(How::Error),
            Self::Over(None) => EventKind::Cancelled,
            Self::Over(Some(_)) => EventKind::Ended(How::NotRun),
        }
    }
}

pub(crate) struct FailedItem {
    error: Py<PyAny>,
    item: Py<PyAny>,
    /// How often it was tried.
    attempts: u8,
    is_timeout: bool,
}

/// What comes of an item, in order.
enum Slot {
    Open,
    One(End),
    /// What it has yielded so far, and whether it has ended.
    Several(VecDeque<End>, bool),
}

/// A map, as threads see it.
pub(crate) struct CrewMap {
    crew: Arc<Crew>,
    function: Py<PyAny>,
    star: bool,
    plan: Option<Arc<Plan>>,
    origin: Option<Origin>,
    kept: Option<Kept>,
    limits: Limits,
    ordered: bool,
    /// What goes first.
    pub(crate) rank: Rank,
    counts: Arc<Counts>,
    told_as: Option<ToldAs>,
    state: Mutex<State>,
    /// Where threads sleep that have values and no room.
    room: Condvar,
    /// 1 when the consumer has something to do.
    bell: AtomicU32,
    /// How long an item takes, in nanoseconds; 0 while nobody knows.
    item_nanos: AtomicU64,
    /// How large a result is, in bytes.
    result_bytes: AtomicU64,
    /// Whether its consumer waits for the end of the pool, and takes nothing until then.
    left: AtomicBool,
}

/// What there is to tell of a map, if somebody listens.
struct ToldAs {
    /// Its number.
    map: u64,
    /// What it runs.
    label: Option<Label>,
    /// Items that run, of whose end nobody has told. Its lock is a leaf.
    running: Mutex<Vec<Arc<Told>>>,
}

impl ToldAs {
    fn running(&self) -> MutexGuard<'_, Vec<Arc<Told>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    /// Items that have not started, the first of them with index `next`.
    waiting: VecDeque<Py<PyAny>>,
    next: u64,
    queued: bool,
    cancelled: bool,
    /// Whether its pool ends at once: what has not come does not.
    killed: bool,
    running: usize,
    /// Items that have ended and whose threads have not come back from them.
    stopped: Vec<u64>,
    /// In order: what comes of the items from index `first` on.
    slots: VecDeque<Slot>,
    first: u64,
    /// In any order: index, whether more follows, what came.
    ends: VecDeque<(u64, bool, End)>,
    /// Values that were yielded and not taken, and the most of them.
    yielded: u64,
    most_yielded: u64,
    /// Threads that sleep for want of room.
    without_room: usize,
    awaits: Option<Awaits>,
}

/// What a consumer that sleeps waits for besides results: that no more than so many items wait.
#[derive(Clone, Copy)]
struct Awaits {
    supply: Option<usize>,
}

impl State {
    /// Whether a result can be taken.
    #[inline]
    fn is_ready(&self) -> bool {
        match self.slots.front() {
            None => !self.ends.is_empty(),
            Some(Slot::Open) => false,
            Some(Slot::One(_)) => true,
            Some(Slot::Several(values, ended)) => *ended || !values.is_empty(),
        }
    }

    /// Whether the consumer has to be woken, which is asked of each change once.
    #[inline]
    fn rings(&mut self) -> bool {
        let Some(awaits) = self.awaits else {
            return false;
        };
        let hungry = awaits
            .supply
            .is_some_and(|supply| self.waiting.len() <= supply);
        if !hungry && !self.is_ready() {
            return false;
        }
        self.awaits = None;
        true
    }

    /// Keeps what came of an item; gives it back if nobody wants it.
    #[inline]
    fn keep(&mut self, ordered: bool, index: u64, more: bool, end: End) -> Option<End> {
        if self.cancelled {
            return Some(end);
        }
        if !ordered {
            self.ends.push_back((index, more, end));
            return None;
        }
        let at = index.checked_sub(self.first)?;
        let slot = self.slots.get_mut(usize::try_from(at).ok()?)?;
        match slot {
            Slot::Several(values, ended) => {
                values.push_back(end);
                *ended = !more;
            }
            Slot::Open if more => *slot = Slot::Several(VecDeque::from([end]), false),
            _ => *slot = Slot::One(end),
        }
        None
    }

    /// Whether the item of that index was ended by somebody else than its thread, which comes back from it.
    #[inline]
    fn was_stopped(&mut self, index: u64) -> bool {
        let at = self.stopped.iter().position(|&stopped| stopped == index);
        at.map(|at| self.stopped.swap_remove(at)).is_some()
    }

    /// Whether one more value of that item may be kept.
    fn has_room(&self, ordered: bool, index: u64) -> bool {
        self.yielded < self.most_yielded || (ordered && index == self.first && !self.is_ready())
    }
}

/// What is expected after one more was seen; 0 means that nothing was known.
#[inline]
fn mean(known: u64, seen: u64) -> u64 {
    if known == 0 {
        seen
    } else {
        known - known / 4 + seen / 4
    }
}

impl CrewMap {
    /// The map's other side, which takes from the input; its first items are started.
    pub(crate) fn source(
        crew: Arc<Crew>,
        function: &Bound<'_, PyAny>,
        call: MapCall,
    ) -> PyResult<Box<dyn Source>> {
        let py = function.py();
        let MapCall {
            input,
            ordered,
            deadline,
            buffer,
            options,
            counts,
        } = call;
        let most_items = buffer.unwrap_or(WINDOW_ITEMS).max(1);
        let rank = crew_nesting::rank_below(&crew, options.priority);
        let told_as = crew.events().map(|_| ToldAs {
            map: number_of_map(),
            label: label_of(function),
            running: Mutex::default(),
        });
        let map = Arc::new(Self {
            crew,
            rank,
            told_as,
            function: context::around(function)?.unbind(),
            star: input.is_star(),
            plan: options.plan,
            origin: options.origin,
            kept: options.kept,
            limits: options.limits,
            ordered,
            counts: counts.clone(),
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                next: 0,
                queued: false,
                cancelled: false,
                killed: false,
                running: 0,
                stopped: Vec::new(),
                slots: VecDeque::new(),
                first: 0,
                ends: VecDeque::new(),
                yielded: 0,
                most_yielded: most_items,
                without_room: 0,
                awaits: None,
            }),
            room: Condvar::new(),
            bell: AtomicU32::new(0),
            item_nanos: AtomicU64::new(0),
            result_bytes: AtomicU64::new(0),
            left: AtomicBool::new(false),
        });
        let mut source = Consumer {
            map,
            input,
            counts,
            deadline,
            ready: VecDeque::new(),
            item: None,
            in_flight: 0,
            most_items,
            item_bytes: 0,
            away: 0,
            left_at: 0,
            turn: Turn::default(),
        };
        // As much as comes at once; input that takes its time is taken while somebody waits.
        while source.input.index < FIRST_ITEMS && !source.is_full() && !source.input.is_slow() {
            source.pull(py, 16);
        }
        match source.input.take_interruption(py) {
            Some(interruption) => Err(interruption),
            None => Ok(Box::new(source)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many items have not started.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    #[inline]
    fn ring(&self) {
        // Release pairs with the kernel's look at the word: the ends come through the mutex anyway.
        self.bell.store(1, Ordering::Release);
        futex_wake_private(&self.bell, 1);
    }

    /// Runs items for a while. The calling thread has taken the map from the pool's queue.
    pub(crate) fn run_lap(
        self: &Arc<Self>,
        py: Python<'_>,
        member: &Member,
        runner: &Arc<Runner>,
        place: &str,
    ) {
        let mut state = self.state();
        let Some(item) = state.waiting.pop_front() else {
            state.queued = false;
            return;
        };
        let mut running = (state.next, item);
        state.next += 1;
        state.running += 1;
        let has_more = !state.waiting.is_empty();
        state.queued = has_more;
        drop(state);
        if has_more && let Err(refused) = self.crew.put_back(self) {
            self.end_waiting(refused.breakage());
        }
        let start = monotonic_nanos();
        // A lap that follows another at once needs one look at that clock, which is a system call.
        let cpu_since = match member.cpu_since.load(Ordering::Relaxed) {
            0 => thread_cpu_nanos(),
            since => since,
        };
        let estimate = self.item_nanos.load(Ordering::Relaxed);
        let lap = match estimate {
            0 => 1,
            nanos => (LAP_NANOS / nanos).clamp(1, LAP_ITEMS),
        };
        // Items with a limit are watched each by itself.
        let is_limited = self.limits.time.is_some();
        if !is_limited {
            runner.begin(What::Lap(self.clone()), self.limits);
        }
        let mut count = 0;
        let last;
        loop {
            let (index, item) = running;
            member.starts(index);
            let told = self.told_start(member, index);
            let end = self.run_item(py, runner, index, item, place, told.as_deref());
            if self.crew.is_of_other_process() {
                return;
            }
            if runner.is_left() {
                if !is_limited {
                    runner.finish(py);
                }
                return; // whoever left it behind has counted its item
            }
            count += 1;
            if count == lap
                && let End::Value(value) = &end
            {
                let known = self.result_bytes.load(Ordering::Relaxed);
                let size = mean(known, local::size_of(value.bind(py)));
                self.result_bytes.store(size, Ordering::Relaxed);
            }
            let mut state = self.state();
            let was_stopped = state.was_stopped(index);
            self.say_end(
                index,
                if state.killed {
                    EventKind::Cancelled
                } else {
                    end.kind()
                },
            );
            let unwanted = if was_stopped {
                Some(end)
            } else if state.killed {
                state.keep(self.ordered, index, false, End::Over(None));
                Some(end)
            } else {
                state.keep(self.ordered, index, false, end)
            };
            let rings = state.rings();
            // What is left of the map is in the queue, for whoever comes to it.
            let next = if count < lap && !self.crew.wants_thread(self.rank) {
                state.waiting.pop_front()
            } else {
                None
            };
            let next_index = state.next;
            match &next {
                Some(_) => state.next += 1,
                None => state.running -= 1,
            }
            drop(state);
            if rings {
                self.ring();
            }
            if !was_stopped {
                self.ended(1);
            }
            let Some(item) = next else {
                last = unwanted;
                break;
            };
            running = (next_index, item);
            // That may run code of the user's, and others then.
            drop(unwanted);
            if runner.is_left() {
                runner.finish(py);
                return;
            }
        }
        if !is_limited {
            runner.finish(py);
        }
        // From here on nobody takes this thread for one that is in an item.
        drop(last);
        let nanos = monotonic_nanos() - start;
        member.ends(count, nanos);
        // Relaxed, and no exchange: an estimate, and figures to show.
        Counts::add(&self.counts.tally.busy_nanos, nanos);
        let cpu = thread_cpu_nanos();
        member.cpu_since.store(cpu, Ordering::Relaxed);
        Counts::add(&self.counts.tally.cpu_nanos, cpu.saturating_sub(cpu_since));
        let estimate = mean(estimate, (nanos / count).max(1));
        self.item_nanos.store(estimate, Ordering::Relaxed);
    }

    /// Where it is told what becomes of so many items, and how they are named there, if somebody listens.
    #[inline]
    fn told(&self, index: u64, count: u64) -> Option<(&Sink, Tasks)> {
        let told_as = self.told_as.as_ref()?;
        let tasks = Tasks {
            map: told_as.map,
            index,
            count,
            label: told_as.label.clone(),
            attempt: 0,
        };
        Some((self.crew.events()?, tasks))
    }

    /// Says what has become of items that have not started.
    #[inline]
    fn say(&self, kind: EventKind, index: u64, count: usize) {
        if count > 0
            && let Some((events, tasks)) = self.told(index, count as u64)
        {
            events.push(Event::now(kind, None, Some(tasks)));
        }
    }

    /// Says that an item starts, and keeps whom to tell of its end.
    #[inline]
    fn told_start(&self, member: &Member, index: u64) -> Option<Arc<Told>> {
        let (events, tasks) = self.told(index, 1)?;
        let told = Told::start(events.clone(), here(Some(member.slot())), tasks);
        let told = Arc::new(told);
        self.told_as.as_ref()?.running().push(told.clone());
        Some(told)
    }

    /// Says how an item ends that runs, unless somebody has said so.
    #[inline]
    fn say_end(&self, index: u64, kind: EventKind) {
        if let Some(told_as) = &self.told_as {
            let mut running = told_as.running();
            let at = running.iter().position(|told| told.index() == index);
            let told = at.map(|at| running.swap_remove(at));
            drop(running);
            if let Some(told) = told {
                told.ends(kind);
            }
        }
    }

    #[inline]
    fn run_item(
        self: &Arc<Self>,
        py: Python<'_>,
        runner: &Arc<Runner>,
        index: u64,
        item: Py<PyAny>,
        place: &str,
        told: Option<&Told>,
    ) -> End {
        let function = self.function.bind(py);
        let item = item.into_bound(py);
        let is_over = || self.crew.ends_early() || self.state().cancelled || runner.is_left();
        let watched = Watched {
            function,
            index,
            told,
        };
        let plan = self.plan.as_deref();
        let _inside = match capture::enter(py, self.kept.as_ref(), index) {
            Ok(inside) => inside,
            Err(error) => return self.fail(error, index, item, place, 1),
        };
        // Each run draws from the start; what a generator yields goes on with its own.
        let stream = RefCell::new(None);
        let call_item = || {
            *stream.borrow_mut() = Stream::of(py, self.origin.as_ref(), index)?;
            let call = || local::call_item(function, &item, self.star);
            seeds::within(stream.borrow().as_ref(), call)
        };
        let (answer, attempts) = if self.limits.time.is_some() {
            let shared = Arc::new(item.clone().unbind());
            let run =
                |runs| self.run_limited(py, runner, index, &shared, runs, self.limits, call_item);
            local::call_as_planned(py, plan, is_over, watched, run)
        } else {
            let run = |_runs| Ran::from(call_item());
            local::call_as_planned(py, plan, is_over, watched, run)
        };
        let error = match answer {
            Ran::Done(value) => match local::kind_of(&value) {
                Kind::Value => return End::Value(value.unbind()),
                Kind::Generator => match seeds::within(stream.borrow().as_ref(), || {
                    self.stream_in_time(runner, index, &item, &value)
                }) {
                    Ran::Done(()) => return End::Nothing,
                    Ran::Failed(error) => error,
                    Ran::TimedOut(error) => return Self::timed_out(py, error, item.unbind(), 1),
                    Ran::Unwanted => return End::Over(None),
                },
                Kind::Awaitable => local::not_awaited(&value, function),
            },
            Ran::Failed(error) => error,
            Ran::TimedOut(error) => return Self::timed_out(py, error, item.unbind(), attempts),
            Ran::Unwanted => return End::Over(None),
        };
        self.fail(error, index, item, place, attempts)
    }

    fn timed_out(py: Python<'_>, error: PyErr, item: Py<PyAny>, attempts: u8) -> End {
        End::Failed(Box::new(FailedItem {
            error: error.into_value(py).into_any(),
            item,
            attempts,
            is_timeout: true,
        }))
    }

    /// Calls what an item with a limit runs.
    #[expect(
        clippy::too_many_arguments,
        reason = "an item, and what is known of it"
    )]
    fn run_limited<T>(
        self: &Arc<Self>,
        py: Python<'_>,
        runner: &Arc<Runner>,
        index: u64,
        item: &Arc<Py<PyAny>>,
        runs: u8,
        limits: Limits,
        call: impl FnOnce() -> PyResult<T>,
    ) -> Ran<T> {
        let what = What::Item(self.clone(), index, item.clone(), runs);
        runner.begin(what, limits);
        let answer = call();
        match runner.finish(py) {
            None => Ran::from(answer),
            Some(Why::TimedOut) => {
                let thread = self.crew.thread_of(runner);
                Ran::TimedOut(self.timeout(py, thread, index, runs))
            }
            Some(Why::Cancelled) => Ran::Unwanted,
        }
    }

    #[cold]
    fn timeout(&self, py: Python<'_>, thread: Option<String>, index: u64, runs: u8) -> PyErr {
        local::timed_out(self.function.bind(py), index, thread, self.limits, runs)
    }

    /// An item was asked to end, for its time is up: it has ended, unless it is to run again.
    pub(crate) fn time_is_up(
        &self,
        py: Python<'_>,
        runner: &Arc<Runner>,
        index: u64,
        item: &Py<PyAny>,
        runs: u8,
    ) {
        let plan = self.plan.as_ref();
        if plan.is_some_and(|plan| plan.may_after_timeout(runs)) {
            return;
        }
        // First, as long as the caller has run no Python: its thread is still in it.
        self.state().stopped.push(index);
        let thread = self.crew.thread_of(runner);
        self.end_timed_out(py, thread, index, item, runs);
    }

    /// Its pool goes on without a thread that has not come back from its item.
    pub(crate) fn leave_behind(
        &self,
        py: Python<'_>,
        runner: &Arc<Runner>,
        timed_out: Option<(&Py<PyAny>, u8)>,
        grace: u64,
    ) {
        let Some(left) = self.crew.leave_behind(runner) else {
            return;
        };
        let index = left.index;
        let mut state = self.state();
        state.running -= 1;
        let has_ended = state.was_stopped(index);
        drop(state);
        match timed_out {
            _ if has_ended => {}
            // It was to run again, and does not, since it still runs.
            Some((item, runs)) => {
                self.end_timed_out(py, Some(left.name.clone()), index, item, runs);
            }
            None => {
                self.say_end(index, EventKind::Cancelled);
                self.crew.forget(1);
            }
        }
        let what = format!("item {index} of {}", self.label(py));
        self.crew.tell_left(py, &left, &what, grace);
    }

    /// Ends an item that its thread will not end.
    fn end_timed_out(
        &self,
        py: Python<'_>,
        thread: Option<String>,
        index: u64,
        item: &Py<PyAny>,
        runs: u8,
    ) {
        let error = self.timeout(py, thread, index, runs);
        let end = Self::timed_out(py, error, item.clone_ref(py), runs);
        self.say_end(index, EventKind::Ended(How::TimedOut));
        let mut state = self.state();
        let unwanted = state.keep(self.ordered, index, false, end);
        let rings = state.rings();
        drop(state);
        if rings {
            self.ring();
        }
        self.room.notify_all();
        self.ended(1);
        drop(unwanted);
    }

    /// What people call its function.
    pub(crate) fn label(&self, py: Python<'_>) -> String {
        local::label_of(self.function.bind(py))
    }

    /// Its pool ends at once: whoever waits for what runs is told.
    pub(crate) fn kill(&self) {
        let mut state = self.state();
        state.killed = true;
        state.awaits = None;
        drop(state);
        self.room.notify_all();
        self.ring();
    }

    #[cold]
    fn fail(
        &self,
        error: PyErr,
        index: u64,
        item: Bound<'_, PyAny>,
        place: &str,
        attempts: u8,
    ) -> End {
        let py = item.py();
        let args = if self.crew.shows_args() {
            local::args_of(&item, self.star)
        } else {
            None
        };
        let shown = Shown {
            function: self.function.bind(py),
            args,
            kwargs: None,
            index,
            place,
            attempts,
        };
        let error = local::explained(py, error, shown);
        End::Failed(Box::new(FailedItem {
            error,
            item: item.unbind(),
            attempts,
            is_timeout: false,
        }))
    }

    /// As `stream`, in the time that is left of the item's.
    #[cold]
    fn stream_in_time(
        self: &Arc<Self>,
        runner: &Arc<Runner>,
        index: u64,
        item: &Bound<'_, PyAny>,
        generator: &Bound<'_, PyAny>,
    ) -> Ran<()> {
        if self.limits.time.is_none() {
            return Ran::from(self.stream(runner, index, generator));
        }
        // Making a generator takes no time.
        let item = Arc::new(item.clone().unbind());
        self.run_limited(generator.py(), runner, index, &item, 1, self.limits, || {
            self.stream(runner, index, generator)
        })
    }

    /// Hands over what a generator yields as it comes.
    #[cold]
    fn stream(&self, runner: &Runner, index: u64, generator: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = generator.py();
        for value in generator.try_iter()? {
            let value = value?;
            if self.crew.is_of_other_process()
                || !self.hand_over(py, runner, index, value.unbind())?
            {
                // Nobody wants more: the generator hears it as it does when it is dropped.
                generator.call_method0("close")?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Hands over a value; false if nobody wants it.
    fn hand_over(
        &self,
        py: Python<'_>,
        runner: &Runner,
        index: u64,
        value: Py<PyAny>,
    ) -> PyResult<bool> {
        loop {
            let is_asked = runner.is_asked();
            let mut state = self.state();
            if state.cancelled || is_asked {
                drop(state);
                return Ok(false);
            }
            if state.has_room(self.ordered, index) {
                state.yielded += 1;
                let unwanted = state.keep(self.ordered, index, true, End::Value(value));
                let rings = state.rings();
                drop(state);
                drop(unwanted);
                if rings {
                    self.ring();
                }
                return Ok(true);
            }
            drop(state);
            if self.left.load(Ordering::Relaxed) {
                return Err(local::left());
            }
            detach(py, || self.wait_for_room(index));
        }
    }

    fn wait_for_room(&self, index: u64) {
        let mut state = self.state();
        if state.cancelled || state.has_room(self.ordered, index) {
            return;
        }
        state.without_room += 1;
        let (mut state, _) = self
            .room
            .wait_timeout(state, LONGEST_WAIT_FOR_ROOM)
            .unwrap_or_else(PoisonError::into_inner);
        state.without_room -= 1;
    }

    /// Ends what has not started: it was cancelled, or the pool is broken.
    pub(crate) fn end_waiting(&self, why: Option<&Arc<Py<PyAny>>>) {
        let mut state = self.state();
        let items = std::mem::take(&mut state.waiting);
        let first = state.next;
        state.next += items.len() as u64;
        state.queued = false;
        for index in first..state.next {
            state.keep(self.ordered, index, false, End::Over(why.cloned()));
        }
        let rings = state.rings();
        drop(state);
        self.say(
            match why {
                Some(_) => EventKind::Ended(How::NotRun),
                None => EventKind::Cancelled,
            },
            first,
            items.len(),
        );
        if rings {
            self.ring();
        }
        self.ended(items.len());
    }

    /// So many items have ended.
    #[inline]
    fn ended(&self, count: usize) {
        Counts::add(&self.counts.tally.ended, count as u64);
        self.crew.ended(count);
    }

    /// Nobody takes results any more.
    fn cancel(&self) {
        let mut state = self.state();
        state.cancelled = true;
        state.queued = false;
        let items = std::mem::take(&mut state.waiting);
        let first = state.next;
        state.next += items.len() as u64;
        let dropped = (
            std::mem::take(&mut state.slots),
            std::mem::take(&mut state.ends),
        );
        drop(state);
        self.room.notify_all();
        self.say(EventKind::Cancelled, first, items.len());
        self.crew.forget(items.len());
        drop((items, dropped));
    }
}

/// The consumer's side of a map: its input, and what is on its way.
struct Consumer {
    map: Arc<CrewMap>,
    input: Input,
    counts: Arc<Counts>,
    deadline: Option<u64>,
    /// What came and was not handed over: index, whether more follows, what.
    ready: VecDeque<(u64, bool, End)>,
    /// The item whose end was handed over last, if it failed or is a batch.
    item: Option<Py<PyAny>>,
    /// Items that were taken and whose end was not handed over.
    in_flight: u64,
    most_items: u64,
    /// How large an item is, in bytes.
    item_bytes: u64,
    /// How long the consumer stays away, in nanoseconds, and when it left.
    away: u64,
    left_at: u64,
    turn: Turn,
}

impl Consumer {
    fn is_full(&self) -> bool {
        self.input.ended || self.in_flight >= self.most_on_their_way()
    }

    /// How many items may be on their way.
    fn most_on_their_way(&self) -> u64 {
        if self.most_items == u64::MAX {
            return u64::MAX;
        }
        let bytes = self.item_bytes + self.map.result_bytes.load(Ordering::Relaxed);
        let fit = (WINDOW_BYTES / bytes.max(1)).max(self.map.crew.most() as u64);
        self.most_items.min(fit)
    }

    /// How many items should wait at the threads.
    fn supply(&self, running: usize) -> u64 {
        let least = 2 * self.map.crew.most() as u64;
        match self.map.item_nanos.load(Ordering::Relaxed) {
            0 => least,
            nanos => {
                let time = SUPPLY_NANOS.max(2 * self.away);
                least.max(time / nanos * running.max(1) as u64)
            }
        }
    }

    /// Takes up to `count` items, as far as the window has room, and gives them to the threads.
    fn pull(&mut self, py: Python<'_>, count: u64) {
        let room = self.most_on_their_way().saturating_sub(self.in_flight);
        let mut items = Vec::with_capacity(count.min(room) as usize);
        while (items.len() as u64) < count.min(room)
            && let Some(item) = self.input.next(py)
        {
            if items.is_empty() {
                // One of a portion tells of the others.
                self.item_bytes = mean(self.item_bytes, local::size_of(&item));
            }
            items.push(item.unbind());
            if self.input.is_slow() {
                break;
            }
        }
        self.counts
            .pulled
            .store(self.input.index, Ordering::Relaxed);
        if self.input.ended {
            self.counts.complete.store(true, Ordering::Relaxed);
        }
        if items.is_empty() {
            return;
        }
        let count = items.len() as u64;
        match self.send(py, items) {
            Ok(()) => self.in_flight += count,
            Err(error) => {
                // The pool takes nothing any more: what is on its way comes, then the error.
                self.input.end();
                self.input.error = Some(error);
            }
        }
    }

    fn send(&mut self, py: Python<'_>, items: Vec<Py<PyAny>>) -> PyResult<()> {
        let map = &self.map;
        map.crew.check_process("this map")?;
        if map.crew.is_closed() {
            return Err(map.crew.refusal().into_error(py));
        }
        let count = items.len();
        map.crew.came(count);
        let first = self.input.index - count as u64;
        map.say(EventKind::Queued, first, count); // before a thread can say more
        let mut state = map.state();
        if map.ordered {
            state.slots.extend(items.iter().map(|_| Slot::Open));
        }
        state.waiting.extend(items);
        let is_queued = std::mem::replace(&mut state.queued, true);
        drop(state);
        if !is_queued && let Err(refused) = map.crew.push(Entry::Map(map.clone())) {
            // It was closed just now.
            map.end_waiting(refused.breakage());
            return Ok(());
        }
        map.crew.hire(py, || map.waiting())
    }

    /// Gives threads more, if they could do with it.
    fn fill(&mut self, py: Python<'_>) {
        let start = monotonic_nanos();
        while !self.is_full() {
            let (waiting, running) = {
                let state = self.map.state();
                (state.waiting.len() as u64, state.running)
            };
            let wanted = self.supply(running).saturating_sub(waiting);
            if wanted == 0 {
                return;
            }
            self.pull(py, wanted.min(PULL_ITEMS));
            if self.input.is_slow() || monotonic_nanos() - start > PULL_NANOS {
                return;
            }
        }
    }

    /// Sees to it that something is ready; false when all is out.
    fn refill(&mut self, py: Python<'_>) -> PyResult<bool> {
        let now = monotonic_nanos();
        self.turn.pass(py, now)?;
        if self.left_at > 0 {
            let away = now.saturating_sub(self.left_at);
            self.away = away.max(self.away - self.away / 8);
        }
        loop {
            let found = self.drain();
            // Of slow input only what is needed: a result that is there does not wait for it.
            if !found || !self.input.is_slow() {
                self.fill(py);
            }
            if let Some(interruption) = self.input.take_interruption(py) {
                return Err(interruption);
            }
            if found {
                self.left_at = monotonic_nanos();
                return Ok(true);
            }
            if self.in_flight == 0 && self.input.ended {
                return match self.input.error.take() {
                    Some(error) => Err(error),
                    None => Ok(false),
                };
            }
            if self.map.state().killed {
                return Err(Refused::Cancelled.into_error(py));
            }
            self.wait(py)?;
        }
    }

    /// Takes all that is there; whether it was something.
    fn drain(&mut self) -> bool {
        let mut state = self.map.state();
        let state = &mut *state;
        if self.map.ordered {
            while let Some(slot) = state.slots.front_mut() {
                let index = state.first;
                match slot {
                    Slot::Open => break,
                    Slot::One(end) => {
                        let end = std::mem::replace(end, End::Nothing);
                        self.ready.push_back((index, false, end));
                    }
                    Slot::Several(values, ended) => {
                        let ended = *ended;
                        let count = values.len();
                        for (at, end) in values.drain(..).enumerate() {
                            let more = !ended || at + 1 < count;
                            state.yielded -= u64::from(more);
                            self.ready.push_back((index, more, end));
                        }
                        if !ended {
                            break;
                        }
                    }
                }
                state.slots.pop_front();
                state.first += 1;
            }
        } else if self.ready.is_empty() {
            std::mem::swap(&mut self.ready, &mut state.ends);
            let yielded = self.ready.iter().filter(|(_, more, _)| *more).count() as u64;
            state.yielded -= yielded;
        }
        if state.without_room > 0 {
            self.map.room.notify_all();
        }
        !self.ready.is_empty()
    }

    /// Sleeps until there is a result, or threads need more items.
    fn wait(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.counts.closing.load(Ordering::Relaxed) {
            self.cancel(py, false);
            return Ok(());
        }
        let map = &self.map;
        map.crew.check_process("this map")?;
        let mut longest = LONGEST_SLEEP;
        let mut supply = None;
        if !self.is_full() {
            if self.input.is_slow() {
                // The result may be there in a moment, the next item will not.
                longest = self.input.pull_nanos() / 8;
            } else {
                supply = Some((self.supply(1) / 2) as usize);
            }
        }
        let now = monotonic_nanos();
        let left = self
            .deadline
            .map_or(u64::MAX, |deadline| deadline.saturating_sub(now));
        let mut state = map.state();
        state.awaits = Some(Awaits { supply });
        if state.rings() || state.killed {
            return Ok(());
        }
        map.bell.store(0, Ordering::Relaxed);
        drop(state);
        let time = Duration::from_nanos(longest.min(left));
        let lent = Lent::new(&map.crew);
        if lent.is_lent() {
            map.crew.hire(py, || map.crew.waiting())?;
        }
        let why = detach(py, || futex_wait_private(&map.bell, 0, Some(time)));
        drop(lent);
        map.state().awaits = None;
        if why != Waited::Woken {
            process::check_signals(py)?;
        }
        if left <= longest && why == Waited::TimedOut && !map.state().is_ready() {
            return Err(PyTimeoutError::new_err(()));
        }
        Ok(())
    }

    /// What is handed over.
    #[inline]
    fn taken<'py>(&mut self, py: Python<'py>, index: u64, more: bool, end: End) -> Taken<'py> {
        if !more {
            self.in_flight -= 1;
        }
        self.item = if self.input.is_batched() {
            self.input.kept(py, index, !more).map(Bound::unbind)
        } else {
            None
        };
        let (is_value, outcome) = match end {
            End::Value(value) => (true, Ok(value.into_bound(py))),
            End::Nothing => (false, Ok(py.None().into_bound(py))),
            End::Failed(failed) => {
                self.item = Some(failed.item);
                let error = PyErr::from_value(failed.error.into_bound(py));
                let pid = std::process::id() as i32;
                let failed = Failed {
                    is_timeout: failed.is_timeout,
                    ..Failed::new(error, pid, failed.attempts)
                };
                (true, Err(failed))
            }
            End::Over(why) => {
                let refused = why.map_or(Refused::Cancelled, Refused::Broken);
                (true, Err(Failed::new(refused.into_error(py), 0, 0)))
            }
        };
        Taken {
            index,
            more,
            is_value,
            outcome,
        }
    }
}

impl Source for Consumer {
    #[inline]
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Taken<'py>>> {
        loop {
            if let Some((index, more, end)) = self.ready.pop_front() {
                return Ok(Some(self.taken(py, index, more, end)));
            }
            if !self.refill(py)? {
                return Ok(None);
            }
        }
    }

    #[inline]
    fn take_value<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let Some((_, false, End::Value(_))) = self.ready.front() else {
            return None;
        };
        let (_, _, end) = self.ready.pop_front()?;
        self.in_flight -= 1;
        match end {
            End::Value(value) => Some(value.into_bound(py)),
            _ => None,
        }
    }

    fn is_ready(&mut self, _py: Python<'_>) -> bool {
        !self.ready.is_empty() || self.map.state().is_ready()
    }

    fn input<'py>(&mut self, py: Python<'py>, taken: &Taken<'py>) -> Option<Bound<'py, PyAny>> {
        let item = self.item.take().map(|item| item.into_bound(py));
        item.or_else(|| self.input.kept(py, taken.index, !taken.more))
    }

    fn batch_len(&self, index: u64) -> Option<usize> {
        self.input.batch_len(index)
    }

    fn forget_inputs(&mut self) {
        // Whether a batch fails is known when its results are counted.
        if !self.input.is_batched() {
            self.input.forget();
        }
    }

    fn cancel(&mut self, _py: Python<'_>, _kill: bool) {
        self.input.end();
        self.in_flight = 0;
        self.ready.clear();
        // A child of fork leaves alone what is its parent's.
        if !self.map.crew.is_of_other_process() {
            self.map.cancel();
        }
    }

    fn take_all_input(&mut self, py: Python<'_>, until: u64) -> PyResult<()> {
        let most = std::mem::replace(&mut self.most_items, u64::MAX);
        // Whatever it needs of memory: the caller leaves the pool, and nothing is lost.
        self.map.state().most_yielded = u64::MAX;
        self.map.room.notify_all();
        while !self.input.ended && monotonic_nanos() < until {
            self.pull(py, PULL_ITEMS);
            detach(py, || ()); // in all of this there may be no Python that would let others run
            py.check_signals()?;
            if let Some(interruption) = self.input.take_interruption(py) {
                return Err(interruption);
            }
        }
        self.most_items = most;
        Ok(())
    }

    fn leave(&mut self, left: bool) {
        // Relaxed: who has no room looks again.
        self.map.left.store(left, Ordering::Relaxed);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            Python::attach(|py| self.cancel(py, false));
        }
    }
}
