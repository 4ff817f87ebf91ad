// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Settings of the SSD tier, as a user writes them.

use crate::describe::{choices, settings};
use crate::error::{Error, Result};

settings! {
    /// Drives that keep blocks beside the pool.
    pub struct SsdSettings {
        /// Files or block devices that keep blocks which the pool has no room for, separated by
        /// commas; no SSD tier when empty.
        ///
        /// Several drives serve together. A file that is not there is made with `ssd.bytes`; a block
        /// device is used whole. A restart finds the blocks again.
        pub path: String = String::new(),
        /// Bytes of each file that has to be made.
        pub bytes: u64 = 64 << 30,
        /// Most bytes of saved blocks that are kept in the pool while they are written to SSD, and never
        /// more than a quarter of the pool.
        ///
        /// Blocks beyond it wait for their turn, and are written as long as the pool still has them.
        pub spill_bytes_max: u64 = 128 << 20,
        /// Most blocks that wait to be written to SSD. Over it a block is not written, and counted.
        pub spill_blocks_max: u32 = 1 << 20,
        /// Most bytes on their way from SSD into the pool, and never more than half of the pool.
        ///
        /// A lookup that needs more gets the blocks up to there.
        pub fetch_bytes_max: u64 = 4 << 30,
        /// Which saved blocks are written.
        pub admission: SpillAdmission = SpillAdmission::All,
        /// Who leaves the drive first when it is full.
        pub reclaim: SsdReclaim = SsdReclaim::Clock,
        /// How many tokens of a prompt the engine computes in a second. A prefix is not fetched where
        /// computing the rest is faster; 0 fetches all there is.
        pub prefill_tokens_per_s: u64 = 0,
        /// How long the drive may take to answer, in milliseconds, before a block counts as missing.
        pub deadline_ms: u64 = 10_000,
    }
}

choices! {
    /// Which saved blocks are written to SSD.
    pub enum SpillAdmission {
        /// All of them.
        All = "all",
        /// Those that are saved a second time: spares the drive what is used once.
        SecondSave = "second_save",
    }
}

choices! {
    /// Who leaves the drive first.
    pub enum SsdReclaim {
        /// The oldest; blocks read since they were written stay.
        Clock = "clock",
        /// The oldest.
        Fifo = "fifo",
    }
}

impl SsdSettings {
    /// The files and devices; none for no SSD tier.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let parts = self.path.split(',').map(str::trim);
        parts.filter(|path| !path.is_empty())
    }

    /// Whether there is an SSD tier.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.paths().next().is_some()
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that cannot be.
    pub fn validate(&self) -> Result<()> {
        let limits = [
            ("ssd.bytes", self.bytes),
            ("ssd.spill_bytes_max", self.spill_bytes_max),
            ("ssd.spill_blocks_max", self.spill_blocks_max.into()),
            ("ssd.fetch_bytes_max", self.fetch_bytes_max),
            ("ssd.deadline_ms", self.deadline_ms),
        ];
        match limits.into_iter().find(|(_, value)| *value == 0) {
            Some((setting, _)) if self.is_on() => Err(Error::Setting {
                setting,
                why: "must be at least 1".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}
