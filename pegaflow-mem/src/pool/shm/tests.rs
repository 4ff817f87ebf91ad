// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::ErrorKind;
use std::os::unix::fs::PermissionsExt;

const BYTES: u64 = 1 << 20;

fn spec(pages: HugePages) -> PoolSpec {
    PoolSpec {
        pages,
        touch_threads: 2,
        ..PoolSpec::memfd("test", BYTES)
    }
}

#[test]
fn what_one_holder_writes_the_other_reads() {
    let ours = SharedMemory::create(&spec(HugePages::None)).expect("memory");
    let fd = ours.fd().try_clone_to_owned().expect("dup");
    let theirs = SharedMemory::attach_fd(fd, Access::ReadWrite).expect("attach");
    ours.copy_in(4093, b"hello").expect("inside");
    let mut got = [0; 5];
    theirs.copy_out(4093, &mut got).expect("inside");
    assert_eq!(&got, b"hello");
    theirs.word(8).expect("aligned").store(7).expect("writable");
    assert_eq!(ours.word(8).expect("aligned").load(), 7);
    assert_eq!(
        ours.word(8)
            .expect("aligned")
            .compare_exchange(6, 9)
            .expect("writable"),
        Err(7)
    );
    assert_eq!(
        ours.word(8)
            .expect("aligned")
            .compare_exchange(7, 9)
            .expect("writable"),
        Ok(7)
    );
    assert_eq!(theirs.word(8).expect("aligned").load(), 9);
    ours.copy_to(4093, &ours, 100_000, 5).expect("apart");
    theirs.copy_out(100_000, &mut got).expect("inside");
    assert_eq!(&got, b"hello");
    assert!(ours.copy_to(4093, &ours, 4096, 5).is_err(), "overlap");
    theirs.fill(100_001, 3, b'.').expect("inside");
    ours.copy_out(100_000, &mut got).expect("inside");
    assert_eq!(&got, b"h...o");
}

#[test]
fn nothing_outside_is_touched() {
    let memory = Arc::new(SharedMemory::create(&spec(HugePages::None)).expect("memory"));
    let mut one = [0; 1];
    for offset in [BYTES, BYTES + 1, u64::MAX] {
        let error = memory.copy_out(offset, &mut one).expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(memory.copy_in(offset, &one).is_err());
        assert!(memory.fill(offset, 1, 0).is_err());
        assert!(memory.word(offset).is_err());
        assert!(memory.load_words(offset, &mut [0; 2]).is_err());
        assert!(memory.store_words(offset, &[1; 2]).is_err());
        assert!(PoolBuf::new(memory.clone(), offset, 1).is_err());
    }
    assert!(memory.word(4).is_err(), "not a multiple of 8");
    assert!(memory.load_words(4, &mut [0; 2]).is_err());
    assert!(memory.store_words(BYTES - 8, &[1; 2]).is_err(), "half out");
    assert_eq!(memory.word(BYTES - 8).expect("the last one").load(), 0);
    assert!(memory.fill(0, u64::MAX, 0).is_err());
    memory
        .copy_out(BYTES, &mut [])
        .expect("nothing at the end is inside");
    let run = PoolBuf::new(memory, 4096, 8).expect("inside");
    run.copy_in(&[1; 8]).expect("fits");
    assert!(run.copy_in(&[1; 9]).is_err());
    assert!(run.copy_out(&mut [1; 9]).is_err());
}

#[test]
fn a_reader_cannot_write() {
    let ours = SharedMemory::create(&spec(HugePages::None)).expect("memory");
    let fd = ours.fd().try_clone_to_owned().expect("dup");
    let reader = SharedMemory::attach_fd(fd, Access::Read).expect("attach");
    assert!(matches!(reader.copy_in(0, &[1]), Err(Error::ReadOnly)));
    assert!(matches!(reader.fill(0, 1, 1), Err(Error::ReadOnly)));
    assert!(matches!(
        ours.copy_to(0, &reader, 0, 1),
        Err(Error::ReadOnly)
    ));
    let word = reader.word(0).expect("readable");
    assert!(matches!(word.store(1), Err(Error::ReadOnly)));
    assert!(matches!(word.compare_exchange(0, 1), Err(Error::ReadOnly)));
    ours.word(0).expect("aligned").store(3).expect("writable");
    assert_eq!(word.load(), 3);
    assert!(matches!(reader.store_words(0, &[1]), Err(Error::ReadOnly)));
    ours.store_words(0, &[4, 5]).expect("writable");
    let mut words = [0; 2];
    reader.load_words(0, &mut words).expect("readable");
    assert_eq!(words, [4, 5]);
}

