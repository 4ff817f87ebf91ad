// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A library that an engine's process loads: copies blocks of the engine's own memory out and back, in order with its stream.
//!
//! `beside_torch.py` beside this file loads it into a PyTorch process and looks whether both get along: one primary
//! context, memory of PyTorch's allocator (also with expandable segments), order by the engine's stream alone.

use pegaflow_mem::device::cuda::{CudaDevice, CudaSettings, EngineStream};
use pegaflow_mem::device::{CopyJob, Device, Direction};
use pegaflow_mem::{BlockCopy, BlockShape, KvLayout, LayerView, PoolSpec, SharedMemory, Slot};
use std::sync::{Arc, OnceLock};

/// KV memory of an engine: `[layer][part][block][inner]`, all strides in bytes.
#[repr(C)]
pub struct EngineKv {
    /// First address.
    pub base: u64,
    /// Layers.
    pub layers: u32,
    /// Parts of a layer.
    pub parts: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a block in one part of one layer.
    pub inner_bytes: u32,
}

fn device() -> &'static CudaDevice {
    static DEVICE: OnceLock<CudaDevice> = OnceLock::new();
    DEVICE.get_or_init(|| CudaDevice::open(&CudaSettings::default()).expect("the GPU opens"))
}

/// Saves blocks `0..n`, after the stream's work so far, and loads them into blocks `n..2n`; the stream's later work waits
/// for that. Returns 0, or 1 if the checksums of both ways differ.
///
/// # Safety
/// `kv` points to a description of live device memory of the current process's primary context, and `stream` is a live stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pegaflow_beside(kv: *const EngineKv, n: u32, stream: u64) -> i32 {
    // SAFETY: the caller vouches for the pointer.
    let kv = unsafe { &*kv };
    // SAFETY: the caller vouches for the stream.
    let stream = unsafe { EngineStream::from_raw(stream) };
    let (layers, parts, inner_bytes) = (kv.layers, kv.parts, kv.inner_bytes);
    let shape = BlockShape {
        layers,
        parts,
        heads: 1,
        inner_bytes,
    };
    let inner = inner_bytes as u64;
    let part = inner * kv.blocks as u64;
    let view = |layer: u64| LayerView {
        base: kv.base + layer * part * parts as u64,
        block_stride: inner,
        part_stride: part,
        head_stride: inner,
    };
    let views = (0..layers as u64).map(view).collect();
    let layout = KvLayout::new(shape, Slot::whole(&shape), views, kv.blocks).expect("valid");
    let layout = Arc::new(layout);
    let bytes = shape.bytes() * n as u64;
    let pool = SharedMemory::create(&PoolSpec::memfd("beside", bytes)).expect("memory");
    let pool = device().attach_pool(Arc::new(pool)).expect("attached");
    let blocks = |first: u32| -> Vec<BlockCopy> {
        (0..n)
            .map(|i| BlockCopy {
                block: first + i,
                place: i as u64 * shape.bytes(),
            })
            .collect()
    };
    let mut save = CopyJob::new(layout.clone(), pool.clone(), blocks(0));
    save.after = Some(device().event(stream).expect("recorded"));
    let saved = device().save(save).expect("accepted").wait();
    saved.result.expect("saved");
    let mut load = CopyJob::new(layout, pool, blocks(n));
    load.after = Some(device().event(stream).expect("recorded"));
    let (loading, gate) = device()
        .submit(Direction::Load, load, false)
        .expect("accepted");
    gate.hold(stream, None).expect("held");
    let loaded = loading.wait();
    loaded.result.expect("loaded");
    i32::from(loaded.checksums != saved.checksums)
}
