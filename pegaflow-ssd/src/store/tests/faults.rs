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
