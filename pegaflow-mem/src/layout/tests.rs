// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::checksum::checksum;
use proptest::prelude::*;

fn shape(layers: u32, parts: u32, heads: u32, inner_bytes: u32) -> BlockShape {
    BlockShape {
        layers,
        parts,
        heads,
        inner_bytes,
    }
}

fn reason(result: Result<KvLayout>) -> &'static str {
    match result {
        Err(Error::Layout { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => "",
    }
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    for bad in [
        shape(0, 2, 8, 64),
        shape(1, 0, 8, 64),
        shape(1, 2, 0, 64),
        shape(1, 2, 8, 0),
    ] {
        assert!(bad.validate().is_err());
    }
    assert!(shape(1, 1, 1, 12).validate().is_err(), "not whole words");
    assert!(
        shape(u32::MAX, u32::MAX, u32::MAX, u32::MAX - 7)
            .validate()
            .is_err()
    );
    shape(61, 2, 128, 4096).validate().expect("a large model");
}

#[test]
fn a_plain_engine_with_all_heads_gives_one_run_a_layer_and_part() {
    let s = shape(3, 2, 4, 64);
    let layout = KvLayout::dense(s, Slot::whole(&s), 1 << 20, 10).expect("valid");
    let runs: Vec<Run> = layout
        .runs(BlockCopy {
            block: 2,
            place: 4096,
        })
        .expect("exists")
        .collect();
    let layer = |l: u64| Run {
        device: (1 << 20) + l * 10 * 512 + 2 * 512,
        pool: 4096 + l * 512,
        bytes: 512,
    };
    assert_eq!(runs, [layer(0), layer(1), layer(2)]);
    assert!(
        layout
            .runs(BlockCopy {
                block: 10,
                place: 0
            })
            .is_err()
    );
    let copy = BlockCopy { block: 0, place: 0 };
    assert!(layout.runs_of(copy, 1..4).is_err());
    assert!(layout.runs_of(copy, 2..2).is_err());
}

#[test]
fn an_engine_in_canonical_order_gives_one_run_a_block() {
    let s = shape(4, 2, 2, 64);
    let view = |l: u64| LayerView {
        base: l * 256,
        block_stride: 1024,
        part_stride: 128,
        head_stride: 64,
    };
    let layout = KvLayout::new(s, Slot::whole(&s), (0..4).map(view).collect(), 7).expect("valid");
    let runs: Vec<Run> = layout
        .runs(BlockCopy {
            block: 3,
            place: 8192,
        })
        .expect("exists")
        .collect();
    assert_eq!(
        runs,
        [Run {
            device: 3072,
            pool: 8192,
            bytes: 1024
        }]
    );
}

#[test]
fn overlapping_strides_are_refused() {
    let s = shape(2, 2, 2, 64);
    let good = LayerView {
        base: 0,
        block_stride: 256,
        part_stride: 128,
        head_stride: 64,
    };
    let layout = |change: fn(&mut LayerView), second: LayerView| {
        let mut first = good;
        change(&mut first);
        reason(KvLayout::new(s, Slot::whole(&s), vec![first, second], 4))
    };
    let far = LayerView {
        base: 1 << 20,
        ..good
    };
    let strides = "strides overlap, or addresses pass 64 bits";
    assert_eq!(layout(|_| (), far), "");
    assert_eq!(layout(|v| v.head_stride = 56, far), strides);
    assert_eq!(layout(|v| v.part_stride = 64, far), strides);
    assert_eq!(layout(|v| v.block_stride = 192, far), strides);
    assert_eq!(layout(|v| v.base = u64::MAX - 100, far), strides);
    assert_eq!(layout(|v| v.block_stride = u64::MAX / 2, far), strides);
    assert_eq!(
        layout(|_| (), LayerView { base: 1000, ..good }),
        "two layers share bytes"
    );
    assert_eq!(layout(|_| (), good), "two layers share bytes");
    let wide = |base| LayerView {
        base,
        block_stride: 512,
        ..good
    };
    assert_eq!(
        layout(|v| v.block_stride = 512, wide(256)),
        "",
        "interleaved, but apart"
    );
    assert_eq!(
        layout(|v| v.block_stride = 512, wide(255)),
        "two layers share bytes"
    );
    assert_eq!(
        layout(|_| (), wide(256)),
        "layers with unlike strides interleave"
    );
}

/// A random valid layout: dimensions nested in random order, with gaps.
fn layout() -> impl Strategy<Value = KvLayout> {
    let dims = (
        1u32..5,
        1u32..3,
        prop::sample::select(vec![1u32, 2, 4, 8]),
        1u32..9,
    );
    let order = Just([0usize, 1, 2, 3]).prop_shuffle();
    (dims, 0u32..3, 1u32..6, order, [0u64..3, 0..3, 0..3, 0..3]).prop_map(
        |((layers, parts, heads, words), tp, blocks, order, gaps)| {
            let s = shape(layers, parts, heads, words * 8);
            let ranks = (1 << tp).min(heads);
            let slot = Slot::of_rank(&s, ranks - 1, ranks).expect("a power of two");
            let counts = [
                layers as u64,
                blocks as u64,
                parts as u64,
                slot.heads.len() as u64,
            ];
            let mut strides = [0; 4];
            let mut extent = s.inner_bytes as u64;
            for dim in order {
                strides[dim] = extent + gaps[dim] * 8;
                extent = strides[dim] * counts[dim];
            }
            let views = (0..layers as u64).map(|l| LayerView {
                base: 64 + l * strides[0],
                block_stride: strides[1],
                part_stride: strides[2],
                head_stride: strides[3],
            });
            KvLayout::new(s, slot, views.collect(), blocks).expect("nested strides are valid")
        },
    )
}

proptest! {
    /// Runs cover what pieces cover, in order, never touch, and stay inside the layer extents.
    #[test]
    fn runs_are_the_pieces_merged(layout in layout(), place in 0u64..100) {
        let copy = BlockCopy { block: layout.blocks() - 1, place: place * 4096 };
        let all = layout.slot().layers.clone();
        let pieces = layout.pieces_of(copy, all).expect("valid").flat_map(|p| {
            (0..p.bytes as u64 / 8).map(move |w| (p.device + w * 8, p.pool + w * 8))
        });
        let runs: Vec<Run> = layout.runs(copy).expect("valid").collect();
        let words = runs.iter().flat_map(|r| {
            (0..r.bytes / 8).map(|w| (r.device + w * 8, r.pool + w * 8))
        });
        prop_assert!(words.eq(pieces));
        for pair in runs.windows(2) {
            let joined = pair[0].device + pair[0].bytes == pair[1].device
                && pair[0].pool + pair[0].bytes == pair[1].pool;
            prop_assert!(!joined, "neighbours are merged");
        }
        let extents: Vec<_> = (0..layout.views().len()).map(|i| layout.layer_extent(i)).collect();
        for run in runs {
            let inside = |(base, len): &(u64, u64)| {
                run.device >= *base && run.device + run.bytes <= base + len
            };
            // A run may join layers that lie side by side; its ends are in some layer's extent.
            let in_one = extents.iter().any(inside);
            let first = extents.iter().map(|e| e.0).min().expect("a layer");
            let last = extents.iter().map(|e| e.0 + e.1).max().expect("a layer");
            prop_assert!(in_one || (run.device >= first && run.device + run.bytes <= last));
        }
    }

    /// No two blocks, layers, parts or heads share a device byte.
    #[test]
    fn device_bytes_have_one_owner(layout in layout()) {
        let mut seen = std::collections::HashSet::new();
        for block in 0..layout.blocks() {
            let copy = BlockCopy { block, place: 0 };
            for piece in layout.pieces_of(copy, layout.slot().layers.clone()).expect("valid") {
                for byte in 0..piece.bytes as u64 {
                    prop_assert!(seen.insert(piece.device + byte));
                }
            }
        }
    }

    /// The ranks' slots, split by layers as well, cover a block exactly once, and the checksums do not see the split.
    #[test]
    fn ranks_tile_a_block(
        layers in 1u32..6, parts in 1u32..3, log_heads in 0u32..4, words in 1u32..20,
        log_ranks in 0u32..4, cut in any::<prop::sample::Index>(), seed: u64
    ) {
        let s = shape(layers, parts, 1 << log_heads, words * 8);
        let bytes: Vec<u8> = (0..s.bytes()).map(|i| (i.wrapping_mul(seed | 1) >> 13) as u8).collect();
        let whole = sums(&s, Slot::whole(&s), &bytes, None);
        let ranks = 1 << log_ranks.min(log_heads);
        let cut = cut.index(layers as usize + 1) as u32;
        let mut covered = vec![0u8; bytes.len()];
        let mut joined = Vec::new();
        for rank in 0..ranks {
            let slot = Slot::of_rank(&s, rank, ranks).expect("even");
            let mut by_head = vec![0u64; slot.checksums()];
            for part in [0..cut, cut..layers].into_iter().filter(|r| !r.is_empty()) {
                let slot = Slot { layers: part, heads: slot.heads.clone() };
                let sums = sums(&s, slot, &bytes, Some(&mut covered));
                for (sum, more) in by_head.iter_mut().zip(sums) {
                    *sum = sum.wrapping_add(more);
                }
            }
            joined.extend(by_head);
        }
        prop_assert!(covered.iter().all(|n| *n == 1));
        prop_assert_eq!(joined, whole);
    }
}

/// Checksums of a slot of the canonical block `bytes`; counts the touches of each byte.
fn sums(s: &BlockShape, slot: Slot, bytes: &[u8], covered: Option<&mut Vec<u8>>) -> Vec<u64> {
    let mut sums = vec![0u64; slot.checksums()];
    let mut touched = vec![0; bytes.len()];
    let total = slot.bytes(s);
    let layout = KvLayout::dense(*s, slot, 0, 1).expect("valid");
    let copy = BlockCopy { block: 0, place: 0 };
    let mut seen = 0;
    for piece in layout
        .pieces_of(copy, layout.slot().layers.clone())
        .expect("valid")
    {
        let range = piece.pool as usize..piece.pool as usize + piece.bytes as usize;
        let sum = &mut sums[piece.head as usize];
        *sum = sum.wrapping_add(checksum(piece.position, &bytes[range.clone()]));
        touched[range].iter_mut().for_each(|n| *n += 1);
        seen += piece.bytes as u64;
    }
    assert_eq!(seen, total);
    if let Some(covered) = covered {
        covered.iter_mut().zip(touched).for_each(|(n, t)| *n += t);
    }
    sums
}

#[test]
fn more_ranks_than_heads_replicate() {
    let s = shape(1, 2, 2, 64);
    let heads: Vec<_> = (0..8)
        .map(|r| Slot::of_rank(&s, r, 8).expect("even").heads.start)
        .collect();
    assert_eq!(heads, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert!(Slot::of_rank(&s, 8, 8).is_err());
    assert!(Slot::of_rank(&s, 0, 3).is_err());
    assert!(Slot::of_rank(&s, 0, 0).is_err());
}
