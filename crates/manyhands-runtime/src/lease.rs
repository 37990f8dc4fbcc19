//! Buffers in blocks of the store, and what keeps them there.
//!
//! In the parent a block is kept by its `Arc`. For each buffer that a worker is sent the parent keeps one
//! more, a *lease*, until the worker has released it or is buried. In the worker a lease is a value whose
//! end is told to the parent: with the next result, or before the worker sleeps.

use crate::protocol::{Malformed, Reference};
use crate::store::StoreBlock;
use manyhands_shm::ControlBlock;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A large buffer of a payload.
#[derive(Debug, Clone)]
pub struct Buffer {
    /// The number of the block.
    pub block: u64,
    /// Where in the block.
    pub start: usize,
    /// How many bytes.
    pub len: usize,
    /// Whether who looks at it may write to what it sees.
    pub is_writable: bool,
    /// What keeps it there.
    pub hold: Hold,
}

/// What keeps a block.
#[derive(Debug, Clone)]
pub enum Hold {
    /// In the parent.
    Block(Arc<StoreBlock>),
    /// In a worker.
    Lease(Arc<Lease>),
}

impl Buffer {
    /// The whole of a block; the parent's side.
    pub fn whole(block: Arc<StoreBlock>, is_writable: bool) -> Self {
        Self {
            block: block.number(),
            start: 0,
            len: block.len(),
            is_writable,
            hold: Hold::Block(block),
        }
    }

    /// A buffer that came; the worker's side.
    pub fn leased(reference: Reference) -> Self {
        Self {
            block: reference.block,
            start: reference.start,
            len: reference.len,
            is_writable: reference.is_writable,
            hold: Hold::Lease(Arc::new(Lease::new(reference.block))),
        }
    }

    /// As it is named to the other side.
    pub fn reference(&self) -> Reference {
        Reference {
            block: self.block,
            start: self.start,
            len: self.len,
            is_writable: self.is_writable,
        }
    }
}

// ---- The worker's side ----------------------------------------------------------------------

/// Blocks that were released and not yet told.
static RELEASED: Mutex<Vec<u64>> = Mutex::new(Vec::new());
/// Whether there are any.
static ANY: AtomicBool = AtomicBool::new(false);

/// The worker that this process is.
static WORKER: OnceLock<Arc<ControlBlock>> = OnceLock::new();

/// This process is a worker from here on: who drops a lease wakes it, so that it tells.
pub(crate) fn set_worker(control: &Arc<ControlBlock>) {
    // A worker is born once.
    let _first = WORKER.set(control.clone());
}

/// Whether there is something to tell.
pub(crate) fn any_released() -> bool {
    // Relaxed: who drops a lease looks for a sleeper after it, and who sleeps looks here after its mark.
    ANY.load(Ordering::Relaxed)
}

/// A worker's right to look at a block, or to write one.
#[derive(Debug)]
pub struct Lease {
    block: u64,
    /// Whose it is: a child that a task forks has none.
    pid: u32,
}

impl Lease {
    pub(crate) fn new(block: u64) -> Self {
        let pid = std::process::id();
        Self { block, pid }
    }

    /// The block was given to the parent: there is nothing to release.
    pub(crate) fn end(self) {
        std::mem::forget(self);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if std::process::id() == self.pid {
            let mut released = RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
            released.push(self.block);
            // Relaxed: whoever sees it takes the lock.
            ANY.store(true, Ordering::Relaxed);
            drop(released);
            // It may sleep: threads drop what they have when they like.
            if let Some(control) = WORKER.get()
                && control.worker().take_sleeper().is_some()
            {
                control.worker().wake();
            }
        }
    }
}

/// Takes what was released.
pub(crate) fn take_released() -> Vec<u64> {
    if !any_released() {
        return Vec::new();
    }
    let mut released = RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
    ANY.store(false, Ordering::Relaxed);
    std::mem::take(&mut released)
}

// ---- The parent's side ----------------------------------------------------------------------

/// What a worker may look at, and what it may write.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    /// What it was sent, and how often; it releases each as often.
    leases: HashMap<u64, (Arc<StoreBlock>, u32)>,
    /// What it was given for results that have not come.
    grants: HashMap<u64, Arc<StoreBlock>>,
}

impl Holdings {
    /// How many blocks it has leases of.
    pub(crate) fn count(&self) -> usize {
        self.leases.len()
    }

    /// The buffers are sent to it.
    pub(crate) fn lend(&mut self, buffers: &[Buffer]) {
        for buffer in buffers {
            if let Hold::Block(block) = &buffer.hold {
                let lease = self.leases.entry(buffer.block);
                lease.or_insert_with(|| (block.clone(), 0)).1 += 1;
            }
        }
    }

