//! The zygote's side: a process with one thread that forks workers on request.
//!
//! The fork itself is the caller's, since languages want to know of it. Everything here is done by
//! one thread, in a loop of `next_request` and answers.

use crate::fail_point::fail_point;
use crate::protocol::{LONGEST_MESSAGE, WORKER_DESCRIPTORS, WorkerKey, ZygoteMessage};
use crate::supervisor::THREADED;
use manyhands_os::{
    EventSignal, MemoryFile, Poller, Process, Received, Socket, arm_life_line, raw_wait_status,
    thread_count,
};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

/// What the parent asks for.
#[derive(Debug)]
pub enum Request {
    /// Import these; the bytes are those of `Supervisor::set_birth`.
    Preload(Vec<String>, Vec<u8>),
    /// Fork a worker.
    Fork(Birth),
    /// Become a worker.
    Become(Birth),
    /// The parent is gone, or wants no zygote any more.
    End,
}

/// What a new worker needs.
#[derive(Debug)]
pub struct Birth {
    /// Which worker it is.
    pub key: WorkerKey,
    /// The bytes of `Supervisor::set_birth`.
    pub content: Vec<u8>,
    pub(crate) control: OwnedFd,
    pub(crate) page: OwnedFd,
    pub(crate) socket: OwnedFd,
    pub(crate) life_line: OwnedFd,
    pub(crate) event: OwnedFd,
    pub(crate) requests: OwnedFd,
    pub(crate) window: OwnedFd,
    /// Standard output as the parent has it.
    pub output: OwnedFd,
    /// Standard error as the parent has it.
    pub errors: OwnedFd,
    /// The parent's working directory.
    pub directory: OwnedFd,
}

/// The zygote.
#[derive(Debug)]
pub struct Zygote {
    socket: Socket,
    #[expect(dead_code, reason = "held: the kernel watches it")]
    life_line: OwnedFd,
    poller: Poller,
    children: HashMap<i32, Process>,
    buffer: Vec<u8>,
}

const KEY_SOCKET: u64 = u64::MAX;

impl Zygote {
    /// Takes the two descriptors that the program was started with, and says hello.
    pub fn new(socket: OwnedFd, life_line: OwnedFd, version: u32) -> io::Result<Self> {
        arm_life_line(&life_line, false)?;
        let socket = Socket::from_descriptor(socket);
        let poller = Poller::new()?;
        poller.add(&socket, KEY_SOCKET)?;
        let buffer = vec![0; LONGEST_MESSAGE];
        let zygote = Self {
            socket,
            life_line,
            poller,
            children: HashMap::new(),
            buffer,
        };
        zygote.say(&ZygoteMessage::Hello(version), &[])?;
        Ok(zygote)
    }

    fn say(
        &self,
        message: &ZygoteMessage,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.socket
            .send(&message.encode(), descriptors, true)
            .map(|_| ())
    }

    /// Waits for the next request, reporting children that end meanwhile.
    pub fn next_request(&mut self) -> io::Result<Request> {
        let mut ready = Vec::new();
        loop {
            // Without pidfds the children's ends are looked for now and then.
            let blind = self
                .children
                .values()
                .any(|child| child.descriptor().is_none());
            let time = blind.then(|| std::time::Duration::from_millis(20));
            self.poller.wait(time, &mut ready)?;
            self.reap(blind, &ready)?;
            if !ready.iter().any(|signal| signal.key == KEY_SOCKET) {
                continue;
            }
            match self.socket.receive(&mut self.buffer, false)? {
                Received::Message(len, descriptors) => {
                    if let Some(request) = self.understand(len, descriptors)? {
                        fail_point("zygote.request_read");
                        return Ok(request);
                    }
                }
                Received::DescriptorsLost(len) => {
                    if let Ok(ZygoteMessage::Fork(key) | ZygoteMessage::Become(key)) =
                        ZygoteMessage::decode(&self.buffer[..len])
                    {
                        self.not_forked(key, "the zygote has too many open files")?;
                    }
                }
                Received::Nothing => {}
                Received::Closed => return Ok(Request::End),
            }
        }
    }

