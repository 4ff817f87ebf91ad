// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Measures once, on the device itself, what each way of copying costs; keeps it on disk by device and driver.
//!
//! Takes well under 200 ms. What cannot be measured (no memory for it, a call that is missing) stays empty, and the
//! choice does without. Knows nothing of jobs: it times streams.

use super::driver::{
    BatchScratch, CHUNK_BYTES_MAX, Context, DeviceMemory, Event, Far, Launch, PinnedMemory, Row2d,
    Span, Stream, Sums, VerifiedLayout,
};
use super::kernels::Kernels;
use super::settings::CudaSettings;
use crate::Result;
use crate::copy::Rates;
use crate::copy::method::Curve;
use crate::device::Direction;
use crate::layout::{BlockShape, KvLayout, Slot};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes moved for a point.
const POINT_BYTES: u64 = 16 << 20;
/// Most pieces of a point: short pieces are measured with fewer bytes.
const POINT_PIECES: u64 = 128;
/// The block that kernels are measured with.
const BLOCK_BYTES: u64 = 64 << 10;
/// Changes when the meaning of the file's lines does.
const FORMAT: &str = "pegaflow copy rates 1";

/// The rates of both directions (save, load): from the cache, else measured and cached.
pub(super) fn rates(
    context: &Arc<Context>,
    kernels: Option<&Kernels>,
    settings: &CudaSettings,
) -> [Rates; 2] {
    let file = cache_file(context, settings);
    if let Some(rates) = file
        .as_ref()
        .and_then(|f| parse(&std::fs::read_to_string(f).ok()?))
    {
        return rates;
    }
    let bench = Bench::new(context, kernels);
    // Not being able to measure is no reason not to copy.
    let Ok(mut bench) = bench else {
        return Default::default();
    };
    let rates = [
        bench.direction(Direction::Save),
        bench.direction(Direction::Load),
    ];
    if let Some(file) = file {
        let text = format!(
            "{FORMAT}\n{}{}",
            rates[0].to_text("save"),
            rates[1].to_text("load")
        );
        // A cache that cannot be written costs a measurement at the next start.
        let _ = std::fs::create_dir_all(file.parent().unwrap_or(&file));
        let _ = std::fs::write(&file, text);
    }
    rates
}

fn parse(text: &str) -> Option<[Rates; 2]> {
    let body = text.strip_prefix(FORMAT)?;
    Some([
        Rates::from_text("save", body)?,
        Rates::from_text("load", body)?,
    ])
}

fn cache_file(context: &Context, settings: &CudaSettings) -> Option<PathBuf> {
    let facts = context.facts();
    let plain = |s: &str| -> String {
        s.chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect()
    };
    let name = format!(
        "{}-{}-{}",
        plain(&facts.model),
        plain(&facts.pci),
        facts.driver_version
    );
    settings
        .cache_dir
        .as_ref()
        .map(|dir| dir.join(format!("{name}.rates")))
}

/// What is needed to measure.
struct Bench<'a> {
    stream: Stream,
    start: Event,
    end: Event,
    device: DeviceMemory,
    host: PinnedMemory,
    sums: DeviceMemory,
    layout: VerifiedLayout,
    kernels: Option<&'a Kernels>,
    scratch: BatchScratch,
}

impl<'a> Bench<'a> {
    fn new(context: &Arc<Context>, kernels: Option<&'a Kernels>) -> Result<Self> {
        let stream = Stream::new(context)?;
        let device = DeviceMemory::new(context, POINT_BYTES * 2)?;
        let host = PinnedMemory::new(context, POINT_BYTES as usize)?;
        let sums = DeviceMemory::new(context, POINT_BYTES / BLOCK_BYTES * 8)?;
        let shape = BlockShape {
            layers: 1,
            parts: 1,
            heads: 1,
            inner_bytes: BLOCK_BYTES as u32,
        };
        let blocks = (POINT_BYTES / BLOCK_BYTES) as u32;
        let layout = KvLayout::dense(shape, Slot::whole(&shape), device.span().address(), blocks)?;
        let layout = VerifiedLayout::new(context, Arc::new(layout), &stream)?;
        Ok(Self {
            start: Event::timed(context)?,
            end: Event::timed(context)?,
            stream,
            device,
            host,
            sums,
            layout,
            kernels,
            scratch: BatchScratch::default(),
        })
    }

