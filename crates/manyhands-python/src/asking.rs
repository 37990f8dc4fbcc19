//! Tasks of this process that are to end: their time is up, or they are cancelled. A thread cannot be killed.
//!
//! What runs in a thread is *asked*: `TaskStopped` is raised in it, once, at its next bytecode. Only the task
//! that is meant may be hit:
//!
//! | step | by whom | what |
//! |---|---|---|
//! | BEGIN | the thread, before code of the user's | says in its `Runner` what runs, and how long it may take |
//! | ASK | the clock, or who cancels | if that still runs: raises, and notes that it did |
//! | FINISH | the thread, at once after code of the user's | takes that away; a request that was not heard is taken back |
//! | LEAVE | the clock, after the grace | if it still runs: the crew goes on without the thread, which leaves when the task ends |
//!
//! All four are taken with the GIL and under the runner's mutex. Between the end of the user's code and FINISH
//! no Python runs, so nothing else can hear a request. The mutex guards a few instructions; its holder runs no Python.
//!
//! Tasks nest, where one runs another inline: what runs is a stack, each with its own time. A request that an inner
//! one took back, being asked itself, is made anew for the outer one.
//!
//! What the task ends with is not decided here but under the lock of the task, or of its map.

use crate::clock;
use crate::crew_map::CrewMap;
use crate::crew_task::CrewTask;
use crate::{hooks, process};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::Limits;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::ffi::c_ulong;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Nothing is to be done about what runs.
pub(crate) const NEVER: u64 = u64::MAX;

/// A thread of Python's in which tasks run.
pub(crate) struct Runner {
    ident: c_ulong,
    /// Which fork it belongs to: a child's locks may be held by threads that it does not have.
    generation: u32,
    stack: Mutex<Vec<Running>>,
    /// The nanosecond at which there is something to do about it, for the clock.
    due: AtomicU64,
    /// Whether the clock looks here.
    is_watched: AtomicBool,
    /// Whether its crew goes on without it.
    is_left: AtomicBool,
}

struct Running {
    what: What,
    grace: u64,
    /// When there is something to do about it: its time is up, or its grace.
    due: u64,
    asked: Option<Why>,
}

/// Why a task was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    TimedOut,
    /// It was cancelled, or its pool is to end at once.
    Cancelled,
}

/// What runs.
#[derive(Clone)]
pub(crate) enum What {
    Task(Arc<CrewTask>, u8),
    /// An item with a limit: its index, itself, and how often it was tried.
    Item(Arc<CrewMap>, u64, Arc<Py<PyAny>>, u8),
    /// Items without one, one after another.
    Lap(Arc<CrewMap>),
    /// Something that the calling thread waits for itself.
    Inline,
}

thread_local! {
    static RUNNER: RefCell<Option<Arc<Runner>>> = const { RefCell::new(None) };
}

impl Runner {
    /// The calling thread's.
    pub(crate) fn of_this_thread() -> Arc<Self> {
        RUNNER
            .with_borrow_mut(|runner| {
                if runner
                    .as_ref()
                    .is_none_or(|runner| runner.is_of_other_process())
                {
                    *runner = Some(Arc::new(Self {
                        // SAFETY: it has no conditions.
                        ident: unsafe { ffi::PyThread_get_thread_ident() } as c_ulong,
                        generation: process::generation(),
                        stack: Mutex::new(Vec::new()),
                        due: AtomicU64::new(NEVER),
                        is_watched: AtomicBool::new(false),
                        is_left: AtomicBool::new(false),
                    }));
                }
                runner.clone()
            })
            .unwrap_or_else(|| unreachable!("it was put there"))
    }

    fn is_of_other_process(&self) -> bool {
        self.generation != process::generation()
    }

    fn stack(&self) -> MutexGuard<'_, Vec<Running>> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its crew goes on without it.
    #[inline]
    pub(crate) fn is_left(&self) -> bool {
        // Relaxed: changes with the GIL.
        self.is_left.load(Ordering::Relaxed)
    }

    pub(crate) fn due(&self) -> u64 {
        // With the clock's word in the one order of all: see there.
        self.due.load(Ordering::SeqCst)
    }

    fn set_due(&self, stack: &[Running]) {
        let due = stack.iter().map(|running| running.due).min();
        self.due.store(due.unwrap_or(NEVER), Ordering::SeqCst);
    }

    /// Step BEGIN.
    #[inline]
    pub(crate) fn begin(self: &Arc<Self>, what: What, limits: Limits) {
        let due = limits
            .time
            .map_or(NEVER, |time| monotonic_nanos().saturating_add(time));
        let mut stack = self.stack();
        stack.push(Running {
            what,
            grace: limits.grace,
            due,
            asked: None,
        });
        if due != NEVER {
            self.set_due(&stack);
            drop(stack);
            self.watch(due);
        }
    }

    fn watch(self: &Arc<Self>, due: u64) {
        if !self.is_watched.swap(true, Ordering::Relaxed) {
            clock::add(self);
        }
        clock::expect(due);
    }

