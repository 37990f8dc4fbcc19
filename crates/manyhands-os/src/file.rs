//! Files that carry one message, and what else is asked of the file system.

use crate::memory::{MemoryFile, View};
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, openat};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many message files this process has open.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A memory file that carries one message too large for a ring.
#[derive(Debug)]
pub struct MessageFile(MemoryFile);

impl MessageFile {
    /// Writes the message; nobody can change it afterwards.
    pub fn new(message: &[u8]) -> io::Result<Self> {
        MemoryFile::with_content(c"manyhands-message", message).map(Self::count_in)
    }

    /// Takes a file that another process sent.
    pub fn from_descriptor(file: OwnedFd) -> io::Result<Self> {
        MemoryFile::from_descriptor(file).map(Self::count_in)
    }

    fn count_in(file: MemoryFile) -> Self {
        // Relaxed: a count that bounds descriptors, not memory that it guards.
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self(file)
    }

    /// How many message files this process has open.
    pub fn count() -> usize {
        OPEN.load(Ordering::Relaxed)
    }

    /// The message, mapped.
    pub fn view(&self) -> io::Result<View> {
        View::new(&self.0)
    }

    /// The message, copied.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        self.0.read()
    }

    /// The message's size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the message is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for MessageFile {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsFd for MessageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Gives the space of a range of a file back. Where the file system cannot do that, it goes with the file.
pub fn give_back(file: BorrowedFd<'_>, offset: u64, len: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _given = fallocate(file, flags, offset, len);
}

/// The working directory as a descriptor, which stays right when the directory is renamed.
pub fn open_current_directory() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, c".", flags, Mode::empty())?)
}

/// A copy of standard output (1) or standard error (2) as it is now; the null device where it is
/// closed.
pub fn standard_stream(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for the length of the call; a closed number gives an error and nothing else.
    let stream = unsafe { BorrowedFd::borrow_raw(number) };
    match stream.try_clone_to_owned() {
        Ok(copy) => Ok(copy),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(openat(
            CWD,
            c"/dev/null",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?),
        Err(error) => Err(error),
    }
}

/// Makes the descriptors the standard output and standard error of this process, and the null
/// device its standard input.
pub fn replace_standard_streams(output: &OwnedFd, errors: &OwnedFd) -> io::Result<()> {
    let null = openat(
        CWD,
        c"/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(errors)?;
    Ok(())
}

/// Makes the directory the working directory.
pub fn enter_directory(directory: &OwnedFd) -> io::Result<()> {
    Ok(rustix::process::fchdir(directory)?)
}
