//! Atomics and waiting, replaced by loom's under `--cfg manyhands_loom`.

#[cfg(not(manyhands_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(manyhands_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