    /// Microseconds that `work` takes on the GPU: the better of two.
    fn time(&mut self, mut work: impl FnMut(&mut Self) -> Result<()>) -> Option<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..2 {
            self.stream.record(&self.start).ok()?;
            let done = work(self);
            self.stream.record(&self.end).ok()?;
            self.end.synchronize().ok()?;
            done.ok()?;
            best = best.min(self.end.micros_since(&self.start).ok()?);
        }
        Some(best.max(0.1))
    }

    fn direction(&mut self, direction: Direction) -> Rates {
        let kib = |n: u64| n << 10;
        let has_batch = self.stream.has_batch();
        let mut rates = Rates {
            plain: self.curve(
                &[kib(16), kib(64), kib(256), kib(1024), kib(4096)],
                |b, bytes| b.pieces(direction, bytes, false),
            ),
            ..Rates::default()
        };
        if has_batch {
            let sizes = [kib(16), kib(64), kib(256), kib(1024), kib(4096)];
            rates.batch = self.curve(&sizes, |b, bytes| b.pieces(direction, bytes, true));
        }
        rates.rows = self.curve(&[kib(4), kib(16), kib(64)], |b, bytes| {
            b.rows(direction, bytes)
        });
        rates.dma_us = self
            .time(|b| b.pieces_n(direction, 4096, 1, false))
            .unwrap_or(20.0)
            + 5.0;
        if self.kernels.is_some() {
            let bytes = POINT_BYTES;
            let us = self.time(|b| b.kernel(direction, true, POINT_BYTES / BLOCK_BYTES));
            rates.direct = us.map_or(0.0, |us| bytes as f64 / us / 1e3);
            rates.direct_us = self.time(|b| b.kernel(direction, true, 1)).unwrap_or(20.0)
                - if rates.direct > 0.0 {
                    BLOCK_BYTES as f64 / rates.direct / 1e3
                } else {
                    0.0
                };
            rates.direct_us = rates.direct_us.max(1.0);
            rates.staged_us = self
                .time(|b| b.kernel(direction, false, 16))
                .unwrap_or(20.0)
                + 10.0;
        }
        rates
    }

    /// GB/s by length of piece. Short pieces come with fewer bytes.
    fn curve(&mut self, sizes: &[u64], mut run: impl FnMut(&mut Self, u64) -> Result<()>) -> Curve {
        let mut points = vec![];
        for bytes in sizes {
            if let Some(us) = self.time(|b| run(b, *bytes)) {
                points.push((*bytes, Self::point_bytes(*bytes) as f64 / us / 1e3));
            }
        }
        Curve(points)
    }

    fn point_bytes(piece: u64) -> u64 {
        (piece * POINT_PIECES).min(POINT_BYTES)
    }

    fn pieces(&mut self, direction: Direction, piece: u64, batch: bool) -> Result<()> {
        self.pieces_n(direction, piece, Self::point_bytes(piece) / piece, batch)
    }

    /// `n` pieces, in an order that is not that of their addresses.
    fn pieces_n(&mut self, direction: Direction, piece: u64, n: u64, batch: bool) -> Result<()> {
        let step = (n / 2) | 1;
        let copies: Vec<_> = (0..n)
            .map(|i| {
                let near = self.device.span().part(i * piece, piece);
                let far = self.host.span().part(i * step % n * piece, piece);
                sides(direction, near, far)
            })
            .collect();
        if batch {
            return self.stream.copy_batch(&copies, &mut self.scratch);
        }
        copies
            .iter()
            .try_for_each(|(to, from)| self.stream.copy(*to, *from))
    }

    /// Rectangles of 64 rows, four times as far apart in the host's memory as they are long.
    fn rows(&mut self, direction: Direction, width: u64) -> Result<()> {
        let rows = 64.min(POINT_BYTES / (4 * width));
        let (pitch, block) = (4 * width, rows * width);
        let n = (Self::point_bytes(width) / block).max(1);
        let room = self.host.span().bytes() / (pitch * rows);
        let copies: Vec<_> = (0..n)
            .map(|i| {
                let near = self.device.span().part(i * block, block);
                let far = self.host.span().part(i % room * pitch * rows, pitch * rows);
                sides(direction, near, far)
            })
            .collect();
        let (to_pitch, from_pitch) = match direction {
            Direction::Save => (pitch, width),
            Direction::Load => (width, pitch),
        };
        let form = Row2d {
            width,
            rows,
            to_pitch,
            from_pitch,
        };
        self.stream.copy_rows(&copies, form, &mut self.scratch)
    }

    /// A kernel over `blocks` blocks: on host memory, or between two places on the device.
    fn kernel(&mut self, direction: Direction, host: bool, blocks: u64) -> Result<()> {
        let Some(kernels) = self.kernels else {
            return Ok(());
        };
        let (work, bytes) = (super::issue::work(direction), blocks * BLOCK_BYTES);
        let staged = self.device.span().part(POINT_BYTES, bytes);
        let far = if host {
            self.host.span().part(0, bytes)
        } else {
            staged
        };
        let blocks: Vec<u32> = (0..blocks as u32).collect();
        let launch = Launch {
            layout: &self.layout,
            rows: 0..1,
            far: Far::Dense {
                span: far,
                blocks: &blocks,
            },
            far_row_stride: BLOCK_BYTES,
            sums: Sums::PerHead(self.sums.span()),
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        let blocks_max = if host { 16 } else { kernels.all_blocks() };
        kernels.launch(work, &self.stream, &launch, blocks_max)
    }
}

fn sides(direction: Direction, near: Span, far: Span) -> (Span, Span) {
    match direction {
        Direction::Save => (far, near),
        Direction::Load => (near, far),
    }
}
