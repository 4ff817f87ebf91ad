// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Kernels: loading the module and launching with arguments whose reach was checked.

use super::super::ffi::{self, Handle};
use super::{Context, PinnedMemory, Span, Stream, VerifiedLayout};
use crate::{Error, Result};
use std::ffi::{CStr, c_uint, c_void};
use std::sync::Arc;

/// Longest piece of a run that one warp copies at a time; `CHUNK_MAX` in copy.cu.
pub(in super::super) const CHUNK_BYTES_MAX: u32 = 4096;
/// Entry words a launch can carry; `WORDS` in copy.cu.
pub(in super::super) const WORDS: usize = 960;
/// Entry words of the small form, whose launch is cheaper; `WORDS_SMALL` in copy.cu.
pub(in super::super) const WORDS_SMALL: usize = 24;

pub(super) const FLAG_PARTIALS: u32 = 1;
pub(super) const FLAG_PLACES: u32 = 2;
pub(super) const FLAG_SIGNAL: u32 = 4;
pub(super) const FLAG_PUBLISH: u32 = 8;

/// Divides numbers below 2^31 without a division; mirrors `Divider` in copy.cu, which has the formula.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Divider {
    pub magic: u32,
    pub shift: u32,
}

impl Divider {
    /// By `divisor`, at least 1 and at most 2^24.
    fn new(divisor: u32) -> Self {
        assert!((1..=1 << 24).contains(&divisor), "a count of a launch");
        let shift = 31 + divisor.next_power_of_two().trailing_zeros();
        Self {
            magic: (1u64 << shift).div_ceil(divisor as u64) as u32,
            shift,
        }
    }
}

/// Arguments of the kernels; mirrors `Args` in copy.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Args {
    pub layers: u64,
    pub far: u64,
    pub far_entry_stride: u64,
    pub far_row_stride: u64,
    pub inner_bytes: u64,
    pub sums: u64,
    pub signal: u64,
    pub arrivals: u64,
    pub publish_from: u64,
    pub publish_to: u64,
    pub publish_count: u32,
    pub signal_value: u32,
    pub flags: u32,
    pub entries: u32,
    pub parts: u32,
    pub heads: u32,
    pub row_first: u32,
    pub rows: u32,
    pub layer_first: u32,
    pub chunks_per_run: u32,
    pub chunk_bytes: u32,
    pub dividers: [Divider; 4],
    pub words: [u32; WORDS],
}

const _: () = assert!(size_of::<Args>() == 160 + 4 * WORDS);
const _: () = assert!(std::mem::offset_of!(Args, signal_value) == 84);
const _: () = assert!(std::mem::offset_of!(Args, words) == 156);

