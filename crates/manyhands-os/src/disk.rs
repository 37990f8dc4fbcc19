//! Files that stand in no directory: what is there takes space on a disk and no memory, and is gone with the
//! last process that has it open or mapped, however that ends.

use crate::file::give_back;
use crate::window::PrivateCopy;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FsWord, Mode, OFlags, fallocate, fstatfs, fstatvfs, openat,
    statvfs, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// So much space is taken at a time: a signal makes the kernel give back what it has taken in one call.
const STEP: u64 = 32 << 20;

/// The kinds of file systems whose files are memory, of `linux/magic.h`.
const IN_MEMORY: [FsWord; 2] = [0x0102_1994, 0x8584_58f6];

/// A file without a name.
#[derive(Debug)]
pub struct UnnamedFile(File);

impl UnnamedFile {
    /// Makes an empty one on the disk that the directory is on.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self(file.into())),
            // What file systems and kernels say that make none without a name.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                Self::create_and_unlink(directory)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn create_and_unlink(directory: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            // Relaxed: only distinct numbers are wanted.
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("manyhands-{}-{number}", std::process::id()));
            match openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    unlinkat(CWD, &path, AtFlags::empty())?;
                    return Ok(Self(file.into()));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Opens one that another process has as its descriptor of this number, to read.
    pub fn open(process: u32, number: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{process}/fd/{number}"))?;
        let found = file.metadata()?;
        if !found.is_file() || found.nlink() > 0 {
            let why = format!("descriptor {number} of process {process} is another file");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self(file))
    }

    /// The number of its descriptor.
    pub fn number(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }

    /// Whether what is written there takes memory all the same.
    pub fn is_in_memory(&self) -> io::Result<bool> {
        Ok(IN_MEMORY.contains(&fstatfs(&self.0)?.f_type))
    }

    /// Takes the space of a range, so that to write there does not fail for want of it. If there is too
    /// little, none is taken.
    pub fn take(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len);
        // To go beyond the limit gets a process killed that has not asked for an error.
        if getrlimit(Resource::Fsize)
            .current
            .is_some_and(|most| end > most)
        {
            return Err(Errno::FBIG.into());
        }
        // Not even for a moment is a disk full for want of what it never had.
        let disk = fstatvfs(&self.0)?;
        if disk.f_blocks > 0 && len > disk.f_bavail.saturating_mul(disk.f_frsize) {
            return Err(Errno::NOSPC.into());
        }
        let mut at = offset;
        while at < end {
            let step = STEP.min(end - at);
            match fallocate(&self.0, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                Err(Errno::INTR) => {}
                // Here it is the writing that takes the space, and tells if there is none.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                Err(error) => {
                    self.give_back(offset, at + step - offset);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Writes there.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    /// Gives the space of a range back. Where the file system cannot do that, it goes with the file.
    pub fn give_back(&self, offset: u64, len: u64) {
        give_back(self.0.as_fd(), offset, len);
    }

    /// A private mapping of a range, which the file has to have: what is beyond its end cannot be read.
    pub fn private_copy(&self, offset: u64, len: usize) -> io::Result<PrivateCopy> {
        let end = offset.checked_add(len as u64);
        let size = self.0.metadata()?.len();
        let range = end
            .filter(|&end| end <= size)
            .and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?))
            .ok_or_else(|| {
                let why = format!("there are no {len} bytes at {offset} in a file of {size}");
                io::Error::new(io::ErrorKind::InvalidInput, why)
            })?;
        PrivateCopy::new(&self.0, &range)
    }
}

/// How many bytes are free on the disk that the directory is on, for who is nobody special.
pub fn disk_left(directory: &Path) -> io::Result<u64> {
    let found = statvfs(directory)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LEN: usize = 100_000;

    fn directory() -> std::path::PathBuf {
        std::env::temp_dir()
    }

    fn bytes(copy: &PrivateCopy, len: usize) -> &[u8] {
        // SAFETY: mapped with this length, and nobody writes there.
        unsafe { std::slice::from_raw_parts(copy.start().as_ptr(), len) }
    }

    #[test]
    fn another_descriptor_shows_what_was_written() {
        let directory = directory().join(format!("manyhands-disk-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        for file in [
            UnnamedFile::create(&directory).unwrap(),
            UnnamedFile::create_and_unlink(&directory).unwrap(),
        ] {
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
            file.take(8192, LEN as u64).unwrap();
            file.write(8192, &[7; LEN]).unwrap();
            let other = UnnamedFile::open(std::process::id(), file.number()).unwrap();
            let copy = other.private_copy(8192 + 5, LEN - 5).unwrap();
            drop((file, other));
            assert_eq!(bytes(&copy, LEN - 5), [7; LEN - 5]);
            // SAFETY: the first byte of the mapping, which nobody looks at meanwhile.
            unsafe { copy.start().as_ptr().write(8) };
            assert!(!copy.is_unchanged().unwrap());
        }
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn only_what_is_there_is_mapped() {
        let file = UnnamedFile::create(&directory()).unwrap();
        file.write(0, &[1; LEN]).unwrap();
        for (offset, len) in [(1, LEN), (LEN as u64, 1), (u64::MAX, 1)] {
            let error = file.private_copy(offset, len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }

    #[test]
    fn a_file_with_a_name_is_another() {
        let file = File::open("/proc/self/exe").unwrap();
        let number = file.as_raw_fd().cast_unsigned();
        assert!(UnnamedFile::open(std::process::id(), number).is_err());
        let (pipe, _other) = crate::life_line().unwrap();
        let number = pipe.as_raw_fd().cast_unsigned();
        assert!(UnnamedFile::open(std::process::id(), number).is_err());
    }

    #[test]
    fn space_that_was_given_back_is_free() {
        let file = UnnamedFile::create(&directory()).unwrap();
        let len = 1 << 20;
        file.take(0, len).unwrap();
        let blocks = |file: &UnnamedFile| file.0.metadata().unwrap().blocks() * 512;
        assert!(blocks(&file) >= len);
        file.give_back(0, len);
        assert_eq!(blocks(&file), 0);
        let error = file.take(0, 1 << 60).unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::StorageFull,
            "no disk is so large"
        );
        assert_eq!(blocks(&file), 0);
    }

    #[test]
    fn no_directory_no_file() {
        assert!(UnnamedFile::create(Path::new("/nowhere")).is_err());
        assert!(disk_left(Path::new("/nowhere")).is_err());
        assert!(disk_left(&directory()).unwrap() > 0);
    }
}