#[test]
fn no_holder_can_shrink_a_memfd() {
    let ours = SharedMemory::create(&spec(HugePages::None)).expect("memory");
    let file = std::fs::File::from(ours.fd().try_clone_to_owned().expect("dup"));
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(BYTES * 2).is_err());
    assert_eq!(
        file.metadata().expect("stat").permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_file_outlives_its_maker() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let path = dir.path().join("pool0.data");
    let file = PoolSpec {
        touch_threads: 3,
        ..PoolSpec::file(&path, BYTES - 100)
    };
    let first = SharedMemory::create(&file).expect("memory");
    assert_eq!(first.len(), BYTES, "whole pages");
    first.copy_in(77, b"still here").expect("inside");
    drop(first);
    let again = SharedMemory::create(&file).expect_err("exists");
    assert_eq!(again.kind(), ErrorKind::Invalid, "{again}");
    let second = SharedMemory::attach_path(&path, Access::Read).expect("attach");
    let mut got = [0; 10];
    second.copy_out(77, &mut got).expect("inside");
    assert_eq!(&got, b"still here");
    let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn files_that_are_not_ours_alone_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("pool");
    let attach = |path: &Path| {
        let error = SharedMemory::attach_path(path, Access::ReadWrite).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    };
    assert!(attach(&path).contains("pool"), "names the file");
    std::fs::write(&path, [0; 4096]).expect("writable");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("ours");
    assert!(attach(&path).contains("chmod 600"));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("ours");
    SharedMemory::attach_path(&path, Access::ReadWrite).expect("now it is ours alone");
    std::fs::write(&path, []).expect("writable");
    assert!(attach(&path).contains("empty"));
    attach(dir.path());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("writable");
    SharedMemory::attach_path(&link, Access::Read).expect_err("links are not followed");
}

#[test]
fn a_failed_create_leaves_no_file() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let path = dir.path().join("pool");
    let want = PoolSpec {
        pages: HugePages::Size2MiB,
        ..PoolSpec::file(&path, BYTES)
    };
    let error = SharedMemory::create(&want).expect_err("tmpfs is not hugetlbfs");
    assert!(error.to_string().contains("mount -t hugetlbfs"), "{error}");
    let huge = PoolSpec::file(&path, 1 << 60);
    let error = SharedMemory::create(&huge).expect_err("larger than any machine");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(!path.exists());
    for bytes in [0, u64::MAX] {
        assert!(SharedMemory::create(&PoolSpec::memfd("test", bytes)).is_err());
    }
}

#[test]
fn pages_are_as_asked_or_the_message_says_why_not() {
    for pages in [
        HugePages::Transparent,
        HugePages::Size2MiB,
        HugePages::Size1GiB,
    ] {
        match SharedMemory::create(&spec(pages)) {
            Ok(memory) => assert_ne!(memory.pages(), PageKind::Base),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                eprintln!("skipped on this machine: {error}");
            }
        }
    }
    let auto = SharedMemory::create(&spec(HugePages::Auto)).expect("auto never fails for pages");
    let best = matches!(auto.pages(), PageKind::Huge(_));
    assert_eq!(best, auto.notes().is_empty(), "{:?}", auto.notes());
}

#[test]
fn memory_comes_from_the_node_asked_for() {
    let on = |node| PoolSpec {
        node: Some(node),
        ..spec(HugePages::None)
    };
    let memory = SharedMemory::create(&on(0)).expect("memory");
    if let [note] = memory.notes() {
        eprintln!("skipped on this machine: {note}");
        return;
    }
    assert_eq!(memory.node_at(BYTES - 1).expect("known"), 0);
    let strange = SharedMemory::create(&on(5000)).expect("memory from elsewhere");
    assert!(strange.notes()[0].contains("NUMA node 5000"));
}
