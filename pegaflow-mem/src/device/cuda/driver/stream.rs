// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Streams and events: order between pieces of work, and copies by the DMA engines.

use super::super::ffi::{self, Batch3dOp, Handle, MemcpyAttributes, Operand3d};
use super::{Context, PinnedMemory, Span};
use crate::Result;
use std::sync::Arc;

/// A queue of work on the GPU. Never the default stream, never synchronises with it.
pub(in super::super) struct Stream {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: cuda.h: a stream may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks internally.
unsafe impl Sync for Stream {}

/// A rectangle for the DMA engine: `rows` rows of `width` bytes, one pitch on either side.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Row2d {
    /// Bytes of a row.
    pub width: u64,
    /// Rows.
    pub rows: u64,
    /// From row to row at the destination.
    pub to_pitch: u64,
    /// From row to row at the source.
    pub from_pitch: u64,
}

impl Row2d {
    fn reach(&self, pitch: u64) -> u64 {
        (self.rows - 1) * pitch + self.width
    }
}

impl Stream {
    /// A stream of the highest priority, so that short copy kernels start as soon as a multiprocessor has room.
    pub(in super::super) fn new(context: &Arc<Context>) -> Result<Self> {
        Self::with_priority(context, context.priority_high())
    }

    /// A stream of ordinary priority, as an engine's.
    pub(in super::super) fn ordinary(context: &Arc<Context>) -> Result<Self> {
        Self::with_priority(context, 0)
    }

