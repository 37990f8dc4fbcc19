//! The window: a sparse memory file that a process maps twice as a whole, shared and private.
//!
//! | mapping | a write goes to | what others write later is seen |
//! |---|---|---|
//! | shared | the file | yes |
//! | private | a page of this process's own (copy-on-write) | on pages that this process has not written |
//!
//! A private page that was never written is the file's own page, and stays mapped when the file's
//! content changes: whoever reads recycled memory takes no fault. Which pages were written is told by
//! the kernel, see `written.rs`.
//!
//! Nothing here says who may write where and when: that is the business of who shares the window.

mod streaming;
mod written;

use crate::memory::sealable_file;
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, fstat, ftruncate};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munmap,
};
use rustix::process::{Resource, getrlimit};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use streaming::{STREAMED, copy_streaming};
use written::Scan;

/// A window takes no more than this part of the addresses that a limit leaves: two mappings have to fit,
/// in processes that use addresses of their own too.
const PART_OF_ADDRESSES: usize = 8;

/// The size of a page of memory.
#[must_use]
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// A sparse memory file, mapped twice as a whole: shared and private.
#[derive(Debug)]
pub struct Window {
    file: File,
    len: usize,
    scan: Scan,
    mappings: OnceLock<Mappings>,
    /// Where the shared mapping is memory of this process alone.
    displaced: Mutex<Vec<Range<usize>>>,
    /// Whether any was replaced, whose pages are not mapped since.
    has_replaced: AtomicBool,
}

#[derive(Debug)]
struct Mappings {
    shared: Mapping,
    private: Mapping,
}

