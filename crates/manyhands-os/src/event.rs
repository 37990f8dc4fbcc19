//! Waiting for many things at once: an event to signal by, a poller over descriptors.

use crate::clock::to_timespec;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A counter in the kernel that wakes a poller; may be signalled by other processes.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Makes an event that is not signalled.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Takes a descriptor that another process sent.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Wakes whoever polls it.
    pub fn signal(&self) {
        // EAGAIN means that the counter is full, that is: signalled already.
        let _written = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the signal back.
    pub fn clear(&self) {
        // EAGAIN means that it was not signalled.
        let _read = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a poller says of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// The key given to `add`.
    pub key: u64,
    /// The other end is closed, or the descriptor is broken.
    pub hung_up: bool,
}

/// Waits for any of many descriptors to become readable.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Makes a poller over nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Adds a descriptor under a key.
    pub fn add(&self, descriptor: impl AsFd, key: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(key);
        Ok(epoll::add(
            &self.epoll,
            descriptor,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    /// Removes a descriptor.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Waits until something is readable or the time is up; an empty answer is legal.
    pub fn wait(&self, limit: Option<Duration>, ready: &mut Vec<Signal>) -> io::Result<()> {
        ready.clear();
        let limit = limit.map(to_timespec);
        let nothing = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [nothing; 64];
        let count = match epoll::wait(&self.epoll, &mut events, limit.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        ready.extend(events[..count].iter().map(|event| {
            let flags = event.flags;
            Signal {
                key: event.data.u64(),
                hung_up: flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
            }
        }));
        Ok(())
    }
}
