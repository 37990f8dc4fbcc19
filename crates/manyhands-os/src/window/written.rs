//! Which pages of a private mapping this process has written: those that are memory of its own, and no
//! longer the file's.

use once_cell::race::OnceBool;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::page_size;

/// How the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scan {
    /// By a call that walks the page tables and names runs of pages (`PAGEMAP_SCAN`, Linux 6.7).
    Call,
    /// By reading a word for each page.
    Words,
}

impl Scan {
    /// The better way that this kernel has, found out once.
    pub(super) fn of_this_kernel() -> Self {
        // As in `memory_left`, nobody waits for another thread, which a child of fork has not.
        static HAS_CALL: OnceBool = OnceBool::new();
        let has_call = || {
            matches!(
                open_table().map(|table| scan(&table, &(0..0), 1)),
                Ok(Ok(_))
            )
        };
        if HAS_CALL.get_or_init(has_call) {
            Self::Call
        } else {
            Self::Words
        }
    }

    /// The runs of pages that were written, of whole pages between two addresses, in order. It stops after
    /// `most` runs.
    pub(super) fn written(
        self,
        pages: &Range<usize>,
        most: usize,
    ) -> io::Result<Vec<Range<usize>>> {
        // Opened anew each time: the table is that of the process that opened it, which may have forked.
        let table = open_table()?;
        match self {
            Self::Call => scan(&table, pages, most),
            Self::Words => read_words(&table, pages, most),
        }
    }
}

fn open_table() -> io::Result<File> {
    File::open("/proc/self/pagemap")
}

/// Categories of pages, of `linux/fs.h`.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// So many runs are asked for at a time.
const RUNS: usize = 64;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Run {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct Arguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Where the walk ended.
    walk_end: u64,
    runs: u64,
    runs_len: u64,
    most_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The call: how many runs were written to the place that the arguments name.
struct ScanCall<'arguments>(&'arguments mut Arguments);

// SAFETY: the opcode names the structure, whose address is passed; the answer is the call's own.
unsafe impl Ioctl for ScanCall<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<Arguments>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        usize::try_from(out).map_err(|_| Errno::INVAL)
    }
}

fn scan(table: &File, pages: &Range<usize>, most: usize) -> io::Result<Vec<Range<usize>>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let (mut start, end) = (pages.start as u64, pages.end as u64);
    loop {
        let mut runs = [Run::default(); RUNS];
        let mut arguments = Arguments {
            size: size_of::<Arguments>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            runs: runs.as_mut_ptr() as u64,
            runs_len: RUNS.min(most - found.len()) as u64,
            most_pages: 0,
            // No page of the file, but memory, be it swapped out.
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
        };
        // SAFETY: the kernel writes to the arguments and to as many runs as they say, which are there.
        let count = unsafe { ioctl(table, ScanCall(&mut arguments)) }?;
        let runs = &runs[..count.min(RUNS)];
        found.extend(runs.iter().map(|run| run.start as usize..run.end as usize));
        start = arguments.walk_end;
        if start >= end || runs.is_empty() || found.len() >= most {
            return Ok(found);
        }
    }
}

/// Bits of a word of `/proc/self/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// A page of a file, or of memory that is shared.
const OF_FILE: u64 = 1 << 61;

const WORD: usize = size_of::<u64>();

fn read_words(table: &File, pages: &Range<usize>, most: usize) -> io::Result<Vec<Range<usize>>> {
    let page = page_size();
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut words = vec![0; page];
    let mut at = pages.start;
    while at < pages.end {
        let len = ((pages.end - at) / page * WORD).min(words.len());
        table.read_exact_at(&mut words[..len], (at / page * WORD) as u64)?;
        for word in words[..len].as_chunks::<WORD>().0 {
            let word = u64::from_ne_bytes(*word);
            if word & (PRESENT | SWAPPED) != 0 && word & OF_FILE == 0 {
                let is_full = found.len() == most;
                match found.last_mut() {
                    Some(last) if last.end == at => last.end += page,
                    _ if is_full => return Ok(found),
                    _ => found.push(at..at + page),
                }
            }
            at += page;
        }
    }
    Ok(found)
}
