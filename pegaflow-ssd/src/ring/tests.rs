// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use std::os::fd::AsRawFd;

use super::*;
use crate::sys::{Arena, Buf, MemoryFile, OpenOptions, SystemFile};

fn file(bytes: u64) -> Arc<dyn BlockFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let options = OpenOptions {
        create_bytes: Some(bytes),
        ..OpenOptions::new(path)
    };
    Arc::new(SystemFile::open(&options).unwrap())
}

/// A ring, or nothing where the kernel forbids io_uring.
fn ring(file: Arc<dyn BlockFile>) -> Option<Ring> {
    Ring::new(
        file,
        &RingSettings {
            entries: 8,
            ..Default::default()
        },
    )
    .inspect_err(|e| eprintln!("no io_uring here: {e}"))
    .ok()
}

fn run(ring: &mut Ring, kind: IoKind, at: u64, pieces: Vec<Piece>) -> RingDone {
    ring.push(RingJob {
        token: 7,
        kind,
        at,
        pieces,
    })
    .expect("the ring is empty");
    let mut done = Vec::new();
    while done.is_empty() {
        ring.enter(1, Some(1000)).unwrap();
        ring.reap(&mut done);
    }
    assert_eq!((done.len(), ring.inflight()), (1, 0));
    done.remove(0)
}

#[test]
fn bytes_come_back_from_registered_scattered_and_plain_memory() {
    let arena = Arena::new(8192, 4).unwrap();
    let Some(mut ring) = ring(file(16 << 20)) else {
        return;
    };
    ring.register(&arena.region());
    let mut buf = arena.take(8192).unwrap();
    buf.fill(3);
    let wrote = run(&mut ring, IoKind::Write, 4096, vec![Piece::whole(buf)]);
    wrote.result.unwrap();
    // More pieces than one call takes: goes in parts.
    let pieces = (0..1500u32)
        .map(|i| Piece::whole(Buf::copy_of(&[i as u8; 4096])))
        .collect();
    run(&mut ring, IoKind::Write, 12288, pieces).result.unwrap();
    run(&mut ring, IoKind::Flush, 0, vec![]).result.unwrap();
    let read = run(
        &mut ring,
        IoKind::Read,
        8192,
        vec![Piece::whole(Buf::new(1501 * 4096))],
    );
    read.result.unwrap();
    let bytes = &read.pieces[0].buf;
    assert!(bytes[..4096].iter().all(|b| *b == 3));
    for i in 0..1500 {
        assert_eq!(bytes[4096 * (i + 1) + 17], i as u8, "piece {i}");
    }
}

#[test]
fn a_read_of_several_pieces_uses_registered_memory_for_the_first() {
    let arena = Arena::new(16384, 2).unwrap();
    let Some(mut ring) = ring(file(1 << 20)) else {
        return;
    };
    ring.register(&arena.region());
    let bytes: Vec<u8> = (0..8 * 4096u32).map(|i| (i / 512) as u8).collect();
    let whole = vec![Piece::whole(Buf::copy_of(&bytes))];
    run(&mut ring, IoKind::Write, 0, whole).result.unwrap();
    let check = |ring: &mut Ring, others: Vec<Buf>, at: u64, want: Option<usize>| {
        let pieces = std::iter::once(arena.take(16384).unwrap()).chain(others);
        let read = run(ring, IoKind::Read, at, pieces.map(Piece::whole).collect());
        let all = read.pieces.iter().flat_map(|p| p.buf.whole()).copied();
        match want {
            Some(n) => assert_eq!(all.collect::<Vec<_>>(), bytes[at as usize..][..n]),
            None => assert!(matches!(read.result, Err(Error::EndOfDevice { .. }))),
        }
    };
    check(&mut ring, vec![Buf::new(4096)], 4096, Some(5 * 4096));
    let registered = arena.take(4096).unwrap();
    check(&mut ring, vec![registered], 0, Some(8 * 4096));
    check(
        &mut ring,
        vec![Buf::new(4096), Buf::new(8192)],
        0,
        Some(7 * 4096),
    );
    // Cut short by the end of the file: as if it had been one.
    check(&mut ring, vec![Buf::new(4096)], (1 << 20) - 16384, None);
}

#[test]
fn the_end_of_the_file_is_an_error_with_the_buffer() {
    let Some(mut ring) = ring(file(1 << 20)) else {
        return;
    };
    let pieces = vec![Piece::whole(Buf::new(8192))];
    let done = run(&mut ring, IoKind::Read, (1 << 20) - 4096, pieces);
    assert!(
        matches!(done.result, Err(Error::EndOfDevice { .. })),
        "{:?}",
        done.result
    );
    assert_eq!(done.pieces.len(), 1);
}

#[test]
fn a_full_ring_gives_the_job_back() {
    let Some(mut ring) = ring(file(1 << 20)) else {
        return;
    };
    let job = |token| RingJob {
        token,
        kind: IoKind::Read,
        at: 0,
        pieces: vec![Piece::whole(Buf::new(4096))],
    };
    for i in 0..8 {
        ring.push(job(i)).unwrap();
    }
    assert_eq!(ring.push(job(8)).unwrap_err().token, 8);
}

/// A pipe nobody writes to: a read of it never completes by itself.
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
fn a_silent_transfer_is_cancelled_and_gives_its_buffer_back() {
    let (reader, _writer) = io::pipe().unwrap();
    let Some(mut ring) = ring(Arc::new(Silent(reader))) else {
        return;
    };
    let pieces = vec![Piece::whole(Buf::new(4096))];
    ring.push(RingJob {
        token: 9,
        kind: IoKind::Read,
        at: 0,
        pieces,
    })
    .unwrap();
    ring.enter(1, Some(1)).unwrap();
    ring.cancel(9);
    let mut done = Vec::new();
    while done.is_empty() {
        ring.enter(1, Some(1000)).unwrap();
        ring.reap(&mut done);
    }
    assert_eq!(done[0].result, Err(Error::Cancelled));
    assert_eq!(done[0].pieces[0].buf.capacity(), 4096);
}

#[test]
fn memory_files_have_no_ring() {
    let made = Ring::new(Arc::new(MemoryFile::new(4096)), &RingSettings::default());
    assert_eq!(
        made.err().map(|e| e.kind()),
        Some(io::ErrorKind::Unsupported)
    );
}
