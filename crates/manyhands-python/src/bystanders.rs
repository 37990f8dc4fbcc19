//! Threads that the interpreter does not wait for, when the program ends.
//!
//! Up to CPython 3.13 a daemon thread that comes for the GIL during finalization is ended there and then, and what
//! frames of Rust on its stack hold is never given back (see `unwinding`). So, before finalization begins, such
//! threads are sent away, and who does not go is stopped:
//!
//! | a thread is            | while it is `ENDING`                              | from `PARKING` on                |
//! |------------------------|---------------------------------------------------|----------------------------------|
//! | outside of this module | gets a `SystemExit` when it comes in              | the same                         |
//! | `IN` it, with the GIL  | gets one at its next turn, or where it runs the   | is parked at its next bytecode;  |
//! |                        | user's Python code                                | in C code ended when it is back  |
//! | `AWAY`, without        | goes on: all pools have ended, and so does what   | is parked before it takes the    |
//! |                        | it waits for                                      | GIL again; it never goes on      |
//!
//! Code that catches each `SystemExit`, and goes on, is parked by one that is never made: its class parks the
//! thread that calls it.
//!
//! Threading lets a thread end silently by `SystemExit`, so that others can join it. A thread says that it
//! is in before it looks at the stage, and whoever ends the program sets the stage before it looks for
//! threads: at least one of them sees the other.

use crate::hooks;
use pyo3::exceptions::PySystemExit;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::{Cell, OnceCell};
use std::ffi::c_ulong;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const RUNNING: u8 = 0;
const ENDING: u8 = 1;
const PARKING: u8 = 2;

/// How far the end of the program is.
static STAGE: AtomicU8 = AtomicU8::new(RUNNING);

const OUT: u8 = 0;
const IN: u8 = 1;
const AWAY: u8 = 2;

/// A list to which is only added, and no lock: a child of fork replaces it while its parent's other
/// threads, which may have held a lock, are not there.
static BYSTANDERS: AtomicPtr<Bystander> = AtomicPtr::new(std::ptr::null_mut());

/// How long a thread may go on before what it runs is asked to end, and before it is left to the interpreter.
const PATIENCE: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(500);

/// A thread that is not the first. Never freed; the next thread takes one that has no thread any more.
#[derive(Debug)]
struct Bystander {
    /// As Python knows it; 0 without a thread.
    ident: AtomicUsize,
    /// Whether frames of this module are on its stack, and whether it has the GIL then or waits for it.
    place: AtomicU8,
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
        self.0.place.store(OUT, Ordering::SeqCst);
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
        place: AtomicU8::new(OUT),
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
    fn is_at(&self, place: u8) {
        // With the stage in the one order of all: see above.
        self.place.store(place, Ordering::SeqCst);
    }

    /// Has the exception raised at the thread's next bytecode.
    fn raise(&self, _py: Python<'_>, class: &Bound<'_, PyAny>) {
        let ident = self.ident.load(Ordering::Acquire) as c_ulong;
        // SAFETY: an attached thread, and a class. Where there is no such thread any more, nothing is
        // raised.
        unsafe { ffi::PyThreadState_SetAsyncExc(ident as _, class.as_ptr()) };
    }
}

/// While it lives, frames of this module may call Python in this thread.
#[must_use]
pub(crate) struct Inside(bool);

/// To be called first by whatever Python calls, if it may run Python or wait. Fails if the program ends,
/// and this thread is a bystander.
#[inline]
pub(crate) fn enter(py: Python<'_>) -> PyResult<Inside> {
    let inside = enter_always();
    check(py)?;
    Ok(inside)
}

/// As `enter`, for what has to be done at the end of the program, too.
#[inline]
pub(crate) fn enter_always() -> Inside {
    if is_first() {
        return Inside(false);
    }
    if DEPTH.replace(DEPTH.get() + 1) == 0 {
        me().is_at(IN);
    }
    Inside(true)
}

/// Fails if the program ends, and this thread is a bystander.
#[inline]
pub(crate) fn check(_py: Python<'_>) -> PyResult<()> {
    if STAGE.load(Ordering::SeqCst) == RUNNING || is_first() {
        return Ok(());
    }
    Err(PySystemExit::new_err(()))
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        if self.0 {
            let depth = DEPTH.get() - 1;
            DEPTH.set(depth);
            if depth == 0 {
                me().is_at(OUT);
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
    let answer = py.detach(|| {
        me.is_at(AWAY);
        let answer = f();
        me.is_at(IN);
        if STAGE.load(Ordering::SeqCst) == PARKING {
            me.is_at(AWAY);
            loop {
                std::thread::park();
            }
        }
        answer
    });
    if DEPTH.get() == 0 {
        me.is_at(OUT);
    }
    answer
}

/// Whether the program ends, and other threads may be parked with whatever locks they hold.
pub(crate) fn is_ending() -> bool {
    STAGE.load(Ordering::Relaxed) != RUNNING
}

/// In a child of fork: the other threads are the parent's, and this one is the first.
pub(crate) fn forget_parent() {
    STAGE.store(RUNNING, Ordering::Relaxed);
    BYSTANDERS.store(std::ptr::null_mut(), Ordering::Release);
    KIND.set(Kind::Unknown);
}

/// Never returns: the program ends, and this thread is to run nothing more.
#[pyfunction]
pub(crate) fn park_here(py: Python<'_>) {
    let me = me();
    py.detach(|| {
        me.is_at(AWAY);
        loop {
            std::thread::park();
        }
    })
}

/// Sends all threads but the calling one out of this module, and parks those that wait there for too
/// long. False if one runs something in it still.
#[pyfunction]
pub(crate) fn park_bystanders(py: Python<'_>) -> bool {
    KIND.set(Kind::First); // whoever ends the program is no bystander
    let me = ME.with(|me| me.get().map(|me| std::ptr::from_ref(me.0)));
    let others = || all().filter(move |other| Some(std::ptr::from_ref(*other)) != me);
    let is_at = |other: &Bystander, place| other.place.load(Ordering::SeqCst) == place;
    let pause = || py.detach(|| std::thread::sleep(Duration::from_millis(1)));

    STAGE.store(ENDING, Ordering::SeqCst);
    let begin = Instant::now();
    let mut were_asked = false;
    while begin.elapsed() < LONGEST && others().any(|other| !is_at(other, OUT)) {
        if begin.elapsed() > PATIENCE && !were_asked {
            were_asked = true;
            let class = py.get_type::<PySystemExit>().into_any();
            for other in others().filter(|other| is_at(other, IN)) {
                other.raise(py, &class);
            }
        }
        pause();
    }

    STAGE.store(PARKING, Ordering::SeqCst);
    // Where the class is not to be had, those threads are left to the interpreter. Few programs
    // have any, and for the others it is not imported.
    if others().any(|other| is_at(other, IN))
        && let Ok(class) = hooks::parked(py)
    {
        for other in others().filter(|other| is_at(other, IN)) {
            other.raise(py, class);
        }
    }
    let begin = Instant::now();
    while others().any(|other| is_at(other, IN)) {
        if begin.elapsed() > 4 * PATIENCE {
            return false;
        }
        pause();
    }
    true
}
