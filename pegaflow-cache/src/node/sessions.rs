// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Who is connected, who was before a restart, and what still waits for them.
//!
//! The core knows sessions as numbers. Here they are processes: an entry in the control file, a bit
//! in the records they write, and the question whether they can still write.

use std::collections::HashSet;

use hashbrown::HashMap;
use tokio::sync::mpsc;

use super::process::Process;
use crate::control::geometry::SESSIONS;
use crate::control::tables::SessionEntry;
use crate::core::SessionId;
use crate::rpc::proto::SessionEvent;

/// A session of this run.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) entry: SessionEntry,
    /// Its lifeline is cut.
    pub(super) closed: bool,
    /// It has the pools mapped.
    pub(super) has_memory: bool,
    events: Option<mpsc::Sender<SessionEvent>>,
}

impl Session {
    /// Tells the client, if it listens and keeps up.
    pub(super) fn tell(&self, event: SessionEvent) {
        if let Some(events) = &self.events {
            let _ = events.try_send(event);
        }
    }
}

/// Sessions by number, and the ones that a restart left over.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: HashMap<SessionId, Session>,
    /// Sessions of earlier runs whose processes live and have not said that they are quiet.
    left_over: HashMap<SessionId, SessionEntry>,
    /// Places of earlier runs, by who may still write to them: the core's session for them, and
    /// the sessions that must be quiet.
    waits: Vec<(SessionId, HashSet<SessionId>)>,
    /// Entries of the control file in use.
    used: HashSet<u64>,
}

impl Sessions {
    pub(super) fn get(&self, session: SessionId) -> Option<&Session> {
        self.open.get(&session)
    }

    pub(super) fn get_mut(&mut self, session: SessionId) -> Option<&mut Session> {
        self.open.get_mut(&session)
    }

    /// The bit of a session in the records it writes.
    pub(super) fn bit(&self, session: SessionId) -> u64 {
        self.open.get(&session).map_or(0, |held| held.entry.bit())
    }

    /// An entry for a new session; `None` if the control file has no room for another.
    pub(super) fn insert(
        &mut self,
        session: SessionId,
        process: Process,
        has_memory: bool,
        events: Option<mpsc::Sender<SessionEvent>>,
    ) -> Option<SessionEntry> {
        let entry = (0..SESSIONS).find(|entry| !self.used.contains(entry))?;
        self.used.insert(entry);
        let entry = SessionEntry {
            entry,
            session: session.0,
            process,
        };
        let held = Session {
            entry,
            closed: false,
            has_memory,
            events,
        };
        self.open.insert(session, held);
        Some(entry)
    }

    /// Forgets a session; says which entry is free.
    pub(super) fn remove(&mut self, session: SessionId) -> Option<u64> {
        let entry = self.open.remove(&session)?.entry.entry;
        self.used.remove(&entry);
        Some(entry)
    }

    /// All sessions of this run.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.open.iter().map(|(id, session)| (*id, session))
    }

    /// Notes a session of an earlier run whose process lives.
    pub(super) fn add_left_over(&mut self, entry: SessionEntry) {
        self.used.insert(entry.entry);
        self.left_over.insert(SessionId(entry.session), entry);
    }

    /// The sessions of earlier runs that may be meant by these bits.
    pub(super) fn left_over_of(&self, writers: u64) -> Vec<SessionId> {
        let meant = |entry: &&SessionEntry| entry.bit() & writers != 0;
        let mut found: Vec<_> = self.left_over.values().filter(meant).collect();
        found.sort_by_key(|entry| entry.session);
        found.iter().map(|entry| SessionId(entry.session)).collect()
    }

    /// The core's `session` ends when all of `writers` are quiet.
    pub(super) fn add_wait(&mut self, session: SessionId, writers: Vec<SessionId>) {
        self.waits.push((session, writers.into_iter().collect()));
    }

    /// Whose a session of an earlier run was.
    pub(super) fn left_over(&self, session: SessionId) -> Option<&SessionEntry> {
        self.left_over.get(&session)
    }

    /// A session of an earlier run is quiet: says which entry is free, and which sessions of the
    /// core have nothing left to wait for.
    pub(super) fn left_over_quiet(&mut self, session: SessionId) -> (Option<u64>, Vec<SessionId>) {
        let Some(entry) = self.left_over.remove(&session) else {
            return (None, vec![]);
        };
        self.used.remove(&entry.entry);
        let mut over = vec![];
        self.waits.retain_mut(|(waiting, writers)| {
            writers.remove(&session);
            if writers.is_empty() {
                over.push(*waiting);
            }
            !writers.is_empty()
        });
        (Some(entry.entry), over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_waits_for_all_who_may_write_to_it() {
        let process = Process {
            pid: 1,
            start_ticks: 2,
        };
        let entry = |entry| SessionEntry {
            entry,
            session: entry + 1000,
            process,
        };
        let mut sessions = Sessions::default();
        for n in [0, 1, 64] {
            sessions.add_left_over(entry(n));
        }
        let ids = |ids: &[u64]| ids.iter().map(|id| SessionId(*id)).collect::<Vec<_>>();
        assert_eq!(
            sessions.left_over_of(1),
            ids(&[1000, 1064]),
            "they share a bit"
        );
        assert_eq!(sessions.left_over_of(4), ids(&[]));
        let writers = sessions.left_over_of(3);
        sessions.add_wait(SessionId(5), writers);
        assert_eq!(
            sessions.left_over_quiet(SessionId(1000)),
            (Some(0), ids(&[]))
        );
        assert_eq!(sessions.left_over_quiet(SessionId(1000)), (None, ids(&[])));
        assert_eq!(
            sessions.left_over_quiet(SessionId(1064)),
            (Some(64), ids(&[]))
        );
        assert_eq!(
            sessions.left_over_quiet(SessionId(1001)),
            (Some(1), ids(&[5]))
        );
        let new = sessions
            .insert(SessionId(7), process, true, None)
            .expect("room");
        assert_eq!(new.entry, 0, "entries are used again");
    }
}
