//! How much memory this process may still take.
//!
//! Two limits hold at once, and the smaller one wins: what the machine has available, and what each
//! control group, from the process's own one up, has left of its limit. Who goes past a group's limit
//! gets no error: the kernel kills a process of the group.
//!
//! A group's use has its file cache in it, of which the kernel gives back what nobody has used lately and
//! what needs no writing before it asks anybody to die: that much is left too. Shared memory is no file
//! cache here; it goes nowhere but to swap.
//!
//! What has been freed the allocator keeps, for who asks next; `give_memory_back` is for who does not.
//!
//! Whatever is missing or makes no sense is skipped, and the remaining limits decide.

/// The memory that this process may still take, in bytes; the greatest number where nothing says so.
///
/// It is read anew each time. Which groups bind this process is looked up once: moving a process that has
/// started to use memory moves none of what it uses.
#[must_use]
pub fn memory_left() -> u64 {
    platform::memory_left()
}

/// Has the allocator of C give free memory back to the system; whether it had some. Without such a function,
/// which only the GNU library has, nothing happens.
///
/// It walks through all that is free: for who has nothing else to do.
pub fn give_memory_back() -> bool {
    type Trim = unsafe extern "C" fn(usize) -> libc::c_int;
    // SAFETY: a string; all objects that are loaded are looked through.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"malloc_trim".as_ptr()) };
    if address.is_null() {
        return false;
    }
    // SAFETY: the function of this name takes a size and gives an int.
    let trim = unsafe { std::mem::transmute::<*mut libc::c_void, Trim>(address) };
    // SAFETY: it takes the allocator's own locks, and touches free memory only.
    unsafe { trim(0) != 0 }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod platform {
    pub(super) fn memory_left() -> u64 {
        u64::MAX
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod platform {
    use crate::cgroup::{Hierarchy, group_directories, read_text};
    use crate::machine::kibibytes;
    use once_cell::race::OnceBox;
    use std::path::{Path, PathBuf};

    pub(super) fn memory_left() -> u64 {
        // Of a kind that nobody waits for: this thread may not be there any more, in a child of fork.
        static GROUPS: OnceBox<Vec<Group>> = OnceBox::new();
        let groups = GROUPS.get_or_init(|| {
            let own = |name: &str| read_text(&Path::new("/proc/self").join(name));
            let (groups, mounts) = (own("cgroup"), own("mountinfo"));
            let (groups, mounts) = (groups.unwrap_or_default(), mounts.unwrap_or_default());
            Box::new(groups_under(Path::new("/"), &groups, &mounts))
        });
        let memory = read_text(Path::new("/proc/meminfo")).unwrap_or_default();
        least_left(&memory, groups)
    }

    /// The least of what the machine has, as `/proc/meminfo` tells, and of what is left in these groups.
    pub(super) fn least_left(meminfo: &str, groups: &[Group]) -> u64 {
        let machine = kibibytes(meminfo, "MemAvailable:");
        let left = groups.iter().filter_map(Group::left);
        machine.into_iter().chain(left).min().unwrap_or(u64::MAX)
    }

    /// The files of one group.
    #[derive(Debug)]
    pub(super) struct Group {
        /// More than one: above a softer one a process is slowed down until it stands still.
        limits: Vec<PathBuf>,
        used: PathBuf,
        details: PathBuf,
        /// What stands before names in `details` that count the groups below too, as `used` does.
        prefix: &'static str,
    }

    /// The groups that bind a process; see `group_directories` for the arguments.
    pub(super) fn groups_under(root: &Path, self_cgroup: &str, mountinfo: &str) -> Vec<Group> {
        group_directories(root, self_cgroup, mountinfo, "memory")
            .into_iter()
            .map(|(hierarchy, directory)| {
                let (limits, used, prefix): (&[&str], _, _) = match hierarchy {
                    Hierarchy::Version1 => (
                        &["memory.limit_in_bytes"],
                        "memory.usage_in_bytes",
                        "total_",
                    ),
                    Hierarchy::Version2 => (&["memory.max", "memory.high"], "memory.current", ""),
                };
                Group {
                    limits: limits.iter().map(|name| directory.join(name)).collect(),
                    used: directory.join(used),
                    details: directory.join("memory.stat"),
                    prefix,
                }
            })
            .collect()
    }

    impl Group {
        /// What is left below its limit; none where it has no limit.
        fn left(&self) -> Option<u64> {
            // No limit is `max` in v2, and in v1 more than any machine has.
            let number = |path: &PathBuf| read_text(path)?.trim().parse::<u64>().ok();
            let limit = self.limits.iter().filter_map(number).min()?;
            if limit >= i64::MAX as u64 / 2 {
                return None;
            }
            let used = number(&self.used)?;
            let details = read_text(&self.details).unwrap_or_default();
            let cached = self.detail(&details, "inactive_file");
            let unwritten = match self.prefix {
                "" => ["file_dirty", "file_writeback"],
                _ => ["dirty", "writeback"],
            }
            .map(|name| self.detail(&details, name));
            let reclaimable = cached.saturating_sub(unwritten.iter().sum());
            Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
        }

        /// A number of `memory.stat`.
        fn detail(&self, details: &str, name: &str) -> u64 {
            let find = |line: &str| {
                let (found, number) = line.split_once(' ')?;
                (found.strip_prefix(self.prefix) == Some(name)).then(|| number.parse().ok())?
            };
            details.lines().find_map(find).unwrap_or(0)
        }
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::memory_left;
    use super::platform::{groups_under, least_left};
    use std::fs;

    const MEMORY: &str = "MemTotal: 16000 kB\nMemAvailable: 9000 kB\n";
    const SECOND: &str = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const FIRST: &str = "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    /// What is left in a tree of these files, named below the mount of the groups.
    fn left(name: &str, groups: &str, mounts: &str, files: &[(&str, &str)]) -> u64 {
        let root = std::env::temp_dir().join(format!(
            "manyhands-memory-left-{}-{name}",
            std::process::id()
        ));
        for (file, content) in files {
            let path = root.join("sys/fs/cgroup").join(file);
            fs::create_dir_all(path.parent().expect("it is in a directory"))
                .expect("directories can be made");
            fs::write(path, content).expect("files can be written");
        }
        let left = least_left(MEMORY, &groups_under(&root, groups, mounts));
        if !files.is_empty() {
            fs::remove_dir_all(&root).expect("it can be removed");
        }
        left
    }

    #[test]
    fn this_machine_has_memory_left() {
        assert!(memory_left() > 0);
        assert!(memory_left() < 1 << 60, "some file of this machine says so");
    }

    #[test]
    fn without_groups_the_machine_decides() {
        assert_eq!(left("none", "", "", &[]), 9000 * 1024);
        let unlimited = [("memory.max", "max\n"), ("memory.current", "8000000\n")];
        assert_eq!(left("unlimited", "0::/\n", SECOND, &unlimited), 9000 * 1024);
        let unlimited = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "8000000\n"),
        ];
        assert_eq!(left("huge", "4:memory:/\n", FIRST, &unlimited), 9000 * 1024);
    }

    #[test]
    fn the_level_with_the_least_left_decides() {
        let files = [
            ("a/b/memory.max", "5000000\n"),
            ("a/b/memory.current", "1000000\n"),
            ("a/memory.max", "6000000\n"),
            ("a/memory.current", "4500000\n"),
            ("c/memory.max", "1\n"),
            ("c/memory.current", "1\n"),
        ];
        assert_eq!(left("levels", "0::/a/b\n", SECOND, &files), 1_500_000);
        let files = [("a/memory.max", "1000\n"), ("a/memory.current", "2000\n")];
        assert_eq!(left("over", "0::/a\n", SECOND, &files), 0);
    }

    #[test]
    fn in_version_1_the_level_with_the_least_left_decides_too() {
        let unlimited = "9223372036854771712\n";
        let levels = |outer: &'static str, inner: &'static str| {
            [
                ("memory/memory.limit_in_bytes", unlimited),
                ("memory/memory.usage_in_bytes", "8000000\n"),
                ("memory/a/memory.limit_in_bytes", outer),
                ("memory/a/memory.usage_in_bytes", "4500000\n"),
                ("memory/a/b/memory.limit_in_bytes", inner),
                ("memory/a/b/memory.usage_in_bytes", "1000000\n"),
                // Beside, not above.
                ("memory/c/memory.limit_in_bytes", "1\n"),
                ("memory/c/memory.usage_in_bytes", "1\n"),
            ]
        };
        let left = |name, files: &[(&str, &str)]| left(name, "4:memory:/a/b\n", FIRST, files);
        let outer_binds = levels("6000000\n", "5000000\n");
        assert_eq!(left("outer1", &outer_binds), 1_500_000);
        let inner_is_unlimited = levels("6000000\n", unlimited);
        assert_eq!(left("outermost1", &inner_is_unlimited), 1_500_000);
        let inner_binds = levels("6000000\n", "2000000\n");
        assert_eq!(left("inner1", &inner_binds), 1_000_000);
        let none_binds = levels(unlimited, unlimited);
        assert_eq!(left("neither1", &none_binds), 9000 * 1024);
    }

    #[test]
    fn who_is_slowed_down_has_reached_a_limit() {
        let files = [
            ("memory.max", "max\n"),
            ("memory.high", "3000000\n"),
            ("memory.current", "1000000\n"),
        ];
        assert_eq!(left("high", "0::/\n", SECOND, &files), 2_000_000);
    }

    #[test]
    fn clean_file_cache_that_nobody_uses_is_left_too() {
        let second = [
            ("memory.max", "4000000\n"),
            ("memory.current", "3000000\n"),
            (
                "memory.stat",
                "anon 5\nshmem 900000\nfile_dirty 100000\nfile_writeback 50000\n\
                 inactive_anon 900000\ninactive_file 500000\nactive_file 700000\n",
            ),
        ];
        assert_eq!(left("cache2", "0::/\n", SECOND, &second), 1_350_000);
        let first = [
            ("memory/x/memory.limit_in_bytes", "4000000\n"),
            ("memory/x/memory.usage_in_bytes", "3000000\n"),
            (
                "memory/x/memory.stat",
                "dirty 1\ninactive_file 1\ntotal_dirty 100000\ntotal_writeback 0\n\
                 total_inactive_file 500000\n",
            ),
        ];
        assert_eq!(left("cache1", "4:memory:/x\n", FIRST, &first), 1_400_000);
    }
}
