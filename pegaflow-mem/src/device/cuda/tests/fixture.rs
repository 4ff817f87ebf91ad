// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A device under test, with memory to copy from and to.

use super::super::driver::{DeviceMemory, PinnedMemory, Span, Stream};
use super::super::{Api, CudaDevice, CudaSettings, EngineStream};
use crate::device::conformance::Fixture;
use crate::device::{CopyJob, Device, DeviceEvent, Direction, Outcome, PoolHandle};
use crate::layout::{BlockCopy, BlockShape, KvLayout, LayerView, Slot};
use crate::pool::shm::{PoolSpec, SharedMemory};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Device memory that layouts of a fixture are made from.
const ARENA_BYTES: u64 = 192 << 20;
/// Pinned memory that bytes pass through.
const PINNED_BYTES: usize = 8 << 20;
/// Words of pinned memory for held streams, behind the bytes.
const WORDS: usize = 1024;

/// A device and the engine's side of it. All memory is taken at the start: while a stream is held, the driver may make
/// whoever allocates or frees wait for it.
pub(super) struct Gpu {
    pub device: Arc<CudaDevice>,
    stream: Stream,
    arena: DeviceMemory,
    used: Mutex<u64>,
    extra: Mutex<Vec<DeviceMemory>>,
    pinned: Mutex<PinnedMemory>,
    words: Arc<PinnedMemory>,
    next_word: AtomicUsize,
}

impl Gpu {
    pub(super) fn new(api: &'static Api, settings: &CudaSettings) -> Self {
        Self::with_arena(api, settings, ARENA_BYTES)
    }

    pub(super) fn with_arena(api: &'static Api, settings: &CudaSettings, bytes: u64) -> Self {
        let device = Arc::new(CudaDevice::with_driver(api, settings).expect("the device opens"));
        let context = Arc::clone(&device.inner.context);
        let _current = context.enter().expect("current");
        Self {
            stream: Stream::new(&context).expect("a stream"),
            arena: DeviceMemory::new(&context, bytes).expect("device memory"),
            used: Mutex::new(0),
            extra: Mutex::default(),
            pinned: Mutex::new(PinnedMemory::new(&context, PINNED_BYTES).expect("pinned")),
            words: Arc::new(PinnedMemory::new(&context, WORDS * 4).expect("pinned")),
            next_word: AtomicUsize::new(0),
            device,
        }
    }

    fn find(&self, address: u64, bytes: u64) -> Span {
        let extra = self.extra.lock();
        let spans = extra
            .iter()
            .map(DeviceMemory::span)
            .chain([self.arena.span()]);
        let inside =
            |s: &Span| s.address() <= address && address + bytes <= s.address() + s.bytes();
        let span = spans
            .into_iter()
            .find(inside)
            .expect("memory of this fixture");
        span.part(address - span.address(), bytes)
    }

    /// Memory of its own, which can be freed.
    pub(super) fn alloc_alone(&self, bytes: u64) -> u64 {
        let _current = self.stream.enter();
        let memory = DeviceMemory::new(&self.device.inner.context, bytes).expect("device memory");
        let address = memory.span().address();
        self.extra.lock().push(memory);
        address
    }

    /// Frees what `alloc_alone` gave at `address`.
    pub(super) fn free(&self, address: u64) {
        self.extra.lock().retain(|m| m.span().address() != address);
    }

    /// Makes room: layouts made so far are not used any more.
    pub(super) fn clear(&self) {
        *self.used.lock() = 0;
    }

    pub(super) fn pool(&self, bytes: u64) -> PoolHandle {
        let pool = SharedMemory::create(&PoolSpec::memfd("cuda-test", bytes)).expect("memory");
        self.device.attach_pool(Arc::new(pool)).expect("attached")
    }

