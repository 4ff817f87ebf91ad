// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One suite for every kind of store, and each fault on its own.

mod faults;
mod reclaim;

use std::sync::Arc;

use super::*;
use crate::disk::{Fault, FaultFile, FaultPlan};
use crate::error::{ErrorKind, IoKind};
use crate::settings::{Admission, Backend, Durability, IoSettings, Reclaim, Settings};
use crate::sys::{Arena, BlockFile, MemoryFile, PAGE};

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 256 << 10;

fn settings() -> Settings {
    Settings {
        segment_bytes: SEGMENT,
        ..Settings::default()
    }
}

fn body(seed: u64, bytes: usize) -> Buf {
    let mut buf = Buf::new(bytes);
    let words = (0..).map(|i: u64| (i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    buf.iter_mut()
        .zip(words.flatten())
        .for_each(|(to, b)| *to = b);
    buf
}

fn key(n: u64) -> Key {
    Key::from(u128::from(n))
}

fn put(store: &SsdStore, n: u64, bytes: usize) -> Result<Stored> {
    loop {
        match store.put(Put::new(key(n), body(n, bytes))) {
            Ok(ticket) => {
                let done = ticket.wait();
                assert!(matches!(done.result, Err(Error::Deadline { .. })) || done.bufs.len() == 1);
                return done.result;
            }
            Err(refused) if refused.error.kind() == ErrorKind::Busy => std::thread::yield_now(),
            Err(refused) => return Err(refused.error),
        }
    }
}

/// The block's bytes are right, or it is a miss (false), or an error.
fn get(store: &SsdStore, n: u64, bytes: usize) -> Result<bool> {
    let done = store.get(Get::new(key(n), Buf::new(bytes))).unwrap().wait();
    match done.result? {
        Fetched::Hit { bytes: got, .. } => {
            assert_eq!(
                (got as usize, &done.bufs[0][..]),
                (bytes, &body(n, bytes)[..]),
                "block {n}"
            );
            Ok(true)
        }
        Fetched::Miss => Ok(false),
    }
}

fn conformance(store: &SsdStore) {
    for (n, bytes) in [
        (1, 1),
        (2, 4096),
        (3, 5000),
        (4, 100_000),
        (5, (SEGMENT - 8192) as usize),
    ] {
        assert_eq!(put(store, n, bytes), Ok(Stored::Stored), "{bytes} bytes");
        assert_eq!(get(store, n, bytes), Ok(true));
    }
    assert_eq!(get(store, 99, 4096), Ok(false));
    let found = store.find(&[key(3), key(99), key(4)]);
    let bytes: Vec<_> = found.iter().map(|f| f.map(|f| f.bytes)).collect();
    assert_eq!(bytes, [Some(5000), None, Some(100_000)]);
    options(store);
    scattered(store);
    refused(store);
    burst(store);
    let stats = store.stats();
    assert!(stats.blocks > 50 && stats.dropped.corrupt == 0, "{stats:?}");
    assert_eq!((stats.write_queue_bytes, stats.read_queue_bytes), (0, 0));
}

fn options(store: &SsdStore) {
    let with_meta = Put {
        meta: vec![7; 256],
        ..Put::new(key(10), body(10, 9000))
    };
    assert_eq!(
        store.put(with_meta).unwrap().wait().result,
        Ok(Stored::Stored)
    );
    let fetch = Get {
        meta: true,
        ..Get::new(key(10), Buf::new(9000))
    };
    let hit = Fetched::Hit {
        bytes: 9000,
        meta: vec![7; 256],
    };
    assert_eq!(store.get(fetch).unwrap().wait().result, Ok(hit));
    let again = Put {
        if_absent: true,
        ..Put::new(key(10), body(11, 10))
    };
    assert_eq!(store.put(again).unwrap().wait().result, Ok(Stored::Present));
    let replaced = Put::new(key(10), body(12, 10));
    assert_eq!(
        store.put(replaced).unwrap().wait().result,
        Ok(Stored::Stored)
    );
    assert_eq!(store.find(&[key(10)])[0].map(|f| f.bytes), Some(10));
    assert_eq!(store.remove(key(10)).unwrap().wait().result, Ok(true));
    assert_eq!(store.find(&[key(10)]), [None]);
    assert_eq!(store.remove(key(98)).unwrap().wait().result, Ok(false));
    assert_eq!(store.pin(key(3), true), Ok(true));
    assert_eq!(store.pin(key(98), true), Ok(false));
    assert_eq!(store.pin(key(3), false), Ok(true));
}

fn scattered(store: &SsdStore) {
    for sizes in [
        vec![4096; 40],
        vec![4096, 4096, 100],
        vec![3, 4, 5],
        vec![1000; 150],
    ] {
        let total: usize = sizes.iter().sum();
        let whole = body(20, total);
        let mut at = 0;
        let bufs = sizes.iter().map(|n| {
            at += n;
            Buf::copy_of(&whole[at - n..at])
        });
        let done = store
            .put(Put::scattered(key(20), bufs.collect()))
            .unwrap()
            .wait();
        assert_eq!(done.result, Ok(Stored::Stored));
        let lens: Vec<usize> = done.bufs.iter().map(|b| b.len()).collect();
        assert_eq!(lens, sizes, "the buffers come back as they went");
        let bufs = (0..total.div_ceil(8192) + 1)
            .map(|_| Buf::new(8192))
            .collect();
        let done = store
            .get(Get {
                key: key(20),
                bufs,
                meta: false,
            })
            .unwrap()
            .wait();
        let got: Vec<u8> = done
            .bufs
            .iter()
            .take(total.div_ceil(8192))
            .flat_map(|b| b.to_vec())
            .collect();
        assert_eq!(
            (done.bufs.len(), &got[..]),
            (total.div_ceil(8192) + 1, &whole[..])
        );
    }
}

fn refused(store: &SsdStore) {
    let large = store.block_bytes_max() as usize + 1;
    for put in [
        Put::new(key(30), Buf::new(large)),
        Put::new(key(30), Buf::new(0)),
        Put {
            meta: vec![0; 257],
            ..Put::new(key(30), Buf::new(1))
        },
    ] {
        let refused = store.put(put).unwrap_err();
        assert_eq!(
            (refused.error.kind(), refused.bufs.len()),
            (ErrorKind::Invalid, 1)
        );
    }
    let refused = store.get(Get::new(key(4), Buf::new(4096))).unwrap_err();
    assert_eq!(
        (refused.error.kind(), refused.bufs.len()),
        (ErrorKind::Invalid, 1)
    );
}

fn burst(store: &SsdStore) {
    let puts = (100..150).map(|n| Put::new(key(n), body(n, 20_000)));
    let tickets = store.put_batch(puts.collect());
    for ticket in tickets {
        assert_eq!(ticket.unwrap().wait().result, Ok(Stored::Stored));
    }
    let gets = (100..150).map(|n| Get::new(key(n), Buf::new(20_000)));
    for (n, ticket) in (100..150).zip(store.get_batch(gets.collect())) {
        let done = ticket.unwrap().wait();
        assert!(matches!(done.result, Ok(Fetched::Hit { .. })));
        assert_eq!(done.bufs[0][..], body(n, 20_000)[..]);
    }
}

fn file_store(dir: &tempfile::TempDir, settings: Settings) -> SsdStore {
    SsdStore::open(
        settings,
        &[Device::file(dir.path().join("store"), 16 * MIB)],
    )
    .unwrap()
}

fn faulty(settings: Settings) -> (SsdStore, FaultPlan) {
    let plan = FaultPlan::new();
    let file = Arc::new(FaultFile::new(MemoryFile::new(8 * MIB), plan.clone()));
    (
        SsdStore::over(settings, vec![("faulty".into(), file)]).unwrap(),
        plan,
    )
}

#[test]
fn a_store_in_memory() {
    conformance(&SsdStore::in_memory(settings(), 16 * MIB).unwrap());
}

#[test]
fn a_store_on_a_file() {
    for backend in [Backend::Auto, Backend::Threads] {
        for durability in [Durability::Written, Durability::Flushed] {
            let dir = tempfile::tempdir().unwrap();
            let io = IoSettings {
                backend,
                ..IoSettings::default()
            };
            conformance(&file_store(
                &dir,
                Settings {
                    io,
                    durability,
                    ..settings()
                },
            ));
        }
    }
}

#[test]
fn a_store_on_tmpfs_says_that_it_has_no_direct_io() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let store = file_store(&dir, settings());
    conformance(&store);
    let device = &store.stats().devices[0];
    assert!(!device.direct && !device.notes.is_empty(), "{device:?}");
}

#[test]
fn a_store_that_is_always_short() {
    let (store, plan) = faulty(settings());
    plan.next(IoKind::Read, u64::MAX, Fault::Short(5000));
    plan.next(IoKind::Write, u64::MAX, Fault::Short(3000));
    conformance(&store);
}

#[test]
fn blocks_are_still_there_when_it_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(&dir, settings());
    let path = dir.path().join("store");
    let second = SsdStore::open(settings(), &[Device::existing(&path)]);
    assert!(matches!(second, Err(Error::InUse { .. })));
    for n in 0..30 {
        put(&store, n, 50_000).unwrap();
    }
    store.remove(key(7)).unwrap().wait().result.unwrap();
    drop(store);
    let store = file_store(&dir, settings());
    let report = &store.recovery()[0];
    assert_eq!(
        (report.blocks, report.scanned_segments, report.torn_blocks),
        (29, 0, 0),
        "{report:?}"
    );
    for n in 0..30 {
        assert_eq!(get(&store, n, 50_000), Ok(n != 7), "block {n}");
    }
    assert_eq!(store.blocks().len(), 29);
}

