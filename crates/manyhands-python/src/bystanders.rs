//! Threads that the interpreter does not wait for, when the program ends.
//!
//! Up to CPython 3.13 a daemon thread that comes for the GIL during finalization is ended there and then, by
//! unwinding its stack (`pthread_exit`). Frames of Rust must not be unwound so: that aborts the process.
//! So, before finalization begins, such threads are stopped, where they do no harm, for good:
//!
//! | a thread is                     | when `park_bystanders` begins                                  |
//! |---------------------------------|----------------------------------------------------------------|
//! | outside of this module          | parked when it comes in                                        |
//! | in it, without the GIL          | parked before it takes the GIL again                           |
//! | in it, with the GIL or after it | waited for until it leaves or gives the GIL up; then as above. |
//! |                                 | What it runs of the user's gets a `SystemExit`.                |
//!
//! A thread says that it is in before it looks whether the program ends, and whoever ends the program
//! says so before it looks for threads: at least one of them sees the other.

use pyo3::exceptions::PySystemExit;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::{Cell, OnceCell};
use std::ffi::c_ulong;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// A list to which is only added, and no lock: a child of fork replaces it while its parent's other
/// threads, which may have held a lock, are not there.
static BYSTANDERS: AtomicPtr<Bystander> = AtomicPtr::new(std::ptr::null_mut());

/// How long a thread may go on before what it runs is asked to end, and before it is left to its fate.
const PATIENCE: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(500);

/// A thread that is not the first. Never freed; the next thread takes one that has no thread any more.
#[derive(Debug)]
struct Bystander {
    /// As Python knows it; 0 without a thread.
    ident: AtomicUsize,
    /// Whether frames of this module are on its stack while it has the GIL, or waits for it.
    is_in: AtomicBool,
    next: Option<&'static Bystander>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    First,
    Other,
}

thread_local! {
    static KIND: Cell<Kind> = const { Cell::new(Kind::Unknown) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static ME: OnceCell<Me> = const { OnceCell::new() };
}

#[inline]
fn is_first() -> bool {
    match KIND.get() {
        Kind::First => true,
        Kind::Other => false,
        Kind::Unknown => find_kind(),
    }
}

#[cold]
fn find_kind() -> bool {
    let is_first = manyhands_os::is_main_thread();
    KIND.set(if is_first { Kind::First } else { Kind::Other });
    is_first
}

/// The calling thread's, until it ends.
struct Me(&'static Bystander);

impl Drop for Me {
    fn drop(&mut self) {
        self.0.is_in.store(false, Ordering::SeqCst);
        self.0.ident.store(0, Ordering::Release);
    }
}

fn me() -> &'static Bystander {
    ME.with(|me| me.get_or_init(|| Me(register())).0)
}

fn all() -> impl Iterator<Item = &'static Bystander> {
    // SAFETY: what is in the list is never freed.
    let first = unsafe { BYSTANDERS.load(Ordering::Acquire).as_ref() };
    std::iter::successors(first, |bystander| bystander.next)
}

#[cold]
fn register() -> &'static Bystander {
    // SAFETY: it has no conditions.
    let ident = unsafe { ffi::PyThread_get_thread_ident() } as usize;
    for free in all() {
        let taken = free
            .ident
            .compare_exchange(0, ident, Ordering::AcqRel, Ordering::Relaxed);
        if taken.is_ok() {
            return free;
        }
    }
    let mut head = BYSTANDERS.load(Ordering::Acquire);
    let me = Box::leak(Box::new(Bystander {
        ident: AtomicUsize::new(ident),
        is_in: AtomicBool::new(false),
        next: None,
    }));
    loop {
        // SAFETY: as above.
        me.next = unsafe { head.as_ref() };
        match BYSTANDERS.compare_exchange(head, me, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return me,
            Err(other) => head = other,
        }
    }
}

impl Bystander {
    /// It has the GIL, or is about to; parked for good if the program ends.
    fn comes_in(&self, park: impl FnOnce()) {
        // Both in the one order of all: see above.
        self.is_in.store(true, Ordering::SeqCst);
        if IS_ENDING.load(Ordering::SeqCst) {
            self.goes_out();
            park();
        }
    }

    fn goes_out(&self) {
        self.is_in.store(false, Ordering::SeqCst);
    }
}

fn park() {
    loop {
        std::thread::park();
    }
}

/// While it lives, frames of this module may call Python in this thread.
#[must_use]
pub(crate) struct Inside(bool);

/// To be called first by whatever Python calls, if it may run Python or wait.
#[inline]
pub(crate) fn enter(py: Python<'_>) -> Inside {
    if is_first() {
        return Inside(false);
    }
    if DEPTH.replace(DEPTH.get() + 1) == 0 {
        me().comes_in(|| py.detach(park));
    }
    Inside(true)
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        if self.0 {
            let depth = DEPTH.get() - 1;
            DEPTH.set(depth);
            if depth == 0 {
                me().goes_out();
            }
        }
    }
}

/// As `Python::detach`, for all that may take long: a thread that is to be parked does not come back.
pub(crate) fn detach<T: Send, F: Send + FnOnce() -> T>(py: Python<'_>, f: F) -> T {
    if is_first() {
        return py.detach(f);
    }
    let me = me();
    py.detach(|| {
        me.goes_out();
        let answer = f();
        me.comes_in(park);
        if DEPTH.get() == 0 {
            me.goes_out();
        }
        answer
    })
}

/// Whether the program ends, and other threads may be parked with whatever locks they hold.
pub(crate) fn is_ending() -> bool {
    IS_ENDING.load(Ordering::Relaxed)
}

/// In a child of fork: the other threads are the parent's, and this one is the first.
pub(crate) fn forget_parent() {
    IS_ENDING.store(false, Ordering::Relaxed);
    BYSTANDERS.store(std::ptr::null_mut(), Ordering::Release);
    KIND.set(Kind::Unknown);
}

/// Stops all threads but the calling one where they use this module; they never go on. False if some did
/// not come to a place where that does no harm.
#[pyfunction]
pub(crate) fn park_bystanders(py: Python<'_>) -> bool {
    KIND.set(Kind::First); // whoever ends the program is not parked
    IS_ENDING.store(true, Ordering::SeqCst);
    let me = ME.with(|me| me.get().map(|me| std::ptr::from_ref(me.0)));
    let is_in = |other: &&Bystander| {
        Some(std::ptr::from_ref(*other)) != me && other.is_in.load(Ordering::SeqCst)
    };
    let begin = Instant::now();
    let mut were_asked = false;
    while all().any(|other| is_in(&other)) {
        let elapsed = begin.elapsed();
        if elapsed > LONGEST {
            return false;
        }
        if elapsed > PATIENCE && !were_asked {
            were_asked = true;
            let class = py.get_type::<PySystemExit>();
            for bystander in all().filter(is_in) {
                let ident = bystander.ident.load(Ordering::Acquire) as c_ulong;
                // SAFETY: an attached thread, and a class. Where there is no such thread any more,
                // nothing is raised.
                unsafe { ffi::PyThreadState_SetAsyncExc(ident as _, class.as_ptr()) };
            }
        }
        py.detach(|| std::thread::sleep(Duration::from_millis(1)));
    }
    true
}
