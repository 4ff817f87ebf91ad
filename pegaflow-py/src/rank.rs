// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One rank's copies between the engine's KV tensors and the pool.
//!
//! Loads are started by the engine's thread and read by it; saves go into a lane of their own and are never waited for,
//! but where the engine is about to write to the same blocks.

use std::sync::Arc;

use pegaflow_cache::Error;
use pegaflow_cache::core::{BlockRef, Place};
use pegaflow_cache::meta::GroupId;
use pegaflow_cache::worker::{Save, Worker, WorkerSettings};
use pegaflow_mem::{KvLayout, LayerView, Slot};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use tokio::sync::OnceCell;

use crate::client::split_keys;
use crate::device::Device;
use crate::error::{cache, invalid, memory};
use crate::load::Loading;
use crate::namespace::Known;
use crate::node::{Shared, is_lasting};
use crate::save::{Job, Lane, Tally};

/// Where a rank's blocks lie in the engine's memory.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Layout {
    layers: (u32, u32),
    heads: (u32, u32),
    blocks: u32,
    /// Address, block stride, part stride and head stride of each layer, in bytes.
    views: Vec<(u64, u64, u64, u64)>,
}

/// A rank's copies.
#[pyclass(frozen)]
#[derive(Debug)]
pub(crate) struct Rank {
    inner: Arc<Inner>,
    lane: Lane,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) device: Device,
    namespace: Arc<Known>,
    group: GroupId,
    pub(crate) layout: Arc<KvLayout>,
    worker: OnceCell<Worker>,
}

/// Keys, places, generations and the engine's blocks: 16, 8, 4 and 4 bytes a block.
type LoadItem = (PyBackedBytes, PyBackedBytes, PyBackedBytes, PyBackedBytes);
/// What `Rank.saves` returns.
type Saves = (u64, u64, u64, u64, u64, Vec<u64>, Option<String>);
/// Number, key of the block before, keys, and the engine's blocks.
type SaveItem = (u64, PyBackedBytes, PyBackedBytes, PyBackedBytes);

#[pymethods]
impl Rank {
    /// Starts to copy blocks from the pool to the engine, after what its `stream` has to do by now. `by_layer`: layer
    /// after layer, so that each can be waited for; else block after block, which takes fewer and longer pieces.
    #[pyo3(signature = (items, stream=None, by_layer=false))]
    fn load(
        &self,
        py: Python<'_>,
        items: Vec<LoadItem>,
        stream: Option<u64>,
        by_layer: bool,
    ) -> PyResult<Loading> {
        let (mut keys, mut refs, mut blocks) = (vec![], vec![], vec![]);
        for (item_keys, places, generations, engine) in &items {
            keys.extend(split_keys(item_keys)?);
            block_refs(places, generations, &mut refs)?;
            blocks.extend(block_numbers(engine)?);
        }
        if keys.len() != refs.len() || keys.len() != blocks.len() {
            return Err(invalid(
                "keys, places, generations and blocks must be of one length",
            ));
        }
        py.detach(|| Loading::start(&self.inner, keys, refs, &blocks, stream, by_layer))
    }

    /// Lets blocks be saved that the node does not have, after what the engine's `stream` has to do by now. Returns at
    /// once; numbers must rise.
    #[pyo3(signature = (items, stream=None))]
    fn save(&self, items: Vec<SaveItem>, stream: Option<u64>) -> PyResult<()> {
        let after = self.inner.device.event(stream)?;
        for (number, parent, keys, blocks) in items {
            let save = Save {
                parent: split_keys(&parent)?.first().copied(),
                keys: split_keys(&keys)?,
                blocks: block_numbers(&blocks)?,
                after: after.clone(),
            };
            self.lane.push(Job { number, save });
        }
        Ok(())
    }