    fn understand(&mut self, len: usize, descriptors: Vec<OwnedFd>) -> io::Result<Option<Request>> {
        let Ok(message) = ZygoteMessage::decode(&self.buffer[..len]) else {
            return Ok(None);
        };
        Ok(match message {
            ZygoteMessage::Preload(names) => {
                let names = names.lines().map(str::to_owned).collect();
                let content = match descriptors.into_iter().next() {
                    Some(file) => MemoryFile::from_descriptor(file)?.read()?,
                    None => Vec::new(),
                };
                Some(Request::Preload(names, content))
            }
            ZygoteMessage::Fork(key) => {
                if thread_count() > 1 {
                    self.not_forked(key, THREADED)?;
                    None
                } else {
                    Some(Request::Fork(Birth::new(key, descriptors)?))
                }
            }
            ZygoteMessage::Become(key) => Some(Request::Become(Birth::new(key, descriptors)?)),
            _ => None,
        })
    }

    fn reap(&mut self, blind: bool, ready: &[EventSignal]) -> io::Result<()> {
        let mut ended = Vec::new();
        let pids: Vec<i32> = if blind {
            self.children.keys().copied().collect()
        } else {
            ready
                .iter()
                .filter(|signal| signal.key != KEY_SOCKET)
                .map(|signal| signal.key as i32)
                .collect()
        };
        for pid in pids {
            if let Some(status) = raw_wait_status(pid) {
                if let Some(child) = self.children.remove(&pid)
                    && let Some(pidfd) = child.descriptor()
                {
                    let _removed = self.poller.remove(pidfd);
                }
                ended.push((pid, status));
            }
        }
        for (pid, status) in ended {
            self.say(&ZygoteMessage::Exited(pid, status), &[])?;
        }
        Ok(())
    }

    /// Reports a worker that was forked.
    pub fn forked(&mut self, key: WorkerKey, pid: i32) -> io::Result<()> {
        fail_point("zygote.forked");
        let child = Process::open(pid)?;
        let message = ZygoteMessage::Forked(key, pid);
        match child.descriptor() {
            Some(pidfd) => {
                self.say(&message, &[pidfd])?;
                self.poller.add(pidfd, pid as u64)?;
            }
            None => self.say(&message, &[])?,
        }
        self.children.insert(pid, child);
        fail_point("zygote.reported");
        Ok(())
    }

    /// Reports a worker that could not be forked.
    pub fn not_forked(&self, key: WorkerKey, why: &str) -> io::Result<()> {
        self.say(&ZygoteMessage::NotForked(key, why.to_owned()), &[])
    }

    /// Reports what preloading did.
    pub fn preloaded(&self, failures: &str) -> io::Result<()> {
        self.say(
            &ZygoteMessage::Preloaded(thread_count(), failures.to_owned()),
            &[],
        )
    }

    /// Becomes a worker: the parent watches the process as it does forked ones, and the socket
    /// stays open, since its closing is how the parent would hear of a zygote's end.
    pub fn become_worker(self, key: WorkerKey) -> io::Result<Socket> {
        let process = Process::open(std::process::id().cast_signed())?;
        let message = ZygoteMessage::Forked(key, process.pid());
        match process.descriptor() {
            Some(pidfd) => self.say(&message, &[pidfd])?,
            None => self.say(&message, &[])?,
        }
        Ok(self.socket)
    }
}

impl Birth {
    fn new(key: WorkerKey, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a birth without its descriptors",
            )
        };
        let all: [OwnedFd; WORKER_DESCRIPTORS] = descriptors.try_into().map_err(|_| wrong())?;
        let [
            birth,
            control,
            page,
            socket,
            life_line,
            event,
            requests,
            window,
            output,
            errors,
            directory,
        ] = all;
        let content = MemoryFile::from_descriptor(birth)?.read()?;
        Ok(Self {
            key,
            content,
            control,
            page,
            socket,
            life_line,
            event,
            requests,
            window,
            output,
            errors,
            directory,
        })
    }
}
