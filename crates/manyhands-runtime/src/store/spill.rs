//! Blocks on disk: where what is held goes once the budget is used up.
//!
//! They lie one behind the other in a file without a name, which is there as long as one of its blocks is. No
//! range of it is used twice: the space of a block is given back when it is dropped, and who looks at it
//! maps its pages alone.
//!
//! Other processes find the file as a descriptor of the store's process. Descriptor and page make the
//! *number* of a block, which is none of the window's offsets; both are this block's as long as it lives, so as
//! long as anybody has a lease of it.

use super::allocator::Range;
use super::memory_to_take;
use manyhands_os::{UnnamedFile, disk_left};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Says that a block is on disk. No window is so long.
const ON_DISK: u64 = 1 << 63;
/// Where the descriptor stands in a number; the page stands below.
const DESCRIPTOR: u32 = 32;
/// The pages that a number can name.
const MOST_PAGES: u64 = 1 << DESCRIPTOR;

/// The number of a block: its file and its first page there.
pub(super) fn number(descriptor: u32, page: u64) -> u64 {
    debug_assert!(
        descriptor < 1 << 31 && page < MOST_PAGES,
        "one word has both"
    );
    ON_DISK | u64::from(descriptor) << DESCRIPTOR | page
}

/// The file and the page of the block of that number, if it is on disk.
pub(super) fn place(number: u64) -> Option<(u32, u64)> {
    let rest = number & !ON_DISK;
    (number != rest).then_some(((rest >> DESCRIPTOR) as u32, rest % MOST_PAGES))
}

/// The file that blocks go to next.
#[derive(Debug, Default)]
pub(super) struct Spill {
    directory: PathBuf,
    file: Weak<UnnamedFile>,
    /// The first page that was never used.
    end: u64,
}

/// Why there is no block on disk.
#[derive(Debug)]
pub struct NoDisk {
    /// The bytes that were asked for.
    pub wanted: u64,
    /// Where a file was to be.
    pub directory: PathBuf,
    /// What is free there, if the system says so.
    pub left: Option<u64>,
    /// The bytes that are on disk.
    pub spilled: u64,
    /// What the system says.
    pub error: io::Error,
}

impl std::fmt::Display for NoDisk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            wanted,
            directory,
            left,
            spilled,
            error,
        } = self;
        let directory = directory.display();
        write!(
            formatter,
            "no file in {directory} has room for {wanted} bytes"
        )?;
        if let Some(left) = left {
            write!(formatter, ": {left} bytes are free there")?;
        }
        write!(
            formatter,
            ", {spilled} bytes are in such files, and the system says: {error}"
        )
    }
}

impl std::error::Error for NoDisk {}

impl Spill {
    /// Takes room for `pages` in a file in this directory.
    pub(super) fn take(
        &mut self,
        directory: &Path,
        pages: u64,
        page: u64,
    ) -> io::Result<(Arc<UnnamedFile>, Range)> {
        if let Some(file) = self.file.upgrade()
            && self.directory == directory
            && self.end + pages <= MOST_PAGES
        {
            match take(&file, self.end * page, pages * page) {
                // Files may be only so long: the next one begins.
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {}
                taken => return taken.map(|()| self.next(file, pages)),
            }
        }
        let file = Arc::new(UnnamedFile::create(directory)?);
        take(&file, 0, pages * page)?;
        *self = Self {
            directory: directory.to_owned(),
            file: Arc::downgrade(&file),
            end: 0,
        };
        Ok(self.next(file, pages))
    }

    /// The range that was taken.
    fn next(&mut self, file: Arc<UnnamedFile>, pages: u64) -> (Arc<UnnamedFile>, Range) {
        let start = self.end;
        self.end += pages;
        (file, Range { start, pages })
    }
}

/// Takes the space of a range of the file.
fn take(file: &UnnamedFile, offset: u64, len: u64) -> io::Result<()> {
    if file.is_in_memory()? {
        let left = memory_to_take();
        if len > left {
            let why = format!("the directory is in memory, of which {left} bytes can be taken");
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
    }
    file.take(offset, len)
}

/// Why nothing was put in a file in this directory.
pub(super) fn no_disk(directory: &Path, wanted: usize, spilled: u64, error: io::Error) -> NoDisk {
    NoDisk {
        wanted: wanted as u64,
        directory: directory.to_owned(),
        left: disk_left(directory).ok(),
        spilled,
        error,
    }
}
