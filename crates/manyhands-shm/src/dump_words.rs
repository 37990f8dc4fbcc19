//! How a worker is asked for its stack, and says that it has written it.
//!
//! | word     | what                                          | writer           |
//! |----------|-----------------------------------------------|------------------|
//! | `asked`  | how often anybody has asked                   | parent, by add   |
//! | `begun`  | for which of them it has begun to write       | worker's handler |
//! | `length` | how many bytes it wrote                       | worker's handler |
//! | `ended`  | for which of them it was through              | worker's handler |
//!
//! All zero at first. *Parent*: (D1) adds 1 to `asked` and keeps the sum as its number, (D2) sends the
//! signal, (D3) waits until `ended` is that number or a later one, (D4) reads `length` and the text, and
//! (D5) sees that `begun` is what `ended` was; if not, a later question is being answered in the same place
//! and it goes back to D3. *Worker*: (W1) reads `asked`; if it has answered that already the signal is
//! one too many, since one answer serves all who had asked before it; (W2) writes it to `begun`, (W3) writes
//! the text and `length`, (W4) writes the number to `ended`, and wakes whoever waits for it.
//!
//! Nothing is torn: W2 comes before the text by a fence that pairs with the one at D5, so whoever read
//! anything of a later text sees the later `begun`. A worker that dies or is stopped between W2 and W4
//! leaves `ended` behind `begun`, and the parent waits until its time is up. It knows the process by other
//! means: nothing here tells it to write, to free or to schedule anything.

use crate::sync::{AtomicU32, Ordering, fence};

/// The four words; zero at first.
#[derive(Debug)]
#[repr(C)]
pub struct DumpWords {
    asked: AtomicU32,
    begun: AtomicU32,
    length: AtomicU32,
    ended: AtomicU32,
}

/// Whether a number is that one or comes after it; they come again after 2^32.
fn is_reached(number: u32, wanted: u32) -> bool {
    number.wrapping_sub(wanted).cast_signed() >= 0
}

impl DumpWords {
    #[cfg(test)]
    fn new() -> Self {
        let zero = || AtomicU32::new(0);
        Self {
            asked: zero(),
            begun: zero(),
            length: zero(),
            ended: zero(),
        }
    }

    /// Parent, D1: a number for the question.
    #[must_use]
    pub fn ask(&self) -> u32 {
        // Relaxed: the signal that follows is a system call.
        self.asked.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Parent, D3 and D4: which question was answered last, and in how many bytes, if that answers this
    /// one, too.
    #[must_use]
    pub fn answer(&self, wanted: u32) -> Option<(u32, usize)> {
        // Acquire: pairs with W4.
        let ended = self.ended.load(Ordering::Acquire);
        let length = || self.length.load(Ordering::Relaxed) as usize;
        is_reached(ended, wanted).then(|| (ended, length()))
    }

    /// Parent, D5: whether what was read is all of that answer.
    #[must_use]
    pub fn is_whole(&self, ended: u32) -> bool {
        // Pairs with the fence of W2.
        fence(Ordering::Acquire);
        self.begun.load(Ordering::Relaxed) == ended
    }

    /// Parent, D3: sleeps until the question may be answered, or the time is up.
    #[cfg(not(manyhands_loom))]
    pub fn wait(&self, wanted: u32, limit: std::time::Duration) {
        let ended = self.ended.load(Ordering::Acquire);
        if !is_reached(ended, wanted) || !self.is_whole(ended) {
            // Whatever ended it, the caller looks again.
            let _why = manyhands_os::futex_wait(&self.ended, ended, Some(limit));
        }
    }

    /// Worker: whether there is a question without an answer.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != self.ended.load(Ordering::Relaxed)
    }

    /// Worker, W1 and W2: the number of the question, if there is one without an answer.
    #[must_use]
    pub fn begin(&self) -> Option<u32> {
        if !self.is_asked() {
            return None;
        }
        let asked = self.asked.load(Ordering::Relaxed);
        self.begun.store(asked, Ordering::Relaxed);
        // The text comes after it.
        fence(Ordering::Release);
        Some(asked)
    }

    /// Worker, the end of W3, and W4.
    pub fn end(&self, number: u32, length: usize) {
        self.length.store(length as u32, Ordering::Relaxed);
        // Release: who sees the number sees the text.
        self.ended.store(number, Ordering::Release);
        #[cfg(not(manyhands_loom))]
        manyhands_os::futex_wake(&self.ended, u32::MAX >> 1);
    }
}

#[cfg(all(test, not(manyhands_loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_answer_serves_all_who_had_asked() {
        let words = DumpWords::new();
        let (first, second) = (words.ask(), words.ask());
        assert_eq!(words.answer(first), None);
        assert_eq!(words.begin(), Some(second));
        assert_eq!(words.answer(first), None);
        words.end(second, 7);
        assert_eq!(words.answer(first), Some((second, 7)));
        assert_eq!(words.answer(second), Some((second, 7)));
        assert!(words.is_whole(second));
        assert_eq!(words.begin(), None, "the second signal is one too many");
    }

    #[test]
    fn an_answer_that_is_written_over_is_not_whole() {
        let words = DumpWords::new();
        let first = words.ask();
        let begun = words.begin().unwrap();
        words.end(begun, 1);
        let (ended, _) = words.answer(first).unwrap();
        let second = words.ask();
        assert_eq!(words.begin(), Some(second));
        assert!(!words.is_whole(ended));
    }

    #[test]
    fn numbers_come_again() {
        assert!(is_reached(1, u32::MAX) && is_reached(5, 5));
        assert!(!is_reached(u32::MAX, 1));
    }
}

#[cfg(all(test, manyhands_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// What is read as whole is of one answer, however often the worker is asked meanwhile.
    #[test]
    fn no_answer_is_torn() {
        loom::model(|| {
            let words = Arc::new(DumpWords::new());
            let text = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
            let numbers = [words.ask(), words.ask()];
            let worker = {
                let (words, text) = (words.clone(), text.clone());
                thread::spawn(move || {
                    // As if it had been asked once, and then again.
                    for number in numbers {
                        words.begun.store(number, Ordering::Relaxed);
                        fence(Ordering::Release);
                        for part in text.iter() {
                            part.store(number, Ordering::Relaxed);
                        }
                        words.end(number, 2);
                    }
                })
            };
            if let Some((ended, length)) = words.answer(numbers[0]) {
                let read: Vec<u32> = text
                    .iter()
                    .map(|part| part.load(Ordering::Relaxed))
                    .collect();
                if words.is_whole(ended) {
                    assert_eq!((read, length), (vec![ended, ended], 2));
                }
            }
            worker.join().unwrap();
            assert_eq!(words.answer(numbers[1]), Some((numbers[1], 2)));
        });
    }
}