    fn with_priority(context: &Arc<Context>, priority: i32) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current (callers hold `enter`); writes one handle.
        let code =
            unsafe { (context.api.stream_create)(&mut handle, ffi::STREAM_NON_BLOCKING, priority) };
        context.check("cuStreamCreateWithPriority", code)?;
        Ok(Self {
            context: Arc::clone(context),
            handle,
        })
    }

    pub(super) fn raw(&self) -> Handle {
        self.handle
    }

    /// Whether one call can start many copies.
    pub(in super::super) fn has_batch(&self) -> bool {
        self.context.has_batch()
    }

    /// Work submitted from now on starts after what `event` recorded.
    pub(in super::super) fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are owned and of this context.
        let code = unsafe { (self.context.api.stream_wait_event)(self.handle, event.handle, 0) };
        self.context.check("cuStreamWaitEvent", code)
    }

    /// Marks this point of the stream in `event`.
    pub(in super::super) fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are owned and of this context.
        let code = unsafe { (self.context.api.event_record)(event.handle, self.handle) };
        self.context.check("cuEventRecord", code)
    }

    /// Blocks the thread until all work submitted so far is finished.
    pub(in super::super) fn synchronize(&self) -> Result<()> {
        // SAFETY: an owned handle.
        let code = unsafe { (self.context.api.stream_synchronize)(self.handle) };
        self.context.check("cuStreamSynchronize", code)
    }

    /// Writes `value` into word `index` of pinned memory when all earlier work of the stream is finished and visible.
    pub(in super::super) fn write_word(
        &self,
        to: &PinnedMemory,
        index: usize,
        value: u32,
    ) -> Result<()> {
        let address = to.word_address(index);
        // SAFETY: `word_address` checked the bounds; the driver writes 4 aligned bytes in stream order.
        let code = unsafe { (self.context.api.stream_write_value)(self.handle, address, value, 0) };
        self.context.check("cuStreamWriteValue32", code)
    }

    /// This stream in the part of an engine's.
    pub(in super::super) fn as_engine(&self) -> super::EngineStream {
        // SAFETY: a live stream of the primary context; tests and benchmarks keep it as long as they use it.
        unsafe { super::EngineStream::from_raw(self.handle as u64) }
    }

    /// Makes its context current.
    #[cfg(test)]
    pub(in super::super) fn enter(&self) -> super::Entered<'_> {
        self.context.enter().expect("current")
    }

    /// Waits until word `index` of pinned memory is at least `value`.
    #[cfg(test)]
    pub(in super::super) fn hold(
        &self,
        word: &PinnedMemory,
        index: usize,
        value: u32,
    ) -> Result<()> {
        let address = word.word_address(index);
        // SAFETY: bounds checked by `word_address`; an owned stream.
        let code = unsafe {
            (self.context.api.stream_wait_value)(self.handle, address, value, ffi::WAIT_VALUE_GEQ)
        };
        self.context.check("cuStreamWaitValue32", code)
    }

    /// One contiguous copy by DMA.
    pub(in super::super) fn copy(&self, to: Span, from: Span) -> Result<()> {
        assert_eq!(
            to.bytes(),
            from.bytes(),
            "both sides of a copy have the same length"
        );
        // SAFETY: both spans lie in memory that is owned, registered or verified, and stays so until the job is quiet.
        let code = unsafe {
            (self.context.api.memcpy_async)(
                to.address(),
                from.address(),
                to.bytes() as usize,
                self.handle,
            )
        };
        self.context.check("cuMemcpyAsync", code)
    }

    /// Fills with zeros.
    pub(in super::super) fn zero(&self, to: Span) -> Result<()> {
        // SAFETY: as in `copy`.
        let code = unsafe {
            (self.context.api.memset_async)(to.address(), 0, to.bytes() as usize, self.handle)
        };
        self.context.check("cuMemsetD8Async", code)
    }

    /// Many contiguous copies by DMA in one call where the driver has it, else one by one. `scratch` is reused between calls.
    pub(in super::super) fn copy_batch(
        &self,
        copies: &[(Span, Span)],
        scratch: &mut BatchScratch,
    ) -> Result<()> {
        let Some(call) = self
            .context
            .api
            .memcpy_batch_async
            .filter(|_| copies.len() > 1)
        else {
            return copies
                .iter()
                .try_for_each(|(to, from)| self.copy(*to, *from));
        };
        scratch.fill(copies);
        let mut attributes = MemcpyAttributes {
            src_access_order: ffi::SRC_ACCESS_ORDER_STREAM,
            ..Default::default()
        };
        let (mut first, mut failed) = (0usize, 0usize);
        // SAFETY: three arrays of `copies.len()` entries, one attribute for all from index 0 on; spans as in `copy`. The driver reads the arrays before it returns.
        let code = unsafe {
            call(
                scratch.to.as_mut_ptr(),
                scratch.from.as_mut_ptr(),
                scratch.bytes.as_mut_ptr(),
                copies.len(),
                &mut attributes,
                &mut first,
                1,
                &mut failed,
                self.handle,
            )
        };
        self.context.check("cuMemcpyBatchAsync", code)
    }

    /// Pitched copies by DMA: rectangles of the same form at many places.
    pub(in super::super) fn copy_rows(
        &self,
        copies: &[(Span, Span)],
        form: Row2d,
        scratch: &mut BatchScratch,
    ) -> Result<()> {
        for (to, from) in copies {
            assert!(
                form.reach(form.to_pitch) <= to.bytes(),
                "the rectangle lies in its span"
            );
            assert!(
                form.reach(form.from_pitch) <= from.bytes(),
                "the rectangle lies in its span"
            );
        }
        let Some(call) = self.context.api.memcpy_3d_batch_async else {
            return self.copy_rows_singly(copies, form, scratch);
        };
        let operand = |address, pitch: u64| Operand3d {
            kind: ffi::OPERAND_POINTER,
            ptr: address,
            row_length: pitch as usize,
            layer_height: form.rows as usize,
            ..Default::default()
        };
        scratch.ops.clear();
        scratch
            .ops
            .extend(copies.iter().map(|(to, from)| Batch3dOp {
                src: operand(from.address(), form.from_pitch),
                dst: operand(to.address(), form.to_pitch),
                width: form.width as usize,
                height: form.rows as usize,
                depth: 1,
                src_access_order: ffi::SRC_ACCESS_ORDER_STREAM,
                flags: 0,
            }));
        let mut failed = 0usize;
        // SAFETY: `ops` has the length given; each rectangle lies inside its spans (asserted above).
        let code = unsafe {
            call(
                scratch.ops.len(),
                scratch.ops.as_mut_ptr(),
                &mut failed,
                0,
                self.handle,
            )
        };
        self.context.check("cuMemcpy3DBatchAsync", code)
    }

    fn copy_rows_singly(
        &self,
        copies: &[(Span, Span)],
        form: Row2d,
        scratch: &mut BatchScratch,
    ) -> Result<()> {
        for (to, from) in copies {
            let rows: Vec<_> = (0..form.rows)
                .map(|r| {
                    let to = to.part(r * form.to_pitch, form.width);
                    (to, from.part(r * form.from_pitch, form.width))
                })
                .collect();
            self.copy_batch(&rows, scratch)?;
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once; the driver finishes what is still queued before it releases the stream.
        unsafe { (self.context.api.stream_destroy)(self.handle) };
    }
}

