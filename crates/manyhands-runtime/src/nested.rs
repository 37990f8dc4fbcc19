//! Tasks that tasks submit: what a worker and its parent say to each other of them.
//!
//! A task that runs in a worker may submit tasks to the pool that runs it. Its process is the *asker*; what
//! it submits is a *call*, with a number of its own. The parent alone schedules, so calls go there (*asks*),
//! run on any worker, and their ends come back (*answers*).
//!
//! They travel by the worker's *line*, a message socket that the worker makes with its first call: it sends
//! one end to its parent by the pool's request socket, which all workers have from birth. A worker that
//! never asks costs nobody a descriptor.
//!
//! | a call              | in the worker                       | in the parent                              |
//! |---------------------|-------------------------------------|--------------------------------------------|
//! | is asked            | open                                | -                                          |
//! | is heard            | open                                | a task, pending; its asker's slot is lent  |
//! | has ended           | open                                | answered, or the answer waits for room     |
//! | is answered         | ended                               | gone                                       |
//! | is cancelled        | ended, at once                      | cancelled when that is heard; the answer finds nothing |
//! | its asker dies      | gone                                | cancelled, and what runs of it is ended    |
//! | the parent dies     | gone: the life line kills           | gone                                       |
//!
//! A worker whose calls are open *lends* its slot: another worker may run meanwhile, a spare if need be. See
//! `pool/lending.rs`.

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod caller;
pub(crate) mod packet;
