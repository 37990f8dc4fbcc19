//! What tasks run: bytes that a worker is sent once and keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A function, or a part of one, as bytes that only the worker's side understands.
///
/// A worker gets a definition with the first task that needs it, after those that it depends on,
/// and drops it when nothing in the parent refers to it any more.
#[derive(Debug)]
pub struct Definition {
    id: u32,
    label: Box<str>,
    bytes: Box<[u8]>,
    needs: Box<[Arc<Definition>]>,
}

impl Definition {
    /// Makes a definition with an id that no other definition of this process has.
    /// `label` names it for people.
    pub fn new(label: &str, bytes: Box<[u8]>, needs: Box<[Arc<Definition>]>) -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // Relaxed: only distinct numbers are wanted.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            id,
            label: Box::from(label),
            bytes,
            needs,
        })
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

    /// What has to be there before it.
    pub fn needs(&self) -> &[Arc<Self>] {
        &self.needs
    }
}
