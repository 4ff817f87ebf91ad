// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Order with the engine's streams, layer by layer, and stopping.

use super::fixture::Gpu;
use super::{Place, small};
use crate::Error;
use crate::copy::Method;
use crate::device::cuda::CudaSettings;
use crate::device::{CopyJob, Direction, Progress};
use crate::layout::{BlockCopy, BlockShape, Slot};
use crate::pool::shm::{PoolSpec, SharedMemory};
use std::sync::Arc;

const SHAPE: BlockShape = BlockShape {
    layers: 8,
    parts: 2,
    heads: 1,
    inner_bytes: 64 << 10,
};

fn blocks(n: u32) -> Vec<BlockCopy> {
    (0..n)
        .map(|i| BlockCopy {
            block: i,
            place: i as u64 * SHAPE.bytes(),
        })
        .collect()
}

fn places() -> impl Iterator<Item = (Place, &'static super::super::Api)> {
    [Place::Simulated, Place::Real]
        .into_iter()
        .filter_map(|p| Some((p, p.api()?)))
}

#[test]
fn a_gate_opens_for_the_engines_stream_layer_by_layer() {
    for (place, api) in places() {
        for method in [Method::Staged, Method::Batch] {
            let settings = CudaSettings {
                method: Some(method),
                signal_bytes_min: 1,
                ..small()
            };
            let gpu = Gpu::new(api, &settings);
            let pool = gpu.pool(16 << 20);
            let slot = Slot::whole(&SHAPE);
            let kv = gpu.layout(SHAPE, slot, 8, 0);
            let count = SharedMemory::create(&PoolSpec::memfd("progress", 4096)).expect("memory");
            let progress = Progress::new(Arc::new(count), 64).expect("a word");
            let job = CopyJob {
                progress: Some(progress.clone()),
                ..CopyJob::new(kv, pool, blocks(8))
            };
            let (held, release) = gpu.held_stream();
            let job = CopyJob {
                after: Some(gpu.device.event(held.engine()).expect("an event")),
                ..job
            };
            let (completion, gate) = gpu
                .device
                .submit(Direction::Load, job, true)
                .expect("accepted");
            assert_eq!(gate.layers(), 0, "the engine has not let it start");
            // The engine's next work may be queued before the copy has begun.
            let (later, let_later) = gpu.held_stream();
            let_later();
            gate.hold(later.engine(), Some(3)).expect("held");
            gate.hold(later.engine(), None).expect("held");
            assert!(!completion.is_done());
            release();
            later.stream.synchronize().expect("the gate opened");
            assert_eq!(gate.layers(), 8, "{place:?} {method:?}");
            completion.wait().result.expect("loaded");
            assert_eq!(progress.layers(), 8);
        }
    }
}

#[test]
fn a_cancelled_copy_stops_early_and_says_so_when_quiet() {
    for (_, api) in places() {
        let gpu = Gpu::new(
            api,
            &CudaSettings {
                method: Some(Method::Staged),
                ..small()
            },
        );
        let shape = BlockShape {
            layers: 32,
            ..SHAPE
        };
        let pool = gpu.pool(96 << 20);
        let kv = gpu.layout(shape, Slot::whole(&shape), 24, 0);
        let all: Vec<_> = (0..24)
            .map(|i| BlockCopy {
                block: i,
                place: i as u64 * shape.bytes(),
            })
            .collect();
        let (held, release) = gpu.held_stream();
        let after = gpu.device.event(held.engine()).expect("an event");
        let job = CopyJob {
            after: Some(after),
            ..CopyJob::new(kv, pool, all)
        };
        let (completion, gate) = gpu
            .device
            .submit(Direction::Save, job, false)
            .expect("accepted");
        completion.cancel();
        release();
        let outcome = completion.wait();
        assert!(
            matches!(outcome.result, Err(Error::Cancelled)),
            "{:?}",
            outcome.result
        );
        assert_eq!((outcome.bytes, outcome.blocks.len()), (0, 24));
        // Who waits at the gate is let through, also after a stop.
        let (later, let_later) = gpu.held_stream();
        let_later();
        gate.hold(later.engine(), None).expect("held");
        later.stream.synchronize().expect("let through");
    }
}

#[test]
fn a_device_may_go_while_copies_run() {
    for (_, api) in places() {
        let gpu = Gpu::new(api, &small());
        let pool = gpu.pool(16 << 20);
        let kv = gpu.layout(SHAPE, Slot::whole(&SHAPE), 8, 0);
        let completion = gpu
            .device
            .submit(
                Direction::Save,
                CopyJob::new(kv.clone(), pool.clone(), blocks(8)),
                false,
            )
            .expect("accepted")
            .0;
        let want = gpu.sums(&kv, &blocks(8));
        let Gpu { .. } = &gpu;
        drop(pool);
        let outcome = completion.wait();
        outcome.result.expect("saved");
        assert_eq!(outcome.checksums, want);
    }
}
