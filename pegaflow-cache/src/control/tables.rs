// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The three tables of a control file: slabs, namespaces, sessions.
//!
//! Invariant: an entry whose CRC is right was written whole; others read as absent.

use super::geometry::{Geometry, NAMESPACE_WORDS, SESSION_WORDS, SESSIONS, SLAB_WORDS, Slab};
use super::superblock::crc;
use super::words::{Words, from_bytes, to_bytes};
use crate::node::process::Process;

/// A slab's entry stands at each of its units, so that any place finds it at once.
pub fn write_slab<W: Words + ?Sized>(file: &W, geometry: &Geometry, slab: &Slab) {
    let mut words = [
        u64::from(slab.first) | u64::from(slab.units) << 32,
        slab.place_bytes,
        u64::from(slab.stride_words),
        0,
    ];
    words[3] = crc([&words[..3]]);
    for unit in (slab.first..slab.first + slab.units).rev() {
        let at = geometry.slabs() + u64::from(unit) * SLAB_WORDS;
        file.store_all(at, &words);
    }
}

/// Forgets the slab that begins at unit `first`.
pub fn erase_slab<W: Words + ?Sized>(file: &W, geometry: &Geometry, first: u32) {
    let at = geometry.slabs() + u64::from(first) * SLAB_WORDS;
    let units = slab_of_unit(file, geometry, first.into()).map_or(1, |slab| slab.units);
    for unit in 0..u64::from(units) {
        file.store(at + unit * SLAB_WORDS, 0);
    }
}

/// The slab that unit `unit` belongs to.
pub fn slab_of_unit<W: Words + ?Sized>(file: &W, geometry: &Geometry, unit: u64) -> Option<Slab> {
    if unit >= geometry.units() {
        return None;
    }
    let mut words = [0; 4];
    file.load_all(geometry.slabs() + unit * SLAB_WORDS, &mut words);
    let slab = Slab {
        first: words[0] as u32,
        units: (words[0] >> 32) as u32,
        place_bytes: words[1],
        stride_words: words[2] as u32,
    };
    let whole = words[3] == crc([&words[..3]]) && words[2] <= u64::from(u32::MAX);
    (whole && slab.is_valid(geometry)).then_some(slab)
}

/// The slab that the place at byte `offset` belongs to.
pub fn slab_at<W: Words + ?Sized>(file: &W, geometry: &Geometry, offset: u64) -> Option<Slab> {
    slab_of_unit(file, geometry, offset / geometry.unit_bytes)
}

/// All slabs, by their first units. An entry overlapped by a later one is left out.
pub fn slabs<W: Words + ?Sized>(file: &W, geometry: &Geometry) -> Vec<Slab> {
    let mut found = vec![];
    let mut unit = 0;
    while unit < geometry.units() {
        match slab_of_unit(file, geometry, unit) {
            Some(slab) if u64::from(slab.first) == unit => {
                unit += u64::from(slab.units);
                found.push(slab);
            }
            _ => unit += 1,
        }
    }
    found
}

/// Words of a log entry before its bytes: length and CRC.
const ENTRY_WORDS: u64 = 2;

/// Reads the namespace log; says at which word it ends.
pub fn namespaces<W: Words + ?Sized>(file: &W, geometry: &Geometry) -> (Vec<Vec<u8>>, u64) {
    let (mut entries, mut at) = (vec![], geometry.namespaces());
    let end = at + NAMESPACE_WORDS;
    while at + ENTRY_WORDS <= end {
        let bytes = file.load(at);
        let words = bytes.div_ceil(8);
        if bytes == 0 || words > end - at - ENTRY_WORDS {
            break;
        }
        let mut content = vec![0; usize::try_from(words).unwrap_or(0)];
        file.load_all(at + ENTRY_WORDS, &mut content);
        if file.load(at + 1) != crc([&content]) {
            break;
        }
        let mut content = to_bytes(&content);
        content.truncate(usize::try_from(bytes).unwrap_or(0));
        entries.push(content);
        at += ENTRY_WORDS + words;
    }
    (entries, at)
}

/// Appends to the namespace log at word `at`; says where it ends then, or `None` if it is full.
pub fn append_namespace<W: Words + ?Sized>(
    file: &W,
    geometry: &Geometry,
    at: u64,
    bytes: &[u8],
) -> Option<u64> {
    let words = from_bytes(bytes);
    let next = at + ENTRY_WORDS + words.len() as u64;
    let end = geometry.namespaces() + NAMESPACE_WORDS;
    if bytes.is_empty() || next + ENTRY_WORDS > end {
        return None;
    }
    file.store_all(at + ENTRY_WORDS, &words);
    file.store(at + 1, crc([&words]));
    file.store(next, 0);
    file.store(at, bytes.len() as u64);
    Some(next)
}

/// Bytes that one more entry of the log may have, if the log ends at word `at`.
#[must_use]
pub fn namespace_room(geometry: &Geometry, at: u64) -> u64 {
    let end = geometry.namespaces() + NAMESPACE_WORDS;
    end.saturating_sub(at + 2 * ENTRY_WORDS) * 8
}

