// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The copy kernels: PTX text in the tree, compiled for this GPU by its driver.
//!
//! `cargo xtask kernels` makes the text from `kernels/copy.cu`. Its target is the oldest GPU served (compute capability
//! 7.0), so one text serves all newer ones.

use super::driver::{Context, Function, Launch, Module, Publish, Stream};
use crate::{Error, Result};
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// The text of the copy kernels.
const COPY_PTX: &str = include_str!("../../../kernels/copy.ptx");
/// Oldest compute capability that the text runs on.
pub(super) const COMPUTE_MIN: (i32, i32) = (7, 0);
/// Threads of a block: 16 warps, each with a chunk of up to 4 KiB in flight.
const THREADS: u32 = 512;
/// Threads of a block that has a multiprocessor for itself.
const THREADS_URGENT: u32 = 1024;
/// Fewer threads where the job is so small that blocks should spread over the multiprocessors.
const THREADS_FEW: u32 = 128;
const FEW_CHUNKS: u64 = 128;

/// What a launch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Near to far.
    Gather,
    /// Far to near.
    Scatter,
    /// Reads the near side for its checksum.
    Checksum,
}

/// How a burst shares the GPU with the engine's kernels. Measured on an H200 beside a loop that leaves no issue slot free,
/// a burst of 16 MiB ends after 270 us or 160 us; the first costs the loop a third of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Beside them, in what they leave.
    Patient,
    /// Before them: each block takes a multiprocessor for itself as soon as one is free.
    Urgent,
}

/// The kernels of one GPU.
pub(super) struct Kernels {
    gather: [Function; 2],
    scatter: [Function; 2],
    checksum: [Function; 2],
    publish: Function,
    multiprocessors: u32,
}

impl Kernels {
    /// Loads the module.
    ///
    /// # Errors
    /// [`Error::Unsupported`] below [`COMPUTE_MIN`]; what the driver's compiler said.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self> {
        let have = context.facts().compute;
        if have < COMPUTE_MIN {
            let (major, minor) = COMPUTE_MIN;
            return Err(Error::Unsupported {
                what: "copy kernels",
                reason: format!(
                    "compute capability {}.{} is older than {major}.{minor}",
                    have.0, have.1
                ),
            });
        }
        let text = CString::new(COPY_PTX).expect("PTX is text without NUL");
        let module = Module::load(context, &text)?;
        let pair = |name: &CStr, small: &CStr| -> Result<[Function; 2]> {
            Ok([module.function(name)?, module.function(small)?])
        };
        Ok(Self {
            gather: pair(c"pegaflow_gather", c"pegaflow_gather_small")?,
            scatter: pair(c"pegaflow_scatter", c"pegaflow_scatter_small")?,
            checksum: pair(c"pegaflow_checksum", c"pegaflow_checksum_small")?,
            publish: module.function(c"pegaflow_publish")?,
            multiprocessors: context.facts().multiprocessors,
        })
    }

    /// Starts `work`, on at most `blocks_max` thread blocks.
    pub(super) fn launch(
        &self,
        work: Work,
        stream: &Stream,
        launch: &Launch<'_>,
        blocks_max: u32,
        pace: Pace,
    ) -> Result<()> {
        let [full, small] = match work {
            Work::Gather => &self.gather,
            Work::Scatter => &self.scatter,
            Work::Checksum => &self.checksum,
        };
        let chunks = launch.chunks();
        let threads = match pace {
            _ if chunks <= FEW_CHUNKS => THREADS_FEW,
            Pace::Patient => THREADS,
            Pace::Urgent => THREADS_URGENT,
        };
        let blocks = chunks
            .div_ceil(threads as u64 / 32)
            .clamp(1, blocks_max.max(1) as u64) as u32;
        full.launch(small, stream, launch, blocks, threads)
    }

    /// Starts the end of a job.
    pub(super) fn publish(&self, stream: &Stream, publish: &Publish<'_>) -> Result<()> {
        self.publish.launch_publish(stream, publish)
    }

    /// Starts every kernel once, on nothing: drivers load kernels at their first start, and that may wait for other work of
    /// the context.
    pub(super) fn warm_up(&self, stream: &Stream) -> Result<()> {
        let pairs = [&self.gather, &self.scatter, &self.checksum];
        pairs
            .into_iter()
            .flatten()
            .try_for_each(|f| f.launch_nothing(stream))?;
        self.publish.launch_nothing(stream)?;
        stream.synchronize()
    }

    /// Blocks for a burst: one a multiprocessor. Twice as many, each of half the size, copied no faster on an idle GPU and
    /// more slowly beside a loop that leaves no issue slot free.
    pub(super) fn all_blocks(&self) -> u32 {
        self.multiprocessors
    }
}
