//! Signals of threads and processes.

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Blocks every signal in the calling thread: the process's own threads handle them.
pub fn block_all_signals() {
    // SAFETY: the set is initialised by sigfillset before it is used; a null pointer for the old
    // set is allowed.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Kills the calling process as an outside SIGKILL does.
pub fn kill_self() -> ! {
    // SAFETY: plain system calls.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
    }
    loop {
        std::thread::park();
    }
}

/// The signal by which a worker is asked for its stack: a real-time one, which nobody sends by accident,
/// from the middle of their range, since what programs take begins at either end.
pub fn dump_signal() -> i32 {
    libc::SIGRTMIN() + 13
}

/// Sends a signal of `dump_signal`'s kind to the calling thread, whose handler has run when this returns.
pub fn raise(number: i32) {
    // SAFETY: callers name signals of the C library's, and have a handler.
    unsafe { libc::raise(number) };
}

/// A handler as the system calls it.
type Handler = extern "C" fn(libc::c_int);
/// What runs around a handler, which it is given.
type Around = fn(&dyn Fn());

/// What runs when the signal comes that `wrap_handler` named, and what had been its handler.
static WRAPPED: OnceLock<(Around, Handler)> = OnceLock::new();

extern "C" fn run_wrapped(number: libc::c_int) {
    // A look at an atomic, with nothing to wait for.
    let Some((around, former)) = WRAPPED.get() else {
        return;
    };
    // SAFETY: the address of this thread's errno, which is valid while it runs.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. Whatever the handler interrupted finds it as it left it.
    let before = unsafe { *errno };
    around(&|| former(number));
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// The action of a signal.
fn action_of(number: i32) -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::zeroed();
    // SAFETY: a null pointer for the new action changes nothing; the old one is written.
    let answer = unsafe { libc::sigaction(number, std::ptr::null(), action.as_mut_ptr()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, and wrote it.
    Ok(unsafe { action.assume_init() })
}

/// Whether nobody in this process handles the signal, or ignores it.
pub fn is_unhandled(number: i32) -> bool {
    action_of(number).is_ok_and(|action| action.sa_sigaction == libc::SIG_DFL)
}

/// Has `around` run when the signal comes, which is given what has been its handler. It runs in that
/// handler's place: between any two instructions of the program, so that it may neither allocate nor wait.
/// Once per process; false if there was no handler, or another one was wrapped already.
pub fn wrap_handler(number: i32, around: Around) -> io::Result<bool> {
    let mut action = action_of(number)?;
    let address = action.sa_sigaction;
    if matches!(address, libc::SIG_DFL | libc::SIG_IGN) || action.sa_flags & libc::SA_SIGINFO != 0 {
        return Ok(false);
    }
    // SAFETY: neither default nor ignored, and not of the form with three arguments: a handler's address.
    let former = unsafe { std::mem::transmute::<usize, Handler>(address) };
    if WRAPPED.set((around, former)).is_err() {
        return Ok(false);
    }
    // Calls that it interrupts go on where the system can do that: code that knows of no signals has to
    // bear this one.
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    let handler: Handler = run_wrapped;
    action.sa_sigaction = handler as usize;
    // SAFETY: an action that was read above, with a handler that lives as long as the process.
    match unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}
