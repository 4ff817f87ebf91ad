// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! From a caller's job to a submission: checks, the way it takes, its steps and its buffers.

use super::driver::{Launch, RegisteredPool, Signal, Sums, VerifiedLayout};
use super::job::{self, Job, Planned};
use super::kernels::Pace;
use super::lane::{Express, Lane, Submission};
use super::{EngineEvent, Gate, Inner, Uploaded, issue};
use crate::copy::method::Question;
use crate::copy::{JobShape, Method, Step};
use crate::device::{Completer, Completion, CopyJob, DeviceEvent, Direction, Outcome, Refused};
use crate::layout::{BlockCopy, KvLayout};
use crate::{Error, Result};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Chunks of small jobs: shorter, so that all of one is in flight at once.
const EXPRESS_CHUNK_BYTES: u32 = 1024;
/// Partial sums that an express job may bring back for the CPU to add.
const EXPRESS_CHUNKS_MAX: u64 = 8192;

/// What is known of a job before it has buffers.
struct Draft {
    layout: Arc<Uploaded>,
    entries: Vec<BlockCopy>,
    order: Vec<u32>,
    shape: JobShape,
    row_first: u32,
    method: Method,
    steps: Vec<Step>,
    /// Chunk size, if the job goes past the queue.
    express: Option<u32>,
    after: Option<DeviceEvent>,
}

impl Inner {
    pub(super) fn submit(
        &self,
        direction: Direction,
        given: CopyJob,
        signals: bool,
    ) -> std::result::Result<(Completion, Gate), Box<Refused>> {
        let planned = self.context.enter().and_then(|current| {
            let draft = self.draft(direction, &given, signals)?;
            let (planned, steps, express, after) = self.equip(direction, draft, &given)?;
            drop(current);
            Ok((planned, steps, express, after))
        });
        let (planned, steps, express, after) = match planned {
            Ok(planned) => planned,
            Err(error) => return Err(Refused::new(error, given)),
        };
        let (completer, completion) = Completion::new();
        if given.blocks.is_empty() {
            let word = Arc::new(planned.word);
            let gate = Gate::new(&self.context, &word);
            finish_empty(completer, given);
            return Ok((completion, gate));
        }
        let current = match self.context.enter() {
            Ok(current) => current,
            Err(error) => return Err(Refused::new(error, given)),
        };
        let lane = self.lane(direction);
        let backlog = lane.backlog();
        let job = Job::new(direction, given, completer, planned);
        let gate = Gate::new(&self.context, &job.word);
        job.hook(&lane, backlog, self.link_rate(direction));
        match express {
            Some(chunk) => self.send_express(&lane, &job, &steps, chunk),
            None => lane.submit(Submission {
                job,
                steps,
                after,
                signals,
            }),
        }
        drop(current);
        Ok((completion, gate))
    }

    fn lane(&self, direction: Direction) -> Arc<Lane> {
        match direction {
            Direction::Save => Arc::clone(&self.save),
            Direction::Load => Arc::clone(&self.load),
        }
    }

    /// Bytes per microsecond that the link is expected to move.
    fn link_rate(&self, direction: Direction) -> f64 {
        let rates = &self.rates[direction as usize];
        let best = rates
            .batch
            .at(u64::MAX)
            .max(rates.plain.at(u64::MAX))
            .max(rates.direct);
        if best > 0.0 { best * 1e3 } else { 20e3 }
    }

    fn draft(&self, direction: Direction, given: &CopyJob, signals: bool) -> Result<Draft> {
        given.check(self.id, direction)?;
        let pool = given.pool.registration::<RegisteredPool>();
        let pool = pool.ok_or(Error::Foreign { what: "the pool" })?;
        let after = match &given.after {
            Some(event)
                if event
                    .get::<EngineEvent>()
                    .is_some_and(|e| e.done().unwrap_or(true)) =>
            {
                None
            }
            None => None,
            Some(event) if event.get::<EngineEvent>().is_none() => {
                return Err(Error::Foreign { what: "the event" });
            }
            Some(event) => Some(event.clone()),
        };
        let layout = self.verified(&given.layout)?;
        let layers = given.layer_range();
        layout.check(layers.clone())?;
        let (entries, order) = job::sort_entries(given);
        let (block, slot) = (given.layout.shape(), given.layout.slot());
        job::check_destinations(direction, &entries, block.bytes())?;
        let shape = JobShape {
            entries: entries.len() as u32,
            rows: layers.len() as u32 * block.parts,
            row_bytes: slot.heads.len() as u64 * block.inner_bytes as u64,
            pool_pitch: block.heads as u64 * block.inner_bytes as u64,
        };
        let offset = block.offset(layers.start, 0, slot.heads.start);
        let reach = (shape.rows as u64 - 1) * shape.pool_pitch + shape.row_bytes;
        entries
            .iter()
            .try_for_each(|e| pool.cover(e.place + offset, reach))?;
        let row_first = (layers.start - slot.layers.start) * block.parts;
        let group = signals.then(|| self.group_rows(&shape, block.parts));
        let (method, steps) = self.route(direction, &layout, &entries, &shape, layers, group)?;
        let express =
            self.express_chunk(method, &steps, &shape, block.inner_bytes, slot.heads.len());
        // What waits for the engine can still be cancelled: that is the lane's business.
        let express = express.filter(|_| after.is_none());
        Ok(Draft {
            layout,
            entries,
            order,
            shape,
            row_first,
            method,
            steps,
            express,
            after,
        })
    }

