//! What a case is.

use crate::crash_table::site::Site;
use crate::crash_table::{rows, scenarios, storms, supervision};

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
    cases.extend(scenarios::cases());
    cases.extend(supervision::cases());
    cases.extend(storms::cases());
    cases
}
