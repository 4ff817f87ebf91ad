// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Gives the steps of a job to the GPU, each method in its own way. Only submits: never waits for the GPU.

use super::driver::{
    BatchScratch, CHUNK_BYTES_MAX, Context, Event, Far, Launch, Publish, RegisteredPool, Row2d,
    Signal, Span, Stream, Sums, WORDS,
};
use super::job::Job;
use super::kernels::{Kernels, Pace, Work};
use super::ring::Ring;
use crate::copy::{Cut, JobShape, Method, Short, Step};
use crate::device::Direction;
use crate::layout::BlockCopy;
use crate::{Error, Result};
use std::sync::Arc;

/// Entries of a launch that carries blocks alone.
pub(super) const ENTRIES_DENSE_MAX: u32 = WORDS as u32;
/// Entries of a launch that carries blocks and places.
pub(super) const ENTRIES_PLACES_MAX: u32 = WORDS as u32 / 3;
/// Bytes of a step that needs no slot.
pub(super) const STEP_BYTES: u64 = 16 << 20;

/// Entries of a save shorter than this go in steps of a quarter of a slot: DMA moves short pieces to the host faster while what it
/// reads is still in the GPU's cache (256 KiB: 94 % of the link instead of 91 % on an H200).
const SAVE_PIECE_BYTES: u64 = 2 << 20;
/// While DMA moves so many bytes or fewer, it is done sooner than a patient burst beside a busy engine.
const URGENT_BYTES: u64 = 12 << 20;

/// The place of a step among others.
pub(super) struct Turn<'a> {
    /// Bytes that DMA moves while the kernel of this step runs: those of the step before (save) or after (load).
    pub meanwhile: u64,
    /// For the last step of a job: how the host learns of its end.
    pub end: Option<Signal<'a>>,
}

/// Streams and scratch of one direction.
pub(super) struct Issuer {
    pub kernel: Stream,
    pub dma: Stream,
    /// Orders `dma` after `kernel` and the reverse, outside the ring.
    pub bridge: Event,
    pub ring: Option<Ring>,
    /// Counters of kernels on `kernel` and on `dma`.
    pub arrivals: [Span; 2],
    pub direct_blocks: u32,
    pub scratch: Scratch,
}

/// Arrays kept between steps.
#[derive(Default)]
pub(super) struct Scratch {
    batch: BatchScratch,
    copies: Vec<(Span, Span)>,
    blocks: Vec<u32>,
    places: Vec<(u32, u64)>,
}

/// How a job is cut for its method. `group_layers`: layers that are signalled together.
pub(super) fn cut(
    job: &JobShape,
    method: Method,
    direction: Direction,
    ring: Option<&Ring>,
    group_rows: Option<u32>,
) -> Cut {
    let (step_bytes_max, step_entries_max) = match method {
        Method::Staged => {
            let slot = ring.map_or(0, Ring::slot_bytes);
            let short = direction == Direction::Save && job.entry_bytes() < SAVE_PIECE_BYTES;
            let part = (slot / 4).max(job.row_bytes);
            (if short { part } else { slot }, ENTRIES_DENSE_MAX)
        }
        Method::Direct => (STEP_BYTES.max(job.row_bytes), ENTRIES_PLACES_MAX),
        Method::Plain | Method::Batch => (STEP_BYTES.max(job.row_bytes), ENTRIES_DENSE_MAX),
    };
    Cut {
        step_bytes_max,
        step_entries_max,
        group_rows,
        short: (method == Method::Staged).then_some(match direction {
            Direction::Save => Short::First,
            Direction::Load => Short::Last,
        }),
    }
}

impl Issuer {
    pub(super) fn new(
        context: &Arc<Context>,
        arrivals: [Span; 2],
        direct_blocks: u32,
    ) -> Result<Self> {
        Ok(Self {
            kernel: Stream::new(context)?,
            dma: Stream::new(context)?,
            bridge: Event::new(context)?,
            ring: None,
            arrivals,
            direct_blocks,
            scratch: Scratch::default(),
        })
    }

    /// Sets the ring up; without device memory for it the staged way stays closed.
    pub(super) fn set_ring(&mut self, context: &Arc<Context>, slot_bytes: u64, slots: usize) {
        self.ring = Ring::new(context, slot_bytes, slots).ok();
    }