/// A loaded module.
pub(in super::super) struct Module {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: cuda.h: module handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Lets the driver compile PTX for this GPU.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's words.
    pub(in super::super) fn load(context: &Arc<Context>, ptx: &CStr) -> Result<Arc<Self>> {
        const ERROR_LOG_BUFFER: c_uint = 5;
        const ERROR_LOG_BUFFER_SIZE: c_uint = 6;
        let mut log = [0u8; 1024];
        let mut options = [ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_SIZE];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let mut handle = std::ptr::null_mut();
        // SAFETY: NUL-ended text; two options with values in the forms that cuda.h gives (a buffer, and its size as a number).
        let code = unsafe {
            (context.api.module_load)(
                &mut handle,
                ptx.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if code != ffi::SUCCESS {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            let said = String::from_utf8_lossy(&log[..end]);
            return Err(Error::Device {
                device: context.facts.label.clone(),
                op: "cuModuleLoadDataEx",
                reason: format!("{} {}", context.api.name_of(code), said.trim()),
            });
        }
        Ok(Arc::new(Self {
            context: Arc::clone(context),
            handle,
        }))
    }

    pub(in super::super) fn function(self: &Arc<Self>, name: &CStr) -> Result<Function> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: an owned module and a C string; writes one handle.
        let code =
            unsafe { (self.context.api.module_function)(&mut handle, self.handle, name.as_ptr()) };
        self.context.check("cuModuleGetFunction", code)?;
        Ok(Function {
            module: Arc::clone(self),
            handle,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let entered = self.context.enter();
        if entered.is_ok() {
            // SAFETY: owned, unloaded once; its kernels are quiet (see the module's invariant).
            unsafe { (self.context.api.module_unload)(self.handle) };
        }
    }
}

/// A kernel.
pub(in super::super) struct Function {
    module: Arc<Module>,
    handle: Handle,
}

// SAFETY: cuda.h: function handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Where the far side of each entry lies.
pub(in super::super) enum Far<'a> {
    /// Side by side from the span's start, `blocks` in order.
    Dense { span: Span, blocks: &'a [u32] },
    /// At an offset of its own in the span: `(block, offset)`.
    Places {
        span: Span,
        entries: &'a [(u32, u64)],
    },
    /// There is none: only checksums are taken.
    None { blocks: &'a [u32] },
}

/// The end of a job whose checksums were added up on the device: they go to the host, then the host is told.
#[derive(Clone, Copy)]
pub(in super::super) struct Publish<'a> {
    /// The sums of the job; zeros when done.
    pub sums: Span,
    pub count: u64,
    /// Where they go, from its first byte on.
    pub memory: &'a PinnedMemory,
    /// The word that tells; without it somebody else does.
    pub signal: Option<Signal<'a>>,
    pub arrivals: Span,
}

/// A word of pinned memory and what is to be stored in it.
#[derive(Clone, Copy)]
pub(in super::super) struct Signal<'a> {
    pub memory: &'a PinnedMemory,
    pub word: usize,
    pub value: u32,
}

/// Where the checksums go.
pub(in super::super) enum Sums<'a> {
    /// Added to one number per entry and head.
    PerHead(Span),
    /// One number per chunk, for the CPU to add up; then `value` in word `word` of the same memory tells the end.
    Partials {
        memory: &'a PinnedMemory,
        numbers_at: u64,
        signal: Signal<'a>,
        arrivals: Span,
    },
}

/// One launch: which rows of which blocks.
pub(in super::super) struct Launch<'a> {
    pub layout: &'a VerifiedLayout,
    /// Rows, counted from the slot's first layer: `layer * parts + part`.
    pub rows: std::ops::Range<u32>,
    pub far: Far<'a>,
    /// Bytes from row to row on the far side.
    pub far_row_stride: u64,
    pub sums: Sums<'a>,
    /// The end of the job, if this launch is its last. Not with [`Sums::Partials`].
    pub publish: Option<Publish<'a>>,
    /// At most [`CHUNK_BYTES_MAX`], a power of two of at least 512.
    pub chunk_bytes: u32,
}

