// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One rank's copies between the engine's KV tensors and the pool.
//!
//! A load is verified: what the pool gave is compared with the checksums made when it was saved, and a block that
//! differs is reported to the node and to the caller, by its number.

use std::sync::Arc;

use parking_lot::Mutex;
use pegaflow_cache::client::{NamespaceHandle, PoolView, Reserve, Session};
use pegaflow_cache::core::{Answer, BlockRef, Place};
use pegaflow_cache::meta::{BlockKey, GroupId};
use pegaflow_mem::device::host::{HostDevice, HostSettings};
use pegaflow_mem::device::{CopyJob, Device, Direction, PoolHandle};
use pegaflow_mem::{BlockCopy, KvLayout, LayerView, Slot};
use pyo3::prelude::*;

use crate::client::{Shared, split_keys};
use crate::error::{cache, invalid, memory};
use crate::sys::engine_memory;

/// Where a rank's blocks lie in the engine's memory.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Layout {
    layers: (u32, u32),
    heads: (u32, u32),
    blocks: u32,
    /// Address, block stride, part stride and head stride of each layer, in bytes.
    views: Vec<(u64, u64, u64, u64)>,
    /// Address and bytes of each piece of the engine's memory that the views lie in.
    memory: Vec<(u64, u64)>,
}

/// A rank's copies.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Rank {
    shared: Arc<Shared>,
    namespace: NamespaceHandle,
    device: HostDevice,
    layout: Arc<KvLayout>,
    /// Index of the rank's first checksum among a block's, by stage.
    sums: Vec<std::ops::Range<usize>>,
    pools: Mutex<Vec<([u8; 16], PoolHandle)>>,
}

#[pymethods]
impl Rank {
    /// Copies blocks from the pool to the engine's `blocks` and waits for them. Returns the positions of those that
    /// are not there as they were saved.
    fn load(
        &self,
        py: Python<'_>,
        keys: &[u8],
        places: &[u8],
        generations: &[u8],
        blocks: Vec<u32>,
    ) -> PyResult<Vec<usize>> {
        let keys = split_keys(keys)?;
        let refs = block_refs(places, generations)?;
        if keys.len() != refs.len() || keys.len() != blocks.len() {
            return Err(invalid(
                "keys, places, generations and blocks must be of one length",
            ));
        }
        py.detach(|| self.load_blocks(&keys, &refs, &blocks))
    }

    /// Copies the engine's `blocks` into the pool, but for those that are there, and makes them visible. Returns
    /// how many were copied.
    fn save(
        &self,
        py: Python<'_>,
        parent: &[u8],
        keys: &[u8],
        blocks: Vec<u32>,
    ) -> PyResult<usize> {
        let parent = split_keys(parent)?.first().copied();
        let keys = split_keys(keys)?;
        if keys.len() != blocks.len() {
            return Err(invalid("keys and blocks must be of one length"));
        }
        py.detach(|| self.save_blocks(parent, &keys, &blocks))
    }

    /// Waits for copies that still run, and lets go of the engine's memory.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.pools.lock().clear());
    }
}

impl Rank {
    pub(crate) fn open(
        shared: Arc<Shared>,
        namespace: NamespaceHandle,
        layout: Layout,
        threads: u32,
    ) -> PyResult<Self> {
        let settings = HostSettings {
            threads,
            ..HostSettings::default()
        };
        let device = HostDevice::new(&settings).map_err(memory)?;
        for (address, bytes) in &layout.memory {
            device
                .register(engine_memory(*address, *bytes)?)
                .map_err(memory)?;
        }
        let group = namespace
            .layout()
            .groups
            .first()
            .ok_or_else(|| invalid("a namespace without groups"))?;
        let slot = Slot {
            layers: layout.layers.0..layout.layers.1,
            heads: layout.heads.0..layout.heads.1,
        };
        let stages = group.stages_of(&slot).map_err(cache)?;
        if stages.len() != 1 {
            return Err(invalid("a rank must hold exactly one pipeline stage"));
        }
        let heads = group.shape.heads as usize;
        let sums = stages
            .map(|stage| {
                stage as usize * heads + slot.heads.start as usize
                    ..stage as usize * heads + slot.heads.end as usize
            })
            .collect();
        let views = layout
            .views
            .iter()
            .map(|(base, block_stride, part_stride, head_stride)| LayerView {
                base: *base,
                block_stride: *block_stride,
                part_stride: *part_stride,
                head_stride: *head_stride,
            });
        let layout =
            KvLayout::new(group.shape, slot, views.collect(), layout.blocks).map_err(memory)?;
        Ok(Self {
            shared,
            namespace,
            device,
            layout: Arc::new(layout),
            sums,
            pools: Mutex::default(),
        })
    }

