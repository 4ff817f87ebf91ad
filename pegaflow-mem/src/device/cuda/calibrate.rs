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
use super::kernels::{Kernels, Pace};
use super::settings::CudaSettings;
use crate::Result;
use crate::copy::Rates;
use crate::copy::method::{Curve, STAGED_PIECE_BYTES};
use crate::device::Direction;
use crate::layout::{BlockShape, KvLayout, Slot};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes moved for a point.
const POINT_BYTES: u64 = 16 << 20;
/// Most pieces of a point: short pieces are measured with fewer bytes.
const POINT_PIECES: u64 = 256;
/// The block that kernels are measured with.
const BLOCK_BYTES: u64 = 64 << 10;
/// Rings that are tried, small ones first: `(bytes of a slot, slots)`. Beside an engine a burst waits for room on the GPU,
/// and while it waits the DMA of the slot before must go on: a slot below 16 MiB is taken only where no larger one fits.
const RINGS: [(u64, u64); 6] = [
    (1 << 20, 2),
    (2 << 20, 2),
    (4 << 20, 2),
    (8 << 20, 2),
    (16 << 20, 2),
    (32 << 20, 2),
];
/// The smallest slot that is tried where it fits.
const SLOT_BYTES_MIN: u64 = 16 << 20;
/// As many thread blocks as a burst has.
const ALL: u32 = u32::MAX;
/// What a larger ring must gain.
const RING_GAIN_MIN: f64 = 1.001;
/// Slots that a ring is tried with, at a time.
const PIPELINE_SLOTS: u64 = 4;
/// Changes when the meaning of the file's lines does.
const FORMAT: &str = "pegaflow copy rates 3";

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
    let bench = Bench::new(context, kernels, settings);
    // Not being able to measure is no reason not to copy.
    let Ok(mut bench) = bench else {
        return Default::default();
    };
    #[cfg(test)]
    if context.facts().model == "simulated" {
        bench.simulated = true;
    }
    let rates =
        [Direction::Save, Direction::Load].map(|direction| bench.direction(direction, settings));
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
    dma: Stream,
    start: Event,
    end: Event,
    device: DeviceMemory,
    staging: Option<DeviceMemory>,
    host: PinnedMemory,
    sums: DeviceMemory,
    layout: VerifiedLayout,
    _table: DeviceMemory,
    kernels: Option<&'a Kernels>,
    scratch: BatchScratch,
    /// Nothing to measure: the figures are made up.
    simulated: bool,
}

impl<'a> Bench<'a> {
    fn new(
        context: &Arc<Context>,
        kernels: Option<&'a Kernels>,
        settings: &CudaSettings,
    ) -> Result<Self> {
        let stream = Stream::new(context)?;
        let device = DeviceMemory::new(context, POINT_BYTES)?;
        let host = PinnedMemory::new(context, POINT_BYTES as usize)?;
        let sums = DeviceMemory::new(context, super::issue::ENTRIES_DENSE_MAX as u64 * 8)?;
        let inner_bytes = BLOCK_BYTES as u32;
        let shape = BlockShape {
            layers: 1,
            parts: 1,
            heads: 1,
            inner_bytes,
        };
        let blocks = (POINT_BYTES / BLOCK_BYTES) as u32;
        let layout = KvLayout::dense(shape, Slot::whole(&shape), device.span().address(), blocks)?;
        let table = DeviceMemory::new(context, VerifiedLayout::table_bytes(&layout))?;
        let layout = VerifiedLayout::new(context, Arc::new(layout), &stream, &host, table.span())?;
        // The largest ring that may be chosen, or none.
        let staging = fitting(share(settings))
            .map(|(slot, slots)| slot * slots)
            .max()
            .and_then(|bytes| DeviceMemory::new(context, bytes).ok());
        Ok(Self {
            start: Event::timed(context)?,
            end: Event::timed(context)?,
            dma: Stream::new(context)?,
            stream,
            device,
            staging,
            host,
            sums,
            layout,
            _table: table,
            kernels,
            scratch: BatchScratch::default(),
            simulated: false,
        })
    }

    /// Microseconds on the GPU of `times` times `work`.
    fn time(&mut self, times: u32, work: &mut dyn FnMut(&mut Self) -> Result<()>) -> Option<f64> {
        self.stream.record(&self.start).ok()?;
        let done = (0..times).try_for_each(|_| work(self));
        self.stream.record(&self.end).ok()?;
        self.end.synchronize().ok()?;
        done.ok()?;
        Some(self.end.micros_since(&self.start).ok()?.max(0.1))
    }