#[test]
fn several_devices_are_one_store() {
    let files: Vec<_> = (0..3).map(|_| Arc::new(MemoryFile::new(8 * MIB))).collect();
    let all = |order: &[usize]| -> Vec<(std::path::PathBuf, Arc<dyn BlockFile>)> {
        order
            .iter()
            .map(|i| ("memory".into(), files[*i].clone() as Arc<dyn BlockFile>))
            .collect()
    };
    let store = SsdStore::over(settings(), all(&[0, 1, 2])).unwrap();
    conformance(&store);
    for n in 200..260 {
        put(&store, n, 60_000).unwrap();
    }
    let stats = store.stats();
    let used = |d: &crate::metrics::DeviceStats| d.full_segments > 2;
    assert!(stats.devices.iter().all(used), "{:?}", stats.devices);
    drop(store);
    let part = SsdStore::over(settings(), all(&[2, 0]));
    assert!(matches!(
        part.err().map(|e| e.kind()),
        Some(ErrorKind::Invalid)
    ));
    let store = SsdStore::over(settings(), all(&[2, 0, 1])).unwrap();
    for n in 230..260 {
        assert_eq!(get(&store, n, 60_000), Ok(true));
    }
}

#[test]
fn foreign_small_and_future_devices_are_refused() {
    let over = |file: MemoryFile, settings: Settings| {
        SsdStore::over(settings, vec![("m".into(), Arc::new(file))])
    };
    let small = over(MemoryFile::new(MIB + 3 * SEGMENT), settings())
        .err()
        .unwrap();
    assert!(matches!(small, Error::BadPath { .. }) && small.to_string().contains("too small"));
    let mut bytes = vec![0; 8 << 20];
    bytes[100] = 1;
    let foreign = over(MemoryFile::from_bytes(bytes.clone()), settings())
        .err()
        .unwrap();
    assert!(foreign.to_string().contains("holds something"), "{foreign}");
    let formatted = over(
        MemoryFile::from_bytes(bytes),
        Settings {
            format: true,
            ..settings()
        },
    );
    assert!(formatted.is_ok());
    let dir = tempfile::tempdir().unwrap();
    let directory = SsdStore::open(settings(), &[Device::file(dir.path(), MIB)])
        .err()
        .unwrap();
    assert!(matches!(directory, Error::BadPath { .. }));
    let missing = SsdStore::open(settings(), &[Device::existing(dir.path().join("no"))]);
    assert!(matches!(missing.err(), Some(Error::BadPath { .. })));
}

