// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The first page of a control file: what it is, of which pool, of which run of the server.

use super::geometry::Geometry;
use super::words::Words;

/// `PFLWCTL` and a zero.
const MAGIC: u64 = u64::from_le_bytes(*b"PFLWCTL\0");
/// Changes whenever an older build would misread a newer file. A build reads its own only.
pub const FORMAT_VERSION: u64 = 1;
const INCARNATION_WORD: u64 = 16;

/// What a control file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Drawn at random when the pool was made.
    pub uuid: [u8; 16],
    /// Its sizes.
    pub geometry: Geometry,
}

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A control file of this build.
    Current(Superblock),
    /// All zeros at its start: never written, or written by a server killed at its first start.
    Blank,
    /// A control file of another version of the format.
    Version(u64),
    /// Something else.
    Foreign,
}

impl Superblock {
    fn encode(&self) -> [u64; 8] {
        let uuid = u128::from_le_bytes(self.uuid);
        let mut words = [
            MAGIC,
            FORMAT_VERSION,
            uuid as u64,
            (uuid >> 64) as u64,
            self.geometry.capacity_bytes,
            self.geometry.unit_bytes,
            0,
            0,
        ];
        words[7] = crc([&words[..7]]);
        words
    }

    /// Writes it, the magic last.
    pub fn write<W: Words + ?Sized>(&self, file: &W) {
        let words = self.encode();
        file.store(0, 0);
        file.store_all(1, &words[1..]);
        file.store(0, words[0]);
    }

    /// Reads what is there.
    pub fn read<W: Words + ?Sized>(file: &W) -> Found {
        let mut words = [0; 8];
        words[0] = file.load(0);
        file.load_all(1, &mut words[1..]);
        if words[0] == 0 {
            return Found::Blank;
        }
        if words[0] != MAGIC {
            return Found::Foreign;
        }
        if words[1] != FORMAT_VERSION {
            return Found::Version(words[1]);
        }
        let superblock = Self {
            uuid: (u128::from(words[2]) | u128::from(words[3]) << 64).to_le_bytes(),
            geometry: Geometry {
                capacity_bytes: words[4],
                unit_bytes: words[5],
            },
        };
        let whole = words[7] == crc([&words[..7]])
            && superblock.geometry.is_valid()
            && superblock.geometry.file_bytes() <= file.len_words() * 8;
        if whole {
            Found::Current(superblock)
        } else {
            Found::Foreign
        }
    }
}

/// Names the run of the server that writes the file.
pub fn set_incarnation<W: Words + ?Sized>(file: &W, incarnation: u64) {
    file.store(INCARNATION_WORD, incarnation);
}

/// The run of the server that wrote the file last.
pub fn incarnation<W: Words + ?Sized>(file: &W) -> u64 {
    file.load(INCARNATION_WORD)
}

/// CRC-32 of words one after the other, as bytes.
pub(super) fn crc<const N: usize>(parts: [&[u64]; N]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    // In long runs, which is what the processor's instructions for it want.
    let (mut run, mut len) = ([0; 256], 0);
    for word in parts.into_iter().flatten() {
        run[len..len + 8].copy_from_slice(&word.to_le_bytes());
        len += 8;
        if len == run.len() {
            hasher.update(&run);
            len = 0;
        }
    }
    hasher.update(&run[..len]);
    u64::from(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_superblock_says_what_the_file_is() {
        let superblock = Superblock {
            uuid: [7; 16],
            geometry: Geometry {
                capacity_bytes: 1 << 20,
                unit_bytes: 4096,
            },
        };
        let words = superblock.geometry.file_bytes() / 8;
        let file: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
        assert_eq!(Superblock::read(&file), Found::Blank);
        superblock.write(&file);
        assert_eq!(Superblock::read(&file), Found::Current(superblock));
        assert_eq!(Superblock::read(&file[..100]), Found::Foreign, "cut short");
        file.store(1, 2);
        assert_eq!(Superblock::read(&file), Found::Version(2));
        file.store(1, 1);
        file.store(4, 1 << 21);
        assert_eq!(Superblock::read(&file), Found::Foreign, "damaged");
        file.store(0, 1);
        assert_eq!(Superblock::read(&file), Found::Foreign, "another file");
    }

    proptest! {
        #[test]
        fn any_words_are_no_superblock(words in prop::collection::vec(any::<u64>(), 0..20), magic: bool) {
            let file: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
            if magic && file.len() > 2 {
                file.store(0, MAGIC);
                file.store(1, FORMAT_VERSION);
            }
            prop_assert!(!matches!(Superblock::read(&file), Found::Current(_)));
            let _ = incarnation(&file);
        }

        /// However words are cut into parts, their CRC is that of their bytes.
        #[test]
        fn the_crc_is_that_of_the_bytes(words in prop::collection::vec(any::<u64>(), 0..100), cut in 0usize..100) {
            let (a, b) = words.split_at(cut.min(words.len()));
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(crc([a, b]), u64::from(crc32fast::hash(&bytes)));
        }
    }
}
