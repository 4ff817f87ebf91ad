// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A device under test, with memory to copy from and to.

use super::super::driver::{DeviceMemory, PinnedMemory, Span, Stream};
use super::super::{Api, CudaDevice, CudaSettings, EngineEvent, EngineStream};
use crate::device::conformance::Fixture;
use crate::device::{CopyJob, Device, DeviceEvent, Direction, Outcome, PoolHandle};
use crate::layout::{BlockCopy, BlockShape, KvLayout, LayerView, Slot};
use crate::pool::shm::{PoolSpec, SharedMemory};
use parking_lot::Mutex;
use std::sync::Arc;

/// A device and the engine's side of it.
pub(super) struct Gpu {
    pub device: Arc<CudaDevice>,
    stream: Stream,
    memory: Mutex<Vec<DeviceMemory>>,
}

impl Gpu {
    pub(super) fn new(api: &'static Api, settings: &CudaSettings) -> Self {
        let device = Arc::new(CudaDevice::with_driver(api, settings).expect("the device opens"));
        let _current = device.inner.context.enter().expect("current");
        let stream = Stream::new(&device.inner.context).expect("a stream");
        drop(_current);
        Self {
            device,
            stream,
            memory: Mutex::default(),
        }
    }

    fn find(&self, address: u64, bytes: u64) -> Span {
        let memory = self.memory.lock();
        let spans = memory.iter().map(DeviceMemory::span);
        let mut inside =
            spans.filter(|s| s.address() <= address && address + bytes <= s.address() + s.bytes());
        let span = inside.next().expect("memory of this fixture");
        span.part(address - span.address(), bytes)
    }

    /// Frees what `alloc` gave at `address`.
    pub(super) fn free(&self, address: u64) {
        self.memory.lock().retain(|m| m.span().address() != address);
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
        let base = self.alloc(bytes);
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

    /// An event of a stream that waits for a word; the word is set when the box is called.
    pub(super) fn held_stream(&self) -> (Arc<Held>, Box<dyn FnOnce() + Send>) {
        let context = &self.device.inner.context;
        let _current = context.enter().expect("current");
        let stream = Stream::new(context).expect("a stream");
        let word = PinnedMemory::new(context, 4096).expect("pinned");
        stream.hold(&word, 0, 1).expect("held");
        let held = Arc::new(Held { stream, word });
        let release = Arc::clone(&held);
        (held, Box::new(move || release.word.set_word(0, 1)))
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
    word: PinnedMemory,
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
        let _current = self.device.inner.context.enter().expect("current");
        let memory = DeviceMemory::new(&self.device.inner.context, bytes).expect("device memory");
        self.stream.zero(memory.span()).expect("zeroed");
        self.stream.synchronize().expect("zeroed");
        let address = memory.span().address();
        self.memory.lock().push(memory);
        address
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let _current = self.device.inner.context.enter().expect("current");
        let pinned = PinnedMemory::new(&self.device.inner.context, bytes.len()).expect("pinned");
        pinned.put(0, bytes);
        let to = self.find(address, bytes.len() as u64);
        self.stream.copy(to, pinned.span()).expect("copied");
        self.stream.synchronize().expect("copied");
    }

    fn read(&self, address: u64, bytes: &mut [u8]) {
        let _current = self.device.inner.context.enter().expect("current");
        let pinned = PinnedMemory::new(&self.device.inner.context, bytes.len()).expect("pinned");
        let from = self.find(address, bytes.len() as u64);
        self.stream.copy(pinned.span(), from).expect("copied");
        self.stream.synchronize().expect("copied");
        pinned.get(0, bytes);
    }

    fn event(&self) -> (DeviceEvent, Box<dyn FnOnce() + Send>) {
        let (held, release) = self.held_stream();
        let event = self.device.event(held.engine()).expect("an event");
        // The stream must outlive the event's wait.
        let keep = Arc::clone(&held);
        std::mem::forget(held);
        let _ = event.get::<EngineEvent>();
        (
            event,
            Box::new(move || {
                release();
                let _current = keep.stream.enter();
                keep.stream.synchronize().expect("released");
            }),
        )
    }
}