    /// `[layer][part][block][head][inner]`, filled with bytes that look random. `skew` bytes off alignment.
    pub(super) fn layout(
        &self,
        shape: BlockShape,
        slot: Slot,
        blocks: u32,
        skew: u64,
    ) -> Arc<KvLayout> {
        let inner = shape.inner_bytes as u64;
        let row = inner * slot.heads.len() as u64;
        let part = row * blocks as u64;
        let layer = part * shape.parts as u64;
        let bytes = layer * slot.layers.len() as u64 + skew;
        let base = self.alloc(bytes.next_multiple_of(256));
        let noise: Vec<u8> = (0..bytes)
            .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 37) as u8)
            .collect();
        self.write(base, &noise);
        let view = |l| LayerView {
            base: base + skew + l * layer,
            block_stride: row,
            part_stride: part,
            head_stride: inner,
        };
        let views = (0..slot.layers.len() as u64).map(view).collect();
        Arc::new(KvLayout::new(shape, slot, views, blocks).expect("valid"))
    }

    /// A stream that waits for a word; the word is set when the box is called.
    pub(super) fn held_stream(&self) -> (Arc<Held>, Box<dyn FnOnce() + Send>) {
        let context = &self.device.inner.context;
        let _current = context.enter().expect("current");
        let stream = Stream::new(context).expect("a stream");
        let index = self.next_word.fetch_add(1, Ordering::Relaxed);
        stream.hold(&self.words, index, 1).expect("held");
        let words = Arc::clone(&self.words);
        (
            Arc::new(Held { stream }),
            Box::new(move || words.set_word(index, 1)),
        )
    }

    pub(super) fn run(&self, direction: Direction, job: &CopyJob) -> Outcome {
        self.device
            .copy(direction, job.clone())
            .expect("accepted")
            .wait()
    }

    /// What the checksums of these blocks must be, by the CPU from the device's bytes.
    pub(super) fn sums(&self, layout: &KvLayout, blocks: &[BlockCopy]) -> Vec<u64> {
        let heads = layout.slot().checksums();
        let mut all = vec![0u64; heads * blocks.len()];
        for (i, copy) in blocks.iter().enumerate() {
            for piece in layout
                .pieces_of(*copy, layout.slot().layers.clone())
                .expect("exists")
            {
                let mut bytes = vec![0; piece.bytes as usize];
                self.read(piece.device, &mut bytes);
                let sum = &mut all[i * heads + piece.head as usize];
                *sum = sum.wrapping_add(crate::checksum::portable(piece.position, &bytes));
            }
        }
        all
    }
}

/// A stream of the engine that does not go on until its word is set.
pub(super) struct Held {
    pub stream: Stream,
}

impl Held {
    pub(super) fn engine(&self) -> EngineStream {
        self.stream.as_engine()
    }
}

impl Fixture for Gpu {
    fn device(&self) -> Arc<dyn Device> {
        self.device.clone()
    }

    fn alloc(&self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(256);
        let mut used = self.used.lock();
        let span = self.arena.span().part(*used, bytes);
        *used += bytes;
        let _current = self.stream.enter();
        self.stream.zero(span).expect("zeroed");
        self.stream.synchronize().expect("zeroed");
        span.address()
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let _current = self.stream.enter();
        let pinned = self.pinned.lock();
        for (i, piece) in bytes.chunks(PINNED_BYTES).enumerate() {
            pinned.put(0, piece);
            let n = piece.len() as u64;
            let to = self.find(address + (i * PINNED_BYTES) as u64, n);
            self.stream
                .copy(to, pinned.span().part(0, n))
                .expect("copied");
            self.stream.synchronize().expect("copied");
        }
    }

    fn read(&self, address: u64, bytes: &mut [u8]) {
        let _current = self.stream.enter();
        let pinned = self.pinned.lock();
        for (i, piece) in bytes.chunks_mut(PINNED_BYTES).enumerate() {
            let n = piece.len() as u64;
            let from = self.find(address + (i * PINNED_BYTES) as u64, n);
            self.stream
                .copy(pinned.span().part(0, n), from)
                .expect("copied");
            self.stream.synchronize().expect("copied");
            pinned.get(0, piece);
        }
    }

    fn event(&self) -> (DeviceEvent, Box<dyn FnOnce() + Send>) {
        let (held, release) = self.held_stream();
        let event = self.device.event(held.engine()).expect("an event");
        let open = move || {
            release();
            let _current = held.stream.enter();
            held.stream.synchronize().expect("released");
        };
        (event, Box::new(open))
    }
}
