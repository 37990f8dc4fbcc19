//! What lives in memory that a parent shares with its workers.
//!
//! Four words and two rings make up a worker's control block (`control`), one page is shared by a
//! pool (`pool_page`). Each protocol stands with its states in the file that implements it:
//!
//! - `queue_word`: which tasks a worker may still start, and how the parent takes them back;
//! - `ring`: bytes from one writer to one reader;
//! - `park`: how one side sleeps without missing what the other publishes;
//! - `dump_words`: how a worker is asked for its stack;
//! - `grant_word`: how a worker is given room for a result.
//!
//! Only single words change owner, by one atomic operation each, so that a process that is killed
//! between any two instructions leaves a valid state behind.

#[cfg(all(test, manyhands_loom))]
mod block_model;
mod control;
mod dump_words;
mod grant_word;
mod park;
mod pool_page;
mod queue_word;
mod ring;
mod sync;

pub use control::{ControlBlock, DUMP_AREA, RESULT_AREA, TASK_AREA, Unwanted};
pub use dump_words::DumpWords;
pub use grant_word::{Grant, GrantWord, Used};
pub use park::{ParkWord, Parked};
pub use pool_page::{PoolPage, Share, SpinPermit};
pub use queue_word::{QueueState, QueueWord};
pub use ring::{RingPositions, RingReader, RingWriter};
