// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Starting on pools that an earlier server left: finds its blocks, drops what was not sealed, and
//! keeps places out of use that a living process may still write to.
//!
//! Trusts nothing it reads: a record that does not fit is erased, and its place is free.

use std::collections::HashMap;

use super::layout::NamespaceLayout;
use super::process::{Process, Watch};
use super::state::State;
use crate::control::record::erase;
use crate::control::scan::{FoundRecord, Scan, scan};
use crate::control::tables;
use crate::control::words::Words;
use crate::core::{NamespaceIndex, Now, Place, RestoredBlock, RestoredWrite, SessionId};
use crate::error::Result;
use crate::tier::spill::Candidate;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    pub(super) blocks: u64,
    pub(super) unsealed: u64,
    pub(super) quarantined: u64,
    pub(super) damaged: u64,
    /// The blocks, for the tier below; only kept if there is one.
    pub(super) sealed: Vec<Candidate>,
    keeps_sealed: bool,
    /// Living processes of earlier runs, to be watched.
    pub(super) watches: Vec<(SessionId, std::os::fd::OwnedFd)>,
}

/// Brings the state to where an earlier server left it.
pub(super) fn recover(
    state: &mut State,
    found: &[bool],
    threads: usize,
    now: Now,
    keeps_sealed: bool,
) -> Result<Recovery> {
    let mut recovery = Recovery {
        keeps_sealed,
        ..Recovery::default()
    };
    if found.first() != Some(&true) {
        // Namespaces and sessions stand in the first pool: without it the others mean nothing.
        for pool in found.iter().enumerate().filter(|(_, found)| **found) {
            let pool = &state.pools[pool.0];
            wipe(&*pool.control, &pool.geometry);
        }
        return Ok(recovery);
    }
    restore_namespaces(state)?;
    recovery.watches = restore_sessions(state);
    let mut quarantines = HashMap::new();
    for (index, found) in found.iter().enumerate() {
        if *found {
            let pool = &state.pools[index];
            let scanned = scan(&*pool.control, &pool.geometry, threads);
            restore_pool(
                state,
                index as u8,
                &scanned,
                now,
                &mut quarantines,
                &mut recovery,
            );
        }
    }
    for session in quarantines.into_values() {
        state.core.close_session(now, session, &mut state.actions)?;
    }
    state.apply(None);
    state.core.finish_restore();
    state.recovered = recovery.blocks;
    state.dropped_unsealed = recovery.unsealed;
    Ok(recovery)
}

fn wipe<W: Words + ?Sized>(file: &W, geometry: &crate::control::geometry::Geometry) {
    for slab in tables::slabs(file, geometry) {
        tables::erase_slab(file, geometry, slab.first);
    }
}

fn restore_namespaces(state: &mut State) -> Result<()> {
    let pool = &state.pools[0];
    let (entries, end) = tables::namespaces(&*pool.control, &pool.geometry);
    state.namespaces_end = end;
    for entry in entries {
        let layout = NamespaceLayout::decode(&entry)?;
        let index = state.core.register_namespace(&layout.spec()?)?;
        debug_assert_eq!(index.0 as usize, state.namespaces.len());
        layout.groups.iter().all(|group| state.fits(group));
        state.add_layout(layout);
    }
    Ok(())
}

/// Notes sessions whose processes live. Those of this very process are over: a node lives at least
/// as long as the last copy of its embedded clients.
fn restore_sessions(state: &mut State) -> Vec<(SessionId, std::os::fd::OwnedFd)> {
    let own = Process::current().ok();
    let pool = &state.pools[0];
    let mut watches = vec![];
    for entry in tables::sessions(&*pool.control, &pool.geometry) {
        let watch = (Some(entry.process) != own).then(|| entry.process.watch());
        match watch {
            Some(Ok(Watch::Alive(pidfd))) => {
                watches.push((SessionId(entry.session), pidfd));
                state.sessions.add_left_over(entry);
            }
            Some(Err(error)) => {
                // It may live and cannot be watched: only its own word ends it.
                tracing::warn!(pid = entry.process.pid, %error, "an earlier client cannot be watched");
                state.sessions.add_left_over(entry);
            }
            Some(Ok(Watch::Gone)) | None => state.erase_entry(entry.entry),
        }
    }
    watches
}

fn restore_pool(
    state: &mut State,
    pool: u8,
    scanned: &Scan,
    now: Now,
    quarantines: &mut HashMap<Vec<SessionId>, SessionId>,
    recovery: &mut Recovery,
) {
    for slab in &scanned.slabs {
        let restored = state
            .core
            .restore_slab(pool, slab.first, slab.units, slab.place_bytes);
        if restored.is_err() {
            recovery.damaged += 1;
            state.pools[usize::from(pool)].release_slab(slab.first);
        }
    }
    for found in &scanned.records {
        let place = Place::new(pool, found.offset);
        let kept = if found.sealed {
            restore_block(state, place, found, now, recovery)
        } else {
            restore_write(state, place, found, now, quarantines, recovery)
        };
        if !kept {
            erase(&*state.pools[usize::from(pool)].control, found.at);
        }
    }
}

fn restore_block(
    state: &mut State,
    place: Place,
    found: &FoundRecord,
    now: Now,
    recovery: &mut Recovery,
) -> bool {
    let record = &found.record;
    let block = RestoredBlock {
        place,
        namespace: NamespaceIndex(record.namespace),
        group: record.group,
        key: record.key,
        parent: record.parent,
        generation: record.generation,
    };
    let fits = state
        .namespaces
        .get(record.namespace as usize)
        .and_then(|layout| layout.groups.get(usize::from(record.group.0)))
        .is_some_and(|group| group.checksums() == u32::from(record.checksums));
    let restored = fits && matches!(state.core.restore_block(now, &block), Ok(true));
    recovery.blocks += u64::from(restored);
    if restored && recovery.keeps_sealed {
        recovery
            .sealed
            .extend(state.candidate(place, record.generation, record));
    }
    recovery.damaged += u64::from(!restored);
    restored
}

fn restore_write(
    state: &mut State,
    place: Place,
    found: &FoundRecord,
    now: Now,
    quarantines: &mut HashMap<Vec<SessionId>, SessionId>,
    recovery: &mut Recovery,
) -> bool {
    recovery.unsealed += 1;
    let writers = state.sessions.left_over_of(found.writers);
    if writers.is_empty() {
        return false;
    }
    let session = match quarantines.get(&writers) {
        Some(session) => *session,
        None => {
            let session = SessionId(u64::from_le_bytes(super::files::random()));
            if state.core.open_session(session, 0).is_err() {
                return false;
            }
            quarantines.insert(writers.clone(), session);
            state.sessions.add_wait(session, writers);
            session
        }
    };
    let write = RestoredWrite {
        place,
        namespace: NamespaceIndex(found.record.namespace),
        group: found.record.group,
        session,
        generation: found.record.generation,
    };
    let kept = state.core.restore_write(now, &write).is_ok();
    recovery.quarantined += u64::from(kept);
    kept
}
