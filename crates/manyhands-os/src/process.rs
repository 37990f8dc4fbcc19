//! Processes: starting, watching, killing them, and the line that ends them with their parent.

use crate::socket::Socket;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};
use std::ffi::{CString, NulError, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Linux's `F_SETSIG`, the same on all its architectures; the libc crate does not name it.
const F_SETSIG: i32 = 10;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// Nobody could tell.
    Unknown,
}

impl ExitStatus {
    /// From what `waitpid` wrote.
    pub fn from_wait_status(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            Self::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Self::Killed(libc::WTERMSIG(status))
        } else {
            Self::Unknown
        }
    }
}

/// A process by its pidfd, which never names another process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: Option<OwnedFd>,
}

fn to_pid(pid: i32) -> io::Result<Pid> {
    Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

impl Process {
    /// Opens a process; without pidfds in the kernel it is known by its number alone.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = to_pid(pid)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                pid,
                pidfd: Some(pidfd),
            }),
            // Old sandboxes answer EPERM to calls that they do not know.
            Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(Self { pid, pidfd: None }),
            Err(error) => Err(error.into()),
        }
    }

    /// A process whose pidfd another process sent.
    pub fn from_parts(pid: i32, pidfd: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            pid: to_pid(pid)?,
            pidfd,
        })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The pidfd, readable when the process has ended.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Kills the process and all in its process group, if it leads one.
    pub fn kill(&self) {
        // Each may find the process gone already, which is what is wanted. The pidfd goes first:
        // while it takes the signal the number cannot belong to anybody else.
        let killed = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::KILL),
            None => kill_process(self.pid, Signal::KILL),
        };
        if killed.is_ok() {
            let _group = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Kills the process and nobody else.
    pub fn kill_alone(&self) {
        // It may be gone already, which is what is wanted.
        let _killed = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::KILL),
            None => kill_process(self.pid, Signal::KILL),
        };
    }

    /// Has the process look whether what it does is to end: by a signal that programs ignore which do not
    /// wait for it.
    pub fn ask(&self) {
        // It may be gone already.
        let _asked = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::URG),
            None => kill_process(self.pid, Signal::URG),
        };
    }

    /// Sends it the signal of that number, if it has a handler for it: most would end it otherwise. False
    /// if it has none, or is gone.
    pub fn send_handled(&self, number: i32) -> bool {
        // SAFETY: callers name signals of the C library's.
        let signal = unsafe { Signal::from_raw_unchecked(number) };
        let is_handled =
            handled_signals(self.pid()).is_some_and(|all| all >> (number - 1) & 1 == 1);
        is_handled
            && match &self.pidfd {
                Some(pidfd) => pidfd_send_signal(pidfd, signal),
                None => kill_process(self.pid, signal),
            }
            .is_ok()
    }

    /// Whether it may have child processes; yes where the system does not tell.
    pub fn may_have_children(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return true;
        };
        threads.flatten().any(|thread| {
            let children = std::fs::read(thread.path().join("children"));
            children.map_or(true, |children| !children.is_empty())
        })
    }

    /// Takes the exit status of a child of this process, waiting for its end.
    pub fn reap(&self) -> ExitStatus {
        loop {
            return match waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED) {
                Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => ExitStatus::Exited(code),
                    (None, Some(signal)) => ExitStatus::Killed(signal),
                    (None, None) => ExitStatus::Unknown,
                },
                Err(Errno::INTR) => continue,
                // The program waited for all its children itself, or ignores SIGCHLD.
                Ok(None) | Err(_) => ExitStatus::Unknown,
            };
        }
    }
}

/// Reaps an ended process if it has become a child of this one: without an init, the first process of a
/// container gets those whose parent has died.
pub fn reap_orphan(pidfd: BorrowedFd<'_>) {
    // It fails for another's child, who is reaped by that one.
    let _reaped = waitid(
        WaitId::PidFd(pidfd),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
}

/// Makes the calling process the leader of a process group of its own, out of reach of the
/// terminal's Ctrl-C.
pub fn become_group_leader() {
    // SAFETY: plain system call; it fails only for a session leader, which leads its group already.
    unsafe {
        libc::setpgid(0, 0);
    }
}

/// How many page faults this process has had, in all its threads. While it stays, no page of its memory became
/// another one: to write to a page that it shares with a file takes a fault, also where the kernel writes for it.
/// (What a debugger writes is a fault of the debugger.)
pub fn fault_count() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure is there, and zeros are valid in it; the call cannot fail with these arguments.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_minflt.cast_unsigned() + usage.ru_majflt.cast_unsigned()
}

/// A life line: the first end stays with the parent, the second goes to the child, which dies
/// when the last copy of the first end closes.
pub fn life_line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((write, read))
}