#[test]
fn another_format_version_is_named() {
    let file = Arc::new(MemoryFile::new(8 * MIB));
    drop(SsdStore::over(settings(), vec![("m".into(), file.clone())]).unwrap());
    for at in [0, PAGE as u64] {
        let mut page = vec![0; PAGE];
        file.read_at(&mut page, at).unwrap();
        page[24] = 9;
        let sum = crate::format::checksum(&page[16..]);
        page[8..16].copy_from_slice(&sum.to_le_bytes());
        file.write_at(&page, at).unwrap();
    }
    let opened = SsdStore::over(settings(), vec![("m".into(), file)])
        .err()
        .unwrap();
    let (path, supported) = ("m".into(), crate::format::FORMAT_VERSION);
    assert_eq!(
        opened,
        Error::Version {
            path,
            found: 9,
            supported
        }
    );
}

#[test]
fn a_smaller_or_larger_device_keeps_what_it_can() {
    let file = Arc::new(MemoryFile::new(16 * MIB));
    let store = SsdStore::over(settings(), vec![("m".into(), file.clone())]).unwrap();
    for n in 0..50 {
        put(&store, n, 200_000).unwrap();
    }
    drop(store);
    let mut bytes = file.snapshot();
    bytes.truncate(8 << 20);
    let small = Arc::new(MemoryFile::from_bytes(bytes));
    let store = SsdStore::over(settings(), vec![("m".into(), small.clone())]).unwrap();
    let report = store.recovery()[0].clone();
    assert!(
        report.missing_segments > 0 && report.blocks > 10,
        "{report:?}"
    );
    let found = (0..50)
        .filter(|n| get(&store, *n, 200_000) == Ok(true))
        .count();
    assert!(found > 10, "{found}");
    drop(store);
    let mut bytes = small.snapshot();
    bytes.resize(16 << 20, 0xAA);
    let large = Arc::new(MemoryFile::from_bytes(bytes));
    let store = SsdStore::over(settings(), vec![("m".into(), large)]).unwrap();
    assert_eq!(store.recovery()[0].added_segments, report.missing_segments);
    for n in 100..130 {
        assert_eq!(put(&store, n, 200_000), Ok(Stored::Stored));
        assert_eq!(get(&store, n, 200_000), Ok(true));
    }
}

