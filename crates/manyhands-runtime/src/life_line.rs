//! The parent's ends of its workers' life lines.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The parent's end of a life line, known to `close_life_lines_after_fork`.
#[derive(Debug)]
pub(crate) struct LifeLine {
    end: ManuallyDrop<OwnedFd>,
    entry: usize,
}

/// Life lines of all pools, for `close_life_lines_after_fork`, which may take no lock.
static LIFE_LINES: [AtomicI32; 4096] = [const { AtomicI32::new(-1) }; 4096];

impl LifeLine {
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
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
        let end = ManuallyDrop::new(end);
        Ok((Self { end, entry }, other))
    }

    /// Whether the process at the other end lives, and has taken its end.
    pub(crate) fn has_reader(&self) -> bool {
        manyhands_os::pipe_has_reader(&self.end)
    }
}

impl Drop for LifeLine {
    fn drop(&mut self) {
        // Out of the table before the descriptor is closed, so that a child never closes a number
        // that has become something else's. In a child it is closed already.
        if LIFE_LINES[self.entry].swap(-1, Ordering::Relaxed) >= 0 {
            // SAFETY: it is dropped here alone.
            unsafe { ManuallyDrop::drop(&mut self.end) };
        }
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