/// Has the kernel send SIGKILL to the caller's process (with `group`, to all its process group) as
/// soon as the other end of the life line is closed, even while the process is stuck in a library
/// call.
pub fn arm_life_line(line: &OwnedFd, group: bool) -> io::Result<()> {
    let descriptor = line.as_raw_fd();
    let check = |answer: i32| {
        if answer < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: fcntl calls with integer arguments on a descriptor that is open.
    unsafe {
        let pid = libc::getpid();
        check(libc::fcntl(
            descriptor,
            libc::F_SETOWN,
            if group { -pid } else { pid },
        ))?;
        check(libc::fcntl(descriptor, F_SETSIG, libc::SIGKILL))?;
        check(libc::fcntl(
            descriptor,
            libc::F_SETFL,
            libc::O_ASYNC | libc::O_NONBLOCK,
        ))?;
    }
    // The end may have closed before the kernel was asked to tell.
    match rustix::io::read(line, &mut [0_u8; 1]) {
        Ok(0) => crate::signal::kill_self(),
        _ => Ok(()),
    }
}

/// Starts a program that finds its end of `socket` and of a life line at the two descriptors whose
/// numbers are appended to its arguments.
///
/// By `posix_spawn`, which waits for nothing but the exec. What the standard library does where it is
/// given more to do in the child, to wait until the last copy of a pipe is closed, does not end when
/// the program forks in that moment, and the child lives.
pub fn spawn_program(
    argv: &[OsString],
    environment: Option<&[(OsString, OsString)]>,
    socket: &Socket,
    life_line: &OwnedFd,
) -> io::Result<Process> {
    let inherited: [RawFd; 2] = [socket.as_fd().as_raw_fd(), life_line.as_raw_fd()];
    // Other numbers than here: a descriptor that is duplicated to its own stays closed over an exec
    // with older C libraries.
    let mut free = (3..).filter(|number| !inherited.contains(number));
    let inherited = inherited.map(|descriptor| (descriptor, free.next().unwrap_or(descriptor)));
    let numbers = inherited.map(|(_, number)| OsString::from(number.to_string()));
    let argv = argv
        .iter()
        .chain(&numbers)
        .map(|argument| CString::new(argument.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let environment: Vec<CString> = match environment {
        Some(environment) => environment
            .iter()
            .map(assignment)
            .collect::<Result<_, _>>()?,
        None => std::env::vars_os()
            .map(|pair| assignment(&pair))
            .collect::<Result<_, _>>()?,
    };
    let pid = Spawning::new()?.run(&inherited, &argv, &environment)?;
    Process::open(pid)
}

fn assignment((name, value): &(OsString, OsString)) -> Result<CString, NulError> {
    CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
}

/// What `posix_spawn` is told.
struct Spawning {
    actions: libc::posix_spawn_file_actions_t,
    attributes: libc::posix_spawnattr_t,
}

impl Spawning {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: both are initialized before they are assumed to be.
        unsafe {
            answer(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            answer(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Ok(Self {
                actions: actions.assume_init(),
                attributes: attributes.assume_init(),
            })
        }
    }

    fn run(
        mut self,
        inherited: &[(RawFd, RawFd)],
        argv: &[CString],
        environment: &[CString],
    ) -> io::Result<i32> {
        let ended = |strings: &[CString]| -> Vec<*mut libc::c_char> {
            let pointers = strings.iter().map(|string| string.as_ptr().cast_mut());
            pointers.chain([std::ptr::null_mut()]).collect()
        };
        let (argv, environment) = (ended(argv), ended(environment));
        let Some(&program) = argv.first().filter(|program| !program.is_null()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let flags = libc::POSIX_SPAWN_SETPGROUP
            | libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF;
        let mut pid = 0;
        // SAFETY: initialized structures, and strings that live until the call returns.
        unsafe {
            let actions = &raw mut self.actions;
            let attributes = &raw mut self.attributes;
            let null = c"/dev/null".as_ptr();
            answer(libc::posix_spawn_file_actions_addopen(
                actions,
                0,
                null,
                libc::O_RDONLY,
                0,
            ))?;
            for &(descriptor, number) in inherited {
                answer(libc::posix_spawn_file_actions_adddup2(
                    actions, descriptor, number,
                ))?;
            }
            let mut signals = MaybeUninit::uninit();
            libc::sigemptyset(signals.as_mut_ptr());
            answer(libc::posix_spawnattr_setsigmask(
                attributes,
                signals.as_ptr(),
            ))?;
            // Python ignores it, and an ignored signal stays so over an exec.
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGPIPE);
            answer(libc::posix_spawnattr_setsigdefault(
                attributes,
                signals.as_ptr(),
            ))?;
            answer(libc::posix_spawnattr_setpgroup(attributes, 0))?;
            answer(libc::posix_spawnattr_setflags(
                attributes,
                flags as libc::c_short,
            ))?;
            answer(libc::posix_spawnp(
                &raw mut pid,
                program,
                actions,
                attributes,
                argv.as_ptr(),
                environment.as_ptr(),
            ))?;
        }
        Ok(pid)
    }
}

impl Drop for Spawning {
    fn drop(&mut self) {
        // SAFETY: both were initialized, and are not used again.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.actions);
            libc::posix_spawnattr_destroy(&raw mut self.attributes);
        }
    }
}

/// These functions give the error instead of setting it.
fn answer(error: i32) -> io::Result<()> {
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Has a function called in each child of fork, in the call that forks it: before anything of the program or of an
/// interpreter runs there. It may make async-signal-safe calls alone. Fails without memory.
pub fn at_fork_in_child(function: extern "C" fn()) -> io::Result<()> {
    // SAFETY: a function of this library, which is never unloaded; what it may do its author knows.
    match unsafe { libc::pthread_atfork(None, None, Some(function)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Closes a descriptor by number in a child of fork, where its owner will never run again.
pub fn close_after_fork(descriptor: RawFd) {
    // SAFETY: the caller's contract: no owner of the number runs in this process.
    unsafe {
        libc::close(descriptor);
    }
}

/// The raw wait status of a child that has ended; none while it runs.
pub fn raw_wait_status(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    // A child that somebody else reaped has ended too; how is not known: an exit with 255.
    if reaped == pid {
        Some(status)
    } else {
        (reaped < 0).then_some(255 << 8)
    }
}

/// How many threads the calling process has.
pub fn thread_count() -> u32 {
    // Without /proc nothing is known to be wrong.
    std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count() as u32)
}

/// Bytes of memory that a process has, what it shares among them; none of one that is gone.
pub fn resident_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64).filter(|&bytes| bytes > 0)
}

/// The signals for which a process has handlers, a bit for each from that of signal 1 on.
fn handled_signals(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What the kernel says a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelState {
    /// A letter, as `ps` shows it: R runs, S sleeps, D sleeps and takes no signal, T and t are stopped, Z
    /// has ended.
    pub letter: char,
    /// In which function of the kernel it waits, where the system tells.
    pub wait: Option<String>,
}

/// What /proc/PID/stat has behind the name, from the state on: fields 3 and following of proc_pid_stat(5).
fn stat_fields(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have anything in it, parentheses too.
    let (_, behind) = text.rsplit_once(')')?;
    Some(behind.trim_start().to_owned())
}

/// What the kernel says a process does; of one that is gone, that it is dead.
pub fn kernel_state(pid: i32) -> KernelState {
    let letter = stat_fields(pid).and_then(|fields| fields.chars().next());
    let wait = std::fs::read_to_string(format!("/proc/{pid}/wchan")).ok();
    KernelState {
        letter: letter.unwrap_or('X'),
        wait: wait.filter(|name| !name.is_empty() && name != "0"),
    }
}

/// Who has started a process, or has taken it over since; None of one that is gone.
pub fn parent_pid(pid: i32) -> Option<i32> {
    stat_fields(pid)?.split_whitespace().nth(1)?.parse().ok()
}

/// How a process has ended that nobody has reaped yet, as far as its row in /proc tells: not that it exited with 0,
/// since the same stands where the kernel does not permit the question.
pub fn unreaped_status(pid: i32) -> Option<ExitStatus> {
    /// The place of `exit_code` among them: field 52.
    const EXIT_CODE: usize = 52 - 3;
    let fields = stat_fields(pid).filter(|fields| fields.starts_with('Z'))?;
    let status = fields.split_whitespace().nth(EXIT_CODE)?.parse().ok()?;
    (status != 0).then(|| ExitStatus::from_wait_status(status))
}

/// Whether the calling thread is the first of its process.
pub fn is_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

/// Whether anybody holds the reading end of the pipe whose writing end this is.
pub fn pipe_has_reader(end: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut ends = [PollFd::new(end, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // A pipe without readers is in error; if even that cannot be asked, nothing is known of any.
    poll(&mut ends, Some(&at_once)).is_ok() && !ends[0].revents().contains(PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    /// A child that the program forks at the wrong moment holds a copy of everything that is open then,
    /// for as long as it likes. Whoever starts a program may not wait for that.
    #[test]
    fn a_program_starts_while_another_thread_forks() {
        let over = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let starter = scope.spawn(|| {
                let (socket, _other) = Socket::pair().unwrap();
                let (_writing, reading) = life_line().unwrap();
                let mut longest = Duration::ZERO;
                for _ in 0..200 {
                    let start = Instant::now();
                    let argv = [OsString::from("/bin/true")];
                    spawn_program(&argv, None, &socket, &reading).unwrap();
                    longest = longest.max(start.elapsed());
                }
                over.store(true, Ordering::Relaxed);
                longest
            });
            let mut children = Vec::new();
            while !over.load(Ordering::Relaxed) && children.len() < 2_000 {
                // SAFETY: the child sleeps and exits, which is async-signal-safe.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: as above.
                    unsafe {
                        libc::sleep(20);
                        libc::_exit(0);
                    }
                }
                children.push(child);
                std::thread::yield_now();
            }
            let longest = starter.join().unwrap();
            for child in children {
                // SAFETY: a child of this process that nobody has waited for.
                unsafe {
                    libc::kill(child, libc::SIGKILL);
                    libc::waitpid(child, std::ptr::null_mut(), 0);
                }
            }
            longest
        });
        assert!(longest < Duration::from_secs(10), "{longest:?}");
    }
}
