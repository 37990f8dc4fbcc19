//! How a process looks at sealed blocks: through the private mapping of the window, or, where that would
//! show it what somebody else wrote, through a mapping of its own.
//!
//! | in this process there live | a read-only view comes | a writable view comes |
//! |---|---|---|
//! | no views of the block | window | window |
//! | read-only views in the window | window | a mapping of its own |
//! | a writable view in the window | a mapping of its own | a mapping of its own |
//!
//! A block on disk is mapped for each view alone.
//!
//! What was written through the window is discarded before the next view of the block can come, so the
//! window shows what is in the block. A view has to be dropped before its block is released.

use super::spill;
use crate::protocol::Reference;
use manyhands_os::{PrivateCopy, UnnamedFile, Window, fault_count, page_size};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

/// The views of one window in this process.
#[derive(Debug)]
pub struct Views {
    window: Arc<Window>,
    /// The process whose store it is, which has the files open that are on disk.
    holder: u32,
    /// The process whose views they are: after a fork the mutex may be held for ever.
    process: u32,
    /// By the offset of the block.
    in_window: Mutex<HashMap<u64, InWindow>>,
}

/// What of a block is seen through the window.
#[derive(Clone, Copy, Debug)]
enum InWindow {
    /// So many read-only views.
    Readers(usize),
    /// One view that may write.
    Writer,
}

/// A part of a sealed block, as memory of this process.
#[derive(Debug)]
pub struct View {
    views: Arc<Views>,
    start: NonNull<u8>,
    len: usize,
    is_writable: bool,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The window, with the offsets of the block and of the view.
    Window {
        block: u64,
        offset: u64,
        /// How many page faults there had been before the view. While there are no more, nothing was written
        /// through it, and the page tables need not be searched for that.
        faults: u64,
    },
    Own(PrivateCopy),
}

// SAFETY: the memory belongs to no thread, and what is done with the pointer is up to whoever asks for it.
unsafe impl Send for View {}
// SAFETY: as above; a shared view offers no access but by the pointer.
unsafe impl Sync for View {}

impl Views {
    /// No views yet of the store of that process.
    pub fn new(window: Arc<Window>, holder: u32) -> Self {
        Self {
            window,
            holder,
            process: std::process::id(),
            in_window: Mutex::default(),
        }
    }

    /// A view of what a reference names. What is written through a writable one is seen by nobody else.
    pub fn open(self: &Arc<Self>, reference: Reference) -> io::Result<View> {
        let Reference {
            block,
            start,
            len,
            is_writable,
        } = reference;
        if let Some((descriptor, page)) = spill::place(block) {
            return self.open_on_disk(descriptor, page, start, len, is_writable);
        }
        let offset = block.saturating_add(start as u64);
        self.window.check(offset, len)?;
        // A process that has limited its addresses has none for the whole window: each view is mapped alone.
        let private = self.window.map().ok().and_then(|()| self.window.private());
        let (start, place) = if let Some(private) = private
            && self.enter(block, is_writable)
        {
            // SAFETY: the range was checked, so it is in the mapping.
            let start = unsafe { private.add(offset as usize) };
            let faults = if is_writable { fault_count() } else { 0 };
            let place = Place::Window {
                block,
                offset,
                faults,
            };
            (start, place)
        } else {
            let copy = self.window.private_copy(offset, len)?;
            (copy.start(), Place::Own(copy))
        };
        Ok(View {
            views: self.clone(),
            start,
            len,
            is_writable,
            place,
        })
    }

    fn open_on_disk(
        self: &Arc<Self>,
        descriptor: u32,
        page: u64,
        start: usize,
        len: usize,
        is_writable: bool,
    ) -> io::Result<View> {
        let file = UnnamedFile::open(self.holder, descriptor).map_err(|error| {
            let why = format!(
                "the file that holds it on disk cannot be opened as a descriptor of process {}, its \
                 owner ({error})",
                self.holder
            );
            io::Error::new(error.kind(), why)
        })?;
        let copy = file.private_copy(page * page_size() as u64 + start as u64, len)?;
        Ok(View {
            views: self.clone(),
            start: copy.start(),
            len,
            is_writable,
            place: Place::Own(copy),
        })
    }

    /// Whether one more view can be in the window; it is counted then.
    fn enter(&self, block: u64, is_writable: bool) -> bool {
        if std::process::id() != self.process {
            return false;
        }
        match self.lock().entry(block) {
            Entry::Vacant(entry) => {
                entry.insert(if is_writable {
                    InWindow::Writer
                } else {
                    InWindow::Readers(1)
                });
                true
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                InWindow::Readers(count) if !is_writable => {
                    *count += 1;
                    true
                }
                InWindow::Readers(_) | InWindow::Writer => false,
            },
        }
    }

    /// A view in the window is gone.
    fn leave(&self, block: u64) {
        let mut in_window = self.lock();
        match in_window.get_mut(&block) {
            Some(InWindow::Readers(count)) if *count > 1 => *count -= 1,
            Some(_) => {
                in_window.remove(&block);
            }
            None => crate::bug("a view was never counted"),
        }
    }

    /// Whether this process, which is no child of the one that opened the views, has had no more page faults
    /// than these.
    fn has_only_had(&self, faults: u64) -> bool {
        std::process::id() == self.process && fault_count() == faults
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, InWindow>> {
        match self.in_window.lock() {
            Ok(guard) => guard,
            Err(_) => crate::bug("a thread panicked while it held the views"),
        }
    }
}

impl View {
    /// The first byte.
    pub fn ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it may be written to.
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Whether nothing was written through it. To write what is there already is to write.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        if !self.is_writable {
            return Ok(true);
        }
        match &self.place {
            Place::Window { faults, .. } if self.views.has_only_had(*faults) => Ok(true),
            Place::Window { offset, .. } => self.views.window.is_unchanged(*offset, self.len),
            Place::Own(copy) => copy.is_unchanged(),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let Place::Window {
            block,
            offset,
            faults,
        } = self.place
        else {
            return;
        };
        if std::process::id() != self.views.process {
            return;
        }
        if self.is_writable
            && !self.views.has_only_had(faults)
            && let Err(error) = self.views.window.discard_changes(offset, self.len)
        {
            crate::bug(&format!("what was written to an argument stays: {error}"));
        }
        self.views.leave(block);
    }
}

#[cfg(test)]
mod tests;
