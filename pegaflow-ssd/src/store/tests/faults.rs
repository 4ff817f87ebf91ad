// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! What a device can do to a store, one at a time.

use std::time::Duration;

use super::*;

#[test]
fn failed_writes_say_so_and_give_the_buffer_back() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let (store, plan) = faulty(settings());
        put(&store, 1, 100_000).unwrap();
        plan.next(IoKind::Write, 1, Fault::Error(errno));
        let failed = put(&store, 2, 100_000);
        assert!(
            matches!(failed, Err(Error::Io { errno: e, .. }) if e == errno),
            "{failed:?}"
        );
        assert_eq!(get(&store, 2, 100_000), Ok(false));
        assert_eq!(put(&store, 3, 100_000), Ok(Stored::Stored));
        assert_eq!(
            (get(&store, 1, 100_000), get(&store, 3, 100_000)),
            (Ok(true), Ok(true))
        );
    }
}

#[test]
fn a_failed_read_says_so_and_gives_the_buffer_back() {
    let (store, plan) = faulty(settings());
    put(&store, 1, 100_000).unwrap();
    plan.next(IoKind::Read, 1, Fault::Error(libc::EIO));
    let ticket = store.get(Get::new(key(1), Buf::new(100_000))).unwrap();
    let done = ticket.wait();
    assert!(
        matches!(done.result, Err(Error::Io { errno, .. }) if errno == libc::EIO),
        "{done:?}"
    );
    assert_eq!(done.bufs.len(), 1);
    assert_eq!(get(&store, 1, 100_000), Ok(true), "the block stays");
}

#[test]
fn a_flipped_bit_is_an_error_once_and_a_miss_from_then_on() {
    let (store, plan) = faulty(settings());
    put(&store, 1, 100_000).unwrap();
    plan.next(IoKind::Read, 1, Fault::Flip(70_000));
    assert_eq!(
        get(&store, 1, 100_000).map_err(|e| e.kind()),
        Err(ErrorKind::Corrupt)
    );
    assert_eq!(get(&store, 1, 100_000), Ok(false));
    assert_eq!(store.stats().dropped.corrupt, 1);
}

#[test]
fn a_lost_write_is_never_a_wrong_byte() {
    let (store, plan) = faulty(settings());
    // The segment's mark comes before the first block.
    put(&store, 1, 100_000).unwrap();
    // The header and the block.
    plan.next(IoKind::Write, 2, Fault::Lost);
    put(&store, 2, 100_000).unwrap();
    assert_eq!(
        get(&store, 2, 100_000).map_err(|e| e.kind()),
        Err(ErrorKind::Corrupt)
    );
    assert_eq!(get(&store, 1, 100_000), Ok(true));
}

#[test]
fn a_device_that_goes_silent_costs_an_error_and_not_the_store() {
    let io = IoSettings {
        deadline_ms: 1,
        threads: 2,
        ..IoSettings::default()
    };
    let (store, plan) = faulty(Settings { io, ..settings() });
    put(&store, 1, 100_000).unwrap();
    plan.next(IoKind::Read, 2, Fault::Stuck);
    for _ in 0..2 {
        let ticket = store.get(Get::new(key(1), Buf::new(100_000))).unwrap();
        let done = ticket.wait();
        assert!(
            matches!(done.result, Err(Error::Deadline { .. })),
            "{done:?}"
        );
        assert!(done.bufs.is_empty(), "the device still holds it");
    }
    // Fresh threads took over. A busy machine may need several tries to meet a deadline of a millisecond.
    while get(&store, 1, 100_000) != Ok(true) {}
    plan.release();
    let mut late = Vec::new();
    while late.len() < 2 {
        late.extend(store.take_late());
        std::thread::yield_now();
    }
    assert!(late.iter().all(|b| b.capacity() >= 100_000));
}

#[test]
fn what_waits_can_be_taken_back() {
    let io = IoSettings {
        threads: 1,
        ..IoSettings::default()
    };
    let (store, plan) = faulty(Settings { io, ..settings() });
    put(&store, 1, 5000).unwrap();
    plan.next(IoKind::Read, 1, Fault::Stuck);
    let first = store.get(Get::new(key(1), Buf::new(5000))).unwrap();
    let second = store.get(Get::new(key(1), Buf::new(5000))).unwrap();
    let first = first
        .wait_for(Duration::from_millis(1))
        .expect_err("it is stuck");
    second.cancel();
    let done = second.wait();
    assert_eq!((done.result, done.bufs.len()), (Err(Error::Cancelled), 1));
    plan.release();
    assert!(matches!(first.wait().result, Ok(Fetched::Hit { .. })));
}

