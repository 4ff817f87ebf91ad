// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Each way of copying, with awkward sizes, skews and places, against bytes and checksums taken by the CPU.

use super::fixture::Gpu;
use super::{Place, small};
use crate::copy::Method;
use crate::device::cuda::CudaSettings;
use crate::device::{CopyJob, Direction};
use crate::layout::{BlockCopy, BlockShape, Slot};

struct Case {
    shape: BlockShape,
    heads: std::ops::Range<u32>,
    blocks: u32,
    skew: u64,
    /// Bytes added to every place.
    place_skew: u64,
}

fn shape(layers: u32, parts: u32, heads: u32, inner_bytes: u32) -> BlockShape {
    BlockShape {
        layers,
        parts,
        heads,
        inner_bytes,
    }
}

fn cases() -> Vec<Case> {
    let case = |shape, heads, blocks, skew, place_skew| Case {
        shape,
        heads,
        blocks,
        skew,
        place_skew,
    };
    vec![
        // Whole blocks, larger than a slot, and over the borders of registered chunks.
        case(shape(6, 2, 1, 512 << 10), 0..1, 3, 0, 0),
        // Many small blocks: more than one launch.
        case(shape(1, 1, 1, 64), 0..1, 1100, 0, 0),
        // Some heads of each block: pitched copies.
        case(shape(3, 2, 4, 8192), 1..3, 40, 0, 0),
        case(shape(2, 1, 8, 128 << 10), 0..1, 7, 0, 4096),
        // Off alignment by 8, by 4 and by 1, on either side; a last chunk of odd length.
        case(shape(2, 2, 2, 4096 + 24), 0..2, 9, 8, 0),
        case(shape(2, 2, 2, 5000), 0..2, 9, 4, 8),
        case(shape(1, 2, 3, 1000), 0..3, 9, 1, 0),
        case(shape(1, 2, 3, 1000), 1..2, 9, 0, 3),
    ]
}

fn check(place: Place, method: Option<Method>) {
    let Some(api) = place.api() else { return };
    let gpu = Gpu::new(api, &CudaSettings { method, ..small() });
    for (number, case) in cases().into_iter().enumerate() {
        let what = format!("case {number}, {method:?}");
        let slot = Slot {
            layers: 0..case.shape.layers,
            heads: case.heads.clone(),
        };
        let step = case.shape.bytes().next_multiple_of(64) + if number % 2 == 0 { 0 } else { 192 };
        let pool = gpu.pool((step * case.blocks as u64 + 4096).next_multiple_of(2 << 20));
        let from = gpu.layout(case.shape, slot.clone(), case.blocks, case.skew);
        // Places in another order than blocks.
        let n = case.blocks;
        let blocks: Vec<BlockCopy> = (0..n)
            .map(|i| BlockCopy {
                block: i,
                place: ((i * 7 + 3) % n) as u64 * step + case.place_skew,
            })
            .collect();
        let places: std::collections::BTreeSet<_> = blocks.iter().map(|b| b.place).collect();
        let blocks: Vec<_> = if places.len() == blocks.len() {
            blocks
        } else {
            (0..n)
                .map(|i| BlockCopy {
                    block: i,
                    place: (n - 1 - i) as u64 * step + case.place_skew,
                })
                .collect()
        };
        let saved = gpu.run(
            Direction::Save,
            &CopyJob::new(from.clone(), pool.clone(), blocks.clone()),
        );
        saved.result.expect(&what);
        let want = gpu.sums(&from, &blocks);
        assert_eq!(saved.checksums, want, "save, {what}");
        let to = gpu.layout(case.shape, slot, case.blocks, case.skew);
        let moved: Vec<BlockCopy> = blocks
            .iter()
            .map(|b| BlockCopy {
                block: n - 1 - b.block,
                ..*b
            })
            .collect();
        let loaded = gpu.run(
            Direction::Load,
            &CopyJob::new(to.clone(), pool.clone(), moved.clone()),
        );
        loaded.result.expect(&what);
        assert_eq!(loaded.checksums, want, "load, {what}");
        assert_eq!(gpu.sums(&to, &moved), want, "bytes on the device, {what}");
        gpu.clear();
    }
}

#[test]
fn all_methods_simulated() {
    check(Place::Simulated, None);
    Method::ALL
        .into_iter()
        .for_each(|m| check(Place::Simulated, Some(m)));
    check(Place::SimulatedOld, Some(Method::Staged));
}

#[test]
fn all_methods_gpu() {
    check(Place::Real, None);
    Method::ALL
        .into_iter()
        .for_each(|m| check(Place::Real, Some(m)));
}

#[test]
fn a_pool_is_pinned_piece_by_piece_and_lets_go() {
    for place in [Place::Simulated, Place::Real] {
        let Some(api) = place.api() else { continue };
        let gpu = Gpu::new(
            api,
            &CudaSettings {
                pin_at_attach: false,
                ..small()
            },
        );
        let pool = gpu.pool(8 << 20);
        let registered = || {
            let pool = pool
                .registration::<super::super::RegisteredPool>()
                .expect("of this device");
            (pool.registered(), pool.chunks())
        };
        assert_eq!(registered(), (0, 4));
        let kv = gpu.layout(
            shape(2, 1, 1, 4096),
            Slot {
                layers: 0..2,
                heads: 0..1,
            },
            2,
            0,
        );
        let blocks = vec![BlockCopy {
            block: 0,
            place: 5 << 20,
        }];
        gpu.run(Direction::Save, &CopyJob::new(kv, pool.clone(), blocks))
            .result
            .expect("saved");
        assert_eq!(registered(), (1, 4));
        gpu.device.pin_pool(&pool, 3).expect("pinned");
        assert_eq!(registered(), (4, 4));
        let weak = std::sync::Arc::downgrade(pool.pool());
        drop(pool);
        // Unpinning has a thread of its own.
        while weak.strong_count() > 0 {
            std::thread::yield_now();
        }
    }
}
