// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! One suite for every way to run a device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc;

use super::*;
use crate::error::IoKind;
use crate::sys::{Buf, MemoryFile, OpenOptions, SystemFile};
use crate::transfer::{Finished, Piece};

const MIB: u64 = 1 << 20;

fn settings(backend: Backend) -> IoSettings {
    IoSettings {
        backend,
        deadline_ms: 50,
        ..IoSettings::default()
    }
}

fn system_file() -> Arc<dyn BlockFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let options = OpenOptions {
        create_bytes: Some(8 * MIB),
        ..OpenOptions::new(path)
    };
    Arc::new(SystemFile::open(&options).unwrap())
}

fn run(guard: &Guard, kind: IoKind, at: u64, pieces: Vec<Piece>) -> Finished {
    let (tell, told) = mpsc::channel();
    guard.submit(vec![(
        kind,
        at,
        pieces,
        Box::new(move |f| tell.send(f).unwrap()),
    )]);
    told.recv().expect("every transfer is answered")
}

fn conformance(disk: Arc<dyn Disk>) {
    let guard = Guard::new(disk, 30_000);
    let pieces = (0..3)
        .map(|i| Piece::whole(Buf::copy_of(&[i + 1; 4096])))
        .collect();
    let wrote = run(&guard, IoKind::Write, 8192, pieces);
    assert_eq!((wrote.result, wrote.pieces.len()), (Ok(()), 3));
    assert_eq!(run(&guard, IoKind::Flush, 0, vec![]).result, Ok(()));
    let read = run(
        &guard,
        IoKind::Read,
        12288,
        vec![Piece::whole(Buf::new(8192))],
    );
    assert_eq!(read.result, Ok(()));
    assert_eq!((read.pieces[0].buf[0], read.pieces[0].buf[8191]), (2, 3));
    let end = run(
        &guard,
        IoKind::Read,
        8 * MIB,
        vec![Piece::whole(Buf::new(4096))],
    );
    assert!(
        matches!(end.result, Err(Error::EndOfDevice { .. })),
        "{:?}",
        end.result
    );
    assert_eq!(end.pieces.len(), 1, "the memory comes back on failure too");
    guard.disk().replace();
    let again = run(
        &guard,
        IoKind::Read,
        8192,
        vec![Piece::whole(Buf::new(4096))],
    );
    assert_eq!((again.result, again.pieces[0].buf[0]), (Ok(()), 1));
    many_at_once(&guard);
    more_pieces_than_one_system_call_takes(&guard);
    assert_eq!(guard.waiting(), 0);
}

// Both ways: IOV_MAX is 1,024.
fn more_pieces_than_one_system_call_takes(guard: &Guard) {
    const PIECES: usize = 1500;
    let pieces = (0..PIECES).map(|i| Piece::whole(Buf::copy_of(&[i as u8; 4096])));
    let wrote = run(guard, IoKind::Write, 4096, pieces.collect());
    assert_eq!((wrote.result, wrote.pieces.len()), (Ok(()), PIECES));
    let pieces = (0..PIECES).map(|_| Piece::whole(Buf::new(4096)));
    let read = run(guard, IoKind::Read, 4096, pieces.collect());
    assert_eq!((read.result, read.pieces.len()), (Ok(()), PIECES));
    for (i, piece) in read.pieces.iter().enumerate() {
        assert!(piece.buf.iter().all(|b| *b == i as u8), "piece {i}");
    }
}

fn many_at_once(guard: &Guard) {
    let (tell, told) = mpsc::channel();
    let parts = (0..500u64).map(|i| {
        let tell = tell.clone();
        let done: crate::transfer::WhenDone = Box::new(move |f| tell.send(f.result).unwrap());
        (
            IoKind::Write,
            i * 4096,
            vec![Piece::whole(Buf::copy_of(&[i as u8; 4096]))],
            done,
        )
    });
    guard.submit(parts.collect());
    for _ in 0..500 {
        assert_eq!(told.recv().unwrap(), Ok(()));
    }
    let read = run(
        guard,
        IoKind::Read,
        0,
        vec![Piece::whole(Buf::new(500 * 4096))],
    );
    assert!((0..500).all(|i| read.pieces[0].buf[i * 4096] == i as u8));
}

#[test]
fn threads_over_memory() {
    let file = Arc::new(MemoryFile::new(8 * MIB));
    conformance(open(file, &settings(Backend::Auto)).unwrap());
}

#[test]
fn threads_over_a_file() {
    conformance(open(system_file(), &settings(Backend::Threads)).unwrap());
}

#[test]
fn threads_over_a_file_that_is_always_short() {
    let plan = FaultPlan::new();
    plan.next(IoKind::Read, u64::MAX, Fault::Short(1000));
    plan.next(IoKind::Write, u64::MAX, Fault::Short(777));
    let file = Arc::new(FaultFile::new(MemoryFile::new(8 * MIB), plan));
    conformance(open(file, &settings(Backend::Auto)).unwrap());
}

#[test]
fn io_uring_over_a_file() {
    match open(system_file(), &settings(Backend::Uring)) {
        Ok(disk) => {
            assert_eq!(disk.info().backend, "io_uring");
            conformance(disk);
        }
        Err(e) => eprintln!("no io_uring here: {e}"),
    }
}