    /// Submits one step. Says whether it also brings the job's checksums to the host, and tells it where the kernel is what
    /// ends the job.
    pub(super) fn step(
        &mut self,
        job: &Job,
        step: &Step,
        kernels: Option<&Kernels>,
        turn: Turn<'_>,
    ) -> Result<bool> {
        let publishes = turn.end.is_some();
        let pool_step = |pool: &RegisteredPool| match (job.method, kernels) {
            (Method::Staged, Some(k)) => self.staged(job, step, k, pool, turn).map(|()| publishes),
            (Method::Direct, Some(k)) => self.direct(job, step, k, pool, turn).map(|()| publishes),
            (Method::Plain | Method::Batch, _) => {
                self.dma(job, step, kernels, pool).map(|()| false)
            }
            _ => Err(Error::Unsupported {
                what: "copy kernels",
                reason: "not loaded".into(),
            }),
        };
        job.with_pool(pool_step).unwrap_or(Err(Error::Closed))
    }

    /// The stream that ends a job of this kind.
    pub(super) fn last(&self, job: &Job) -> &Stream {
        match (job.method, job.direction) {
            (Method::Direct, _) | (Method::Staged, Direction::Load) => &self.kernel,
            (Method::Staged, Direction::Save) => &self.dma,
            (Method::Plain | Method::Batch, _) => &self.dma,
        }
    }

    /// Submits the end: checksums to the host, unless the last step has `published` them, then the word.
    pub(super) fn end(
        &mut self,
        job: &Job,
        kernels: Option<&Kernels>,
        end: Signal<'_>,
        published: bool,
    ) -> Result<()> {
        let by_dma = (job.method, job.direction) == (Method::Staged, Direction::Save);
        if published && !by_dma {
            return Ok(());
        }
        let dma = matches!(job.method, Method::Plain | Method::Batch);
        if dma && kernels.is_some() {
            // The checksum kernels run on the other stream.
            self.kernel.record(&self.bridge)?;
            self.dma.wait(&self.bridge)?;
        }
        let last = self.last(job);
        let arrivals = self.arrivals[usize::from(std::ptr::eq(last, &raw const self.dma))];
        if let Some(kernels) = kernels.filter(|_| !published)
            && let Some(publish) = publish_of(job, Some(end), arrivals)
        {
            return kernels.publish(last, &publish);
        }
        last.write_word(end.memory, end.word, end.value)
    }

