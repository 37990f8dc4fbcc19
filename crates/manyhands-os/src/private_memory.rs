//! How much private memory a process has: what it has written to that is no file's and not shared.
//!
//! The kernel keeps that number (`RssAnon` in `/proc/<pid>/status`) and tells it shortest in `statm`, as the
//! difference of two. The file is opened once: it stays that of its process, whoever gets the number of the
//! process later, and each look is one system call.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Tells how much private memory a process has.
#[derive(Debug)]
pub struct MemoryGauge(File);

impl MemoryGauge {
    /// Of the process with this number.
    pub fn of(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/statm")).map(Self)
    }

    /// Of the calling process; a child that it forks looks at its parent by it.
    pub fn of_this_process() -> io::Result<Self> {
        File::open("/proc/self/statm").map(Self)
    }

    /// The bytes; none if the process is gone.
    pub fn read(&self) -> Option<u64> {
        let mut text = [0; 128];
        let len = self.0.read_at(&mut text, 0).ok()?;
        private_bytes(std::str::from_utf8(&text[..len]).ok()?)
    }
}

/// What `statm` tells: pages that are there, without those of files and those that are shared.
fn private_bytes(statm: &str) -> Option<u64> {
    let mut fields = statm.split_ascii_whitespace().skip(1);
    let mut pages = || fields.next()?.parse::<u64>().ok();
    let (resident, shared) = (pages()?, pages()?);
    (resident > 0).then(|| resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::{MemoryGauge, private_bytes};

    #[test]
    fn what_was_written_to_is_there() {
        let gauge = MemoryGauge::of_this_process().unwrap();
        let other = MemoryGauge::of(std::process::id().cast_signed()).unwrap();
        let before = gauge.read().unwrap();
        let many = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = gauge.read().unwrap();
        assert!(other.read().unwrap() >= 60 << 20);
        drop(many);
        // Other tests of this process may let some go meanwhile.
        assert!(after > before + (50 << 20), "{before} {after}");
        assert!(MemoryGauge::of(i32::MAX).is_err());
    }

    #[test]
    fn lines_of_statm() {
        let page = rustix::param::page_size() as u64;
        assert_eq!(private_bytes("765 437 409 5 0 123 0\n"), Some(28 * page));
        assert_eq!(private_bytes("0 0 0 0 0 0 0\n"), None, "it has ended");
        assert_eq!(private_bytes("765 437\n"), None);
        assert_eq!(private_bytes(""), None);
    }
}
