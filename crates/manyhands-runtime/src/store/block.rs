//! A block of the store: one buffer in the window, or on disk.

use super::Store;
use super::allocator::Range;
use super::spill;
use manyhands_os::{UnnamedFile, Window, coarse_nanos};
use manyhands_shm::Used;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes a buffer, or a part of it, to pages that the caller may write, which were used by those before.
///
/// Into pages without memory a write by descriptor is twice as fast as one through the mapping; those that
/// others have used are mapped many at a time.
pub(crate) fn write_pages(
    window: &Window,
    used: Used,
    offset: u64,
    bytes: &[u8],
) -> io::Result<()> {
    match used {
        Used::Never => return window.write_cold(offset, bytes),
        Used::Elsewhere => window.populate(offset, bytes.len())?,
        Used::Here => {}
    }
    window.write_warm(offset, bytes)
}

/// A range of the window, or of a file on disk, that holds one buffer. It is free when the last reference is
/// dropped.
#[derive(Debug)]
pub struct StoreBlock {
    pub(super) store: Arc<Store>,
    /// The file that the range is in, if it is not the window.
    file: Option<Arc<UnnamedFile>>,
    range: Range,
    len: usize,
    writer: u64,
    /// Who had used its pages when it was reserved.
    used: Used,
    /// So many bytes its writer wrote before.
    written: u64,
    /// Whether all of it is what its writer wrote.
    is_filled: AtomicBool,
    /// Whether its writer has its pages mapped.
    is_mapped: AtomicBool,
    /// Whether a write failed, so that nobody knows which of its pages have memory.
    pub(super) is_spoiled: AtomicBool,
}

impl StoreBlock {
    pub(super) fn new(
        store: Arc<Store>,
        range: Range,
        len: usize,
        writer: u64,
        (used, written): (Used, u64),
    ) -> Self {
        Self {
            store,
            file: None,
            range,
            len,
            writer,
            used,
            written,
            is_filled: AtomicBool::new(false),
            // What is written by descriptor is mapped by nobody.
            is_mapped: AtomicBool::new(used != Used::Never),
            is_spoiled: AtomicBool::new(false),
        }
    }

    /// One on disk, whose range was taken there.
    pub(super) fn on_disk(
        store: Arc<Store>,
        file: Arc<UnnamedFile>,
        range: Range,
        len: usize,
    ) -> Self {
        let mut block = Self::new(store, range, len, 0, (Used::Never, 0));
        block.file = Some(file);
        block
    }

    /// What other processes know it by: where it starts in the window, or the file and the page where it is
    /// on disk.
    pub fn number(&self) -> u64 {
        match &self.file {
            None => self.offset(),
            Some(file) => spill::number(file.number(), self.range.start),
        }
    }

    /// Where it starts in the window, or in its file.
    pub(crate) fn offset(&self) -> u64 {
        self.range.start * self.store.page
    }

    /// Whether it is in the store of this process: a child that was forked from there has it too.
    pub fn is_of_this_process(&self) -> bool {
        std::process::id() == self.store.process
    }

    /// The length of its buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer is empty, which it never is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether its pages had no memory when it was reserved: they are best written by descriptor, as
    /// `write` does.
    pub fn is_cold(&self) -> bool {
        self.used == Used::Never
    }

    /// Who had used its pages, as its writer has to know.
    pub(crate) fn used(&self) -> Used {
        self.used
    }

    /// Its writer writes through its mapping, even if the pages have had no memory.
    pub(crate) fn set_laid_open(&self) {
        // Relaxed: the last reference is dropped after this.
        self.is_mapped.store(true, Ordering::Relaxed);
    }

    /// Its writer has written all of it.
    pub(crate) fn set_filled(&self) {
        // Relaxed: as above.
        self.is_filled.store(true, Ordering::Relaxed);
    }

    /// Writes a part of the buffer, before it is sealed.
    pub fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            let why = format!(
                "{} bytes at {at} are not in a block of {}",
                bytes.len(),
                self.len
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let offset = self.offset() + at as u64;
        if let Some(file) = &self.file {
            return file.write(offset, bytes);
        }
        let written = write_pages(&self.store.window, self.used, offset, bytes);
        if written.is_err() && self.is_cold() {
            // Relaxed: the last reference is dropped after this.
            self.is_spoiled.store(true, Ordering::Relaxed);
        }
        written
    }
}

impl Drop for StoreBlock {
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            return;
        }
        if let Some(file) = &self.file {
            file.give_back(self.offset(), self.range.pages * self.store.page);
        }
        let mut state = self.store.lock();
        state.blocks -= 1;
        if self.file.is_some() {
            state.spilled -= self.range.pages;
        } else if self.is_spoiled.load(Ordering::Relaxed) {
            state.allocator.retire(self.range);
            drop(state);
            self.store.give_back(&[self.range]);
        } else {
            // Relaxed: this is the last reference.
            let is_mapped = self.is_mapped.load(Ordering::Relaxed);
            let mapped_by = is_mapped.then_some(self.writer);
            let filled = self.is_filled.load(Ordering::Relaxed);
            let filled = if filled { self.len as u64 } else { 0 };
            let written = self.written.max(filled);
            state
                .allocator
                .free(self.range, mapped_by, written, coarse_nanos());
        }
    }
}
