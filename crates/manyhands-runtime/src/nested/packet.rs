//! Packets of a line: records one after another, and descriptors of what is too long for them.

use crate::lease::Buffer;
use crate::protocol::{Malformed, Reference};
use crate::task::Bytes;
use manyhands_os::{MessageFile, Received, Socket, View};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most bytes of a packet; longer records travel as a message file.
pub(crate) const LONGEST: usize = 32 * 1024;
/// Bytes of its head: flags, and the number of its first call.
const HEAD: usize = 9;
/// The records are in a message file.
const IN_FILE: u8 = 1;
/// The payload of the one record is a message file of its own.
const WITH_PAYLOAD: u8 = 2;

/// A packet to send.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Packet {
    /// Packs records, of which the first is about this call. What is long, or has a payload in a file, is one
    /// record.
    pub(crate) fn new(
        call: u64,
        records: &[u8],
        payload: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let mut flags = 0;
        let mut files = Vec::new();
        if records.len() > LONGEST {
            flags |= IN_FILE;
            files.push(MessageFile::new(records)?.as_fd().try_clone_to_owned()?);
        }
        if let Some(payload) = payload {
            flags |= WITH_PAYLOAD;
            files.push(payload.try_clone_to_owned()?);
        }
        let mut bytes = Vec::with_capacity(HEAD + records.len().min(LONGEST));
        bytes.push(flags);
        bytes.extend_from_slice(&call.to_ne_bytes());
        if flags & IN_FILE == 0 {
            bytes.extend_from_slice(records);
        }
        Ok(Self { bytes, files })
    }

    /// Sends it; without `wait`, false if there is no room for it now.
    pub(crate) fn send(&self, line: &Socket, wait: bool) -> io::Result<bool> {
        let files: Vec<_> = self.files.iter().map(AsFd::as_fd).collect();
        line.send(&self.bytes, &files, wait)
    }
}

/// What came by a line.
#[derive(Debug)]
pub(crate) enum Come {
    /// Records, and the payload of the one record if that is a file.
    Packet(Records, Option<MessageFile>),
    /// The record of this call, which had descriptors for which this process had no room.
    Lost(u64),
    /// Nothing now.
    Nothing,
    /// The other end is closed.
    Closed,
}

/// Records that came.
#[derive(Debug)]
pub(crate) enum Records {
    Bytes(Vec<u8>),
    File(View),
}

impl Records {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.get(HEAD..).unwrap_or_default(),
            Self::File(view) => view.as_slice(),
        }
    }
}

/// Takes the next packet.
pub(crate) fn receive(line: &Socket, wait: bool) -> io::Result<Come> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut bytes = vec![0; HEAD + LONGEST];
    let (len, files) = match line.receive(&mut bytes, wait)? {
        Received::Message(len, files) => (len, Some(files)),
        Received::DescriptorsLost(len) => (len, None),
        Received::Nothing => return Ok(Come::Nothing),
        Received::Closed => return Ok(Come::Closed),
    };
    bytes.truncate(len);
    let call = bytes.get(1..HEAD).and_then(|call| call.try_into().ok());
    let call = u64::from_ne_bytes(call.ok_or_else(malformed)?);
    let Some(files) = files else {
        return Ok(Come::Lost(call));
    };
    let flags = bytes[0];
    let mut files = files.into_iter();
    let records = if flags & IN_FILE == 0 {
        Records::Bytes(bytes)
    } else {
        let file = files.next().ok_or_else(malformed)?;
        let mapped = MessageFile::from_descriptor(file).and_then(|file| file.view());
        match mapped {
            Ok(view) => Records::File(view),
            // Out of memory: this call alone is hit.
            Err(_) => return Ok(Come::Lost(call)),
        }
    };
    let payload = if flags & WITH_PAYLOAD == 0 {
        None
    } else {
        let file = files.next().ok_or_else(malformed)?;
        Some(MessageFile::from_descriptor(file)?)
    };
    Ok(Come::Packet(records, payload))
}

/// Writes numbers and byte strings.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// Writes a payload, or gives the file that it is.
    pub(crate) fn payload<'bytes>(
        &mut self,
        payload: &'bytes Bytes,
    ) -> io::Result<Option<BorrowedFd<'bytes>>> {
        if let Bytes::Stored(stored) = payload {
            self.u8(2);
            self.u32(stored.buffers.len() as u32);
            for reference in stored.buffers.iter().map(Buffer::reference) {
                reference
                    .encode()
                    .into_iter()
                    .for_each(|number| self.u64(number));
            }
            return self.payload(&stored.bytes);
        }
        if let Bytes::File(file) = payload {
            self.u8(1);
            return Ok(Some(file.as_fd()));
        }
        self.u8(0);
        payload.with(|payload| self.bytes(payload))?;
        Ok(None)
    }
}

/// Reads what a `Writer` wrote.
#[derive(Debug)]
pub(crate) struct Reader<'bytes>(pub(crate) &'bytes [u8]);

impl<'bytes> Reader<'bytes> {
    fn take(&mut self, len: usize) -> Result<&'bytes [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'bytes [u8], Malformed> {
        let len = usize::try_from(self.u64()?).map_err(|_| Malformed)?;
        self.take(len)
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.bytes()?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// As many as a count says that stands first, which is no larger than what there is.
    pub(crate) fn each<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        (0..count).map(|_| read(self)).collect()
    }

    /// A payload that may speak of buffers, as which these references are found.
    pub(crate) fn stored(
        &mut self,
        file: &mut Option<MessageFile>,
        find: impl Fn(Reference) -> Result<Buffer, Malformed>,
    ) -> Result<Bytes, Malformed> {
        if self.0.first() != Some(&2) {
            return self.payload(file);
        }
        self.u8()?;
        let buffers = self.each(|reader| {
            let numbers = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
            find(Reference::decode(numbers)?)
        })?;
        Ok(self.payload(file)?.with_buffers(buffers))
    }

    /// A payload, which may have come as a file.
    pub(crate) fn payload(&mut self, file: &mut Option<MessageFile>) -> Result<Bytes, Malformed> {
        match self.u8()? {
            0 => Ok(Bytes::copy_of(self.bytes()?)),
            1 => file.take().map(Bytes::File).ok_or(Malformed),
            _ => Err(Malformed),
        }
    }
}
