// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;

use super::*;

const PLACE: Place = Place {
    store: 77,
    segment: 5,
};

fn record() -> impl Strategy<Value = Record> {
    (
        any::<u128>(),
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<bool>(),
    )
        .prop_map(
            |(key, checksum, page, bytes, expires_s, tombstone)| Record {
                key: key.into(),
                checksum,
                sequence: 0,
                page,
                bytes,
                expires_s,
                header_page: 0,
                header_index: 0,
                tombstone,
            },
        )
}

fn batch() -> impl Strategy<Value = Batch> {
    let parts = prop::collection::vec(
        (record(), prop::collection::vec(any::<u8>(), 0..256)),
        0..40,
    );
    (
        parts,
        any::<u64>(),
        0..1u64 << 60,
        any::<u32>(),
        any::<u32>(),
    )
        .prop_map(|(parts, generation, sequence, page, pages)| {
            let (mut records, metas): (Vec<Record>, _) = parts.into_iter().unzip();
            for (i, r) in records.iter_mut().enumerate() {
                (r.sequence, r.header_page, r.header_index) = (sequence + i as u64, page, i as u16);
            }
            Batch {
                generation,
                sequence,
                page,
                pages,
                records,
                metas,
            }
        })
}

proptest! {
    #[test]
    fn a_batch_comes_back_and_no_flipped_bit_does(b in batch(), bit in any::<usize>()) {
        let mut bytes = b.encode(PLACE);
        prop_assert_eq!(bytes.len() % PAGE, 0);
        prop_assert_eq!(Batch::decode(&bytes, PLACE), Some(b));
        prop_assert_eq!(Batch::decode(&bytes, Place { segment: 6, ..PLACE }), None);
        prop_assert_eq!(Batch::decode(&bytes, Place { store: 78, ..PLACE }), None);
        let used = u32_at(&bytes, 48) as usize;
        let bit = bit % (used * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Batch::decode(&bytes, PLACE), None);
    }

    #[test]
    fn a_seal_comes_back_and_no_flipped_bit_does(
        records in prop::collection::vec(record(), 0..200),
        generation in any::<u64>(),
        used_pages in any::<u32>(),
        bit in any::<usize>(),
    ) {
        let seal = Seal { generation, used_pages, records };
        let mut bytes = seal.encode(PLACE);
        prop_assert_eq!(Seal::decode(&bytes, PLACE), Some(seal.clone()));
        let last = &bytes[bytes.len() - PAGE..];
        prop_assert_eq!(Trailer::decode(last, PLACE).map(|t| t.records as usize), Some(seal.records.len()));
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Seal::decode(&bytes, PLACE), None);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut page = bytes;
        let _ = Batch::decode(&page, PLACE);
        let _ = Seal::decode(&page, PLACE);
        let _ = Superblock::decode(&page);
        // The same with a head that passes the first look.
        page.resize(PAGE, 0);
        for magic in [BATCH_MAGIC, SEAL_MAGIC, VOID_MAGIC, SUPER_MAGIC] {
            let end = page.len() - 64;
            for at in [0, end] {
                put_u64(&mut page, at, magic);
                put_u64(&mut page, at + 16, PLACE.store);
                put_u32(&mut page, at + 24, PLACE.segment);
                let sum = checksum(&page[at + 16..]);
                put_u64(&mut page, at + 8, sum);
                let _ = Batch::decode(&page, PLACE);
                let _ = Seal::decode(&page, PLACE);
                let _ = Superblock::decode(&page);
                let _ = decode_void(&page, PLACE);
            }
        }
    }
}

#[test]
fn void_pages_and_superblocks_come_back() {
    let page = void_page(PLACE, 99);
    assert_eq!(decode_void(&page, PLACE), Some(99));
    let mut torn = page.clone();
    torn[..SECTOR * 7].fill(3);
    assert_eq!(decode_void(&torn, PLACE), Some(99), "one sector is enough");
    assert_eq!(Batch::decode(&page, PLACE), None);
    assert_eq!(Trailer::decode(&page, PLACE), None);
    let block = Superblock {
        store: 1,
        segment_bytes: 2,
        segments: 3,
        member: 0,
        members: 1,
    };
    let mut bytes = block.encode();
    assert_eq!(Superblock::decode(&bytes), Found::Store(block));
    put_u32(&mut bytes, 24, 9);
    let sum = checksum(&bytes[16..]);
    put_u64(&mut bytes, 8, sum);
    assert_eq!(Superblock::decode(&bytes), Found::OtherVersion(9));
    bytes[2000] ^= 1;
    assert_eq!(Superblock::decode(&bytes), Found::Nothing);
}
