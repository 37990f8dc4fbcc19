//! How a worker that asked for a block is answered.
//!
//! | word | meaning | who changes it |
//! |------|---------|----------------|
//! | 0    | nothing was asked, or the answer is not there | the parent answers, once for each question |
//! | else | the answer: bit 0; refused: bit 1; never used before: bit 2; used by others: bit 3; the offset of the block: the rest | the worker takes it |
//!
//! A worker has one question at a time, which it wrote to its result ring before it looks here. It sleeps
//! on its park word meanwhile, as it does for room in the ring: the parent answers and then looks for the
//! mark. What was granted is the worker's in the parent's books before the word says so, so that a worker
//! that is killed anywhere in between loses nothing.

use crate::sync::{AtomicU64, Ordering};

const ANSWERED: u64 = 1;
const REFUSED: u64 = 2;
const COLD: u64 = 4;
const OTHERS: u64 = 8;
/// Blocks are whole pages.
const FLAGS: u64 = 4095;

/// The word.
#[derive(Debug)]
pub struct GrantWord(AtomicU64);

/// What a worker was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The block at this offset is its to write; `cold` if its pages were never used.
    Block {
        /// In the window.
        offset: u64,
        /// Who has used its pages before.
        used: Used,
    },
    /// There is no room.
    Refused,
}

/// Who has used the pages of a block before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// This worker: they are mapped.
    Here,
    /// Others: they have memory.
    Elsewhere,
    /// Nobody.
    Never,
}

impl GrantWord {
    /// Parent: answers.
    pub fn answer(&self, grant: Grant) {
        let word = match grant {
            Grant::Block { offset, used } => {
                debug_assert_eq!(offset & FLAGS, 0);
                let used = match used {
                    Used::Here => 0,
                    Used::Elsewhere => OTHERS,
                    Used::Never => COLD,
                };
                offset | ANSWERED | used
            }
            Grant::Refused => ANSWERED | REFUSED,
        };
        // Release: the block's pages are what their last user left.
        self.0.store(word, Ordering::Release);
    }

    /// Whether there is an answer.
    pub fn is_answered(&self) -> bool {
        // Relaxed: who finds one takes it.
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Worker: takes the answer, if it is there.
    pub fn take(&self) -> Option<Grant> {
        if !self.is_answered() {
            return None;
        }
        let word = self.0.swap(0, Ordering::Acquire);
        Some(if word & REFUSED != 0 {
            Grant::Refused
        } else {
            Grant::Block {
                offset: word & !FLAGS,
                used: match word & (COLD | OTHERS) {
                    0 => Used::Here,
                    OTHERS => Used::Elsewhere,
                    _ => Used::Never,
                },
            }
        })
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_once() {
        let word = GrantWord(AtomicU64::new(0));
        assert_eq!(word.take(), None);
        let offset = 3 << 40;
        for grant in [
            Grant::Block {
                offset,
                used: Used::Never,
            },
            Grant::Block {
                offset: 0,
                used: Used::Here,
            },
            Grant::Block {
                offset,
                used: Used::Elsewhere,
            },
            Grant::Refused,
        ] {
            word.answer(grant);
            assert!(word.is_answered());
            assert_eq!(word.take(), Some(grant));
            assert_eq!(word.take(), None);
        }
    }
}

#[cfg(all(test, manyhands_loom))]
mod loom_tests {
    use super::*;
    use crate::park::Parked;
    use crate::park::loom_tests::Futex;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        futex: Futex,
        grant: GrantWord,
        /// The pages of the block.
        block: UnsafeCell<u32>,
    }

    // SAFETY: the block is its user's alone, which is what the model checks.
    unsafe impl Send for Shared {}
    // SAFETY: as above.
    unsafe impl Sync for Shared {}

    /// Whoever else wakes the worker while it waits, it finds the answer, once, and the block as its last
    /// user left it. With a lost wake-up the model would deadlock.
    #[test]
    fn an_answer_is_found() {
        let mut model = loom::model::Builder::new();
        // More take minutes.
        model.preemption_bound = Some(2);
        model.check(|| {
            let shared = Arc::new(Shared {
                futex: Futex::new(),
                grant: GrantWord(AtomicU64::new(0)),
                block: UnsafeCell::new(0),
            });
            let parent = shared.clone();
            let parent = thread::spawn(move || {
                // SAFETY: nobody has the block yet.
                parent.block.with_mut(|block| unsafe { *block = 7 });
                let (offset, used) = (4096, Used::Elsewhere);
                parent.grant.answer(Grant::Block { offset, used });
                parent.futex.tell();
            });
            let other = shared.clone();
            let other = thread::spawn(move || other.futex.tell());
            let grant = loop {
                shared.futex.word.announce(Parked::Futex);
                if !shared.grant.is_answered() {
                    shared.futex.sleep();
                }
                shared.futex.word.awake();
                if let Some(grant) = shared.grant.take() {
                    break grant;
                }
            };
            let (offset, used) = (4096, Used::Elsewhere);
            assert_eq!(grant, Grant::Block { offset, used });
            // SAFETY: it was granted.
            let found = shared.block.with(|block| unsafe { *block });
            assert_eq!(found, 7);
            assert_eq!(shared.grant.take(), None);
            parent.join().unwrap();
            other.join().unwrap();
        });
    }
}
