// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The node's pools as a client sees them: bytes to read and write, records to read.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pegaflow_mem::{Access, SharedMemory};
use pegaflow_meta::BlockKey;

use crate::control::geometry::Geometry;
use crate::control::record::checksums_of;
use crate::control::superblock::{Found, Superblock, incarnation};
use crate::control::tables::slab_at;
use crate::core::Place;
use crate::error::{Error, Result};
use crate::rpc::proto as pb;

/// One pool, mapped.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// Drawn when the pool was made. As long as it stays the same, so does the memory.
    pub uuid: [u8; 16],
    /// The bytes of the blocks.
    pub data: Arc<SharedMemory>,
    control: Arc<SharedMemory>,
    geometry: Geometry,
}

impl PoolView {
    /// A pool from its two files.
    ///
    /// # Errors
    /// [`Error::Protocol`] if the control file is not one, or does not fit the data.
    pub fn new(data: Arc<SharedMemory>, control: Arc<SharedMemory>) -> Result<Self> {
        let Found::Current(superblock) = Superblock::read(&*control) else {
            return Err(Error::protocol("the pool's control file is not one"));
        };
        if superblock.geometry.capacity_bytes > data.len() {
            return Err(Error::protocol("the pool is shorter than it says"));
        }
        Ok(Self {
            uuid: superblock.uuid,
            data,
            control,
            geometry: superblock.geometry,
        })
    }

    /// The checksums of the block that lies at byte `offset`, if it is still this use of the place
    /// and this key. Read after a copy, they prove what was copied.
    #[must_use]
    pub fn checksums(&self, offset: u64, key: BlockKey, generation: u32) -> Option<Vec<u64>> {
        let slab = slab_at(&*self.control, &self.geometry, offset)?;
        let at = slab.record(&self.geometry, offset)?;
        checksums_of(&*self.control, at, key, generation)
    }
}

/// All pools of a node.
#[derive(Debug, Clone, Default)]
pub struct Pools(Arc<[PoolView]>);

impl Pools {
    /// Pools by number.
    #[must_use]
    pub fn new(pools: Vec<PoolView>) -> Self {
        Self(pools.into())
    }

    /// The pool of this number.
    #[must_use]
    pub fn get(&self, pool: u8) -> Option<&PoolView> {
        self.0.get(usize::from(pool))
    }

    /// The pool that a place lies in.
    ///
    /// # Errors
    /// [`Error::Protocol`] for a place of no pool of this node.
    pub fn of(&self, place: Place) -> Result<&PoolView> {
        let pool = self.get(place.pool());
        pool.ok_or_else(|| Error::protocol(format_args!("{place:?} is in no pool of this node")))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &PoolView> {
        self.0.iter()
    }

    /// Maps what was handed over. A pool that is mapped already keeps its mapping, so that devices
    /// need not register it again.
    pub(crate) fn attach(
        hello: &pb::HelloReply,
        files: Vec<OwnedFd>,
        known: &Pools,
    ) -> Result<(Self, Arc<SharedMemory>)> {
        if files.len() != hello.pools.len() * 2 + 1 {
            return Err(Error::protocol(format_args!(
                "{} files handed over for {} pools",
                files.len(),
                hello.pools.len()
            )));
        }
        let mut files = files.into_iter();
        let mut next = || files.next().expect("they were just counted");
        let mut pools = vec![];
        for pool in &hello.pools {
            let (data, control) = (next(), next());
            let same = known.iter().find(|known| known.uuid[..] == pool.uuid);
            let view = match same {
                Some(known) => known.clone(),
                None => PoolView::new(
                    Arc::new(SharedMemory::attach_fd(data, Access::ReadWrite)?),
                    Arc::new(SharedMemory::attach_fd(control, Access::Read)?),
                )?,
            };
            if view.uuid[..] != pool.uuid {
                return Err(Error::protocol(
                    "the pool handed over is not the one announced",
                ));
            }
            if incarnation(&*view.control) != hello.incarnation {
                return Err(Error::unavailable("the node restarts at this moment"));
            }
            pools.push(view);
        }
        let tickets = SharedMemory::attach_fd(next(), Access::Read)?;
        Ok((Self::new(pools), Arc::new(tickets)))
    }
}
