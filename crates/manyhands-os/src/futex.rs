//! Waiting on a word of memory.
//!
//! Words in shared memory take the process-shared form: a private futex works within one process and
//! hangs across two.

use crate::clock::to_timespec;
use rustix::io::Errno;
use rustix::thread::futex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Woken, or the word had changed already; the caller looks again.
    Woken,
    /// The time was up.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

fn wait(word: &AtomicU32, flags: futex::Flags, expected: u32, limit: Option<Duration>) -> Waited {
    let limit = limit.map(to_timespec);
    match futex::wait(word, flags, expected, limit.as_ref()) {
        Err(Errno::TIMEDOUT) => Waited::TimedOut,
        Err(Errno::INTR) => Waited::Interrupted,
        // EAGAIN: the word had changed. Any other error would be a bad address, which a reference
        // excludes; the caller's loop looks at the word again either way.
        Ok(()) | Err(_) => Waited::Woken,
    }
}

/// Waits while the word holds `expected`; for words in shared memory.
pub fn futex_wait(word: &AtomicU32, expected: u32, limit: Option<Duration>) -> Waited {
    wait(word, futex::Flags::empty(), expected, limit)
}

/// Waits while the word holds `expected`; for words of this process alone.
pub fn futex_wait_private(word: &AtomicU32, expected: u32, limit: Option<Duration>) -> Waited {
    wait(word, futex::Flags::PRIVATE, expected, limit)
}

/// Wakes up to `count` waiters of a word in shared memory.
pub fn futex_wake(word: &AtomicU32, count: u32) {
    // The only errors are a bad address and a PI futex, which a reference to a plain word excludes.
    let _woken = futex::wake(word, futex::Flags::empty(), count);
}

/// Wakes up to `count` waiters of a word of this process.
pub fn futex_wake_private(word: &AtomicU32, count: u32) {
    // As in `futex_wake`.
    let _woken = futex::wake(word, futex::Flags::PRIVATE, count);
}