#[test]
fn a_full_device_reclaims_and_counts() {
    for reclaim in [Reclaim::Fifo, Reclaim::Clock, Reclaim::ExpectedReuse] {
        let store = SsdStore::in_memory(
            Settings {
                reclaim,
                ..settings()
            },
            4 * MIB,
        )
        .unwrap();
        put(&store, 0, 60_000).unwrap();
        assert_eq!(store.pin(key(0), true), Ok(true));
        for n in 1..300 {
            assert_eq!(put(&store, n, 60_000), Ok(Stored::Stored));
            let _ = get(&store, n / 2 * 2, 60_000).unwrap();
        }
        assert_eq!(get(&store, 0, 60_000), Ok(true), "pinned");
        let stats = store.stats();
        assert!(stats.dropped.reclaimed > 200, "{reclaim:?} {stats:?}");
        assert!(
            reclaim != Reclaim::Fifo || stats.write_amplification < 1.25,
            "{stats:?}"
        );
    }
}

#[test]
fn a_block_larger_than_a_segment_names_the_setting_that_helps() {
    let bytes = 3 * MIB as usize + 1;
    let of = |segment_bytes| {
        let settings = Settings {
            segment_bytes,
            ..settings()
        };
        SsdStore::in_memory(settings, 18 * MIB).unwrap()
    };
    let error = of(MIB)
        .put(Put::new(key(1), body(1, bytes)))
        .unwrap_err()
        .error;
    assert!(matches!(error, Error::BlockTooLarge { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let text = error.to_string();
    let enough: u64 = text
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .next_back()
        .unwrap();
    assert!(text.contains("segment_bytes"), "{text}");
    let store = of(enough);
    assert_eq!(put(&store, 1, bytes), Ok(Stored::Stored));
    assert_eq!(get(&store, 1, bytes), Ok(true));
}

#[test]
fn an_answer_can_be_taken_after_the_store_is_closed() {
    let store = SsdStore::in_memory(settings(), 8 * MIB).unwrap();
    put(&store, 1, 50_000).unwrap();
    let ticket = store.get(Get::new(key(1), Buf::new(50_000))).unwrap();
    assert_eq!(get(&store, 1, 50_000), Ok(true));
    drop(store);
    let done = ticket.wait();
    assert!(matches!(
        done.result,
        Ok(Fetched::Hit { bytes: 50_000, .. })
    ));
    assert_eq!(done.bufs[0][..], body(1, 50_000)[..]);
}

#[test]
fn many_callers_share_one_lane() {
    let store = SsdStore::in_memory(settings(), 32 * MIB).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..60 {
                    assert_eq!(put(store, caller * 1000 + n, 9_000), Ok(Stored::Stored));
                    assert_eq!(get(store, caller * 1000 + n, 9_000), Ok(true));
                }
            });
        }
    });
    assert_eq!(store.stats().blocks, 240);
}