    /// It never saw them, unless it lies: then it may have released them.
    pub(crate) fn take_back(&mut self, buffers: &[Buffer]) -> Result<(), Malformed> {
        buffers
            .iter()
            .try_for_each(|buffer| self.release(buffer.block))
    }

    /// A result was lost that named what it was given: it writes one at a time, and has released what it
    /// was given for others.
    pub(crate) fn lose_grants(&mut self) {
        self.grants.clear();
    }

    /// It was given a block for a result.
    pub(crate) fn grant(&mut self, block: Arc<StoreBlock>) {
        self.grants.insert(block.number(), block);
    }

    /// It has released a block once.
    pub(crate) fn release(&mut self, block: u64) -> Result<(), Malformed> {
        if self.grants.remove(&block).is_some() {
            return Ok(());
        }
        let Entry::Occupied(mut lease) = self.leases.entry(block) else {
            return Err(Malformed);
        };
        lease.get_mut().1 -= 1;
        if lease.get().1 == 0 {
            lease.remove();
        }
        Ok(())
    }

    /// The buffer of a result that it names: what it was granted, or was sent.
    pub(crate) fn resolve(&mut self, reference: Reference) -> Result<Buffer, Malformed> {
        match self.grants.remove(&reference.block) {
            Some(held) => {
                held.set_filled();
                Self::part(held, reference)
            }
            None => self.leased(reference),
        }
    }

    /// The buffer of a call that it names: what it was sent.
    pub(crate) fn leased(&self, reference: Reference) -> Result<Buffer, Malformed> {
        let (held, _) = self.leases.get(&reference.block).ok_or(Malformed)?;
        Self::part(held.clone(), reference)
    }

    fn part(held: Arc<StoreBlock>, reference: Reference) -> Result<Buffer, Malformed> {
        let Reference {
            block,
            start,
            len,
            is_writable,
        } = reference;
        let end = start.checked_add(len).ok_or(Malformed)?;
        if end > held.len() {
            return Err(Malformed);
        }
        Ok(Buffer {
            block,
            start,
            len,
            is_writable,
            hold: Hold::Block(held),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn what_was_lent_is_released_as_often() {
        let store = Store::new(None).unwrap();
        let buffer = Buffer::whole(store.store(&[1; 5000]).unwrap(), true);
        let mut holdings = Holdings::default();
        holdings.lend(&[buffer.clone(), buffer.clone()]);
        holdings.lend(std::slice::from_ref(&buffer));
        let (block, named) = (buffer.block, buffer.reference());
        drop(buffer);
        for _ in 0..3 {
            assert_eq!(store.stats().blocks, 1);
            assert!(holdings.resolve(named).is_ok());
            assert_eq!(holdings.leased(named).unwrap().reference(), named);
            holdings.release(block).unwrap();
        }
        assert_eq!(store.stats().blocks, 0);
        assert_eq!(holdings.release(block), Err(Malformed));
        assert!(holdings.resolve(named).is_err());
    }

    #[test]
    fn a_grant_ends_with_the_result_that_names_it() {
        let store = Store::new(None).unwrap();
        let mut holdings = Holdings::default();
        let block = store.reserve(5000, 1).unwrap();
        let named = Buffer::whole(block.clone(), false).reference();
        holdings.grant(block);
        let came = holdings.resolve(named).unwrap();
        assert_eq!(came.reference(), named);
        assert!(holdings.leased(named).is_err(), "it was never sent");
        assert!(holdings.resolve(named).is_err(), "named twice");
        assert_eq!(holdings.release(named.block), Err(Malformed));
        assert_eq!(store.stats().blocks, 1);
        drop(came);
        assert_eq!(store.stats().blocks, 0);
    }

    #[test]
    fn grants_of_a_lost_result_are_free() {
        let store = Store::new(None).unwrap();
        let mut holdings = Holdings::default();
        let sent = Buffer::whole(store.store(&[1; 5000]).unwrap(), true);
        holdings.lend(std::slice::from_ref(&sent));
        holdings.grant(store.reserve(5000, 1).unwrap());
        drop(sent);
        assert_eq!(store.stats().blocks, 2);
        holdings.lose_grants();
        assert_eq!(store.stats().blocks, 1, "what it was sent stays");
    }

    #[test]
    fn a_part_is_inside_its_block() {
        let store = Store::new(None).unwrap();
        let buffer = Buffer::whole(store.store(&[1; 5000]).unwrap(), true);
        let mut holdings = Holdings::default();
        holdings.lend(std::slice::from_ref(&buffer));
        for (start, len, is_inside) in [
            (0, 5000, true),
            (4999, 1, true),
            (5000, 1, false),
            (1, 5000, false),
            (usize::MAX, 2, false),
        ] {
            let part = Reference {
                block: buffer.block,
                start,
                len,
                is_writable: true,
            };
            assert_eq!(holdings.resolve(part).is_ok(), is_inside, "{part:?}");
        }
    }
}