    /// The least of a few times, in microseconds.
    fn least(&mut self, work: &mut dyn FnMut(&mut Self) -> Result<()>) -> f64 {
        let times = (0..6).filter_map(|_| self.time(1, work));
        times.fold(20.0, f64::min)
    }

    /// GB/s of `work`, which moves `bytes`: three times after one to warm up, less what a start costs.
    fn rate(
        &mut self,
        bytes: u64,
        start_us: f64,
        mut work: impl FnMut(&mut Self) -> Result<()>,
    ) -> Option<f64> {
        self.time(1, &mut work)?;
        let us = self.time(3, &mut work)?.min(self.time(3, &mut work)?);
        Some(3.0 * bytes as f64 / (us - start_us).max(us / 2.0) / 1e3)
    }

    fn direction(&mut self, direction: Direction, settings: &CudaSettings) -> Rates {
        if self.simulated {
            return self.made_up();
        }
        let kib = |n: u64| n << 10;
        let one = &mut |b: &mut Self| b.pieces_n(direction, 4096, 1, false);
        let start_us = self.least(one);
        let mut rates = Rates {
            dma_us: start_us + 5.0,
            plain: self.curve(&[kib(16), kib(256), kib(4096)], start_us, |b, bytes| {
                b.pieces(direction, bytes, false)
            }),
            rows: self.curve(&[kib(4), kib(16), kib(64)], start_us, |b, bytes| {
                b.rows(direction, bytes)
            }),
            ..Rates::default()
        };
        if self.stream.has_batch() {
            let sizes = [kib(8), kib(16), kib(64), kib(256), kib(1024), kib(4096)];
            rates.batch = self.curve(&sizes, start_us, |b, bytes| {
                b.pieces(direction, bytes, true)
            });
        }
        if self.kernels.is_some() {
            self.kernel_rates(direction, settings, &mut rates);
        }
        rates
    }

    /// For the simulated driver, whose time means nothing.
    fn made_up(&self) -> Rates {
        let curve = |a, b| Curve(vec![(64 << 10, a), (1 << 20, b)]);
        let kernels = self.kernels.is_some();
        Rates {
            plain: curve(10.0, 40.0),
            batch: if self.stream.has_batch() {
                curve(20.0, 50.0)
            } else {
                Curve::default()
            },
            rows: curve(40.0, 50.0),
            direct: if kernels { 45.0 } else { 0.0 },
            direct_us: 10.0,
            dma_us: 10.0,
            staged_us: 10.0,
            ring: kernels.then_some((4 << 20, 2)),
            staged: if kernels { 50.0 } else { 0.0 },
        }
    }

    fn kernel_rates(&mut self, direction: Direction, settings: &CudaSettings, rates: &mut Rates) {
        let all = POINT_BYTES / BLOCK_BYTES;
        let blocks_max = settings.direct_blocks;
        let one = &mut |b: &mut Self| b.kernel(direction, None, 1, blocks_max);
        let one_us = self.least(one);
        let direct = self.rate(POINT_BYTES, one_us, |b| {
            b.kernel(direction, None, all, blocks_max)
        });
        rates.direct = direct.unwrap_or(0.0);
        let transfer = BLOCK_BYTES as f64 / rates.direct.max(1.0) / 1e3;
        rates.direct_us = (one_us - transfer).max(1.0);
        let staging = self.staging.as_ref().map(DeviceMemory::span);
        let Some(staging) = staging else { return };
        let some = &mut |b: &mut Self| b.kernel(direction, Some(staging), 16, ALL);
        rates.staged_us = self.least(some) + 10.0;
        let room = share(settings).min(staging.bytes());
        let largest = fitting(room).map(|r| r.0).max().unwrap_or(0);
        for (slot, slots) in fitting(room).filter(|r| r.0 >= largest.min(SLOT_BYTES_MIN)) {
            let rate = self.pipeline(direction, slot, slots);
            // A larger ring must be worth its memory.
            if rate.is_some_and(|rate| rate > rates.staged * RING_GAIN_MIN) {
                (rates.staged, rates.ring) = (rate.unwrap_or(0.0), Some((slot, slots)));
            }
        }
    }