#[test]
fn a_full_queue_is_busy_with_the_buffer_back() {
    let small = Settings {
        write_queue_bytes_max: 10_000,
        read_queue_bytes_max: 10_000,
        ..settings()
    };
    let (store, plan) = faulty(small);
    put(&store, 1, 9000).unwrap();
    plan.next(IoKind::Write, 1, Fault::Stuck);
    let waits = store.put(Put::new(key(2), body(2, 9000))).unwrap();
    let refused = store.put(Put::new(key(3), body(3, 9000))).unwrap_err();
    assert!(matches!(
        refused.error,
        Error::Busy {
            setting: "write_queue_bytes_max",
            ..
        }
    ));
    assert_eq!(refused.bufs[0][..], body(3, 9000)[..]);
    plan.release();
    assert_eq!(waits.wait().result, Ok(Stored::Stored));
    assert_eq!(store.stats().dropped.busy, 1);
}

/// A store on a device that can be looked at as it would be after a power cut.
fn on_a_device(settings: Settings) -> (SsdStore, Arc<FaultFile<MemoryFile>>, FaultPlan) {
    let plan = FaultPlan::new();
    let memory = MemoryFile::new(8 * MIB);
    let file = Arc::new(FaultFile::new(memory, plan.clone()));
    let store = SsdStore::over(settings, vec![("faulty".into(), file.clone())]).unwrap();
    (store, file, plan)
}

/// What another process finds if this one is killed now.
fn after_a_kill(settings: Settings, file: &FaultFile<MemoryFile>) -> SsdStore {
    let memory = MemoryFile::from_bytes(file.inner().snapshot());
    SsdStore::over(settings, vec![("copy".into(), Arc::new(memory))]).unwrap()
}

#[test]
fn a_flipped_bit_in_a_header_costs_its_own_block_only() {
    let (store, file, plan) = on_a_device(settings());
    put(&store, 1, 100_000).unwrap();
    // The header is written before the block.
    plan.next(IoKind::Write, 1, Fault::Flip(20));
    put(&store, 2, 100_000).unwrap();
    assert_eq!(plan.hits(), 1);
    put(&store, 3, 20_000).unwrap();
    let with_meta = Get {
        meta: true,
        ..Get::new(key(2), Buf::new(100_000))
    };
    let done = store.get(with_meta).unwrap().wait();
    assert_eq!(done.result, Ok(Fetched::Miss), "no metadata to give");
    let reopened = after_a_kill(settings(), &file);
    for (n, bytes, there) in [(1, 100_000, true), (2, 100_000, false), (3, 20_000, true)] {
        assert_eq!(get(&reopened, n, bytes), Ok(there), "block {n}");
    }
}

#[test]
fn what_was_flushed_outlives_a_device_that_loses_its_last_writes() {
    let flushed = || Settings {
        durability: Durability::Flushed,
        ..settings()
    };
    for lost in [1, 3, usize::MAX] {
        let (store, file, plan) = on_a_device(flushed());
        plan.keep_undo();
        for n in 0..20 {
            put(&store, n, 50_000).unwrap();
        }
        plan.next(IoKind::Flush, u64::MAX, Fault::Stuck);
        let late = store.put(Put::new(key(20), body(20, 50_000))).unwrap();
        let late = late
            .wait_for(Duration::from_millis(20))
            .expect_err("nobody is told before the flush");
        file.lose_last(lost).unwrap();
        let reopened = after_a_kill(flushed(), &file);
        for n in 0..20 {
            assert_eq!(get(&reopened, n, 50_000), Ok(true), "block {n}");
        }
        // Never promised: there, gone, or found to be damaged.
        let promised = get(&reopened, 20, 50_000);
        assert!(
            promised
                .as_ref()
                .map_or_else(|e| e.kind() == ErrorKind::Corrupt, |_| true),
            "{promised:?}"
        );
        plan.release();
        assert_eq!(late.wait().result, Ok(Stored::Stored));
    }
}