    fn staged(
        &mut self,
        job: &Job,
        step: &Step,
        kernels: &Kernels,
        pool: &RegisteredPool,
        turn: Turn<'_>,
    ) -> Result<()> {
        let ring = self.ring.as_mut().ok_or_else(|| Error::Unsupported {
            what: "staging",
            reason: "no device memory for it".into(),
        })?;
        let (slot, events) = ring.turn();
        let slot = slot.part(0, step.bytes);
        self.scratch.blocks.clear();
        self.scratch
            .blocks
            .extend(entries(job, step).iter().map(|e| e.block));
        let launch = Launch {
            layout: &job.layout,
            rows: rows(job, step),
            far: Far::Dense {
                span: slot,
                blocks: &self.scratch.blocks,
            },
            far_row_stride: job.shape.row_bytes,
            sums: sums_of(job, step)?,
            publish: turn.end.and_then(|end| {
                // A save is over when DMA has emptied the slot.
                let signal = (job.direction == Direction::Load).then_some(end);
                publish_of(job, signal, self.arrivals[0])
            }),
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        let grid = kernels.all_blocks();
        let pace = if turn.meanwhile <= URGENT_BYTES {
            Pace::Urgent
        } else {
            Pace::Patient
        };
        match job.direction {
            Direction::Save => {
                if events.used {
                    self.kernel.wait(&events.dma)?;
                }
                kernels.launch(Work::Gather, &self.kernel, &launch, grid, pace)?;
                self.kernel.record(&events.kernel)?;
                self.dma.wait(&events.kernel)?;
                move_slot(&self.dma, job, step, slot, pool, &mut self.scratch)?;
                self.dma.record(&events.dma)?;
            }
            Direction::Load => {
                if events.used {
                    self.dma.wait(&events.kernel)?;
                }
                let mut scratch = std::mem::take(&mut self.scratch.copies);
                move_slot_with(
                    &self.dma,
                    job,
                    step,
                    slot,
                    pool,
                    &mut scratch,
                    &mut self.scratch.batch,
                )?;
                self.dma.record(&events.dma)?;
                self.kernel.wait(&events.dma)?;
                kernels.launch(Work::Scatter, &self.kernel, &launch, grid, pace)?;
                self.kernel.record(&events.kernel)?;
                self.scratch.copies = scratch;
            }
        }
        events.used = true;
        Ok(())
    }

    fn direct(
        &mut self,
        job: &Job,
        step: &Step,
        kernels: &Kernels,
        pool: &RegisteredPool,
        turn: Turn<'_>,
    ) -> Result<()> {
        let launch = Launch {
            layout: &job.layout,
            rows: rows(job, step),
            far: direct_places(job, step, pool, &mut self.scratch.places),
            far_row_stride: job.shape.pool_pitch,
            sums: sums_of(job, step)?,
            publish: turn
                .end
                .and_then(|end| publish_of(job, Some(end), self.arrivals[0])),
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        kernels.launch(
            work(job.direction),
            &self.kernel,
            &launch,
            self.direct_blocks,
            Pace::Patient,
        )
    }

    fn dma(
        &mut self,
        job: &Job,
        step: &Step,
        kernels: Option<&Kernels>,
        pool: &RegisteredPool,
    ) -> Result<()> {
        let layout = job.layout.layout();
        let parts = layout.shape().parts;
        let first = layout.slot().layers.start;
        let rows = rows(job, step);
        debug_assert!(
            rows.start.is_multiple_of(parts) && rows.end.is_multiple_of(parts),
            "steps of whole layers"
        );
        let layers = first + rows.start / parts..first + rows.end / parts;
        self.scratch.copies.clear();
        for entry in entries(job, step) {
            for (near, run) in job.layout.runs(*entry, layers.clone())? {
                let mut at = 0;
                for far in pool.spans(run.pool, run.bytes) {
                    let near = near.part(at, far.bytes());
                    at += far.bytes();
                    let begins = pool.begins_chunk(&far);
                    push_joined(
                        &mut self.scratch.copies,
                        directed(job.direction, near, far),
                        begins,
                    );
                }
            }
        }
        if let (Some(kernels), Direction::Save) = (kernels, job.direction) {
            self.checksum(job, step, kernels)?;
        }
        if job.method == Method::Plain {
            self.scratch
                .copies
                .iter()
                .try_for_each(|(to, from)| self.dma.copy(*to, *from))?;
        } else {
            self.dma
                .copy_batch(&self.scratch.copies, &mut self.scratch.batch)?;
        }
        if let (Some(kernels), Direction::Load) = (kernels, job.direction) {
            self.dma.record(&self.bridge)?;
            self.kernel.wait(&self.bridge)?;
            self.checksum(job, step, kernels)?;
        }
        Ok(())
    }

    fn checksum(&mut self, job: &Job, step: &Step, kernels: &Kernels) -> Result<()> {
        self.scratch.blocks.clear();
        self.scratch
            .blocks
            .extend(entries(job, step).iter().map(|e| e.block));
        let launch = Launch {
            layout: &job.layout,
            rows: rows(job, step),
            far: Far::None {
                blocks: &self.scratch.blocks,
            },
            far_row_stride: 0,
            sums: sums_of(job, step)?,
            publish: None,
            chunk_bytes: CHUNK_BYTES_MAX,
        };
        let grid = kernels.all_blocks();
        kernels.launch(Work::Checksum, &self.kernel, &launch, grid, Pace::Patient)
    }
}

/// The kernel of the direct way.
pub(super) fn work(direction: Direction) -> Work {
    match direction {
        Direction::Save => Work::Gather,
        Direction::Load => Work::Scatter,
    }
}

/// The far side of a direct launch.
pub(super) fn direct_places<'a>(
    job: &Job,
    step: &Step,
    pool: &RegisteredPool,
    places: &'a mut Vec<(u32, u64)>,
) -> Far<'a> {
    let offset = slot_offset(job) + step.rows.start as u64 * job.shape.pool_pitch;
    places.clear();
    places.extend(
        entries(job, step)
            .iter()
            .map(|e| (e.block, e.place + offset)),
    );
    Far::Places {
        span: pool.whole(),
        entries: places,
    }
}

fn entries<'a>(job: &'a Job, step: &Step) -> &'a [BlockCopy] {
    &job.entries[step.entries.start as usize..step.entries.end as usize]
}

/// Rows of a step, counted from the slot's first layer.
pub(super) fn rows(job: &Job, step: &Step) -> std::ops::Range<u32> {
    job.row_first + step.rows.start..job.row_first + step.rows.end
}