    /// Rows that are signalled together.
    fn group_rows(&self, shape: &JobShape, parts: u32) -> u32 {
        let layer_bytes = (shape.entries as u64 * shape.row_bytes * parts as u64).max(1);
        let layers = self.settings.signal_bytes_min.div_ceil(layer_bytes).max(1);
        (layers * parts as u64).min(shape.rows as u64).max(1) as u32
    }

    /// The way a job takes, and its steps.
    fn route(
        &self,
        direction: Direction,
        layout: &VerifiedLayout,
        entries: &[BlockCopy],
        shape: &JobShape,
        layers: std::ops::Range<u32>,
        group: Option<u32>,
    ) -> Result<(Method, Vec<Step>)> {
        let Some(first) = entries.first() else {
            return Ok((Method::Plain, vec![]));
        };
        let direct_open = self.kernels.is_some() && self.context.facts().host_pointer_works;
        let mut question = Question {
            job: *shape,
            runs_per_entry: 1,
            staged_open: false,
            direct_open,
        };
        question.staged_open = self.kernels.is_some() && self.staging_fits(direction, shape);
        question.runs_per_entry = layout.runs(*first, layers)?.count() as u64;
        let open = |m: Method| match m {
            Method::Plain => true,
            Method::Batch => self.context.has_batch(),
            Method::Staged => question.staged_open,
            Method::Direct => direct_open,
        };
        let wanted = self.method.lock().filter(|m| open(*m));
        let method = wanted.unwrap_or_else(|| self.rates[direction as usize].choose(&question));
        let method = if open(method) { method } else { Method::Plain };
        let parts = layout.layout().shape().parts;
        let steps = self.lane(direction).with_issuer(|issuer| {
            let ring = issuer.ring.as_ref();
            if !matches!(method, Method::Plain | Method::Batch) {
                return issue::cut(shape, method, direction, ring, group).steps(shape);
            }
            // Steps of whole layers.
            let by_layer = JobShape {
                rows: shape.rows / parts,
                row_bytes: shape.row_bytes * parts as u64,
                pool_pitch: shape.pool_pitch * parts as u64,
                ..*shape
            };
            let cut = issue::cut(&by_layer, method, direction, None, group.map(|g| g / parts));
            let whole = |s: Step| Step {
                rows: s.rows.start * parts..s.rows.end * parts,
                ..s
            };
            cut.steps(&by_layer).into_iter().map(whole).collect()
        });
        Ok((method, steps))
    }

    /// Whether the staged way is open for a job.
    fn staging_fits(&self, direction: Direction, shape: &JobShape) -> bool {
        self.lane(direction).with_issuer(|issuer| {
            let ring = issuer.ring.as_ref();
            ring.is_some_and(|ring| shape.row_bytes <= ring.slot_bytes())
        })
    }

    fn express_chunk(
        &self,
        method: Method,
        steps: &[Step],
        shape: &JobShape,
        inner: u32,
        heads: usize,
    ) -> Option<u32> {
        let one = method == Method::Direct && steps.len() == 1;
        if !one || shape.bytes() > self.settings.express_bytes_max {
            return None;
        }
        let runs = shape.entries as u64 * shape.rows as u64 * heads as u64;
        let fits = |chunk: &u32| runs * inner.div_ceil(*chunk) as u64 <= EXPRESS_CHUNKS_MAX;
        [EXPRESS_CHUNK_BYTES, super::driver::CHUNK_BYTES_MAX]
            .into_iter()
            .find(fits)
    }

