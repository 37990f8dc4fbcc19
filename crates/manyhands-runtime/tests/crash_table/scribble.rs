//! Nonsense in a control block, as a stray pointer in a user's library may leave it there.

use crate::crash_table::worker::send_self;
use std::time::Duration;

/// Where things stand in a control block: see `manyhands_shm::control`.
const QUEUE: usize = 64;
const TAIL: usize = 192;
const TASK_AREA: usize = 256 * 1024;
const RESULT_AREA: usize = 512 * 1024;
const RESULTS: usize = 4096 + 2 * TASK_AREA;

/// Writes nonsense. What its parent has to see for itself is left to it: then this never ends.
///
/// | what        | is                                                                            |
/// |-------------|-------------------------------------------------------------------------------|
/// | `queue`     | numbers that were never published; then its own death                         |
/// | `tail`      | a position far beyond the ring                                                |
/// | `record`    | a record of zeros                                                             |
/// | `item`      | a result in the items' form that is longer than what was published            |
/// | `items`     | more results than items were started                                          |
/// | `yields`    | more than was started, all of them to be continued                            |
/// | `short`     | two bytes                                                                     |
/// | `unstarted` | its own result and one of the next number, which was not started              |
/// | `number`    | a result of another number                                                    |
/// | `lap`       | a lap of almost for ever, twice, and then a record of zeros                   |
/// | `file`      | a result whose message file never comes                                       |
/// | `kind`      | a result record of a kind that there is not                                   |
/// | `ask`       | an ask for a block without bytes                                              |
/// | `release`   | that it has released a block which it was never sent                          |
pub(crate) fn scribble(what: &str) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps
        .lines()
        .find(|line| line.contains("manyhands-control"))
        .unwrap();
    let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let block = Block { start };
    let own = block.running();
    match what {
        "queue" => {
            block.write(QUEUE, 0x0000_0500_0000_0600);
            send_self(libc::SIGKILL);
        }
        "tail" => block.write(TAIL, u64::MAX),
        "record" => block.publish(&[0; 4096]),
        "item" => block.publish(&item(100_000, b"short")),
        "items" => {
            // The second one is already of nothing that was started.
            let results = [item(1, b"1"), item(1, b"2"), item(1, b"3")];
            block.publish(&results.concat());
        }
        "yields" => {
            block.publish(&item(1, b"1"));
            let more = u32::from_ne_bytes(item(1, b"2")[..4].try_into().unwrap()) | 0x4000_0000;
            block.publish(&[&more.to_ne_bytes()[..], b"2"].concat());
        }
        "short" => block.publish(b"ab"),
        "unstarted" => {
            block.publish(&record(2, 0, own, 5));
            block.publish(&record(2, 0, own + 1, 5));
        }
        "number" => block.publish(&record(1, 0, own + 7, 5)),
        "lap" => {
            block.publish(&record(3, 0, 1, u64::MAX - 5));
            block.publish(&record(3, 0, u32::MAX, u64::MAX - 5));
            block.publish(&[0; 24]);
        }
        "file" => block.publish(&record(1, 1, own, 5)),
        "kind" => block.publish(&record(99, 0, own, 5)),
        "ask" => block.publish(&record(17, 0, own, 0)),
        "release" => {
            // Of a block that it was never sent.
            let mut bytes = record(16, 0, own, 0);
            bytes[0..4].copy_from_slice(&32_u32.to_ne_bytes());
            bytes[12..16].copy_from_slice(&8_u32.to_ne_bytes());
            bytes.extend_from_slice(&0_u64.to_ne_bytes());
            block.publish(&bytes);
        }
        _ => panic!("no such nonsense: {what}"),
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// A result in the items' form that says it has so many bytes.
fn item(len: u32, bytes: &[u8]) -> Vec<u8> {
    [&((1 << 24) | len).to_ne_bytes()[..], bytes].concat()
}

/// A result record without a payload.
fn record(kind: u8, flags: u8, number: u32, duration: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&24_u32.to_ne_bytes());
    bytes.extend_from_slice(&[kind, 1, flags, 0]);
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&duration.to_ne_bytes());
    bytes
}

struct Block {
    start: usize,
}

impl Block {
    fn at(&self, offset: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.start + offset)
    }

    fn read(&self, offset: usize) -> u64 {
        // SAFETY: inside the mapping, which starts with the block's first page.
        unsafe { self.at(offset).cast::<u64>().read_volatile() }
    }

    fn write(&self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.at(offset).cast::<u64>().write_volatile(value) };
    }

    /// Number of the task or item that runs.
    fn running(&self) -> u32 {
        (self.read(QUEUE) >> 32) as u32 - 1
    }

    /// Puts bytes behind the results that this worker has published.
    fn publish(&self, bytes: &[u8]) {
        let tail = self.read(TAIL);
        let place = RESULTS + tail as usize % RESULT_AREA;
        // SAFETY: inside the ring, which is mapped twice in a row.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(place), bytes.len()) };
        self.write(TAIL, tail + bytes.len() as u64);
    }
}
