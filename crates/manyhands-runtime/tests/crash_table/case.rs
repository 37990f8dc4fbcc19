//! What a case is.

use crate::crash_table::site::Site;
use crate::crash_table::{
    again, blocks, blocks_ended, descriptors, ending, failed_births, memory, nested, nonsense,
    output, paused, priorities, recycling, rows, stalls, stopping, stored, storms,
    storms_of_blocks, storms_of_calls, taken_back, tasks, taught, waiting, zygotes,
};

/// One line of the table.
pub(crate) struct Case {
    pub(crate) name: String,
    /// What must be left, in words.
    pub(crate) expectation: String,
    /// Whether the driver itself is the process that dies.
    pub(crate) driver_dies: bool,
    pub(crate) body: Box<dyn FnOnce(&Site) + Send + Sync>,
}

impl Case {
    /// A case with code of its own.
    pub(crate) fn scenario(name: &str, expectation: &str, body: fn(&Site)) -> Self {
        Self {
            name: name.to_owned(),
            expectation: expectation.to_owned(),
            driver_dies: false,
            body: Box::new(body),
        }
    }
}

/// All cases, the table's rows first.
pub(crate) fn all() -> Vec<Case> {
    let mut cases: Vec<Case> = rows::rows().into_iter().map(rows::Row::into_case).collect();
    for of_one_subject in [
        tasks::cases,
        taken_back::cases,
        blocks::cases,
        blocks_ended::cases,
        waiting::cases,
        paused::cases,
        stopping::cases,
        memory::cases,
        stalls::cases,
        again::cases,
        priorities::cases,
        nested::cases,
        ending::cases,
        zygotes::cases,
        failed_births::cases,
        descriptors::cases,
        nonsense::cases,
        output::cases,
        stored::cases,
        taught::cases,
        recycling::cases,
        storms::cases,
        storms_of_blocks::cases,
        storms_of_calls::cases,
    ] {
        cases.extend(of_one_subject());
    }
    cases
}