/// A session as the control file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEntry {
    /// Which entry of the table: its bit in a record's writers is `entry % 64`.
    pub entry: u64,
    /// The session's number.
    pub session: u64,
    /// Whose it is.
    pub process: Process,
}

impl SessionEntry {
    /// The bit that stands for the session in a record's writers.
    #[must_use]
    pub fn bit(&self) -> u64 {
        1 << (self.entry % 64)
    }

    /// Writes the entry.
    pub fn write<W: Words + ?Sized>(&self, file: &W, geometry: &Geometry) {
        debug_assert!(self.entry < SESSIONS);
        let at = geometry.sessions() + self.entry * SESSION_WORDS;
        let words = [
            self.session,
            u64::from(self.process.pid),
            self.process.start_ticks,
        ];
        file.store(at + 3, 0);
        file.store_all(at, &words);
        file.store(at + 3, crc([&words]) | 1 << 63);
    }
}

/// Frees an entry of the session table.
pub fn erase_session<W: Words + ?Sized>(file: &W, geometry: &Geometry, entry: u64) {
    file.store(geometry.sessions() + entry * SESSION_WORDS + 3, 0);
}

/// All sessions of the table.
pub fn sessions<W: Words + ?Sized>(file: &W, geometry: &Geometry) -> Vec<SessionEntry> {
    (0..SESSIONS)
        .filter_map(|entry| {
            let mut words = [0; 4];
            file.load_all(geometry.sessions() + entry * SESSION_WORDS, &mut words);
            let process = Process {
                pid: u32::try_from(words[1]).ok()?,
                start_ticks: words[2],
            };
            let whole = words[3] == crc([&words[..3]]) | 1 << 63;
            whole.then_some(SessionEntry {
                entry,
                session: words[0],
                process,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    const GEOMETRY: Geometry = Geometry {
        capacity_bytes: 64 << 12,
        unit_bytes: 1 << 12,
    };

    fn file() -> Vec<AtomicU64> {
        (0..GEOMETRY.file_bytes() / 8)
            .map(|_| AtomicU64::new(0))
            .collect()
    }

    fn slab(first: u32, units: u32, place_bytes: u64) -> Slab {
        Slab {
            first,
            units,
            place_bytes,
            stride_words: 8,
        }
    }

    #[test]
    fn slabs_come_and_go() {
        let file = file();
        assert_eq!(slabs(&file, &GEOMETRY), []);
        let (a, b) = (slab(0, 10, 4096), slab(10, 4, 8192));
        write_slab(&file, &GEOMETRY, &a);
        write_slab(&file, &GEOMETRY, &b);
        assert_eq!(slabs(&file, &GEOMETRY), [a, b]);
        assert_eq!(slab_at(&file, &GEOMETRY, 13 << 12), Some(b));
        assert_eq!(slab_at(&file, &GEOMETRY, 14 << 12), None);
        erase_slab(&file, &GEOMETRY, 10);
        assert_eq!(slab_at(&file, &GEOMETRY, 13 << 12), None);
        let c = slab(12, 4, 512);
        write_slab(&file, &GEOMETRY, &c);
        assert_eq!(slabs(&file, &GEOMETRY), [a, c]);
    }

    #[test]
    fn namespaces_are_kept_in_order() {
        let file = file();
        let mut end = namespaces(&file, &GEOMETRY).1;
        for text in ["one", "the second", "three"] {
            end = append_namespace(&file, &GEOMETRY, end, text.as_bytes()).expect("room");
        }
        let want = ["one", "the second", "three"].map(|text| text.as_bytes().to_vec());
        assert_eq!(namespaces(&file, &GEOMETRY), (want.to_vec(), end));
        let too_long = vec![1; (NAMESPACE_WORDS * 8) as usize];
        assert_eq!(append_namespace(&file, &GEOMETRY, end, &too_long), None);
        file.store(GEOMETRY.namespaces() + ENTRY_WORDS + 3, 1);
        assert_eq!(
            namespaces(&file, &GEOMETRY).0.len(),
            1,
            "the second is damaged: it and those behind it are gone"
        );
    }

    #[test]
    fn sessions_come_and_go() {
        let file = file();
        let process = Process {
            pid: 7,
            start_ticks: 99,
        };
        let entry = |entry| SessionEntry {
            entry,
            session: entry + 100,
            process,
        };
        entry(3).write(&file, &GEOMETRY);
        entry(70).write(&file, &GEOMETRY);
        assert_eq!(entry(70).bit(), 1 << 6);
        assert_eq!(sessions(&file, &GEOMETRY), [entry(3), entry(70)]);
        erase_session(&file, &GEOMETRY, 3);
        assert_eq!(sessions(&file, &GEOMETRY), [entry(70)]);
    }

    proptest! {
        #[test]
        fn any_tables_read_without_panic(words in prop::collection::vec((0usize..70_000, any::<u64>()), 0..200)) {
            let file = file();
            for (at, word) in words {
                file.store(at as u64, word);
            }
            for slab in slabs(&file, &GEOMETRY) {
                prop_assert!(slab.is_valid(&GEOMETRY));
            }
            namespaces(&file, &GEOMETRY);
            sessions(&file, &GEOMETRY);
        }
    }
}