/// Arrays that batch calls want; kept between calls so that submitting allocates nothing.
#[derive(Default)]
pub(in super::super) struct BatchScratch {
    to: Vec<u64>,
    from: Vec<u64>,
    bytes: Vec<usize>,
    ops: Vec<Batch3dOp>,
}

impl BatchScratch {
    fn fill(&mut self, copies: &[(Span, Span)]) {
        self.to.clear();
        self.from.clear();
        self.bytes.clear();
        for (to, from) in copies {
            assert_eq!(
                to.bytes(),
                from.bytes(),
                "both sides of a copy have the same length"
            );
            self.to.push(to.address());
            self.from.push(from.address());
            self.bytes.push(to.bytes() as usize);
        }
    }
}

/// A point in a stream that others can wait for.
pub(in super::super) struct Event {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: cuda.h: an event may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks internally.
unsafe impl Sync for Event {}

impl Event {
    /// An event whose waiters sleep instead of spinning. Without times, which would slow the stream.
    pub(in super::super) fn new(context: &Arc<Context>) -> Result<Self> {
        Self::with(
            context,
            ffi::EVENT_BLOCKING_SYNC | ffi::EVENT_DISABLE_TIMING,
        )
    }

    /// An event that keeps the time, for measuring.
    pub(in super::super) fn timed(context: &Arc<Context>) -> Result<Self> {
        Self::with(context, ffi::EVENT_BLOCKING_SYNC)
    }

    fn with(context: &Arc<Context>, flags: u32) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current (callers hold `enter`); writes one handle.
        let code = unsafe { (context.api.event_create)(&mut handle, flags) };
        context.check("cuEventCreate", code)?;
        Ok(Self {
            context: Arc::clone(context),
            handle,
        })
    }

    pub(super) fn raw(&self) -> Handle {
        self.handle
    }

    /// Whether what it recorded is finished.
    ///
    /// # Errors
    /// The failure of the work before it, if there was one.
    pub(in super::super) fn done(&self) -> Result<bool> {
        // SAFETY: an owned handle.
        match unsafe { (self.context.api.event_query)(self.handle) } {
            ffi::ERROR_NOT_READY => Ok(false),
            code => self.context.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Sleeps until what it recorded is finished.
    pub(in super::super) fn synchronize(&self) -> Result<()> {
        // SAFETY: an owned handle.
        let code = unsafe { (self.context.api.event_synchronize)(self.handle) };
        self.context.check("cuEventSynchronize", code)
    }

    /// Microseconds from `start` to this event; both finished, both timed.
    pub(in super::super) fn micros_since(&self, start: &Event) -> Result<f64> {
        let mut millis = 0f32;
        // SAFETY: owned handles; writes one float.
        let code =
            unsafe { (self.context.api.event_elapsed)(&mut millis, start.handle, self.handle) };
        self.context.check("cuEventElapsedTime", code)?;
        Ok(millis as f64 * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: owned, destroyed once; the driver keeps it until waits on it are over.
        unsafe { (self.context.api.event_destroy)(self.handle) };
    }
}
