//! Who is woken when entries come to a queue that threads work from.
//!
//! A thread goes to sleep only when, under the queue's mutex, it finds the queue empty; it counts as *idle*.
//! Waking takes it out of that count, leaves a permit, and counts it as *waking*: it has the duty to look. What
//! holds whenever the mutex is free:
//!
//! > if the queue is not empty, then no thread is idle, or one is waking.
//!
//! - PUSH adds an entry and, if nobody is waking, wakes an idle thread. If somebody is waking, that one
//!   will see the entry.
//! - POP by a waking thread hands its duty on: if entries are left and a thread is idle, it wakes that
//!   one, else nobody is waking any more. So a burst of tasks costs one wake-up in the thread that
//!   submits it, and the threads come one after another, each as soon as the one before has work.
//! - REST is the second look of a thread whose POP found nothing. What is there now came in between, when nobody
//!   was woken for it since this thread was waking: it keeps its duty, and hands it on at its next POP.
//!
//! All of it is done under the mutex, which the caller has; the model below tries all orders of these steps.

/// How many threads are idle or woken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Wakes {
    /// Threads that sleep and were not woken.
    idle: usize,
    /// Wake-ups that no thread has taken yet.
    permits: usize,
    /// Threads that were woken and have taken no entry since.
    waking: usize,
}

impl Wakes {
    /// How many threads will look at the queue if they have to.
    #[inline]
    #[must_use]
    pub fn at_hand(&self) -> usize {
        self.idle + self.waking
    }

    /// Step PUSH: an entry was added; whether a sleeping thread is to be notified.
    #[inline]
    #[must_use]
    pub fn pushed(&mut self) -> bool {
        self.waking == 0 && self.wake_one()
    }

    /// Step POP: a thread took an entry, and so many are left; whether another is to be notified.
    #[inline]
    #[must_use]
    pub fn popped(&mut self, is_waking: &mut bool, left: usize) -> bool {
        if !std::mem::take(is_waking) {
            return false;
        }
        self.waking -= 1;
        left > 0 && self.pushed()
    }

    /// Step REST: a thread looks again before it sleeps, and there are so many; whether there is nothing to do.
    #[must_use]
    pub fn rests(&mut self, is_waking: &mut bool, left: usize) -> bool {
        if left > 0 {
            return false;
        }
        self.waking -= usize::from(std::mem::take(is_waking));
        true
    }

    /// The thread sleeps from here on.
    pub fn lies_down(&mut self) {
        self.idle += 1;
    }

    /// Whether nobody has woken a thread that sleeps.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.permits == 0
    }

    /// The thread sleeps no more; whether it was woken, and so is waking.
    #[must_use]
    pub fn rises(&mut self) -> bool {
        let was_woken = self.permits > 0;
        if was_woken {
            self.permits -= 1;
        } else {
            self.idle -= 1;
        }
        was_woken
    }

    #[inline]
    fn wake_one(&mut self) -> bool {
        if self.idle == 0 {
            return false;
        }
        self.idle -= 1;
        self.permits += 1;
        self.waking += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    enum Thread {
        /// About to POP, waking or not.
        Looks(bool),
        /// In a task, which may wait for another.
        Works,
        /// About to REST, waking or not.
        Turns(bool),
        Sleeps,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Model {
        wakes: Wakes,
        entries: usize,
        to_come: usize,
        threads: Vec<Thread>,
    }

    impl Model {
        /// All that may happen next.
        fn next(&self) -> Vec<Self> {
            let mut all = Vec::new();
            if self.to_come > 0 {
                let mut then = self.clone();
                then.to_come -= 1;
                then.entries += 1;
                let _notified = then.wakes.pushed();
                all.push(then);
            }
            for (index, thread) in self.threads.iter().enumerate() {
                let mut then = self.clone();
                then.threads[index] = match thread {
                    Thread::Looks(is_waking) if self.entries > 0 => {
                        let mut is_waking = *is_waking;
                        then.entries -= 1;
                        let _notified = then.wakes.popped(&mut is_waking, then.entries);
                        assert!(!is_waking);
                        Thread::Works
                    }
                    Thread::Looks(is_waking) => Thread::Turns(*is_waking),
                    Thread::Works => Thread::Looks(false),
                    Thread::Turns(is_waking) => {
                        let mut is_waking = *is_waking;
                        if then.wakes.rests(&mut is_waking, self.entries) {
                            then.wakes.lies_down();
                            Thread::Sleeps
                        } else {
                            Thread::Looks(is_waking)
                        }
                    }
                    Thread::Sleeps if self.wakes.may_sleep() => continue,
                    Thread::Sleeps => Thread::Looks(then.wakes.rises()),
                };
                all.push(then);
            }
            all
        }

        fn check(&self) {
            let Wakes {
                idle,
                permits,
                waking,
            } = self.wakes;
            let holds = self.entries == 0 || idle == 0 || waking > 0;
            assert!(holds, "an entry waits beside an idle thread: {self:?}");
            let is_waking =
                |thread: &&Thread| matches!(thread, Thread::Looks(true) | Thread::Turns(true));
            let on_duty = self.threads.iter().filter(is_waking).count();
            assert_eq!(waking, permits + on_duty, "{self:?}");
            let sleep = |thread: &&Thread| matches!(thread, Thread::Sleeps);
            let asleep = self.threads.iter().filter(sleep).count();
            assert_eq!(idle + permits, asleep, "{self:?}");
        }
    }

    #[test]
    fn no_entry_waits_beside_an_idle_thread_in_any_order_of_steps() {
        let mut seen = HashSet::new();
        let mut open = vec![Model {
            wakes: Wakes::default(),
            entries: 0,
            to_come: 6,
            threads: vec![Thread::Looks(false); 3],
        }];
        while let Some(model) = open.pop() {
            if seen.insert(model.clone()) {
                model.check();
                open.extend(model.next());
            }
        }
        assert!(seen.len() > 1_000, "only {} states", seen.len());
    }

    #[test]
    fn who_sleeps_at_the_end_rises_without_a_permit() {
        let mut wakes = Wakes::default();
        wakes.lies_down();
        assert_eq!(wakes.at_hand(), 1);
        assert!(!wakes.rises());
        assert_eq!(wakes, Wakes::default());
    }
}
