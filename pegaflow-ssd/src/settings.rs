// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What a user can set: units in the names, unknown keys refused, every limit here.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::PAGE;

/// How transfers reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// io_uring where the kernel lets us, threads elsewhere.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// A few threads with `pread` and `pwrite`. Works everywhere.
    Threads,
}

/// How the transfers of one device are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IoSettings {
    /// How transfers reach the kernel.
    pub backend: Backend,
    /// Past the page cache. Where that is impossible, the store falls back and says so in its notes.
    pub direct: bool,
    /// Threads of the `threads` backend.
    pub threads: u32,
    /// A kernel thread takes submissions without a system call, and sleeps after this many milliseconds without work. 0: off.
    /// Costs a core while there is work; pays only for small blocks on drives faster than one submitting core.
    pub sqpoll_idle_ms: u32,
    /// Completions are polled from the drive instead of interrupting. Needs a drive with polling queues; a core is busy while work is out.
    pub iopoll: bool,
    /// Most reads handed to the device at once.
    pub read_ops_max: u32,
    /// Most bytes of reads handed to the device at once. How many are is found by measurement: as many as keep it busy.
    pub read_inflight_bytes_max: u64,
    /// Most writes handed to the device at once.
    pub write_ops_max: u32,
    /// Most bytes of writes handed to the device at once.
    pub write_inflight_bytes_max: u64,
    /// p99 of a read's time on the device, microseconds, that writes must leave room for: over it, writes in flight shrink; under it,
    /// they grow again. 0: twice what reads alone are measured to need.
    pub read_p99_target_us: u32,
    /// A transfer without answer for this long is given up: its caller is told, the ring is replaced, the buffer stays away until the device lets go.
    pub deadline_ms: u64,
}

impl Default for IoSettings {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            direct: true,
            threads: 4,
            sqpoll_idle_ms: 0,
            iopoll: false,
            read_ops_max: 128,
            read_inflight_bytes_max: 64 << 20,
            write_ops_max: 64,
            write_inflight_bytes_max: 32 << 20,
            read_p99_target_us: 0,
            deadline_ms: 30_000,
        }
    }
}

/// When a stored block counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// When the device has taken it: survives the end of the process (kill -9), may be lost in a power cut with the open segment.
    #[default]
    Written,
    /// When the device was told to make it durable, and said so: survives a power cut. One flush serves all blocks that wait.
    Flushed,
}

/// Who leaves first when space is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Reclaim {
    /// The oldest segment, whole. Writes each byte once.
    #[default]
    Fifo,
    /// The oldest segment; blocks read since they were written (or moved) are written again.
    Clock,
    /// The segment whose bytes were read least in proportion to their age; blocks read since are written again.
    ExpectedReuse,
}

/// Which blocks are worth writing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Admission {
    /// All of them.
    #[default]
    All,
    /// Those offered a second time while the first is remembered.
    SecondTouch {
        /// How many keys are remembered.
        remembered_keys: u32,
    },
    /// As many bytes as keep within the drive's endurance.
    Budget {
        /// Gigabytes (10^9 bytes) a day, header and moved bytes included.
        gb_per_day: f64,
    },
}

/// All that can be set about a store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Bytes of one segment; fixed when the store is made. A block must fit in one.
    pub segment_bytes: u64,
    /// When a block counts as stored.
    pub durability: Durability,
    /// Who leaves first when space is needed.
    pub reclaim: Reclaim,
    /// Largest part of a segment that is written again at its reclaim, percent.
    pub second_chance_percent_max: u32,
    /// Which blocks are worth writing.
    pub admission: Admission,
    /// Bytes of blocks that may wait or be on their way to the device. Over it: [`Error::Busy`] and the buffer back.
    pub write_queue_bytes_max: u64,
    /// Bytes of reads that may wait or be on their way from the device. Over it: [`Error::Busy`] and the buffer back.
    pub read_queue_bytes_max: u64,
    /// Bytes of blocks that go with one header.
    pub batch_bytes_max: u64,
    /// Blocks below this many bytes are copied next to their header and written in one piece; larger ones go from the caller's memory.
    pub copy_below_bytes: u64,
    /// Bytes of pinned blocks, in percent of the store.
    pub pinned_percent_max: u32,
    /// Make a new store, whatever the devices hold now.
    pub format: bool,
    /// How the device is used.
    pub io: IoSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            durability: Durability::Written,
            reclaim: Reclaim::Fifo,
            second_chance_percent_max: 50,
            admission: Admission::All,
            write_queue_bytes_max: 256 << 20,
            read_queue_bytes_max: 256 << 20,
            batch_bytes_max: 1 << 20,
            copy_below_bytes: 64 << 10,
            pinned_percent_max: 50,
            format: false,
            io: IoSettings::default(),
        }
    }
}

impl Settings {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and the rule.
    pub fn validate(&self) -> Result<()> {
        let rule = |ok: bool, text: &str| match ok {
            true => Ok(()),
            false => Err(Error::Invalid(text.to_string())),
        };
        rule(
            self.segment_bytes.is_multiple_of(PAGE as u64)
                && (64 << 10..=1 << 30).contains(&self.segment_bytes),
            "segment_bytes: whole pages of 4096, from 64 KiB to 1 GiB",
        )?;
        rule(
            self.second_chance_percent_max <= 90,
            "second_chance_percent_max: at most 90",
        )?;
        rule(
            self.pinned_percent_max <= 80,
            "pinned_percent_max: at most 80",
        )?;
        rule(
            self.batch_bytes_max >= PAGE as u64,
            "batch_bytes_max: at least 4096",
        )?;
        rule(
            self.io.threads > 0 && self.io.read_ops_max > 0 && self.io.write_ops_max > 0,
            "io: threads, read_ops_max and write_ops_max: at least 1",
        )?;
        rule(self.io.deadline_ms > 0, "io.deadline_ms: at least 1")?;
        match self.admission {
            Admission::SecondTouch { remembered_keys: 0 } => {
                rule(false, "admission.remembered_keys: at least 1")
            }
            Admission::Budget { gb_per_day } => {
                rule(gb_per_day > 0.0, "admission.gb_per_day: above 0")
            }
            _ => Ok(()),
        }
    }
}
