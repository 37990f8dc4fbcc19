//! What tasks run: bytes that a worker is sent once and keeps.

use crate::lease::Buffer;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// From so many bytes on it is worth a look through what workers know that a definition is gone.
const MANY: usize = 64 * 1024;

/// How often something happened that workers are to hear of before their next task.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// How often definitions of many bytes have gone, and any were recalled. While it stays, nothing that
/// a worker knows has to be looked through.
#[inline]
pub(crate) fn changes() -> u64 {
    // Acquire: whoever sees a change finds the definition gone, or its recall counted.
    CHANGES.load(Ordering::Acquire)
}

/// A function, or a part of one, as bytes that only the worker's side understands. They may speak of large
/// buffers, in the store: a worker looks at these as long as it keeps what it has made of the definition.
///
/// A worker gets a definition with the first task that needs it, after those that it depends on,
/// and drops it when nothing in the parent refers to it any more: one of many bytes before its next
/// task, others in time. One that is *recalled* it drops before its next task too, with all that
/// depends on it; they are sent again when a task needs them.
#[derive(Debug)]
pub struct Definition {
    id: u32,
    label: Box<str>,
    bytes: Box<[u8]>,
    buffers: Box<[Buffer]>,
    needs: Box<[Arc<Definition>]>,
    /// Open for as long as a task may come to need it.
    _file: Option<OwnedFd>,
    /// The most nanoseconds that a task which runs it took.
    longest: AtomicU64,
    /// How often it was recalled.
    recalls: AtomicU32,
}

impl Drop for Definition {
    fn drop(&mut self) {
        if self.bytes.len() >= MANY || !self.buffers.is_empty() {
            // Release: pairs with `changes`.
            CHANGES.fetch_add(1, Ordering::Release);
        }
    }
}

impl Definition {
    /// Makes a definition with an id that no other definition of this process has.
    /// `label` names it for people.
    pub fn new(label: &str, bytes: Box<[u8]>, needs: Box<[Arc<Definition>]>) -> Arc<Self> {
        Self::keeping(label, bytes, Box::default(), needs, None)
    }

    /// The same, with the buffers that the bytes speak of, and a file that stays open as long as the
    /// definition is known here.
    pub fn keeping(
        label: &str,
        bytes: Box<[u8]>,
        buffers: Box<[Buffer]>,
        needs: Box<[Arc<Definition>]>,
        file: Option<OwnedFd>,
    ) -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // Relaxed: only distinct numbers are wanted.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            label: Box::from(label),
            bytes,
            buffers,
            needs,
            _file: file,
            longest: AtomicU64::new(0),
            recalls: AtomicU32::new(0),
        })
    }

    /// A task that runs it took so many nanoseconds, or several together did.
    #[inline]
    pub(crate) fn took(&self, nanos: u64) {
        // Relaxed: a figure to compare with. Mostly it stays what it is, so it is read first.
        if nanos > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    /// The most nanoseconds that a task which runs it took, of items of a map up to 64 together; 0 before
    /// one has ended.
    pub(crate) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    /// Has all workers drop it before their next task, with what depends on it.
    pub fn recall(&self) {
        // Relaxed: the release of the change publishes it.
        self.recalls.fetch_add(1, Ordering::Relaxed);
        // Release: pairs with `changes`.
        CHANGES.fetch_add(1, Ordering::Release);
    }

    /// How often it was recalled: what was sent before the last time does not count any more.
    pub(crate) fn recalls(&self) -> u32 {
        // Relaxed: `changes` was read before.
        self.recalls.load(Ordering::Relaxed)
    }

    /// Its number.
    #[inline]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its name for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The large buffers that they speak of.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// What has to be there before it.
    pub fn needs(&self) -> &[Arc<Self>] {
        &self.needs
    }
}
