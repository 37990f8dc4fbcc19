//! Where the files of the control groups are that bind this process.
//!
//! It takes two tables. `/proc/self/cgroup` says which group the process is in, one line for each
//! hierarchy; `/proc/self/mountinfo` says where a hierarchy is mounted and which group is the root
//! of that mount. Both are written relative to the reader's cgroup namespace, so the mount's root is
//! a prefix of the group's path whenever the group can be seen through that mount:
//!
//! | mount root     | group            | directory below the mount point                                       |
//! |----------------|------------------|-----------------------------------------------------------------------|
//! | `/`            | `/a/b`           | `a/b`: a host, or a container that sees the host's groups             |
//! | `/`            | `/`              | the mount point: a container with its own cgroup namespace            |
//! | `/docker/<id>` | `/docker/<id>/x` | `x`: a container without one (Docker on v1)                           |
//! | `/..`          | `/../x`          | `x`: outside of the namespace, below the mount                        |
//! | `/..`          | `/x`             | name unknown, but the mount's root is an ancestor: read just that one |
//! | `/`            | `/../x`          | none: nothing that is mounted is an ancestor, so nothing in it binds  |

use std::fs;
use std::path::{Path, PathBuf};

/// The two formats that groups come in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Hierarchy {
    /// Control groups v1: one hierarchy for each set of controllers.
    Version1,
    /// Control groups v2: a single hierarchy.
    Version2,
}

/// Where a hierarchy is mounted.
struct Mount {
    hierarchy: Hierarchy,
    /// The group that is the root of this mount.
    root: String,
    mount_point: String,
}

/// The directories of the groups with this controller that bind a process, from its own group up to
/// the root of each mount; some of them have no files of the controller.
///
/// `self_cgroup` and `mountinfo` are the contents of the files of that name below `/proc/self`; the
/// mount points in the latter are looked up below `root`.
pub(crate) fn group_directories(
    root: &Path,
    self_cgroup: &str,
    mountinfo: &str,
    controller: &str,
) -> Vec<(Hierarchy, PathBuf)> {
    let groups: Vec<(Hierarchy, &str)> = self_cgroup
        .lines()
        .filter_map(|line| parse_group(line, controller))
        .collect();
    let mut found = Vec::new();
    for mount in parse_mounts(mountinfo, controller) {
        let mount_directory = root.join(mount.mount_point.trim_start_matches('/'));
        // A hybrid host has a group in each hierarchy, and either may have the controller.
        for &(hierarchy, group) in groups
            .iter()
            .filter(|(hierarchy, _)| *hierarchy == mount.hierarchy)
        {
            let Some(below) = names_below_mount(&mount.root, group) else {
                continue;
            };
            for depth in (0..=below.len()).rev() {
                let mut directory = mount_directory.clone();
                directory.extend(&below[..depth]);
                found.push((hierarchy, directory));
            }
        }
    }
    found
}

/// The version of the groups with this controller, and this process's group there.
pub(crate) fn own_group(self_cgroup: &str, controller: &str) -> Option<(Hierarchy, String)> {
    let groups: Vec<_> = self_cgroup
        .lines()
        .filter_map(|line| parse_group(line, controller))
        .collect();
    // A hybrid host has the controller in version 1.
    groups
        .iter()
        .find(|(hierarchy, _)| *hierarchy == Hierarchy::Version1)
        .or(groups.first())
        .map(|&(hierarchy, group)| (hierarchy, group.to_owned()))
}

/// The text of a file, or None if it can't be read. Names in it that are not UTF-8 lead
/// nowhere, the rest works.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Parses a line of `/proc/self/cgroup`, `id:controllers:path`, if that hierarchy can have the
/// controller.
fn parse_group<'line>(line: &'line str, wanted: &str) -> Option<(Hierarchy, &'line str)> {
    // The path is the rest of the line, colons included.
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    if id == "0" && controllers.is_empty() {
        Some((Hierarchy::Version2, path))
    } else if controllers
        .split(',')
        .any(|controller| controller == wanted)
    {
        Some((Hierarchy::Version1, path))
    } else {
        None
    }
}

/// The mounts in `mountinfo` through which groups of the controller can be seen.
fn parse_mounts(mountinfo: &str, wanted: &str) -> Vec<Mount> {
    let lines: Vec<Vec<&str>> = mountinfo
        .lines()
        .map(|line| line.split(' ').collect())
        .filter(|fields: &Vec<_>| fields.len() > 6)
        .collect();
    lines
        .iter()
        .filter_map(|fields| {
            // Few lines are mounts of ours, so only they are compared with all the others.
            let mount = parse_mount(fields, wanted)?;
            (!is_covered(fields, &lines)).then_some(mount)
        })
        .collect()
}

/// Whether another mount lies on top of this one, so that its mount point leads to that other
/// one.
fn is_covered(fields: &[&str], lines: &[Vec<&str>]) -> bool {
    let (id, mount_point) = (fields[0], fields[4]);
    lines
        .iter()
        .any(|other| other[0] != id && other[1] == id && other[4] == mount_point)
}

/// Parses the fields of a line of `mountinfo`:
/// `id parent device root mount-point options [tags…] - type source super-options`.
fn parse_mount(fields: &[&str], wanted: &str) -> Option<Mount> {
    let separator = fields.iter().skip(6).position(|&field| field == "-")? + 6;
    let hierarchy = match *fields.get(separator + 1)? {
        "cgroup2" => Hierarchy::Version2,
        "cgroup" if fields.last()?.split(',').any(|option| option == wanted) => Hierarchy::Version1,
        _ => return None,
    };
    Some(Mount {
        hierarchy,
        root: unescape(fields[3]),
        mount_point: unescape(fields[4]),
    })
}

/// Undoes the kernel's escapes: a space is `\040`, a backslash (frequent in systemd's names) is
/// `\134`.
fn unescape(escaped: &str) -> String {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        match rest {
            [
                b'\\',
                high @ b'0'..=b'3',
                middle @ b'0'..=b'7',
                low @ b'0'..=b'7',
                after @ ..,
            ] => {
                bytes.push((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The names that lead from a mount's root to `group`, or None if the root is no ancestor of
/// it: the table at the top of this file. If the root is an ancestor but the names are not
/// known, they are left out.
fn names_below_mount<'group>(mount_root: &str, group: &'group str) -> Option<Vec<&'group str>> {
    let mount_root = path_names(mount_root);
    let group = path_names(group);
    // `..` can only stand in front; it leads out of the namespace.
    let levels_outside = |names: &[&str]| names.iter().take_while(|&&name| name == "..").count();
    let below = if group.starts_with(&mount_root) {
        group[mount_root.len()..].to_vec()
    } else if levels_outside(&mount_root) == mount_root.len()
        && levels_outside(&group) < mount_root.len()
        && !group[levels_outside(&group)..].contains(&"..")
    {
        Vec::new()
    } else {
        return None;
    };
    (!below.contains(&"..")).then_some(below)
}

fn path_names(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Hierarchy, own_group};

    #[test]
    fn the_own_group_is_that_of_the_hierarchy_with_the_controller() {
        let hybrid = "4:memory:/jobs\n1:name=systemd:/user\n0::/user\n";
        let found = |text: &str, controller: &str| own_group(text, controller);
        assert_eq!(
            found(hybrid, "memory"),
            Some((Hierarchy::Version1, "/jobs".to_owned()))
        );
        assert_eq!(
            found(hybrid, "cpu"),
            Some((Hierarchy::Version2, "/user".to_owned()))
        );
        assert_eq!(found("", "cpu"), None);
    }
}
