// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The program does what its help and the README say.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pegaflow_ssd::{BlockStore, Buf, Device, Key, Put, Settings, SsdStore};

const BLOCK_BYTES: usize = 100_000;

fn store(path: &Path) -> SsdStore {
    let settings = Settings {
        segment_bytes: 1 << 20,
        ..Settings::default()
    };
    let store = SsdStore::open(settings, &[Device::file(path, 16 << 20)]).expect("a store");
    for n in 1..=3u128 {
        let block = Buf::copy_of(&vec![0xA0 + n as u8; BLOCK_BYTES]);
        let done = store
            .put(Put::new(Key::from(n), block))
            .expect("room")
            .wait();
        done.result.expect("it is written");
    }
    store
}

/// Whether it succeeded, and what it printed, errors included.
fn run(command: &str, path: &Path) -> (bool, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_pegaflow-ssd"));
    let output = program.arg(command).arg(path).output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(text).expect("text"),
    )
}

fn damage_a_block(path: &Path) {
    let bytes = fs::read(path).expect("a file");
    let at = bytes
        .windows(64)
        .position(|w| w == [0xA2; 64])
        .expect("it is there");
    let file = File::options().write(true).open(path).expect("a file");
    file.write_all_at(&[0], at as u64 + 10).expect("written");
}

#[test]
fn a_store_is_listed_checked_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("store");
    drop(store(&path));
    let (good, text) = run("ls", &path);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let want = (1..=3u128).map(|n| format!("{} {BLOCK_BYTES} 0", Key::from(n)));
    assert_eq!(
        (good, lines),
        (
            true,
            want.collect::<Vec<_>>()
                .iter()
                .map(String::as_str)
                .collect()
        )
    );
    let (good, text) = run("verify", &path);
    assert!(
        good && text.starts_with("3 blocks are what was written, 0 are not"),
        "{text}"
    );
    let (good, text) = run("stats", &path);
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (good, &stats["stats"]["blocks"]),
        (true, &3.into()),
        "{text}"
    );
    damage_a_block(&path);
    let (good, text) = run("verify", &path);
    assert!(
        !good && text.contains("2 blocks are what was written, 1 are not"),
        "{text}"
    );
}

#[test]
fn a_store_in_use_can_only_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let _open = store(&path);
    let (good, text) = run("inspect", &path);
    assert!(
        good && text.contains("segments of 1048576 bytes, device 1 of 1"),
        "{text}"
    );
    for command in ["ls", "verify", "stats"] {
        let (good, text) = run(command, &path);
        assert!(!good && text.starts_with("error: "), "{command}: {text}");
    }
}