#[test]
fn fifo_writes_each_byte_once() {
    let settings = Settings {
        segment_bytes: 4 * MIB,
        ..settings()
    };
    let store = SsdStore::in_memory(settings, 41 * MIB).unwrap();
    for n in 0..1500 {
        assert_eq!(put(&store, n, 64 << 10), Ok(Stored::Stored));
    }
    let stats = store.stats();
    let full = stats.live_bytes as f64 / stats.capacity_bytes as f64;
    assert!(stats.write_amplification <= 1.1 && full > 0.6, "{stats:?}");
}

#[test]
fn admission_declines_and_gives_the_buffer_back() {
    let admission = Admission::SecondTouch {
        remembered_keys: 10,
    };
    let store = SsdStore::in_memory(
        Settings {
            admission,
            ..settings()
        },
        8 * MIB,
    )
    .unwrap();
    assert_eq!(put(&store, 1, 5000), Ok(Stored::Declined));
    assert_eq!(put(&store, 1, 5000), Ok(Stored::Stored));
}

#[test]
fn registered_memory_is_used_and_returned() {
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(&dir, settings());
    let arena = Arena::new(128 << 10, 4).unwrap();
    store.register(&arena.region());
    for n in 0..20 {
        let mut buf = arena.take(128 << 10).unwrap();
        buf.fill(n as u8);
        let done = store.put(Put::new(key(n), buf)).unwrap().wait();
        assert_eq!(done.result, Ok(Stored::Stored));
        let done = store
            .get(Get::new(key(n), arena.take(128 << 10).unwrap()))
            .unwrap()
            .wait();
        assert!(matches!(done.result, Ok(Fetched::Hit { .. })));
        assert!(done.bufs[0].iter().all(|b| *b == n as u8));
    }
}

#[test]
fn a_ticket_is_a_future() {
    let store = SsdStore::in_memory(settings(), 8 * MIB).unwrap();
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut ticket = std::pin::pin!(store.put(Put::new(key(1), body(1, 10))).unwrap());
    let done = loop {
        match std::future::Future::poll(ticket.as_mut(), &mut cx) {
            std::task::Poll::Ready(done) => break done,
            std::task::Poll::Pending => std::thread::park(),
        }
    };
    assert_eq!(done.result, Ok(Stored::Stored));
}

#[test]
fn blocks_come_from_a_shared_pool_and_go_back_there() {
    use pegaflow_mem::{PoolBuf, PoolSpec, SharedMemory};
    let memory = Arc::new(SharedMemory::create(&PoolSpec::memfd("ssd-test", 4 * MIB)).unwrap());
    let run = |at: u64| Buf::of_pool(PoolBuf::new(memory.clone(), at, 128 << 10).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(&dir, settings());
    store.register(&crate::Region::of_pool(memory.clone()));
    memory.copy_in(0, &body(1, 128 << 10)).unwrap();
    let done = store.put(Put::new(key(1), run(0))).unwrap().wait();
    assert_eq!(done.result, Ok(Stored::Stored));
    assert_eq!(done.bufs[0].pool_run().map(|r| r.offset()), Some(0));
    let done = store.get(Get::new(key(1), run(256 << 10))).unwrap().wait();
    assert!(matches!(done.result, Ok(Fetched::Hit { .. })), "{done:?}");
    let mut got = vec![0; 128 << 10];
    memory.copy_out(256 << 10, &mut got).unwrap();
    assert_eq!(got[..], body(1, 128 << 10)[..]);
    assert!(Buf::of_pool(PoolBuf::new(memory, 100, 4096).unwrap()).is_err());
}