impl Window {
    /// Makes a window of at most `most` bytes, less where the limits of this process say so. Its size is
    /// sealed, it takes no memory, and it is not mapped yet.
    pub fn create(most: usize) -> io::Result<Self> {
        let len = AddressLimits::of_this_process().allow(most);
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("this process's limits (ulimit -v, -d, -f) leave no part of {most} bytes"),
            ));
        }
        let file = sealable_file(c"manyhands-store")?;
        ftruncate(&file, len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self::of(file, len, Scan::of_this_kernel()))
    }

    /// Takes the window that another process made.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        let len = usize::try_from(fstat(&file)?.st_size)
            .ok()
            .filter(|&len| len > 0)
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self::of(file.into(), len, Scan::of_this_kernel()))
    }

    fn of(file: File, len: usize, scan: Scan) -> Self {
        let mappings = OnceLock::new();
        Self {
            file,
            len,
            scan,
            mappings,
            displaced: Mutex::default(),
            has_replaced: AtomicBool::new(false),
        }
    }

    /// The size in bytes, of which few are memory.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window is empty, which it never is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maps the window, both times, if it is not mapped yet.
    pub fn map(&self) -> io::Result<()> {
        if self.mappings.get().is_some() {
            return Ok(());
        }
        let mapping = |kind| {
            Mapping::new(&self.file, 0, self.len, kind).map_err(|error| {
                let why = format!(
                    "there are no {} bytes of addresses left to map the object store ({error})",
                    self.len
                );
                io::Error::new(error.kind(), why)
            })
        };
        let mappings = Mappings {
            shared: mapping(MapFlags::SHARED)?,
            private: mapping(MapFlags::PRIVATE)?,
        };
        // Where two threads come at once, the second one's mappings are dropped.
        let _same = self.mappings.set(mappings);
        Ok(())
    }

    /// The start of the shared mapping, once there is one.
    pub fn shared(&self) -> Option<NonNull<u8>> {
        Some(self.mappings.get()?.shared.start)
    }

    /// The start of the private mapping, once there is one.
    pub fn private(&self) -> Option<NonNull<u8>> {
        Some(self.mappings.get()?.private.start)
    }

    /// Writes by descriptor, the faster way into pages that were never used: the kernel makes them as it
    /// goes, without a fault for each.
    pub fn write_cold(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        self.file.write_all_at(bytes, offset)
    }

    /// Writes through the shared mapping, which is mapped if need be: the faster way into pages that this
    /// process has used before.
    pub fn write_warm(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.check(offset, bytes.len())?;
        if self.is_displaced(&range) {
            return self.write_cold(offset, bytes);
        }
        let at = range.start;
        self.map()?;
        let shared = self.shared().ok_or(io::ErrorKind::AddrNotAvailable)?;
        // SAFETY: `check` has seen that the range is in the window, so in the mapping, which no Rust
        // reference points into; `bytes` is not in it, or it would be a range that somebody writes.
        unsafe {
            let to = shared.as_ptr().add(at);
            if bytes.len() < STREAMED {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            } else {
                copy_streaming(bytes.as_ptr(), to, bytes.len());
            }
        }
        Ok(())
    }

    /// Maps the pages of a range into the shared mapping, many at a time, so that writing there takes no
    /// fault for each: for pages that have memory, but that this process has not used so far.
    pub fn populate(&self, offset: u64, len: usize) -> io::Result<()> {
        let range = self.check(offset, len)?;
        self.map()?;
        let mappings = self.mappings.get().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let pages = mappings.shared.addresses(&range);
        let start = std::ptr::with_exposed_provenance_mut(pages.start);
        // To read, since then pages around a fault are mapped with it; they are writable all the same.
        // SAFETY: pages of the mapping, whose content stays as it is.
        match unsafe { madvise(start, pages.len(), Advice::LinuxPopulateRead) } {
            // Before Linux 5.14 the faults come one by one.
            Err(Errno::INVAL) => Ok(()),
            answer => Ok(answer?),
        }
    }

    /// The shared mapping of a range, for somebody who writes there piece by piece; none where it is
    /// displaced.
    pub fn lay_open(&self, offset: u64, len: usize) -> io::Result<Option<NonNull<u8>>> {
        let range = self.check(offset, len)?;
        if self.is_displaced(&range) {
            return Ok(None);
        }
        self.map()?;
        let shared = self.shared().ok_or(io::ErrorKind::AddrNotAvailable)?;
        // SAFETY: the range is in the window, so in the mapping.
        Ok(Some(unsafe { shared.add(range.start) }))
    }

    /// Makes the pages of the shared mapping around a range memory of this process alone, with the content that
    /// they have, for somebody who goes on to use the addresses while the range itself is another's from now
    /// on. Nobody may write there meanwhile. Here the window is written by descriptor, until `replace`.
    pub fn displace(&self, offset: u64, len: usize) -> io::Result<()> {
        let range = whole_pages(&self.check(offset, len)?);
        let mappings = self.mappings.get().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let mut displaced = self.lock_displaced();
        // SAFETY: a fresh mapping at an address of the kernel's choice; it is filled from pages of the shared
        // mapping, and takes their place.
        unsafe {
            let there = mappings.shared.start.as_ptr().add(range.start);
            let copy =
                mmap_anonymous(std::ptr::null_mut(), range.len(), access, MapFlags::PRIVATE)?;
            std::ptr::copy_nonoverlapping(there, copy.cast(), range.len());
            let flags = MremapFlags::MAYMOVE;
            if let Err(error) = mremap_fixed(copy, range.len(), range.len(), flags, there.cast()) {
                munmap(copy, range.len())?;
                return Err(error.into());
            }
        }
        displaced.push(range);
        Ok(())
    }

    /// The shared mapping is what it was before `displace` with the same range; nobody uses its addresses.
    pub fn replace(&self, offset: u64, len: usize) -> io::Result<()> {
        let range = whole_pages(&self.check(offset, len)?);
        let mappings = self.mappings.get().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut displaced = self.lock_displaced();
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces pages of the shared mapping by those that belong there.
        unsafe {
            let there = mappings.shared.start.as_ptr().add(range.start).cast();
            let (len, offset) = (range.len(), range.start as u64);
            mmap(there, len, access, flags, &self.file, offset)?;
            madvise(there, len, Advice::LinuxDontDump)?;
        }
        displaced.retain(|other| *other != range);
        // Relaxed: it is about speed alone.
        self.has_replaced.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether pages that were mapped into the shared mapping are not any more, as `replace` leaves them.
    pub fn has_replaced(&self) -> bool {
        // Relaxed: as above.
        self.has_replaced.load(Ordering::Relaxed)
    }

    fn is_displaced(&self, range: &Range<usize>) -> bool {
        let displaced = self.lock_displaced();
        displaced
            .iter()
            .any(|other| other.start < range.end && range.start < other.end)
    }

    fn lock_displaced(&self) -> MutexGuard<'_, Vec<Range<usize>>> {
        self.displaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no page of the private mapping there was written by this process. The range is taken
    /// outward to whole pages.
    pub fn is_unchanged(&self, offset: u64, len: usize) -> io::Result<bool> {
        let range = self.check(offset, len)?;
        match self.mappings.get() {
            Some(mappings) => mappings.private.is_unchanged(self.scan, range),
            None => Ok(true),
        }
    }

    /// Drops what this process has written to the private mapping there, so that it shows the file again.
    /// Pages that were not written stay mapped. The range is taken outward to whole pages.
    pub fn discard_changes(&self, offset: u64, len: usize) -> io::Result<()> {
        let range = self.check(offset, len)?;
        let Some(mappings) = self.mappings.get() else {
            return Ok(());
        };
        let private = &mappings.private;
        let pages = private.addresses(&range);
        // Where it cannot be told what was written, all pages go.
        let written = self
            .scan
            .written(&pages, usize::MAX)
            .unwrap_or_else(|_| std::iter::once(pages).collect());
        for run in written {
            private.discard(&self.file, &run)?;
        }
        Ok(())
    }

    /// One more private mapping of the pages around a range. It takes no part in what is done to the
    /// window's own one.
    pub fn private_copy(&self, offset: u64, len: usize) -> io::Result<PrivateCopy> {
        PrivateCopy::new(&self.file, &self.check(offset, len)?)
    }

    /// Gives the memory of a range back, which reads as zeros from then on. What is no whole page is only
    /// zeroed.
    pub fn punch(&self, offset: u64, len: usize) -> io::Result<()> {
        self.check(offset, len)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, offset, len as u64)?)
    }

    /// The range of the window that this is; an error where it is none, since offsets come from other
    /// processes too.
    pub fn check(&self, offset: u64, len: usize) -> io::Result<Range<usize>> {
        let start = usize::try_from(offset).ok();
        start
            .and_then(|start| Some(start..start.checked_add(len)?))
            .filter(|range| range.end <= self.len)
            .ok_or_else(|| {
                let why = format!("there are no {len} bytes at {offset} in the object store");
                io::Error::new(io::ErrorKind::InvalidInput, why)
            })
    }
}