impl Launch<'_> {
    /// Number of chunks, which is also the number of partial sums.
    pub(in super::super) fn chunks(&self) -> u64 {
        let layout = self.layout.layout();
        let runs =
            self.entries() as u64 * self.rows.len() as u64 * layout.slot().heads.len() as u64;
        runs * (layout.shape().inner_bytes as u64).div_ceil(self.chunk_bytes as u64)
    }

    fn entries(&self) -> usize {
        match &self.far {
            Far::Dense { blocks, .. } | Far::None { blocks } => blocks.len(),
            Far::Places { entries, .. } => entries.len(),
        }
    }

    /// Words the launch needs in `Args::words`.
    fn words(&self) -> usize {
        self.entries()
            * if matches!(self.far, Far::Places { .. }) {
                3
            } else {
                1
            }
    }

    fn args(&self) -> Args {
        let layout = self.layout.layout();
        let (shape, slot) = (layout.shape(), layout.slot());
        let row_bytes = slot.heads.len() as u64 * shape.inner_bytes as u64;
        let reach = (self.rows.len() as u64 - 1) * self.far_row_stride + row_bytes;
        assert!(
            self.rows.end <= slot.layers.len() as u32 * shape.parts,
            "rows lie in the slot"
        );
        assert!(
            self.words() <= WORDS,
            "a launch has at most {WORDS} entry words"
        );
        assert!(self.chunk_bytes.is_power_of_two() && self.chunk_bytes <= CHUNK_BYTES_MAX);
        assert!(
            self.chunks() <= u32::MAX as u64 / 2,
            "chunk numbers fit 32 bits"
        );
        let mut args = Args {
            layers: self.layout.table().address(),
            far: 0,
            far_entry_stride: reach,
            far_row_stride: self.far_row_stride,
            inner_bytes: shape.inner_bytes as u64,
            sums: 0,
            signal: 0,
            arrivals: 0,
            publish_from: 0,
            publish_to: 0,
            publish_count: 0,
            signal_value: 0,
            flags: 0,
            entries: self.entries() as u32,
            parts: shape.parts,
            heads: slot.heads.len() as u32,
            row_first: self.rows.start,
            rows: self.rows.len() as u32,
            layer_first: slot.layers.start,
            chunks_per_run: shape.inner_bytes.div_ceil(self.chunk_bytes),
            chunk_bytes: self.chunk_bytes,
            dividers: [
                shape.inner_bytes.div_ceil(self.chunk_bytes),
                slot.heads.len() as u32,
                self.rows.len() as u32,
                shape.parts,
            ]
            .map(Divider::new),
            words: [0; WORDS],
        };
        self.put_far(&mut args, reach);
        self.put_sums(&mut args);
        if let Some(publish) = &self.publish {
            publish.put(&mut args);
        }
        args
    }

    fn put_far(&self, args: &mut Args, reach: u64) {
        let blocks_max = self.layout.layout().blocks();
        let put_blocks = |words: &mut [u32; WORDS], blocks: &[u32]| {
            assert!(blocks.iter().all(|b| *b < blocks_max), "blocks exist");
            words[..blocks.len()].copy_from_slice(blocks);
        };
        match &self.far {
            Far::None { blocks } => put_blocks(&mut args.words, blocks),
            Far::Dense { span, blocks } => {
                assert!(
                    reach * blocks.len() as u64 <= span.bytes(),
                    "entries lie in the slot"
                );
                args.far = span.address();
                put_blocks(&mut args.words, blocks);
            }
            Far::Places { span, entries } => {
                args.far = span.address();
                args.flags |= FLAG_PLACES;
                for (words, (block, offset)) in args.words.chunks_exact_mut(3).zip(*entries) {
                    assert!(*block < blocks_max, "the block exists");
                    assert!(
                        offset
                            .checked_add(reach)
                            .is_some_and(|end| end <= span.bytes())
                    );
                    words.copy_from_slice(&[*block, *offset as u32, (*offset >> 32) as u32]);
                }
            }
        }
    }

    fn put_sums(&self, args: &mut Args) {
        match &self.sums {
            Sums::PerHead(span) => {
                assert!(self.entries() as u64 * args.heads as u64 * 8 <= span.bytes());
                args.sums = span.address();
            }
            Sums::Partials {
                memory,
                numbers_at,
                signal,
                arrivals,
            } => {
                assert!(
                    self.publish.is_none(),
                    "partial sums are not added up on the device"
                );
                args.sums = memory.span().part(*numbers_at, self.chunks() * 8).address();
                args.arrivals = arrivals.part(0, 4).address();
                args.flags |= FLAG_PARTIALS;
                signal.put(args);
            }
        }
    }
}

impl Signal<'_> {
    fn put(&self, args: &mut Args) {
        args.signal = self.memory.word_address(self.word);
        args.signal_value = self.value;
        args.flags |= FLAG_SIGNAL;
    }
}

