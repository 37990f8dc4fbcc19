//! How many CPUs this process may use.
//!
//! Three limits hold at once, and the smallest one wins:
//!
//! - **machine**: the CPUs that are online;
//! - **affinity**: the CPUs the calling thread may be scheduled on (`taskset`, cpusets,
//!   `docker --cpuset-cpus`);
//! - **quota**: the CPU time per period a control group may use (`docker --cpus`, Kubernetes
//!   limits, systemd's `CPUQuota=`). The kernel enforces the quota of *every* ancestor group, so
//!   each level counts, from the process's own group up to the root of the mount.
//!
//! Where the groups' files are is told in `cgroup.rs`.
//!
//! Whatever is missing or makes no sense is skipped, and the remaining limits decide. Nothing is
//! cached: affinity and quotas may change while the process runs.

/// The limits on how many CPUs this process may use. See [`cpu_limits`].
#[derive(Clone, Debug, PartialEq)]
pub struct CpuLimits {
    /// CPUs that are online in this machine.
    pub machine: usize,
    /// CPUs the calling thread may be scheduled on; the same as `machine` if that is unknown.
    pub affinity: usize,
    /// The smallest control group quota that binds this process, in CPUs (1.5 is one and a half).
    /// None: no quota.
    pub quota: Option<f64>,
    /// The file that `quota` was read from.
    pub quota_source: Option<String>,
}

impl CpuLimits {
    /// The number of CPUs to plan for: the smallest of the limits, a fraction of a CPU rounded up,
    /// at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        let available = self.machine.min(self.affinity);
        // The fields are public, so the quota need not be one that was read by us.
        let limited = match self.quota {
            // The cast saturates.
            Some(quota) if quota > 0.0 => available.min(quota.ceil() as usize),
            _ => available,
        };
        limited.max(1)
    }
}

/// Reads the current limits on how many CPUs this process may use.
///
/// The affinity is that of the calling thread. This never fails: a limit that can't be read is no
/// limit.
#[must_use]
pub fn cpu_limits() -> CpuLimits {
    platform::cpu_limits()
}

/// The number of CPUs this process may use now: [`CpuLimits::count`] of [`cpu_limits`].
#[must_use]
pub fn cpu_count() -> usize {
    cpu_limits().count()
}

