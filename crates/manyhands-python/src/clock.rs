//! The clock of tasks in this process: it sees when the time of one is up.
//!
//! A thread of Python's, started with the first limit that is asked for. It sleeps without the GIL until the first
//! moment that anybody expects, then looks at all runners, and takes the GIL only if one of them is due.
//!
//! `next` is the moment until which it sleeps. A runner says when it is due, then looks whether that is before
//! `next`, and only then takes the lock and wakes the clock. The clock sets `next` to `NEVER` before it looks at
//! the runners: at least one of the two sees the other. So tasks that come one after another with the same limit
//! wake it once per limit and not once per task.

use crate::asking::{NEVER, Runner};
use crate::bystanders::{check, detach, enter_always};
use crate::hooks;
use manyhands_os::monotonic_nanos;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// The longest sleep; whoever expects something wakes it.
const LONGEST_SLEEP: u64 = 3_600_000_000_000;

struct Clock {
    next: AtomicU64,
    is_started: AtomicBool,
    runners: Mutex<Vec<Weak<Runner>>>,
    wake: Condvar,
}

/// A pointer and no lock, since a child of fork replaces it while its parent's other threads, which may have held
/// a lock, are not there.
static CLOCK: AtomicPtr<Clock> = AtomicPtr::new(std::ptr::null_mut());

fn clock() -> &'static Clock {
    let found = CLOCK.load(Ordering::Acquire);
    // SAFETY: what is there is leaked on purpose.
    if let Some(clock) = unsafe { found.as_ref() } {
        return clock;
    }
    let made = Box::into_raw(Box::new(Clock {
        next: AtomicU64::new(NEVER),
        is_started: AtomicBool::new(false),
        runners: Mutex::new(Vec::new()),
        wake: Condvar::new(),
    }));
    let null = std::ptr::null_mut();
    match CLOCK.compare_exchange(null, made, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: as above.
        Ok(_) => unsafe { &*made },
        // SAFETY: as above; of two that were made at once the second goes.
        Err(other) => unsafe {
            drop(Box::from_raw(made));
            &*other
        },
    }
}

impl Clock {
    fn runners(&self) -> MutexGuard<'_, Vec<Weak<Runner>>> {
        self.runners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until somebody is due; who is.
    fn sleep(&self) -> Vec<Arc<Runner>> {
        let mut runners = self.runners();
        loop {
            let now = monotonic_nanos();
            if now >= self.next.load(Ordering::SeqCst) {
                self.next.store(NEVER, Ordering::SeqCst);
                let mut due = Vec::new();
                let mut next = NEVER;
                runners.retain(|runner| {
                    let Some(runner) = runner.upgrade() else {
                        return false;
                    };
                    match runner.due() {
                        at if at <= now => due.push(runner),
                        at => next = next.min(at),
                    }
                    true
                });
                self.next.fetch_min(next, Ordering::SeqCst);
                if !due.is_empty() {
                    return due;
                }
            }
            let left = self.next.load(Ordering::SeqCst).saturating_sub(now);
            let time = Duration::from_nanos(left.min(LONGEST_SLEEP));
            (runners, _) = self
                .wake
                .wait_timeout(runners, time)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Starts the clock, if it does not run.
pub(crate) fn start(py: Python<'_>) -> PyResult<()> {
    let clock = clock();
    if clock.is_started.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let started = hooks::start_clock(py).and_then(|hook| hook.call0());
    if started.is_err() {
        clock.is_started.store(false, Ordering::Relaxed);
    }
    started.map(drop)
}

/// From now on the clock looks at this runner.
pub(crate) fn add(runner: &Arc<Runner>) {
    clock().runners().push(Arc::downgrade(runner));
}

/// Somebody is due at that nanosecond.
#[inline]
pub(crate) fn expect(at: u64) {
    let clock = clock();
    if at < clock.next.load(Ordering::SeqCst) {
        let runners = clock.runners();
        clock.next.fetch_min(at, Ordering::SeqCst);
        drop(runners);
        clock.wake.notify_one();
    }
}

/// In a child of fork: the clock is the parent's.
pub(crate) fn forget_parent() {
    CLOCK.store(std::ptr::null_mut(), Ordering::Release);
}

/// The loop of the clock's thread.
#[pyfunction]
pub(crate) fn run_clock(py: Python<'_>) -> PyResult<()> {
    let _inside = enter_always();
    let clock = clock();
    loop {
        for runner in detach(py, || clock.sleep()) {
            runner.look(py);
        }
        check(py)?;
    }
}