    /// Gives a draft its word and buffers.
    #[expect(
        clippy::type_complexity,
        reason = "taken apart at once by the only caller"
    )]
    fn equip(
        &self,
        direction: Direction,
        draft: Draft,
        given: &CopyJob,
    ) -> Result<(Planned, Vec<Step>, Option<u32>, Option<DeviceEvent>)> {
        let heads = given.layout.slot().heads.len() as u64;
        let word = self.buffers.word(given.layer_range().len() as u32)?;
        let (mut sums, mut device_sums, mut partials) = (None, None, None);
        if self.kernels.is_some() && !draft.entries.is_empty() {
            let count = draft.entries.len() as u64 * heads;
            match draft.express {
                Some(chunk) => {
                    let chunks = given.layout.shape().inner_bytes.div_ceil(chunk);
                    partials = Some(chunks);
                    sums = Some(
                        self.buffers
                            .host(count * draft.shape.rows as u64 * chunks as u64 * 8)?,
                    );
                }
                None => {
                    sums = Some(self.buffers.host(count * 8)?);
                    device_sums =
                        Some(self.lane(direction).with_issuer(|issuer| {
                            self.buffers.device(count * 8, &issuer.kernel)
                        })?);
                }
            }
        }
        let planned = Planned {
            layout: draft.layout,
            entries: draft.entries,
            order: draft.order,
            shape: draft.shape,
            row_first: draft.row_first,
            method: draft.method,
            word,
            sums,
            device_sums,
            partials,
        };
        Ok((planned, draft.steps, draft.express, draft.after))
    }

    fn send_express(&self, lane: &Lane, job: &Arc<Job>, steps: &[Step], chunk_bytes: u32) {
        let start = |express: &mut Express| -> Result<()> {
            let (Some(kernels), Some(sums), Some(step)) = (&self.kernels, &job.sums, steps.first())
            else {
                return Err(Error::Closed);
            };
            let places = &mut express.places;
            let launched = job.with_pool(|pool| {
                let launch = Launch {
                    layout: &job.layout,
                    rows: issue::rows(job, step),
                    far: issue::direct_places(job, step, pool, places),
                    far_row_stride: job.shape.pool_pitch,
                    sums: Sums::Partials {
                        memory: sums.memory(),
                        numbers_at: 0,
                        signal: Signal {
                            memory: self.buffers.words(),
                            word: job.word.index(),
                            value: job.word.end(),
                        },
                        arrivals: express.arrivals,
                    },
                    publish: None,
                    chunk_bytes,
                };
                let work = issue::work(job.direction);
                let grid = self.settings.direct_blocks;
                kernels.launch(work, &express.stream, &launch, grid, Pace::Patient)
            });
            launched.unwrap_or(Err(Error::Closed))
        };
        lane.submit_express(Arc::clone(job), start);
    }

    /// The layout, checked and uploaded once.
    fn verified(&self, layout: &Arc<KvLayout>) -> Result<Arc<Uploaded>> {
        let mut setup = self.setup.lock();
        setup.layouts.retain(|(weak, _)| weak.strong_count() > 0);
        let same = |weak: &Weak<KvLayout>| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(layout));
        if let Some((_, verified)) = setup.layouts.iter().find(|(weak, _)| same(weak)) {
            return Ok(Arc::clone(verified));
        }
        let bytes = VerifiedLayout::table_bytes(layout);
        let pinned = self.buffers.host(bytes)?;
        let table = self.buffers.device(bytes, &setup.stream)?;
        let verified = VerifiedLayout::new(
            &self.context,
            Arc::clone(layout),
            &setup.stream,
            pinned.memory(),
            table.span(),
        )?;
        let verified = Arc::new(Uploaded {
            verified,
            _table: table,
        });
        setup
            .layouts
            .push((Arc::downgrade(layout), Arc::clone(&verified)));
        Ok(verified)
    }
}

fn finish_empty(completer: Completer, given: CopyJob) {
    if let Some(progress) = &given.progress {
        progress.set(given.layer_range().len() as u32);
    }
    completer.finish(Outcome {
        result: Ok(()),
        checksums: vec![],
        bytes: 0,
        blocks: given.blocks,
    });
}

/// How long before the expected end a waiter wakes up to watch the word.
const WATCH_BEFORE: Duration = Duration::from_micros(250);
/// Longest sleep before that.
const WATCH_SLICE: Duration = Duration::from_micros(500);
/// How long it watches without a pause.
const WATCH_FOR: Duration = Duration::from_micros(700);
/// Then it looks this often: the engine's work or the other direction may slow a copy down.
const WATCH_LOOK: Duration = Duration::from_micros(20);
/// Once a copy has taken so many times what it was expected to, the rest is left to the lane's thread.
const WATCH_PATIENCE: u32 = 4;

impl Job {
    /// Lets the caller's own thread see the end, without a thread switch, and pass on a wish to stop.
    fn hook(self: &Arc<Self>, lane: &Arc<Lane>, backlog: u64, bytes_per_us: f64) {
        let job = Arc::downgrade(self);
        let expected = (backlog + self.shape.bytes()) as f64 / bytes_per_us;
        let expected = Duration::from_micros(expected as u64);
        let begun = now();
        let watch = move || {
            let Some(job) = job.upgrade() else { return };
            // In slices: the work ahead may be done sooner than it looked.
            while let Some(early) = expected.checked_sub(begun.elapsed() + WATCH_BEFORE) {
                if job.finish_if_ended() {
                    return;
                }
                std::thread::sleep(early.min(WATCH_SLICE));
            }
            let until = begun.elapsed() + WATCH_FOR;
            while begun.elapsed() < until {
                if job.finish_if_ended() {
                    return;
                }
                std::hint::spin_loop();
            }
            let until = WATCH_PATIENCE * (expected + WATCH_FOR);
            while !job.finish_if_ended() && begun.elapsed() < until {
                std::thread::sleep(WATCH_LOOK);
            }
        };
        let (job, lane) = (Arc::downgrade(self), Arc::downgrade(lane));
        let cancel = move || {
            if let (Some(job), Some(lane)) = (job.upgrade(), lane.upgrade()) {
                job.cancel();
                lane.nudge();
            }
        };
        self.with_completer(|completer| {
            completer.on_wait(watch);
            completer.on_cancel(cancel);
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "a shell: it watches a GPU")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
