//! Tokens of tasks that ended, on their way to the thread of the face that tells their observers.

use manyhands_os::{Waited, futex_wait_private, futex_wake_private};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A queue with one reader that sleeps.
#[derive(Debug, Default)]
pub struct Completions {
    tokens: Mutex<Vec<u64>>,
    /// 1 while there is something to read.
    word: AtomicU32,
}

impl Completions {
    /// Adds tokens, emptying the list.
    pub fn push(&self, tokens: &mut Vec<u64>) {
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(tokens);
        self.ring();
    }

    /// Makes the reader look.
    pub fn ring(&self) {
        // Release pairs with the Acquire of `wait`.
        if self.word.swap(1, Ordering::Release) == 0 {
            futex_wake_private(&self.word, 1);
        }
    }

    /// Takes all tokens, sleeping until there are some, `ring` is called or the time is up.
    pub fn wait(&self, time: Duration) -> Vec<u64> {
        if self.word.load(Ordering::Acquire) == 0 {
            let _why: Waited = futex_wait_private(&self.word, 0, Some(time));
        }
        self.word.store(0, Ordering::SeqCst);
        std::mem::take(&mut *self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
