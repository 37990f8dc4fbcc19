//! How often the kernel has killed for want of memory.
//!
//! Who goes past the memory of its control group, or of the machine, gets no error: the kernel kills a process,
//! and counts that, before it does so, for the group that the process is in. Version 1 counts in
//! `memory.oom_control`, for each group by itself; version 2 in `memory.events`, with the groups below. Where
//! there are no groups the machine's own count says less: it has the processes of all others in it.

/// How many processes of this process's control group the kernel has killed for want of memory; none where
/// nothing says so.
#[must_use]
pub fn oom_kills() -> Option<u64> {
    platform::oom_kills()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod platform {
    pub(super) fn oom_kills() -> Option<u64> {
        None
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod platform {
    use crate::cgroup::{Hierarchy, group_directories, read_text};
    use std::path::{Path, PathBuf};

    pub(super) fn oom_kills() -> Option<u64> {
        let own = |name: &str| read_text(&Path::new("/proc/self").join(name)).unwrap_or_default();
        // Anew each time: it is asked for seldom, and somebody may have moved the program.
        kills_under(Path::new("/"), &own("cgroup"), &own("mountinfo"))
    }

    /// The count of the innermost group that has one, else of the machine; see `group_directories` for the
    /// arguments.
    pub(super) fn kills_under(root: &Path, self_cgroup: &str, mountinfo: &str) -> Option<u64> {
        let files = group_directories(root, self_cgroup, mountinfo, "memory")
            .into_iter()
            .map(|(hierarchy, directory)| {
                directory.join(match hierarchy {
                    Hierarchy::Version1 => "memory.oom_control",
                    Hierarchy::Version2 => "memory.events",
                })
            });
        let machine: PathBuf = root.join("proc/vmstat");
        files.chain([machine]).find_map(|file| {
            let text = read_text(&file)?;
            let count = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse().ok();
            text.lines().find_map(count)
        })
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::platform::kills_under;
    use std::fs;

    #[test]
    fn the_innermost_group_that_counts_says_it() {
        let name = format!("manyhands-oom-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        for (file, content) in [
            ("sys/fs/cgroup/a/b/memory.current", "5\n"),
            (
                "sys/fs/cgroup/a/memory.events",
                "low 9\noom 8\noom_kill 7\noom_group_kill 6\n",
            ),
            ("sys/fs/cgroup/memory.events", "oom_kill 70\n"),
            (
                "sys/fs/cgroup/memory/jobs/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            ),
            ("proc/vmstat", "nr_free_pages 1\noom_kill 12\n"),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("it is in a directory"))
                .expect("directories can be made");
            fs::write(path, content).expect("files can be written");
        }
        let second = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let first = "31 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = [
            kills_under(&root, "0::/a/b\n", second),
            kills_under(&root, "4:memory:/jobs\n", first),
            kills_under(&root, "", ""),
            kills_under(&root.join("nowhere"), "", ""),
        ];
        fs::remove_dir_all(&root).expect("it can be removed");
        assert_eq!(found, [Some(7), Some(3), Some(12), None]);
    }
}
