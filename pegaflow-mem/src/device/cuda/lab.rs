// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What the benchmarks need beside a device: memory in the part of an engine's, ceilings, and loads to run beside copies.
//!
//! Not part of the API: it may change with the benchmarks.

use super::driver::{
    Context, DeviceMemory, Event, Function, Module, PinnedMemory, RegisteredPool, Span, Stream,
};
use super::{CudaDevice, EngineStream};
use crate::Result;
use crate::copy::Method;
use crate::device::{Direction, PoolHandle};
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LOAD_PTX: &str = include_str!("../../../kernels/load.ptx");

/// What a load is bound by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Fma,
    /// Device memory.
    Hbm,
}

/// Memory and streams of a make-believe engine on a device.
pub struct Lab {
    context: Arc<Context>,
    memory: DeviceMemory,
    streams: [Stream; 2],
    done: [Event; 2],
    loads: [Function; 2],
    load_memory: DeviceMemory,
    load_stream: Stream,
}

#[expect(clippy::disallowed_methods, reason = "measures time")]
fn now() -> Instant {
    Instant::now()
}

impl Lab {
    /// `bytes` of device memory with bytes that look random.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn new(device: &CudaDevice, bytes: u64, load_bytes: u64) -> Result<Self> {
        let context = Arc::clone(&device.inner.context);
        let _current = context.enter()?;
        let text = CString::new(LOAD_PTX).expect("PTX is text without NUL");
        let module = Module::load(&context, &text)?;
        let lab = Self {
            memory: DeviceMemory::new(&context, bytes)?,
            streams: [Stream::new(&context)?, Stream::new(&context)?],
            done: [Event::new(&context)?, Event::new(&context)?],
            loads: [
                module.function(c"pegaflow_load_fma")?,
                module.function(c"pegaflow_load_hbm")?,
            ],
            load_memory: DeviceMemory::new(&context, load_bytes)?,
            load_stream: Stream::ordinary(&context)?,
            context: Arc::clone(&context),
        };
        lab.fill()?;
        Ok(lab)
    }

    fn fill(&self) -> Result<()> {
        let piece = 8u64 << 20;
        let pinned = PinnedMemory::new(&self.context, piece as usize)?;
        let mut x = 88172645463325252u64;
        let noise: Vec<u8> = (0..piece / 8)
            .flat_map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x.to_le_bytes()
            })
            .collect();
        pinned.put(0, &noise);
        let whole = self.memory.span();
        let mut at = 0;
        while at < whole.bytes() {
            let n = piece.min(whole.bytes() - at);
            self.streams[0].copy(whole.part(at, n), pinned.span().part(0, n))?;
            at += n;
        }
        self.load_stream.zero(self.load_memory.span())?;
        self.load_stream.synchronize()?;
        self.streams[0].synchronize()
    }

    /// Has the device take this way from now on. One device for all points: each has streams, of which a GPU can tell
    /// apart only so many.
    pub fn force(device: &CudaDevice, method: Option<Method>) {
        *device.inner.method.lock() = method;
    }

    /// First address of the memory.
    pub fn base(&self) -> u64 {
        self.memory.span().address()
    }

    /// The engine's stream.
    pub fn stream(&self) -> EngineStream {
        self.load_stream.as_engine()
    }

    /// One plain DMA copy of `bytes` in each of the directions at once: wall time.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn contiguous(
        &self,
        directions: &[Direction],
        pool: &PoolHandle,
        bytes: u64,
    ) -> Result<Duration> {
        let _current = self.context.enter()?;
        let registered = pool
            .registration::<RegisteredPool>()
            .ok_or(crate::Error::Closed)?;
        registered.cover(0, 2 * bytes)?;
        let begun = now();
        for (i, direction) in directions.iter().enumerate() {
            let near = self.memory.span().part(i as u64 * bytes, bytes);
            let mut at = 0;
            for far in registered.spans(i as u64 * bytes, bytes) {
                let near = near.part(at, far.bytes());
                at += far.bytes();
                let (to, from) = if *direction == Direction::Save {
                    (far, near)
                } else {
                    (near, far)
                };
                self.streams[i].copy(to, from)?;
            }
            self.streams[i].record(&self.done[i])?;
        }
        for event in &self.done[..directions.len()] {
            while !event.done()? {
                std::hint::spin_loop();
            }
        }
        Ok(begun.elapsed())
    }

    /// Runs the load until `stop`; returns its kernels per second.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn run_load(&self, bound: Bound, stop: &AtomicBool) -> Result<f64> {
        let _current = self.context.enter()?;
        let grid = self.context.facts().multiprocessors * 64;
        let rounds = if bound == Bound::Fma { 1500 } else { 1 };
        let (function, span): (&Function, Span) =
            (&self.loads[bound as usize], self.load_memory.span());
        let events: Vec<Event> = (0..4)
            .map(|_| Event::new(&self.context))
            .collect::<Result<_>>()?;
        let launch = |event: &Event| -> Result<()> {
            function.launch_load(&self.load_stream, span, rounds, grid, 256)?;
            self.load_stream.record(event)
        };
        events.iter().try_for_each(launch)?;
        events[0].synchronize()?;
        let begun = now();
        let mut kernels = 0u64;
        'all: loop {
            for (i, event) in events.iter().enumerate() {
                if stop.load(Ordering::Acquire) {
                    break 'all;
                }
                launch(event)?;
                events[(i + 1) % events.len()].synchronize()?;
                kernels += 1;
            }
        }
        let rate = kernels as f64 / begun.elapsed().as_secs_f64();
        self.load_stream.synchronize()?;
        Ok(rate)
    }
}