    /// Step FINISH; why it was asked to end, if it was.
    #[inline]
    pub(crate) fn finish(&self, _py: Python<'_>) -> Option<Why> {
        if self.is_of_other_process() {
            return None; // a child that the task forked
        }
        let mut stack = self.stack();
        let ended = stack.pop()?;
        if ended.due == NEVER && ended.asked.is_none() {
            drop(stack);
            return None;
        }
        self.set_due(&stack);
        if ended.asked.is_some() {
            let outer = stack.iter().any(|running| running.asked.is_some());
            // With the mutex, so that nobody asks in between.
            self.raise(outer.then(task_stopped).flatten());
        }
        drop(stack);
        ended.asked
    }

    /// Has the exception raised at the thread's next bytecode; none takes back what was not raised yet.
    fn raise(&self, class: Option<*mut ffi::PyObject>) {
        let class = class.unwrap_or(std::ptr::null_mut());
        // SAFETY: the GIL is held, as all steps say, and it is a class or null. Where there is no such thread
        // any more, nothing is raised.
        unsafe { ffi::PyThreadState_SetAsyncExc(self.ident as _, class) };
    }

    /// Step ASK of what runs on top, if `is_meant`; whether it was asked now.
    pub(crate) fn ask(
        self: &Arc<Self>,
        py: Python<'_>,
        why: Why,
        is_meant: impl Fn(&What) -> bool,
    ) -> bool {
        let Ok(class) = hooks::task_stopped(py) else {
            return false;
        };
        let mut stack = self.stack();
        let Some(at) = stack.iter().rposition(|running| is_meant(&running.what)) else {
            return false;
        };
        let running = &mut stack[at];
        if running.asked.is_some() {
            return false;
        }
        running.asked = Some(why);
        running.due = match running.what {
            What::Inline => NEVER, // nobody can go on without the calling thread
            _ => monotonic_nanos().saturating_add(running.grace),
        };
        let due = running.due;
        self.set_due(&stack);
        self.raise(Some(class.as_ptr()));
        drop(stack);
        if due != NEVER {
            self.watch(due);
            if let Err(error) = clock::start(py) {
                // It was asked; that it may never be left behind nobody else can be told.
                error.write_unraisable(py, None);
            }
        }
        true
    }

    /// For the clock: does what is due.
    pub(crate) fn look(self: &Arc<Self>, py: Python<'_>) {
        let now = monotonic_nanos();
        let found = {
            let mut stack = self.stack();
            let due = stack.iter_mut().find(|running| running.due <= now);
            let found = due.map(|running| {
                if running.asked.is_some() {
                    running.due = NEVER;
                    self.is_left.store(true, Ordering::Relaxed);
                }
                (running.what.clone(), running.asked, running.grace)
            });
            self.set_due(&stack);
            found
        };
        let Some((what, asked, grace)) = found else {
            return;
        };
        match (asked, &what) {
            // Asked first: what tells of the end lets others run.
            (None, What::Task(task, runs)) => {
                if self.ask(py, Why::TimedOut, |other| other.is(&what)) {
                    task.time_is_up(py, self, *runs);
                }
            }
            (None, What::Item(map, index, item, runs)) => {
                if self.ask(py, Why::TimedOut, |other| other.is(&what)) {
                    map.time_is_up(py, self, *index, item, *runs);
                }
            }
            (None, What::Inline) => {
                self.ask(py, Why::TimedOut, |other| matches!(other, What::Inline));
            }
            (None, What::Lap(_)) => {} // without a limit
            (Some(why), What::Task(task, runs)) => task.leave_behind(py, self, why, *runs, grace),
            (Some(why), What::Item(map, _, item, runs)) => {
                let timed_out = (why == Why::TimedOut).then_some((&**item, *runs));
                map.leave_behind(py, self, timed_out, grace);
            }
            (Some(_), What::Lap(map)) => map.leave_behind(py, self, None, grace),
            (Some(_), What::Inline) => {}
        }
        let due = self.due();
        if due != NEVER {
            clock::expect(due);
        }
    }

    /// What runs, the outermost.
    pub(crate) fn what(&self) -> Option<What> {
        self.stack().first().map(|running| running.what.clone())
    }

    /// Whether what runs on top was asked to end.
    pub(crate) fn is_asked(&self) -> bool {
        self.stack()
            .last()
            .is_some_and(|running| running.asked.is_some())
    }
}

impl What {
    /// What people call its function.
    pub(crate) fn label(&self, py: Python<'_>) -> Option<String> {
        match self {
            Self::Task(task, _) => task.label(py),
            Self::Item(map, ..) | Self::Lap(map) => Some(map.label(py)),
            Self::Inline => None,
        }
    }

    /// Whether it is an item of that map, or several.
    pub(crate) fn is_of(&self, map: &Arc<CrewMap>) -> bool {
        match self {
            Self::Item(own, ..) | Self::Lap(own) => Arc::ptr_eq(own, map),
            Self::Task(..) | Self::Inline => false,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Task(a, _), Self::Task(b, _)) => Arc::ptr_eq(a, b),
            (Self::Item(a, i, ..), Self::Item(b, j, ..)) => Arc::ptr_eq(a, b) && i == j,
            (Self::Lap(a), Self::Lap(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// The class, where it was looked up: nobody is asked before.
fn task_stopped() -> Option<*mut ffi::PyObject> {
    // SAFETY: the GIL is held, as all steps say.
    let py = unsafe { Python::assume_attached() };
    hooks::task_stopped(py).ok().map(|class| class.as_ptr())
}