impl Publish<'_> {
    fn put(&self, args: &mut Args) {
        let bytes = self.count * 8;
        args.publish_from = self.sums.part(0, bytes).address();
        args.publish_to = self.memory.span().part(0, bytes).address();
        args.publish_count =
            u32::try_from(self.count).expect("entries and heads of a job fit 32 bits");
        args.arrivals = self.arrivals.part(0, 4).address();
        args.flags |= FLAG_PUBLISH;
        if let Some(signal) = &self.signal {
            signal.put(args);
        }
    }
}

impl Function {
    /// Starts the kernel. `small` is its form for few entries; used when they fit.
    pub(in super::super) fn launch(
        &self,
        small: &Function,
        stream: &Stream,
        launch: &Launch<'_>,
        grid: u32,
        threads: u32,
    ) -> Result<()> {
        let function = if launch.words() <= WORDS_SMALL {
            small
        } else {
            self
        };
        let mut args = launch.args();
        function.start_with(stream, &mut [(&raw mut args).cast()], grid, threads)
    }

    /// Starts one of the copy kernels, or the publishing one, with zeros for arguments: then it has nothing to do.
    pub(in super::super) fn launch_nothing(&self, stream: &Stream) -> Result<()> {
        // Zeros stand for no entries and no signal, and serve as each of the six arguments of the publishing kernel.
        let mut zeros = [0u64; size_of::<Args>() / 8 + 1];
        let zeros: *mut c_void = zeros.as_mut_ptr().cast();
        self.start_with(stream, &mut [zeros; 6], 1, 32)
    }

    /// Starts the publishing kernel.
    pub(in super::super) fn launch_publish(
        &self,
        stream: &Stream,
        publish: &Publish<'_>,
    ) -> Result<()> {
        let bytes = publish.count * 8;
        let mut sums = publish.sums.part(0, bytes).address();
        let mut host = publish.memory.span().part(0, bytes).address();
        let mut count = publish.count;
        let mut signal = publish.signal.map_or(0, |s| s.memory.word_address(s.word));
        let mut arrivals = publish.arrivals.part(0, 4).address();
        let mut value = publish.signal.map_or(0, |s| s.value);
        let mut params: [*mut c_void; 6] = [
            (&raw mut sums).cast(),
            (&raw mut host).cast(),
            (&raw mut count).cast(),
            (&raw mut signal).cast(),
            (&raw mut arrivals).cast(),
            (&raw mut value).cast(),
        ];
        let grid = publish.count.div_ceil(256).clamp(1, 8) as u32;
        self.start_with(stream, &mut params, grid, 256)
    }

    /// Starts one of the load kernels of the benchmarks: `(memory, bytes, rounds)`.
    pub(in super::super) fn launch_load(
        &self,
        stream: &Stream,
        memory: Span,
        rounds: u32,
        grid: u32,
        threads: u32,
    ) -> Result<()> {
        let (mut address, mut bytes, mut rounds) = (memory.address(), memory.bytes(), rounds);
        let mut params: [*mut c_void; 3] = [
            (&raw mut address).cast(),
            (&raw mut bytes).cast(),
            (&raw mut rounds).cast(),
        ];
        self.start_with(stream, &mut params, grid, threads)
    }

    // `params` point to the kernel's parameters, in order and of its types; addresses among them come from spans.
    fn start_with(
        &self,
        stream: &Stream,
        params: &mut [*mut c_void],
        grid: u32,
        threads: u32,
    ) -> Result<()> {
        // SAFETY: every caller passes what the kernel of this function declares, with addresses from spans it checked.
        let code = unsafe {
            (self.module.context.api.launch)(
                self.handle,
                grid,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.raw(),
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.module.context.check("cuLaunchKernel", code)
    }
}

#[cfg(test)]
mod tests {
    use super::Divider;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_divider_divides(divisor in 1u32..=1 << 24, n in 0u32..1 << 31) {
            let d = Divider::new(divisor);
            for n in [n, n / divisor * divisor, (n / divisor * divisor).saturating_sub(1), (1 << 31) - 1] {
                prop_assert_eq!(((n as u64 * d.magic as u64) >> d.shift) as u32, n / divisor);
            }
        }
    }
}