#[test]
fn io_uring_with_a_submission_thread() {
    let settings = IoSettings {
        sqpoll_idle_ms: 10,
        ..settings(Backend::Uring)
    };
    if let Ok(disk) = open(system_file(), &settings) {
        conformance(disk);
    }
}

#[test]
fn errors_carry_the_number_and_the_place() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let plan = FaultPlan::new();
        plan.add(IoKind::Write, 4096..8192, 0, 1, Fault::Error(errno));
        let file = Arc::new(FaultFile::new(MemoryFile::new(MIB), plan));
        let guard = Guard::new(open(file, &settings(Backend::Auto)).unwrap(), 1000);
        let done = run(
            &guard,
            IoKind::Write,
            4096,
            vec![Piece::whole(Buf::new(4096))],
        );
        let want = Error::Io {
            kind: IoKind::Write,
            at: 4096,
            bytes: 4096,
            errno,
        };
        assert_eq!(done.result, Err(want));
    }
}

#[test]
fn a_transfer_that_never_returns_is_given_up_and_its_memory_kept() {
    let plan = FaultPlan::new();
    plan.next(IoKind::Read, 4, Fault::Stuck);
    let file = Arc::new(FaultFile::new(MemoryFile::new(MIB), plan.clone()));
    let guard = Guard::new(open(file, &settings(Backend::Auto)).unwrap(), 0);
    let (tell, told) = mpsc::channel();
    for _ in 0..4 {
        let tell = tell.clone();
        let pieces = vec![Piece::whole(Buf::new(4096))];
        guard.submit(vec![(
            IoKind::Read,
            0,
            pieces,
            Box::new(move |f| tell.send(f).unwrap()),
        )]);
    }
    // All threads are stuck now. Nothing is given up before its time has passed, hence the loop.
    let mut gone = Vec::new();
    while gone.len() < 4 {
        guard.expire();
        gone.extend(told.try_iter());
    }
    assert!(gone.iter().all(|f| f.pieces.is_empty()));
    assert!(
        gone.iter()
            .all(|f| matches!(f.result, Err(Error::Deadline { .. })))
    );
    let patient = Guard::new(guard.disk().clone(), 30_000);
    let fresh = run(
        &patient,
        IoKind::Write,
        0,
        vec![Piece::whole(Buf::new(4096))],
    );
    assert_eq!(fresh.result, Ok(()), "fresh threads took over");
    plan.release();
    let mut back = 0;
    while back < 4 {
        back += guard.take_late().len();
        std::thread::yield_now();
    }
    assert_eq!(guard.stuck(), 0);
}

/// A pipe nobody writes to: a read of it does not complete by itself.
struct Silent(io::PipeReader);

impl BlockFile for Silent {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn bytes(&self) -> u64 {
        0
    }
    fn descriptor(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }
}

#[test]
fn a_ring_that_never_answers_is_replaced_and_gives_its_memory_back() {
    let (reader, _writer) = io::pipe().unwrap();
    let Ok(disk) = open(Arc::new(Silent(reader)), &settings(Backend::Uring)) else {
        return eprintln!("no io_uring here");
    };
    let guard = Guard::new(disk, 0);
    let (tell, told) = mpsc::channel();
    guard.submit(vec![(
        IoKind::Read,
        0,
        vec![Piece::whole(Buf::new(4096))],
        Box::new(move |f| tell.send(f).unwrap()),
    )]);
    let given_up = loop {
        guard.expire();
        if let Ok(finished) = told.try_recv() {
            break finished;
        }
    };
    assert!(matches!(given_up.result, Err(Error::Deadline { .. })));
    let mut late = guard.take_late();
    while late.is_empty() {
        late = guard.take_late();
        std::thread::yield_now();
    }
    assert_eq!((late.len(), guard.stuck()), (1, 0));
    let patient = Guard::new(guard.disk().clone(), 30_000);
    let flushed = run(&patient, IoKind::Flush, 0, vec![]);
    assert!(
        !matches!(flushed.result, Err(Error::Deadline { .. } | Error::Closed)),
        "the fresh ring answers: {:?}",
        flushed.result
    );
}

#[test]
fn what_is_queued_can_be_cancelled() {
    let plan = FaultPlan::new();
    plan.next(IoKind::Read, 1, Fault::Stuck);
    let file = Arc::new(FaultFile::new(MemoryFile::new(MIB), plan.clone()));
    let settings = IoSettings {
        threads: 1,
        ..settings(Backend::Auto)
    };
    let guard = Guard::new(open(file, &settings).unwrap(), 30_000);
    let (tell, told) = mpsc::channel();
    let mut ids = vec![];
    for _ in 0..2 {
        let tell = tell.clone();
        let pieces = vec![Piece::whole(Buf::new(4096))];
        ids.push(guard.submit(vec![(
            IoKind::Read,
            0,
            pieces,
            Box::new(move |f| tell.send(f.result).unwrap()),
        )]));
    }
    guard.cancel(ids[1]);
    assert_eq!(told.recv().unwrap(), Err(Error::Cancelled));
    plan.release();
    assert_eq!(told.recv().unwrap(), Ok(()));
}