/// From a block's place to the first byte of the job in it.
fn slot_offset(job: &Job) -> u64 {
    let layout = job.layout.layout();
    let (shape, slot) = (layout.shape(), layout.slot());
    let layer = slot.layers.start + job.row_first / shape.parts;
    shape.offset(layer, 0, slot.heads.start)
}

/// The end of a job whose checksums are added up on the device; the host is told by `signal`, or later.
fn publish_of<'a>(job: &'a Job, signal: Option<Signal<'a>>, arrivals: Span) -> Option<Publish<'a>> {
    Some(Publish {
        sums: job.device_sums.lock().as_ref()?.span(),
        count: job.count(),
        memory: job.sums.as_ref()?.memory(),
        signal,
        arrivals,
    })
}

fn sums_of<'a>(job: &Job, step: &Step) -> Result<Sums<'a>> {
    let device = job.device_sums.lock();
    let device = device.as_ref().ok_or(Error::Closed)?;
    let heads = job.heads() as u64;
    let at = step.entries.start as u64 * heads * 8;
    Ok(Sums::PerHead(
        device
            .span()
            .part(at, step.entries.len() as u64 * heads * 8),
    ))
}

fn directed(direction: Direction, near: Span, far: Span) -> (Span, Span) {
    match direction {
        Direction::Save => (far, near),
        Direction::Load => (near, far),
    }
}

/// Adds a copy, to the one before where both sides go on and the pool's side stays in its chunk.
fn push_joined(copies: &mut Vec<(Span, Span)>, next: (Span, Span), begins_chunk: bool) {
    if !begins_chunk
        && let Some((to, from)) = copies.last_mut()
        && let (Some(t), Some(f)) = (to.join(&next.0), from.join(&next.1))
    {
        (*to, *from) = (t, f);
        return;
    }
    copies.push(next);
}

fn move_slot(
    dma: &Stream,
    job: &Job,
    step: &Step,
    slot: Span,
    pool: &RegisteredPool,
    scratch: &mut Scratch,
) -> Result<()> {
    move_slot_with(
        dma,
        job,
        step,
        slot,
        pool,
        &mut scratch.copies,
        &mut scratch.batch,
    )
}

/// DMA between a slot and the pool: contiguous pieces where the job holds all heads, rectangles where it does not.
fn move_slot_with(
    dma: &Stream,
    job: &Job,
    step: &Step,
    slot: Span,
    pool: &RegisteredPool,
    copies: &mut Vec<(Span, Span)>,
    batch: &mut BatchScratch,
) -> Result<()> {
    let shape = &job.shape;
    let offset = slot_offset(job) + step.rows.start as u64 * shape.pool_pitch;
    let rows = step.rows.len() as u64;
    let entry_bytes = rows * shape.row_bytes;
    let reach = (rows - 1) * shape.pool_pitch + shape.row_bytes;
    let dense = shape.pool_pitch == shape.row_bytes || rows == 1;
    let mut singly: Vec<(Span, Span)> = vec![];
    copies.clear();
    for (i, entry) in entries(job, step).iter().enumerate() {
        let near = slot.part(i as u64 * entry_bytes, entry_bytes);
        let at = entry.place + offset;
        if dense {
            put_pieces(job, near, pool, at, copies);
        } else if pool.in_one_chunk(at, reach) {
            let far = pool.spans(at, reach).next().expect("one chunk, one span");
            copies.push(directed(job.direction, near, far));
        } else {
            for row in 0..rows {
                let near = near.part(row * shape.row_bytes, shape.row_bytes);
                put_pieces(job, near, pool, at + row * shape.pool_pitch, &mut singly);
            }
        }
    }
    if dense {
        return dma.copy_batch(copies, batch);
    }
    let (to_pitch, from_pitch) = match job.direction {
        Direction::Save => (shape.pool_pitch, shape.row_bytes),
        Direction::Load => (shape.row_bytes, shape.pool_pitch),
    };
    let form = Row2d {
        width: shape.row_bytes,
        rows,
        to_pitch,
        from_pitch,
    };
    if !copies.is_empty() {
        dma.copy_rows(copies, form, batch)?;
    }
    dma.copy_batch(&singly, batch)
}

fn put_pieces(
    job: &Job,
    near: Span,
    pool: &RegisteredPool,
    at: u64,
    copies: &mut Vec<(Span, Span)>,
) {
    let mut done = 0;
    for far in pool.spans(at, near.bytes()) {
        let near = near.part(done, far.bytes());
        done += far.bytes();
        push_joined(
            copies,
            directed(job.direction, near, far),
            pool.begins_chunk(&far),
        );
    }
}
