//! Message sockets that carry descriptors.

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How many descriptors one message may carry.
pub const MAX_DESCRIPTORS: usize = 12;

/// One end of a pair; each message arrives whole.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// What `receive` found.
#[derive(Debug)]
pub enum Received {
    /// A message of this many bytes, with its descriptors.
    Message(usize, Vec<OwnedFd>),
    /// A message whose descriptors were lost, because this process may open no more.
    DescriptorsLost(usize),
    /// Nothing there now.
    Nothing,
    /// The other end is closed.
    Closed,
}

impl Socket {
    /// Makes a connected pair; neither end is inherited by programs that are started.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// The process that made the pair.
    pub fn maker(&self) -> io::Result<u32> {
        let maker = socket_peercred(&self.0)?.pid;
        Ok(maker.as_raw_nonzero().get().cast_unsigned())
    }

    /// Takes a descriptor that another process sent or handed down.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Sends one message; without `wait`, false when there is no room for it now.
    pub fn send(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        wait: bool,
    ) -> io::Result<bool> {
        assert!(descriptors.len() <= MAX_DESCRIPTORS);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let pushed = control.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(pushed);
        }
        let mut flags = SendFlags::NOSIGNAL;
        if !wait {
            flags |= SendFlags::DONTWAIT;
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(message)], &mut control, flags) {
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::TOOMANYREFS | Errno::NOBUFS) if wait => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // TOOMANYREFS: too many descriptors are on their way; they drain.
                Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS) if !wait => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message into `buffer`; a longer one is cut.
    pub fn receive(&self, buffer: &mut [u8], wait: bool) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if !wait {
            flags |= RecvFlags::DONTWAIT;
        }
        let answer = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                // The other end closed with messages unread. The kernel says so once, before it
                // gives what was sent until then.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                other => break other,
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::PIPE) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if answer.flags.contains(ReturnFlags::CTRUNC) {
            return Ok(Received::DescriptorsLost(answer.bytes));
        }
        if answer.bytes == 0 && descriptors.is_empty() {
            return Ok(Received::Closed);
        }
        Ok(Received::Message(answer.bytes, descriptors))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_the_end_arrives() {
        let (near, far) = Socket::pair().unwrap();
        assert!(near.send(b"nobody reads this", &[], false).unwrap());
        assert!(far.send(b"last words", &[], false).unwrap());
        drop(far);
        assert_eq!(near.maker().unwrap(), std::process::id());
        let mut buffer = [0; 32];
        let received = near.receive(&mut buffer, false).unwrap();
        assert!(matches!(received, Received::Message(10, _)), "{received:?}");
        assert_eq!(&buffer[..10], b"last words");
        // Another test forks meanwhile, and its children have the far end for as long as they live.
        let received = near.receive(&mut buffer, true).unwrap();
        assert!(matches!(received, Received::Closed), "{received:?}");
    }
}
