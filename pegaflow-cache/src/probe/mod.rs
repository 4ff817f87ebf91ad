// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What this machine offers PegaFlow, and what to do about what is missing: `pegaflow-server probe`.
//!
//! Three steps: [`Facts`] are read from `/proc` and `/sys` (any root, so tests use fixture trees),
//! checks judge them (pure), [`Report::text`] or serde shows them. Changes nothing on the machine.

mod advice;
mod devices;
mod facts;
mod text;

pub use advice::{Check, Level};
pub use devices::{Drive, Gpu, Rdma};
pub use facts::{Facts, HugePages, Live, Memlock, Node, Space};

use std::path::Path;

/// Facts and what they mean.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Report {
    /// Version of PegaFlow that looked.
    pub version: &'static str,
    /// What was found.
    pub facts: Facts,
    /// One judgement for each thing PegaFlow can use.
    pub checks: Vec<Check>,
}

impl Report {
    /// Looks at this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::of(Facts::read(
            Path::new("/"),
            Live::try_now(Path::new("/dev/shm")),
        ))
    }

    /// Judges facts.
    #[must_use]
    pub fn of(facts: Facts) -> Self {
        let checks = advice::checks(&facts);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            facts,
            checks,
        }
    }

    /// For people: a table, then what to do.
    #[must_use]
    pub fn text(&self) -> String {
        text::render(self)
    }
}

#[cfg(test)]
mod tests;