    /// GB/s of a staged copy of long pieces through a ring.
    fn pipeline(&mut self, direction: Direction, slot: u64, slots: u64) -> Option<f64> {
        let context = Arc::clone(self.layout.context());
        let event = || Event::new(&context);
        let events: Vec<(Event, Event)> = (0..slots)
            .map(|_| Ok((event()?, event()?)))
            .collect::<Result<_>>()
            .ok()?;
        self.rate(PIPELINE_SLOTS * slot, 20.0, |b| {
            b.pass(direction, slot, PIPELINE_SLOTS, &events)
        })
    }

    /// `n` slots through a ring. `events` are of the kernel's and of the DMA's side of each slot.
    fn pass(
        &mut self,
        direction: Direction,
        slot: u64,
        n: u64,
        events: &[(Event, Event)],
    ) -> Result<()> {
        let Some(staging) = self.staging.as_ref().map(DeviceMemory::span) else {
            return Ok(());
        };
        let blocks = slot / BLOCK_BYTES;
        for i in 0..n as usize {
            let at = i % events.len();
            let part = staging.part(at as u64 * slot, slot);
            let (kernel, dma) = &events[at];
            if direction == Direction::Save {
                self.stream.wait(dma)?;
                self.kernel(direction, Some(part), blocks, ALL)?;
                self.stream.record(kernel)?;
                self.dma.wait(kernel)?;
                self.slot_by_dma(direction, part)?;
                self.dma.record(dma)?;
            } else {
                self.dma.wait(kernel)?;
                self.slot_by_dma(direction, part)?;
                self.dma.record(dma)?;
                self.stream.wait(dma)?;
                self.kernel(direction, Some(part), blocks, ALL)?;
                self.stream.record(kernel)?;
            }
        }
        // The end is that of both sides.
        events.iter().try_for_each(|(_, dma)| self.stream.wait(dma))
    }

    fn slot_by_dma(&mut self, direction: Direction, slot: Span) -> Result<()> {
        let piece = STAGED_PIECE_BYTES.min(slot.bytes());
        let n = slot.bytes() / piece;
        let room = self.host.span().bytes() / piece;
        let copies: Vec<_> = (0..n)
            .map(|i| {
                let far = self.host.span().part(i * 7 % room * piece, piece);
                sides(direction, slot.part(i * piece, piece), far)
            })
            .collect();
        self.dma.copy_batch(&copies, &mut self.scratch)
    }

    /// GB/s by length of piece. Short pieces come with fewer bytes.
    fn curve(
        &mut self,
        sizes: &[u64],
        start_us: f64,
        mut run: impl FnMut(&mut Self, u64) -> Result<()>,
    ) -> Curve {
        let mut points = vec![];
        for bytes in sizes {
            if let Some(rate) = self.rate(Self::point_bytes(*bytes), start_us, |b| run(b, *bytes)) {
                points.push((*bytes, rate));
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

    /// Rectangles of 32 rows, four times as far apart in the host's memory as they are long.
    fn rows(&mut self, direction: Direction, width: u64) -> Result<()> {
        let rows = 32.min(POINT_BYTES / (4 * width));
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

    /// A kernel over `blocks` blocks, between the engine's side and `staged`, or the host's memory.
    fn kernel(
        &mut self,
        direction: Direction,
        staged: Option<Span>,
        blocks: u64,
        blocks_max: u32,
    ) -> Result<()> {
        let Some(kernels) = self.kernels else {
            return Ok(());
        };
        let bytes = blocks * BLOCK_BYTES;
        let far = staged.unwrap_or(self.host.span()).part(0, bytes);
        let all = self.layout.layout().blocks();
        let blocks: Vec<u32> = (0..blocks as u32).map(|i| i % all).collect();
        let launch = Launch {
            layout: &self.layout,
            rows: 0..1,
            far: Far::Dense {
                span: far,
                blocks: &blocks,
            },
            far_row_stride: BLOCK_BYTES,
            sums: Sums::PerHead(self.sums.span()),
            publish: None,
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        let blocks_max = blocks_max.min(kernels.all_blocks());
        kernels.launch(
            super::issue::work(direction),
            &self.stream,
            &launch,
            blocks_max,
            Pace::Patient,
        )
    }
}

/// Device memory that the ring of a direction may have.
fn share(settings: &CudaSettings) -> u64 {
    settings.staging_bytes_max / 2
}

/// The rings that fit.
fn fitting(bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    RINGS
        .into_iter()
        .filter(move |(slot, slots)| slot * slots <= bytes)
}

fn sides(direction: Direction, near: Span, far: Span) -> (Span, Span) {
    match direction {
        Direction::Save => (far, near),
        Direction::Load => (near, far),
    }
}
