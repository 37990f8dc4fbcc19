//! Nameless shared memory: a memory file, and views of it.

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::{Errno, pread};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

pub(crate) fn sealable_file(name: &CStr) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    memfd_create(name, flags).map(File::from).map_err(|error| {
        let error = io::Error::from(error);
        let why = format!("memory cannot be shared between processes (memfd_create: {error})");
        io::Error::new(error.kind(), why)
    })
}

/// Seals the size of a file, and its content unless the kernel refuses: it does where somebody has a
/// writable mapping, or where it holds on to a page itself just then, as it may when memory is short.
fn seal_content(file: &OwnedFd) -> io::Result<()> {
    let size = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    match fcntl_add_seals(file, size | SealFlags::WRITE) {
        Err(Errno::BUSY) => Ok(fcntl_add_seals(file, size)?),
        answer => Ok(answer?),
    }
}

/// A memory file of fixed size whose pages are all there: using it can fail no more.
#[derive(Debug)]
pub struct MemoryFile {
    file: OwnedFd,
    len: usize,
}

impl MemoryFile {
    /// Makes a file of `len` zero bytes, allocated at once, so that a full machine gives an error
    /// here and not a SIGBUS later; its size is sealed.
    pub fn new(name: &CStr, len: usize) -> io::Result<Self> {
        Self::with_room(name, len, 0)
    }

    /// As `new`, with `room` more bytes at its end that take no memory until somebody writes there. They
    /// are written and read as a file's, never mapped: no write can fail there but with an error.
    pub fn with_room(name: &CStr, len: usize, room: usize) -> io::Result<Self> {
        let file: OwnedFd = sealable_file(name)?.into();
        fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
        let len = len + room;
        if room > 0 {
            ftruncate(&file, len as u64)?;
        }
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, len })
    }

    /// Makes a sealed file that holds `content`, which nobody changes.
    pub fn with_content(name: &CStr, content: &[u8]) -> io::Result<Self> {
        let file = sealable_file(name)?;
        file.write_all_at(content, 0)?;
        let file: OwnedFd = file.into();
        seal_content(&file)?;
        Ok(Self {
            file,
            len: content.len(),
        })
    }

    /// Takes a descriptor that another process sent, and looks up its size.
    pub fn from_descriptor(file: OwnedFd) -> io::Result<Self> {
        let len = rustix::fs::fstat(&file)?.st_size;
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { file, len })
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads `len` bytes from `position` on.
    pub fn read_at(&self, position: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; len.min(self.len.saturating_sub(position))];
        let mut read = 0;
        while read < content.len() {
            match pread(&self.file, &mut content[read..], (position + read) as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        content.truncate(read);
        Ok(content)
    }

    /// Where the next write by descriptor goes, as all who share the open file see it.
    pub fn position(&self) -> io::Result<u64> {
        Ok(rustix::fs::tell(&self.file)?)
    }

    /// Says where it goes.
    pub fn set_position(&self, position: u64) -> io::Result<()> {
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(position))?;
        Ok(())
    }

    /// Device and number of the file that the descriptor names now: who closes descriptors that are not
    /// his makes it name another one.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let found = rustix::fs::fstat(&self.file)?;
        Ok((found.st_dev, found.st_ino))
    }

    /// Reads the whole file.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let file = File::from(self.file.try_clone()?);
        let mut content = Vec::new();
        content
            .try_reserve_exact(self.len)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        content.resize(self.len, 0);
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A private read view of a whole memory file.
#[derive(Debug)]
pub struct View {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the view is memory that this value owns and that nothing writes.
unsafe impl Send for View {}
// SAFETY: as above; shared reading is all it offers.
unsafe impl Sync for View {}

impl View {
    /// Maps the file for reading.
    pub fn new(file: &MemoryFile) -> io::Result<Self> {
        if file.is_empty() {
            return Ok(Self {
                start: NonNull::dangling(),
                len: 0,
            });
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice; the file's size is sealed
        // by its maker, so that no page of it can vanish.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                file.len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            len: file.len,
        })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` bytes until drop.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping made in `new`, unmapped once.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

/// A shared, writable mapping of a memory file in which each of several areas may appear twice in
/// a row, so that a ring in it never wraps.
#[derive(Debug)]
pub struct Segment {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value; access to the bytes is by raw pointer under the
// protocols of manyhands-shm.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Maps the first `plain` bytes of the file once, and then each area of `mirrored` twice.
    ///
    /// The areas follow one another in the file; all sizes are multiples of the page size.
    pub fn new(file: &MemoryFile, plain: usize, mirrored: &[usize]) -> io::Result<Self> {
        let in_file = plain + mirrored.iter().sum::<usize>();
        if in_file > file.len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the memory file is too short",
            ));
        }
        let len = plain + 2 * mirrored.iter().sum::<usize>();
        // SAFETY: reserves fresh address space without touching any existing mapping.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let segment = Self { start, len };
        segment.place(file, 0, plain, 0)?;
        let (mut at, mut offset) = (plain, plain);
        for &area in mirrored {
            segment.place(file, at, area, offset)?;
            segment.place(file, at + area, area, offset)?;
            at += 2 * area;
            offset += area;
        }
        Ok(segment)
    }

    fn place(&self, file: &MemoryFile, at: usize, len: usize, offset: usize) -> io::Result<()> {
        debug_assert!(at + len <= self.len);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: replaces a part of the address space that `new` reserved for this segment.
        unsafe {
            mmap(
                self.start.as_ptr().add(at).cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                offset as u64,
            )?;
        }
        Ok(())
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The size of the mapping, each mirrored area counted twice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping is empty, which it never is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the address space reserved in `new`, unmapped once; users of the pointer hold
        // the segment.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_takes_no_memory_until_it_is_written() {
        let file = MemoryFile::with_room(c"test", 4096, 1 << 20).unwrap();
        let blocks = || rustix::fs::fstat(&file).unwrap().st_blocks;
        assert_eq!((file.len(), blocks()), (4096 + (1 << 20), 4096 / 512));
        file.set_position(4096).unwrap();
        let mut writer = File::from(file.as_fd().try_clone_to_owned().unwrap());
        std::io::Write::write_all(&mut writer, b"text").unwrap();
        assert_eq!((file.position().unwrap(), blocks()), (4100, 2 * 4096 / 512));
        assert_eq!(file.read_at(4096, 4).unwrap(), b"text");
        assert_eq!(file.read_at(file.len() - 2, 4).unwrap(), [0, 0]);
        file.set_position(file.len() as u64).unwrap();
        std::io::Write::write_all(&mut writer, b"x").unwrap_err();
    }

    #[test]
    fn content_is_sealed() {
        let file = MemoryFile::with_content(c"test", b"content").unwrap();
        let copy = File::from(file.file.try_clone().unwrap());
        assert!(copy.write_all_at(b"other", 0).is_err());
        assert_eq!(file.read().unwrap(), b"content");
    }

    /// A writable mapping makes the kernel refuse the seal, as a page that it holds on to does.
    #[test]
    fn a_file_that_is_busy_has_its_size_sealed() {
        let file: OwnedFd = sealable_file(c"test").unwrap().into();
        ftruncate(&file, 4096).unwrap();
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which nobody uses.
        let mapping = unsafe {
            mmap(
                std::ptr::null_mut(),
                4096,
                flags,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .unwrap();
        seal_content(&file).unwrap();
        assert!(ftruncate(&file, 0).is_err(), "a reader would get SIGBUS");
        // SAFETY: mapped above, whole.
        unsafe { munmap(mapping, 4096) }.unwrap();
    }
}
