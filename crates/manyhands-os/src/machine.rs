//! What this machine and this process's place in it offer, for people to read.

use std::ffi::CStr;
use std::io;

/// Facts about memory, files and what the kernel can do. See [`machine_facts`].
///
/// What could not be read is none; nothing here makes a program fail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineFacts {
    /// The kernel's release.
    pub kernel: String,
    /// The memory of the machine, in bytes.
    pub memory_total: Option<u64>,
    /// What of it can be used without swapping, in bytes.
    pub memory_available: Option<u64>,
    /// The smallest memory limit of a control group that binds this process, in bytes.
    pub memory_limit: Option<u64>,
    /// The file that `memory_limit` was read from.
    pub memory_limit_source: Option<String>,
    /// The version of the control groups, 1 or 2.
    pub cgroup_version: Option<u8>,
    /// The control group of this process.
    pub cgroup_path: Option<String>,
    /// The size of `/dev/shm`, in bytes.
    pub shm_size: Option<u64>,
    /// What of it is free, in bytes.
    pub shm_free: Option<u64>,
    /// How many files a process may have open now.
    pub open_files: Option<u64>,
    /// The most that it may raise this to.
    pub open_files_most: Option<u64>,
    /// Why there are no memory files; none where there are.
    pub memfd_problem: Option<String>,
    /// Why there are no pidfds; none where there are.
    pub pidfd_problem: Option<String>,
}

/// Reads the facts anew.
#[must_use]
pub fn machine_facts() -> MachineFacts {
    platform::machine_facts()
}

/// Whether sealed memory files can be made, as all shared memory here is.
fn try_memfd() -> io::Result<()> {
    const NAME: &CStr = c"manyhands-probe";
    crate::memory::MemoryFile::new(NAME, 1).map(drop)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use platform::kibibytes;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod platform {
    use super::{MachineFacts, try_memfd};

    pub(super) fn machine_facts() -> MachineFacts {
        MachineFacts {
            memfd_problem: try_memfd().err().map(|error| error.to_string()),
            ..MachineFacts::default()
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod platform {
    use super::{MachineFacts, try_memfd};
    use crate::cgroup::{Hierarchy, group_directories, own_group, read_text};
    use rustix::process::{PidfdFlags, Resource, getpid, getrlimit, pidfd_open};
    use std::path::Path;

    pub(super) fn machine_facts() -> MachineFacts {
        let memory = read_text(Path::new("/proc/meminfo")).unwrap_or_default();
        let memory_total = kibibytes(&memory, "MemTotal:");
        let groups = read_text(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let mounts = read_text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let (memory_limit, memory_limit_source) =
            memory_limit_under(Path::new("/"), &groups, &mounts, memory_total).unzip();
        let (version, cgroup_path) = own_group(&groups, "memory").unzip();
        let shm = rustix::fs::statvfs("/dev/shm").ok();
        let open_files = getrlimit(Resource::Nofile);
        MachineFacts {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            memory_total,
            memory_available: kibibytes(&memory, "MemAvailable:"),
            memory_limit,
            memory_limit_source,
            cgroup_version: version.map(|version| match version {
                Hierarchy::Version1 => 1,
                Hierarchy::Version2 => 2,
            }),
            cgroup_path,
            shm_size: shm.as_ref().map(|shm| shm.f_blocks * shm.f_frsize),
            shm_free: shm.as_ref().map(|shm| shm.f_bavail * shm.f_frsize),
            open_files: open_files.current,
            open_files_most: open_files.maximum,
            memfd_problem: try_memfd().err().map(|error| error.to_string()),
            pidfd_problem: pidfd_open(getpid(), PidfdFlags::empty())
                .err()
                .map(|error| error.to_string()),
        }
    }

    /// The bytes in a line of `/proc/meminfo`, such as `MemTotal:  16318480 kB`.
    pub(crate) fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let count: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        count.checked_mul(1024)
    }

    /// The smallest memory limit that binds a process, and the file it was read from. A limit that
    /// the machine's memory does not reach is none: v1 writes no limit as a huge number.
    pub(super) fn memory_limit_under(
        root: &Path,
        self_cgroup: &str,
        mountinfo: &str,
        machine: Option<u64>,
    ) -> Option<(u64, String)> {
        group_directories(root, self_cgroup, mountinfo, "memory")
            .into_iter()
            .filter_map(|(hierarchy, directory)| {
                let source = directory.join(match hierarchy {
                    Hierarchy::Version1 => "memory.limit_in_bytes",
                    Hierarchy::Version2 => "memory.max",
                });
                let limit: u64 = read_text(&source)?.trim().parse().ok()?;
                let binds = machine.is_none_or(|machine| limit < machine);
                binds.then(|| (limit, source.to_string_lossy().into_owned()))
            })
            // Of equal limits the first, which is the innermost group's.
            .min_by_key(|&(limit, _)| limit)
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::machine_facts;
    use super::platform::{kibibytes, memory_limit_under};
    use std::fs;

    #[test]
    fn this_machine_has_facts_that_agree_with_each_other() {
        let facts = machine_facts();
        assert!(!facts.kernel.is_empty());
        assert!(facts.memory_total >= facts.memory_available);
        assert_eq!(
            facts.memory_limit.is_some(),
            facts.memory_limit_source.is_some()
        );
        assert!(facts.shm_size >= facts.shm_free);
        assert_eq!(facts.memfd_problem, None);
    }

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:       16318480 kB\nMemAvailable:   many kB\nHugePages_Total:  2\n";
        assert_eq!(kibibytes(text, "MemTotal:"), Some(16_318_480 * 1024));
        assert_eq!(kibibytes(text, "MemAvailable:"), None);
        assert_eq!(kibibytes(text, "HugePages_Total:"), None);
        assert_eq!(kibibytes(text, "MemFree:"), None);
    }

    #[test]
    fn the_smallest_memory_limit_binds() {
        let name = format!("manyhands-machine-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        for (file, content) in [
            ("sys/fs/cgroup/a/memory.max", "3000000"),
            ("sys/fs/cgroup/memory.max", "max"),
            ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "2000000"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712",
            ),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("it is in a directory"))
                .expect("directories can be made");
            fs::write(path, content).expect("files can be written");
        }
        let second = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let first = "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let limit = |groups: &str, mounts: &str, machine: u64| {
            memory_limit_under(&root, groups, mounts, Some(machine)).map(|(limit, _)| limit)
        };
        let found = [
            limit("0::/a\n", second, 1 << 40),
            limit("4:memory:/jobs\n", first, 1 << 40),
            limit("4:memory:/\n", first, 1 << 40),
            limit("0::/a\n", second, 1_000_000),
        ];
        fs::remove_dir_all(&root).expect("it can be removed");
        assert_eq!(found, [Some(3_000_000), Some(2_000_000), None, None]);
    }
}