#[test]
fn a_device_that_loses_its_last_writes_never_gives_a_wrong_byte() {
    for lost in [1, 2, 5, 9, usize::MAX] {
        let (store, file, plan) = on_a_device(settings());
        plan.keep_undo();
        for n in 0..20 {
            put(&store, n, 50_000).unwrap();
        }
        file.lose_last(lost).unwrap();
        let reopened = after_a_kill(settings(), &file);
        for n in 0..20 {
            // The bytes are compared in `get`.
            if let Err(e) = get(&reopened, n, 50_000) {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "block {n}");
            }
        }
        assert_eq!(put(&reopened, 1, 50_000), Ok(Stored::Stored));
    }
}

/// Longer than any deadline or test here.
const SPIKE_MS: u64 = 2000;

#[test]
fn reads_get_past_a_write_that_takes_seconds_and_it_is_kept() {
    let (store, plan) = faulty(settings());
    put(&store, 1, 100_000).unwrap();
    plan.next(IoKind::Write, 1, Fault::Delay(SPIKE_MS));
    let slow = store.put(Put::new(key(2), body(2, 100_000))).unwrap();
    for _ in 0..20 {
        assert_eq!(get(&store, 1, 100_000), Ok(true));
    }
    let slow = slow.wait_for(Duration::ZERO).expect_err("still under way");
    assert_eq!(
        put(&store, 3, 100_000),
        Ok(Stored::Stored),
        "nor is a later write held up"
    );
    let done = slow.wait();
    assert_eq!((done.result, done.bufs.len()), (Ok(Stored::Stored), 1));
    for n in 1..=3 {
        assert_eq!(get(&store, n, 100_000), Ok(true), "block {n}");
    }
}

#[test]
fn a_spike_over_the_deadline_costs_the_request_and_nothing_else() {
    let io = IoSettings {
        deadline_ms: SPIKE_MS / 4,
        threads: 2,
        ..IoSettings::default()
    };
    let (store, plan) = faulty(Settings { io, ..settings() });
    put(&store, 1, 100_000).unwrap();
    for kind in [IoKind::Read, IoKind::Write] {
        plan.next(kind, 1, Fault::Delay(SPIKE_MS));
        let (error, bufs) = match kind {
            IoKind::Read => {
                let get = store.get(Get::new(key(1), Buf::new(100_000))).unwrap();
                let done = get.wait();
                (done.result.map(drop), done.bufs)
            }
            _ => {
                let put = store.put(Put::new(key(2), body(2, 100_000))).unwrap();
                let done = put.wait();
                (done.result.map(drop), done.bufs)
            }
        };
        assert!(matches!(error, Err(Error::Deadline { .. })), "{error:?}");
        assert!(bufs.is_empty(), "the device still holds it");
        // Served all the while, until the device lets go. A busy machine may miss a deadline by itself.
        let (mut late, mut served) = (store.take_late(), 0);
        while late.is_empty() {
            served += u32::from(get(&store, 1, 100_000) == Ok(true));
            late = store.take_late();
        }
        assert!(served > 0, "{kind:?}");
    }
    assert_eq!(get(&store, 2, 100_000), Ok(false), "never stored");
    assert_eq!(put(&store, 2, 100_000), Ok(Stored::Stored));
    assert_eq!(get(&store, 2, 100_000), Ok(true));
}

#[test]
fn a_block_may_lie_in_more_pieces_than_one_system_call_takes() {
    const PIECES: usize = 1500;
    for backend in [Backend::Auto, Backend::Threads] {
        let dir = tempfile::tempdir().unwrap();
        let io = IoSettings {
            backend,
            ..IoSettings::default()
        };
        let settings = Settings {
            io,
            segment_bytes: 8 * MIB,
            ..settings()
        };
        let device = Device::file(dir.path().join("store"), 64 * MIB);
        let store = SsdStore::open(settings, &[device]).unwrap();
        let whole = body(1, PIECES * PAGE);
        let pieces = whole.chunks(PAGE).map(Buf::copy_of).collect();
        let done = store.put(Put::scattered(key(1), pieces)).unwrap().wait();
        assert_eq!((done.result, done.bufs.len()), (Ok(Stored::Stored), PIECES));
        let bufs = (0..PIECES).map(|_| Buf::new(PAGE)).collect();
        let get = Get {
            key: key(1),
            bufs,
            meta: false,
        };
        let done = store.get(get).unwrap().wait();
        assert!(matches!(done.result, Ok(Fetched::Hit { .. })));
        assert!(
            done.bufs
                .iter()
                .zip(whole.chunks(PAGE))
                .all(|(got, want)| got[..] == *want)
        );
    }
}