    fn load_blocks(
        &self,
        keys: &[BlockKey],
        refs: &[BlockRef],
        blocks: &[u32],
    ) -> PyResult<Vec<usize>> {
        let session = self.shared.client.session().map_err(cache)?;
        let _copying = session.begin_copy().map_err(cache)?;
        let places: Vec<_> = refs.iter().map(|block| block.place).collect();
        let got = self.copy(Direction::Load, &session, &places, blocks)?;
        let per_block = self.layout.slot().checksums() * self.sums.len();
        let mut failed = Vec::new();
        for (at, (key, block)) in keys.iter().zip(refs).enumerate() {
            let saved = self.saved(&session, *key, block)?;
            if saved.as_deref() == Some(&got[at * per_block..][..per_block]) {
                continue;
            }
            failed.push(at);
            if saved.is_some() {
                // Best effort: the block is a miss for this caller either way.
                let _ = self
                    .shared
                    .runtime
                    .block_on(self.shared.client.report_corrupt(*key, block));
            }
        }
        Ok(failed)
    }

    fn save_blocks(
        &self,
        parent: Option<BlockKey>,
        keys: &[BlockKey],
        blocks: &[u32],
    ) -> PyResult<usize> {
        let reserve = Reserve {
            namespace: &self.namespace,
            group: GroupId(0),
            slot: self.layout.slot(),
            parent,
            keys,
        };
        let runtime = &self.shared.runtime;
        let reservation = runtime
            .block_on(self.shared.client.reserve(&reserve))
            .map_err(cache)?;
        let (mut items, mut places, mut engine) = (vec![], vec![], vec![]);
        for (item, answer) in reservation.answers.iter().enumerate() {
            if let Answer::Place { place, .. } = answer {
                items.push(item as u32);
                places.push(*place);
                engine.push(blocks[item]);
            }
        }
        if items.is_empty() {
            return Ok(0);
        }
        let copied = reservation.begin_copy().map_err(cache).and_then(|guard| {
            let sums = self.copy(Direction::Save, reservation.session(), &places, &engine);
            drop(guard);
            sums
        });
        match copied {
            Ok(sums) => {
                let seal = self.shared.client.seal(&reservation, &items, &sums);
                runtime.block_on(seal).map_err(cache)?;
                Ok(items.len())
            }
            Err(error) => {
                // The copy is over, whatever came of it.
                let _ = runtime.block_on(self.shared.client.abort(&reservation, true));
                Err(error)
            }
        }
    }

    /// Copies, pool by pool; the checksums of all blocks in order.
    fn copy(
        &self,
        direction: Direction,
        session: &Session,
        places: &[Place],
        blocks: &[u32],
    ) -> PyResult<Vec<u64>> {
        let mut sums = Vec::new();
        let mut start = 0;
        while start < places.len() {
            let number = places[start].pool();
            let end = places[start..]
                .iter()
                .position(|place| place.pool() != number)
                .map_or(places.len(), |n| start + n);
            let copies = places[start..end].iter().zip(&blocks[start..end]);
            let copies = copies.map(|(place, block)| BlockCopy {
                block: *block,
                place: place.offset(),
            });
            let pool = session.pools().of(places[start]).map_err(cache)?;
            let job = CopyJob::new(self.layout.clone(), self.attach(pool)?, copies.collect());
            let outcome = self
                .device
                .copy(direction, job)
                .map_err(|refused| memory(refused.error))?
                .wait();
            outcome.result.map_err(memory)?;
            sums.extend(outcome.checksums);
            start = end;
        }
        Ok(sums)
    }

    /// This rank's checksums as they were saved with a block; none if the block is not there any more.
    fn saved(
        &self,
        session: &Session,
        key: BlockKey,
        block: &BlockRef,
    ) -> PyResult<Option<Vec<u64>>> {
        let pool = session.pools().of(block.place).map_err(cache)?;
        let Some(all) = pool.checksums(block.place.offset(), key, block.generation) else {
            return Ok(None);
        };
        let mine = self.sums.iter().map(|range| all.get(range.clone()));
        Ok(mine.collect::<Option<Vec<_>>>().map(|parts| parts.concat()))
    }

    fn attach(&self, pool: &PoolView) -> PyResult<PoolHandle> {
        let mut pools = self.pools.lock();
        if let Some((_, handle)) = pools.iter().find(|(uuid, _)| *uuid == pool.uuid) {
            return Ok(handle.clone());
        }
        let handle = self.device.attach_pool(pool.data.clone()).map_err(memory)?;
        pools.push((pool.uuid, handle.clone()));
        Ok(handle)
    }
}

fn block_refs(places: &[u8], generations: &[u8]) -> PyResult<Vec<BlockRef>> {
    let (places, odd) = places.as_chunks::<8>();
    let (generations, rest) = generations.as_chunks::<4>();
    if !odd.is_empty() || !rest.is_empty() || places.len() != generations.len() {
        return Err(invalid("places must be 8 bytes each, generations 4"));
    }
    let columns = places.iter().zip(generations).enumerate();
    Ok(columns
        .map(|(at, (place, generation))| BlockRef {
            place: Place::from_bits(u64::from_le_bytes(*place)),
            generation: u32::from_le_bytes(*generation),
            key: at as u32,
        })
        .collect())
}