    /// The number up to which saves are over, and what became of blocks since the last call: saved, there already,
    /// refused; bytes copied; numbers of saves of which a block was refused; and what went wrong last.
    fn saves(&self) -> Saves {
        let Tally {
            through,
            saved,
            known,
            refused,
            bytes,
            refused_saves,
            error,
        } = self.lane.take();
        (through, saved, known, refused, bytes, refused_saves, error)
    }

    /// Waits until saves up to `number` are over: nothing reads their blocks any more.
    fn settle(&self, py: Python<'_>, number: u64) {
        py.detach(|| self.lane.settle(number));
    }

    /// Ends what runs: saves that have not begun are dropped, others end first.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.lane.close());
    }
}

impl Rank {
    pub(crate) fn open(
        shared: Arc<Shared>,
        device: Device,
        namespace: Arc<Known>,
        group: GroupId,
        layout: Layout,
    ) -> PyResult<Self> {
        let known = namespace.layout.groups.get(usize::from(group.0));
        let known = known.ok_or_else(|| invalid("the namespace has no such group"))?;
        let slot = Slot {
            layers: layout.layers.0..layout.layers.1,
            heads: layout.heads.0..layout.heads.1,
        };
        let views = layout.views.iter().map(|view| LayerView {
            base: view.0,
            block_stride: view.1,
            part_stride: view.2,
            head_stride: view.3,
        });
        let layout = KvLayout::new(known.shape, slot, views.collect(), layout.blocks);
        let inner = Arc::new(Inner {
            layout: Arc::new(layout.map_err(memory)?),
            shared,
            device,
            namespace,
            group,
            worker: OnceCell::new(),
        });
        let runtime = inner.shared.runtime();
        match runtime.block_on(inner.worker()).map(|_| ()) {
            Err(error) if is_lasting(&error) => return Err(cache(error)),
            _ => {}
        }
        let lane = Lane::start(runtime, inner.clone());
        Ok(Self { inner, lane })
    }
}

impl Inner {
    /// The worker, once the node is there; with the node's pools made known to the device.
    pub(crate) async fn worker(&self) -> Result<&Worker, Error> {
        self.worker.get_or_try_init(|| self.open_worker()).await
    }

    /// The worker, if it is there already.
    pub(crate) fn worker_now(&self) -> Result<&Worker, Error> {
        self.worker.get().ok_or_else(|| Error::Unavailable {
            why: "not connected yet".to_owned(),
        })
    }

    async fn open_worker(&self) -> Result<Worker, Error> {
        let client = self.shared.client()?.clone();
        let handle = self.namespace.handle(&self.shared).await?.clone();
        let session = client.session()?;
        let worker = Worker::new(
            client,
            self.device.any(),
            handle,
            self.group,
            self.layout.clone(),
            WorkerSettings::default(),
        )?;
        tokio::task::block_in_place(|| -> Result<(), Error> {
            for pool in session.pools().iter() {
                self.device.pin(&worker.attach(pool)?)?;
            }
            Ok(())
        })?;
        Ok(worker)
    }
}

fn block_refs(places: &[u8], generations: &[u8], refs: &mut Vec<BlockRef>) -> PyResult<()> {
    let (places, odd) = places.as_chunks::<8>();
    let (generations, rest) = generations.as_chunks::<4>();
    if !odd.is_empty() || !rest.is_empty() || places.len() != generations.len() {
        return Err(invalid("places must be 8 bytes each, generations 4"));
    }
    let first = refs.len();
    let columns = places.iter().zip(generations).enumerate();
    refs.extend(columns.map(|(at, (place, generation))| BlockRef {
        place: Place::from_bits(u64::from_le_bytes(*place)),
        generation: u32::from_le_bytes(*generation),
        key: (first + at) as u32,
    }));
    Ok(())
}

fn block_numbers(bytes: &[u8]) -> PyResult<Vec<u32>> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(invalid("blocks must be 4 bytes each"));
    }
    Ok(numbers.iter().map(|n| u32::from_le_bytes(*n)).collect())
}