/// What the standard library says, for want of anything better.
fn standard_library_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod platform {
    use super::{CpuLimits, standard_library_count};

    pub(super) fn cpu_limits() -> CpuLimits {
        let machine = standard_library_count();
        CpuLimits {
            machine,
            affinity: machine,
            quota: None,
            quota_source: None,
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod platform {
    use std::io;
    use std::path::{Path, PathBuf};

    use super::{CpuLimits, standard_library_count};
    use crate::cgroup::{Hierarchy, group_directories, read_text};

    pub(super) fn cpu_limits() -> CpuLimits {
        let machine = machine_count();
        let affinity = affinity_count(current_affinity).unwrap_or(machine);
        let quota = read_text(Path::new("/proc/self/cgroup"))
            .zip(read_text(Path::new("/proc/self/mountinfo")))
            .and_then(|(self_cgroup, mountinfo)| {
                quota_under(Path::new("/"), &self_cgroup, &mountinfo)
            });
        let (quota, quota_source) = quota.unzip();
        CpuLimits {
            machine,
            affinity,
            quota,
            quota_source,
        }
    }

    // ---- machine ----

    fn machine_count() -> usize {
        read_text(Path::new("/sys/devices/system/cpu/online"))
            .and_then(|list| parse_cpu_list(&list))
            .or_else(online_by_sysconf)
            .unwrap_or_else(standard_library_count)
    }

    fn online_by_sysconf() -> Option<usize> {
        // SAFETY: sysconf takes a number and touches no memory of ours.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        usize::try_from(online).ok().filter(|&count| count > 0)
    }

    /// The number of CPUs in a list as the kernel writes it, such as `0-3,8`. None if it is
    /// malformed or empty.
    pub(super) fn parse_cpu_list(list: &str) -> Option<usize> {
        let mut total: usize = 0;
        for range in list.trim().split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let first: usize = first.parse().ok()?;
            let last: usize = last.parse().ok()?;
            total = last
                .checked_sub(first)?
                .checked_add(1)?
                .checked_add(total)?;
        }
        Some(total)
    }

    // ---- affinity ----

    /// One word of an affinity mask; the kernel takes masks in multiples of it.
    type MaskWord = libc::c_ulong;

    /// The size of glibc's `cpu_set_t`, enough for most machines.
    const FIRST_MASK_BITS: usize = 1024;
    /// Far more CPUs than any kernel supports (8192 on x86-64): a larger mask won't help.
    const LAST_MASK_BITS: usize = 1 << 20;

    /// Counts the bits of the mask that `query` fills in, offering it a larger one as long as it
    /// refuses with `EINVAL`, which is how the kernel says that its own mask is longer than ours.
    pub(super) fn affinity_count(
        mut query: impl FnMut(&mut [MaskWord]) -> io::Result<()>,
    ) -> Option<usize> {
        let mut bits = FIRST_MASK_BITS;
        while bits <= LAST_MASK_BITS {
            let mut mask: Vec<MaskWord> = vec![0; bits / MaskWord::BITS as usize];
            match query(&mut mask) {
                Ok(()) => {
                    let count: usize = mask.iter().map(|word| word.count_ones() as usize).sum();
                    return (count > 0).then_some(count);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => bits *= 2,
                Err(_) => return None,
            }
        }
        None
    }

    /// Fills in the affinity mask of the calling thread. (rustix's version has a fixed mask of 1024
    /// bits.)
    fn current_affinity(mask: &mut [MaskWord]) -> io::Result<()> {
        // SAFETY: the pointer and the length in bytes describe `mask`, which is writable, aligned
        // as `cpu_set_t` is (an array of the same words), and valid with any bits. The call writes
        // no more than that length.
        let result =
            unsafe { libc::sched_getaffinity(0, size_of_val(mask), mask.as_mut_ptr().cast()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    // ---- quota ----

    /// The smallest quota that binds a process, in CPUs, and the file it was read from.
    ///
    /// `self_cgroup` and `mountinfo` are the contents of the files of that name below `/proc/self`;
    /// the mount points in the latter are looked up below `root`.
    pub(super) fn quota_under(
        root: &Path,
        self_cgroup: &str,
        mountinfo: &str,
    ) -> Option<(f64, String)> {
        let mut smallest: Option<(f64, PathBuf)> = None;
        // From the process's own group up: of equal quotas the innermost is the one to name.
        for (hierarchy, directory) in group_directories(root, self_cgroup, mountinfo, "cpu") {
            let Some((quota, source)) = quota_of_group(hierarchy, &directory) else {
                continue;
            };
            if smallest.as_ref().is_none_or(|(least, _)| quota < *least) {
                smallest = Some((quota, source));
            }
        }
        smallest.map(|(quota, source)| (quota, source.to_string_lossy().into_owned()))
    }

    /// The quota of the one group at `directory`, in CPUs, and the file it is in. None if there is
    /// no valid quota.
    fn quota_of_group(hierarchy: Hierarchy, directory: &Path) -> Option<(f64, PathBuf)> {
        let (source, quota, period) = match hierarchy {
            Hierarchy::Version1 => {
                let source = directory.join("cpu.cfs_quota_us");
                let quota = read_text(&source)?;
                (
                    source,
                    quota,
                    read_text(&directory.join("cpu.cfs_period_us"))?,
                )
            }
            Hierarchy::Version2 => {
                let source = directory.join("cpu.max");
                let text = read_text(&source)?;
                let (quota, period) = text.trim().split_once(' ')?;
                (source, quota.to_owned(), period.to_owned())
            }
        };
        // No quota is `max` in v2 and -1 in v1: neither is a positive number.
        let quota = parse_microseconds(&quota)?;
        let period = parse_microseconds(&period)?;
        Some((quota / period, source))
    }

    fn parse_microseconds(text: &str) -> Option<f64> {
        let microseconds: u64 = text.trim().parse().ok()?;
        (microseconds > 0).then_some(microseconds as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuLimits, cpu_count, cpu_limits};

    fn count_with(machine: usize, affinity: usize, quota: Option<f64>) -> usize {
        CpuLimits {
            machine,
            affinity,
            quota,
            quota_source: None,
        }
        .count()
    }

    #[test]
    fn a_fraction_of_a_cpu_rounds_up() {
        let cases = [
            (1.5, 2),
            (0.2, 1),
            (2.0, 2),
            (2.01, 3),
            (1.0, 1),
            (7.999, 8),
            (1e300, 8),
            (f64::INFINITY, 8),
        ];
        for (quota, expected) in cases {
            assert_eq!(count_with(8, 8, Some(quota)), expected, "quota {quota}");
        }
    }

    #[test]
    fn the_smallest_limit_wins() {
        assert_eq!(count_with(8, 4, None), 4);
        assert_eq!(count_with(4, 8, None), 4);
        assert_eq!(count_with(8, 4, Some(2.5)), 3);
        assert_eq!(count_with(8, 2, Some(6.0)), 2);
    }

    #[test]
    fn the_count_is_at_least_one_and_an_impossible_quota_is_none() {
        assert_eq!(count_with(0, 0, None), 1);
        for quota in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(count_with(8, 8, Some(quota)), 8, "quota {quota}");
        }
    }

    #[test]
    fn this_machine_has_limits_that_agree_with_each_other() {
        let limits = cpu_limits();
        assert!(limits.machine >= 1);
        assert!(limits.affinity >= 1);
        assert_eq!(limits.quota.is_some(), limits.quota_source.is_some());
        assert!(cpu_count() >= 1);
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod linux_tests {
    use std::fs;
    use std::io;
    use std::path::PathBuf;
    use std::process;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::platform::{affinity_count, parse_cpu_list, quota_under};

    /// A directory that stands for `/`, removed when dropped.
    struct FakeRoot {
        path: PathBuf,
    }

    impl FakeRoot {
        /// A root that holds these files, each a path and its contents.
        fn with(files: &[(&str, &str)]) -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            // Relaxed: only the uniqueness of the number matters.
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("manyhands-cpu-{}-{number}", process::id()));
            fs::create_dir(&path).expect("the fake root is new");
            let root = Self { path };
            for (name, contents) in files {
                let file = root.path.join(name);
                fs::create_dir_all(file.parent().expect("a file is in a directory"))
                    .expect("directories can be made");
                fs::write(file, contents).expect("files can be written");
            }
            root
        }

        /// The quota and its file, relative to this root.
        fn quota(&self, self_cgroup: &str, mountinfo: &str) -> Option<(f64, String)> {
            let (quota, source) = quota_under(&self.path, self_cgroup, mountinfo)?;
            let prefix = format!("{}/", self.path.display());
            let below = source
                .strip_prefix(&prefix)
                .expect("the file is below the root");
            Some((quota, below.to_owned()))
        }
    }

    impl Drop for FakeRoot {
        fn drop(&mut self) {
            // What is left behind in the temporary directory does no harm.
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    fn found(quota: f64, source: &str) -> Option<(f64, String)> {
        Some((quota, source.to_owned()))
    }

    const V2_MOUNT: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
";

    const V1_MOUNT: &str = "\
31 22 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
32 22 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
";

    #[test]
    fn v2_container_with_its_own_namespace() {
        let root = FakeRoot::with(&[("sys/fs/cgroup/cpu.max", "150000 100000\n")]);
        assert_eq!(
            root.quota("0::/\n", V2_MOUNT),
            found(1.5, "sys/fs/cgroup/cpu.max")
        );
    }

    #[test]
    fn v2_without_a_quota() {
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(root.quota("0::/a/b\n", V2_MOUNT), None);
    }

    /// loky#634: the quota is in the group's own directory, or in a slice above it, not at the
    /// mount point.
    #[test]
    fn v2_nested_systemd_slices() {
        let group = "user.slice/user-1000.slice/user@1000.service/app.slice/tmux-spawn-e93.scope";
        let root = FakeRoot::with(&[
            (&format!("sys/fs/cgroup/{group}/cpu.max"), "max 100000\n"),
            // app.slice has no CPU controller, hence no file.
            (
                "sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cpu.max",
                "400000 100000\n",
            ),
            (
                "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max",
                "250000 100000\n",
            ),
            ("sys/fs/cgroup/user.slice/cpu.max", "600000 100000\n"),
            // Not an ancestor.
            ("sys/fs/cgroup/system.slice/cpu.max", "10000 100000\n"),
        ]);
        assert_eq!(
            root.quota(&format!("1:net_cls:/\n0::/{group}\n"), V2_MOUNT),
            found(2.5, "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max")
        );
    }

    #[test]
    fn v2_innermost_of_equal_quotas_is_named_whatever_the_period() {
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/pod/container/cpu.max", "25000 50000"),
            ("sys/fs/cgroup/pod/cpu.max", "50000 100000"),
        ]);
        assert_eq!(
            root.quota("0::/pod/container", V2_MOUNT),
            found(0.5, "sys/fs/cgroup/pod/container/cpu.max")
        );
    }

    #[test]
    fn v1_on_a_host_walks_up() {
        let root = FakeRoot::with(&[
            (
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/c1/cpu.cfs_quota_us",
                "-1\n",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/c1/cpu.cfs_period_us",
                "100000\n",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us",
                "350000\n",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/cpu.cfs_period_us",
                "100000\n",
            ),
        ]);
        assert_eq!(
            root.quota(
                "5:memory:/other\n4:cpu,cpuacct:/kubepods/pod1/c1\n",
                V1_MOUNT
            ),
            found(
                3.5,
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us"
            )
        );
    }

    #[test]
    fn v1_controllers_in_either_order_or_alone() {
        for controllers in ["cpu,cpuacct", "cpuacct,cpu", "cpu"] {
            let directory = format!("sys/fs/cgroup/{controllers}");
            let quota_file = format!("{directory}/cpu.cfs_quota_us");
            let root = FakeRoot::with(&[
                (&quota_file, "200000\n"),
                (&format!("{directory}/cpu.cfs_period_us"), "100000\n"),
                ("sys/fs/cgroup/cpuset/cpu.cfs_quota_us", "1\n"),
                ("sys/fs/cgroup/cpuset/cpu.cfs_period_us", "100000\n"),
            ]);
            let self_cgroup = format!("7:cpuset:/\n6:{controllers}:/\n");
            let mountinfo = format!(
                "33 22 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                 34 22 0:31 / /{directory} rw - cgroup cgroup rw,{controllers}\n"
            );
            assert_eq!(
                root.quota(&self_cgroup, &mountinfo),
                found(2.0, &quota_file),
                "{controllers}"
            );
        }
    }

    /// Docker on v1: the group's path is the host's, but only the container's own groups are
    /// mounted.
    #[test]
    fn v1_mount_root_is_stripped() {
        let mountinfo = "34 22 0:31 /docker/0c8c /sys/fs/cgroup/cpu,cpuacct ro - \
            cgroup cgroup rw,cpu,cpuacct\n";
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            (
                "sys/fs/cgroup/cpu,cpuacct/child/cpu.cfs_quota_us",
                "50000\n",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/child/cpu.cfs_period_us",
                "100000\n",
            ),
        ]);
        let own = found(1.5, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us");
        assert_eq!(root.quota("4:cpu,cpuacct:/docker/0c8c\n", mountinfo), own);
        let child = found(0.5, "sys/fs/cgroup/cpu,cpuacct/child/cpu.cfs_quota_us");
        assert_eq!(
            root.quota("4:cpu,cpuacct:/docker/0c8c/child\n", mountinfo),
            child
        );
        // A longer name is not a name below, and a stranger's quota is not ours.
        assert_eq!(
            root.quota("4:cpu,cpuacct:/docker/0c8cff\n", mountinfo),
            None
        );
        assert_eq!(root.quota("4:cpu,cpuacct:/\n", mountinfo), None);
    }

    #[test]
    fn v2_mount_root_is_stripped() {
        let mountinfo = "30 22 0:26 /kubepods/pod1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/cpu.max", "300000 100000\n"),
            ("sys/fs/cgroup/c1/cpu.max", "120000 100000\n"),
        ]);
        assert_eq!(
            root.quota("0::/kubepods/pod1/c1\n", mountinfo),
            found(1.2, "sys/fs/cgroup/c1/cpu.max")
        );
    }

    #[test]
    fn hybrid_reads_both_hierarchies() {
        let mountinfo = "\
31 22 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
40 22 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
41 22 0:39 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";
        let self_cgroup = "4:cpu,cpuacct:/jobs\n1:name=systemd:/user.slice\n0::/user.slice\n";
        let v1 = [
            ("sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us", "220000"),
            ("sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us", "100000"),
        ];
        // The other hierarchy's group of the same name is not ours.
        let strangers = [
            (
                "sys/fs/cgroup/cpu,cpuacct/user.slice/cpu.cfs_quota_us",
                "1000",
            ),
            (
                "sys/fs/cgroup/cpu,cpuacct/user.slice/cpu.cfs_period_us",
                "100000",
            ),
            ("sys/fs/cgroup/unified/jobs/cpu.max", "1000 100000"),
        ];
        let root = FakeRoot::with(&v1);
        assert_eq!(root.quota(self_cgroup, mountinfo), found(2.2, v1[0].0));
        let v2 = ("sys/fs/cgroup/unified/user.slice/cpu.max", "110000 100000");
        let root = FakeRoot::with(&[v1[0], v1[1], v2, strangers[0], strangers[1], strangers[2]]);
        assert_eq!(root.quota(self_cgroup, mountinfo), found(1.1, v2.0));
    }

    /// The process was moved out of its namespace's root: the quotas below the mount are those of
    /// others.
    #[test]
    fn namespace_group_outside_of_the_mount_has_no_quota() {
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/cpu.max", "100000 100000"),
            ("sys/fs/cgroup/x/cpu.max", "100000 100000"),
            ("sys/fs/x/cpu.max", "100000 100000"),
        ]);
        for group in ["/../x", "/..", "/../../x", "/x/../../x"] {
            assert_eq!(
                root.quota(&format!("0::{group}\n"), V2_MOUNT),
                None,
                "{group}"
            );
        }
    }

    #[test]
    fn namespace_group_and_mount_root_both_outside() {
        let mountinfo = "30 22 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/cpu.max", "400000 100000"),
            ("sys/fs/cgroup/x/cpu.max", "100000 100000"),
        ]);
        assert_eq!(
            root.quota("0::/../x\n", mountinfo),
            found(1.0, "sys/fs/cgroup/x/cpu.max")
        );
        // `/x` is in the namespace, whose own name in this mount is unknown: another `x` than the
        // mount's.
        assert_eq!(
            root.quota("0::/x\n", mountinfo),
            found(4.0, "sys/fs/cgroup/cpu.max")
        );
        assert_eq!(
            root.quota("0::/\n", mountinfo),
            found(4.0, "sys/fs/cgroup/cpu.max")
        );
        assert_eq!(root.quota("0::/../../x\n", mountinfo), None);
    }

    #[test]
    fn names_with_escapes_spaces_and_colons() {
        let mountinfo =
            "30 22 0:26 /system-my\\134x2djob.slice /mnt/c\\040group rw - cgroup2 cgroup2 rw\n";
        let root = FakeRoot::with(&[("mnt/c group/a:b/cpu.max", "50000 100000")]);
        assert_eq!(
            root.quota("0::/system-my\\x2djob.slice/a:b\n", mountinfo),
            found(0.5, "mnt/c group/a:b/cpu.max")
        );
    }

    #[test]
    fn a_covered_mount_is_not_looked_through() {
        let mountinfo = "\
30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
50 30 0:26 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw
";
        // What the path leads to is the second mount, where `a` is the group `/a/a`: not ours.
        let root = FakeRoot::with(&[
            ("sys/fs/cgroup/cpu.max", "300000 100000"),
            ("sys/fs/cgroup/a/cpu.max", "100000 100000"),
        ]);
        assert_eq!(
            root.quota("0::/a\n", mountinfo),
            found(3.0, "sys/fs/cgroup/cpu.max")
        );
    }

    #[test]
    fn v2_garbage_is_skipped_and_the_level_above_still_counts() {
        let garbage = [
            "",
            "\n",
            " ",
            "max",
            "150000",
            "150000 ",
            "150000 0",
            "0 100000",
            "-5 100000",
            "150000 -1",
            "nan 100000",
            "inf 1",
            "1e5 100000",
            "150000 100000 7",
            "\0\0",
            "99999999999999999999999 100000",
            "x y",
        ];
        for contents in garbage {
            let root = FakeRoot::with(&[
                ("sys/fs/cgroup/a/b/cpu.max", contents),
                ("sys/fs/cgroup/a/cpu.max", "200000 100000"),
            ]);
            assert_eq!(
                root.quota("0::/a/b\n", V2_MOUNT),
                found(2.0, "sys/fs/cgroup/a/cpu.max"),
                "{contents:?}"
            );
        }
    }

    #[test]
    fn v1_garbage_and_a_missing_period_are_skipped() {
        let cases = [
            ("0", Some("100000")),
            ("-1", Some("100000")),
            ("-100000", Some("100000")),
            ("", Some("100000")),
            ("many", Some("100000")),
            ("100000", Some("0")),
            ("100000", Some("-1")),
            ("100000", Some("")),
            ("100000", None),
        ];
        for (quota, period) in cases {
            let mut files = vec![("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota)];
            files.extend(
                period.map(|period| ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", period)),
            );
            let root = FakeRoot::with(&files);
            assert_eq!(
                root.quota("4:cpu,cpuacct:/\n", V1_MOUNT),
                None,
                "{quota:?} {period:?}"
            );
        }
    }

    #[test]
    fn missing_files_and_malformed_tables_give_no_quota() {
        let root = FakeRoot::with(&[]);
        assert_eq!(
            root.quota(
                "0::/a/b\n4:cpu,cpuacct:/a\n",
                &format!("{V2_MOUNT}{V1_MOUNT}")
            ),
            None
        );
        let root = FakeRoot::with(&[("sys/fs/cgroup/cpu.max", "100000 100000")]);
        for self_cgroup in ["", "\n", "0", "0:", ":::", "0:cpu", "0:: ", "garbage"] {
            // `0:: ` names a group that isn't there, below the mount's root.
            let expected =
                (self_cgroup == "0:: ").then(|| (1.0, "sys/fs/cgroup/cpu.max".to_owned()));
            assert_eq!(
                root.quota(self_cgroup, V2_MOUNT),
                expected,
                "{self_cgroup:?}"
            );
        }
        for mountinfo in [
            "",
            " ",
            "- - - - - - -",
            "30 22 0:26 / /sys/fs/cgroup rw -",
            "30 22 0:26 / /sys/fs/cgroup rw",
        ] {
            assert_eq!(root.quota("0::/\n", mountinfo), None, "{mountinfo:?}");
        }
        let without_options = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2";
        assert_eq!(
            root.quota("0::/\n", without_options),
            found(1.0, "sys/fs/cgroup/cpu.max")
        );
    }

    #[test]
    fn a_directory_in_place_of_the_file_is_skipped() {
        let root = FakeRoot::with(&[("sys/fs/cgroup/cpu.max/file", "")]);
        assert_eq!(root.quota("0::/\n", V2_MOUNT), None);
    }

    #[test]
    fn the_affinity_mask_grows_until_the_kernel_takes_it() {
        let mut sizes = Vec::new();
        let count = affinity_count(|mask| {
            sizes.push(size_of_val(mask) * 8);
            if size_of_val(mask) * 8 < 5000 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            mask[0] = 0b101;
            mask[4999 / libc::c_ulong::BITS as usize] = 1;
            Ok(())
        });
        assert_eq!(count, Some(3));
        assert_eq!(sizes, [1024, 2048, 4096, 8192]);
    }

    #[test]
    fn an_affinity_that_cannot_be_read_is_unknown() {
        let mut calls = 0;
        let endless = affinity_count(|_| {
            calls += 1;
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        });
        assert_eq!(endless, None);
        assert_eq!(calls, 11, "from 2^10 to 2^20 bits");
        assert_eq!(
            affinity_count(|_| Err(io::Error::from_raw_os_error(libc::EPERM))),
            None
        );
        assert_eq!(affinity_count(|_| Ok(())), None, "an empty mask");
    }

    #[test]
    fn cpu_lists() {
        let cases = [
            ("0\n", 1),
            ("0-3\n", 4),
            ("0-3,8,10-11\n", 7),
            ("0-2047", 2048),
        ];
        for (list, expected) in cases {
            assert_eq!(parse_cpu_list(list), Some(expected), "{list:?}");
        }
        for list in [
            "",
            "\n",
            "a",
            "3-1",
            "0-",
            "-1",
            "0,,1",
            "0-18446744073709551615",
        ] {
            assert_eq!(parse_cpu_list(list), None, "{list:?}");
        }
    }
}
