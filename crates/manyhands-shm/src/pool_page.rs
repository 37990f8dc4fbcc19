//! The page that a pool's parent shares with all its workers.

use crate::park::ParkWord;
use crate::sync::{AtomicU32, Ordering};
use manyhands_os::{MemoryFile, Segment};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const PAGE: usize = 4096;
const MAGIC: u32 = 0x6d68_7032;

#[repr(C)]
struct Layout {
    magic: AtomicU32,
    /// How many workers the pool has. Written by its parent.
    width: AtomicU32,
    /// How many processors are each worker's, and the bit that says whether that was asked for. Written by
    /// its parent.
    share: AtomicU32,
    _reserved: [u32; 13],
    parent: ParkLine,
    spinner: SpinLine,
}

#[repr(C, align(64))]
struct ParkLine(ParkWord);

#[repr(C, align(64))]
struct SpinLine {
    /// Slot + 1 of the worker that spins, 0 for none.
    holder: AtomicU32,
    /// How many workers hold tasks, as the parent last noted.
    busy: AtomicU32,
}

/// Set in the word of the share if it was asked for by number.
const GIVEN: u32 = 1 << 31;

/// How many processors a worker is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many; below 2³¹.
    pub count: u32,
    /// Whether somebody asked for that number.
    pub is_given: bool,
}

/// The mapped page.
#[derive(Debug)]
pub struct PoolPage {
    file: MemoryFile,
    segment: Segment,
}

/// The right to be the one worker of the pool that spins; given back when dropped.
#[derive(Debug)]
pub struct SpinPermit<'page> {
    page: &'page PoolPage,
    slot: u32,
}

impl PoolPage {
    /// Makes the page of a pool of so many workers, with that share each; the parent's side.
    pub fn create(width: u32, share: Share) -> io::Result<Self> {
        let page = Self::map(MemoryFile::new(c"manyhands-pool", PAGE)?)?;
        // Relaxed, here and below: the page travels to workers by a system call.
        page.layout().width.store(width, Ordering::Relaxed);
        page.set_share(share);
        page.layout().magic.store(MAGIC, Ordering::Relaxed);
        Ok(page)
    }

    /// Opens the page that the parent made; the worker's side.
    pub fn open(descriptor: OwnedFd) -> io::Result<Self> {
        let page = Self::map(MemoryFile::from_descriptor(descriptor)?)?;
        if page.layout().magic.load(Ordering::Relaxed) != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the parent speaks another version of the protocol",
            ));
        }
        Ok(page)
    }

    fn map(file: MemoryFile) -> io::Result<Self> {
        let segment = Segment::new(&file, PAGE, &[])?;
        Ok(Self { file, segment })
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is page-aligned, larger than the layout, and holds atomics alone.
        unsafe { self.segment.start().cast::<Layout>().as_ref() }
    }

    /// How many workers the pool has.
    pub fn width(&self) -> u32 {
        self.layout().width.load(Ordering::Relaxed)
    }

    /// Parent: the pool has so many workers from now on.
    pub fn set_width(&self, width: u32) {
        // Relaxed: a figure, by which workers choose how much they ask for at once.
        self.layout().width.store(width, Ordering::Relaxed);
    }

    /// How many processors are a worker's that is born now.
    pub fn share(&self) -> Share {
        let word = self.layout().share.load(Ordering::Relaxed);
        Share {
            count: (word & !GIVEN).max(1),
            is_given: word & GIVEN != 0,
        }
    }

    /// Parent: workers that are born from now on have this share.
    pub fn set_share(&self, share: Share) {
        let given = if share.is_given { GIVEN } else { 0 };
        // Relaxed: a figure by itself.
        self.layout()
            .share
            .store(share.count & !GIVEN | given, Ordering::Relaxed);
    }

    /// The word on which the parent sleeps while no worker has anything for it.
    pub fn parent(&self) -> &ParkWord {
        &self.layout().parent.0
    }

    /// Parent: notes how many workers hold tasks.
    #[inline]
    pub fn set_busy(&self, count: u32) {
        // Relaxed: a hint about processor time.
        self.layout().spinner.busy.store(count, Ordering::Relaxed);
    }

    /// Worker that has just become idle: how many processes of the pool have something to do now. The
    /// worker itself, which its parent still counts among the busy ones, is left out.
    pub fn runnable(&self) -> u32 {
        let parent = u32::from(!self.parent().is_parked());
        let busy = self.layout().spinner.busy.load(Ordering::Relaxed);
        busy.saturating_sub(1) + parent
    }

    /// Asks for the right to spin, which one worker at a time has.
    #[must_use]
    pub fn may_spin(&self, slot: u32) -> Option<SpinPermit<'_>> {
        // Relaxed throughout: the word guards processor time, not memory.
        self.layout()
            .spinner
            .holder
            .compare_exchange(0, slot + 1, Ordering::Relaxed, Ordering::Relaxed)
            .ok()
            .map(|_| SpinPermit { page: self, slot })
    }

    /// Parent: takes the right back from a worker that died with it.
    pub fn end_spin(&self, slot: u32) {
        // A failure means that another worker has the right, or nobody.
        let _taken = self.layout().spinner.holder.compare_exchange(
            slot + 1,
            0,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

impl Drop for SpinPermit<'_> {
    fn drop(&mut self) {
        self.page.end_spin(self.slot);
    }
}

impl AsFd for PoolPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    const SHARE: Share = Share {
        count: 2,
        is_given: false,
    };

    #[test]
    fn a_share_says_whether_it_was_asked_for() {
        let page = PoolPage::create(3, SHARE).unwrap();
        let worker = PoolPage::open(page.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(worker.share(), SHARE);
        let given = Share {
            count: 7,
            is_given: true,
        };
        page.set_share(given);
        assert_eq!((worker.share(), worker.width()), (given, 3));
    }

    #[test]
    fn one_worker_spins_at_a_time() {
        let page = PoolPage::create(3, SHARE).unwrap();
        let permit = page.may_spin(3);
        assert!(permit.is_some());
        assert!(page.may_spin(4).is_none());
        drop(permit);
        let leaked = page.may_spin(4).map(std::mem::forget);
        assert!(leaked.is_some());
        page.end_spin(3);
        assert!(page.may_spin(5).is_none(), "slot 3 does not hold it");
        page.end_spin(4);
        assert!(page.may_spin(5).is_some());
    }

    #[test]
    fn a_foreign_page_is_refused() {
        let file = MemoryFile::new(c"foreign", PAGE).unwrap();
        let descriptor = file.as_fd().try_clone_to_owned().unwrap();
        assert!(PoolPage::open(descriptor).is_err());
    }
}