impl AsFd for Window {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A private, writable mapping of its own of a range of a file.
#[derive(Debug)]
pub struct PrivateCopy {
    mapping: Mapping,
    /// What was asked for, in the mapping.
    range: Range<usize>,
    scan: Scan,
}

impl PrivateCopy {
    /// Of the pages around a range that is in the file.
    pub(crate) fn new(file: &File, range: &Range<usize>) -> io::Result<Self> {
        let pages = whole_pages(range);
        let mapping = Mapping::new(file, pages.start, pages.len(), MapFlags::PRIVATE)?;
        Ok(Self {
            mapping,
            range: range.start - pages.start..range.end - pages.start,
            scan: Scan::of_this_kernel(),
        })
    }

    /// The first byte that was asked for.
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: the range is in the mapping.
        unsafe { self.mapping.start.add(self.range.start) }
    }

    /// Whether nobody has written to it.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        self.mapping.is_unchanged(self.scan, self.range.clone())
    }
}

/// A range of addresses that this value owns.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; what is written to it through pointers is the business of
// whoever asked for them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: usize, len: usize, kind: MapFlags) -> io::Result<Self> {
        // Not reserved: most of a window is never memory.
        let flags = kind | MapFlags::NORESERVE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                access,
                flags,
                file,
                offset as u64,
            )
        }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { start, len };
        // SAFETY: leaves the mapping out of core dumps, which it would make as long as itself.
        unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontDump) }?;
        Ok(mapping)
    }

    /// The addresses of the pages around a range.
    fn addresses(&self, range: &Range<usize>) -> Range<usize> {
        let pages = whole_pages(range);
        let start = self.start.as_ptr() as usize;
        start + pages.start..start + pages.end
    }

    fn is_unchanged(&self, scan: Scan, range: Range<usize>) -> io::Result<bool> {
        Ok(scan.written(&self.addresses(&range), 1)?.is_empty())
    }

    /// Makes these pages of a private mapping show the file, which is mapped from its start.
    fn discard(&self, file: &File, pages: &Range<usize>) -> io::Result<()> {
        let start = std::ptr::with_exposed_provenance_mut(pages.start);
        // SAFETY: pages of this mapping. Their content changes, as whoever asks wants it.
        let discarded = unsafe { madvise(start, pages.len(), Advice::LinuxDontNeed) };
        if discarded.is_ok() {
            return Ok(());
        }
        // Pages that are locked into memory are not dropped: they are mapped anew.
        let offset = pages.start - self.start.as_ptr() as usize;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces pages of this mapping by pages of the same kind.
        unsafe { mmap(start, pages.len(), access, flags, file, offset as u64) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the addresses were mapped in `new`, are unmapped once, and users of pointers into them
        // hold the owner.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The pages around a range.
fn whole_pages(range: &Range<usize>) -> Range<usize> {
    let page = page_size();
    range.start / page * page..range.end.next_multiple_of(page)
}

/// What limits of this process bind the size of a window, in bytes.
struct AddressLimits {
    /// The longest file: to go beyond gets the process killed and is no error.
    file: Option<u64>,
    /// The addresses that are left of two limits: of all, and of those for private writable memory.
    left: [Option<u64>; 2],
}

impl AddressLimits {
    fn of_this_process() -> Self {
        // The first and the sixth number are the pages of all mappings, and of private writable ones.
        let sizes = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let used = |index| {
            let pages = sizes.split_ascii_whitespace().nth(index);
            let pages: u64 = pages.and_then(|pages| pages.parse().ok()).unwrap_or(0);
            pages * page_size() as u64
        };
        let left = |resource, index| {
            let limit = getrlimit(resource).current?;
            Some(limit.saturating_sub(used(index)))
        };
        Self {
            file: getrlimit(Resource::Fsize).current,
            left: [left(Resource::As, 0), left(Resource::Data, 5)],
        }
    }

    /// As much of `most` bytes as the limits allow, in whole pages.
    fn allow(&self, most: usize) -> usize {
        let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
        let addresses = self.left.iter().flatten().copied().map(bytes);
        let allowed = addresses
            .map(|left| left / PART_OF_ADDRESSES)
            .chain(self.file.map(bytes))
            .fold(most, usize::min);
        allowed / page_size() * page_size()
    }
}

#[cfg(test)]
mod tests;
