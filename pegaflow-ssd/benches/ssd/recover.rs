// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Opening a store of many small blocks after its process was killed.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use pegaflow_ssd::{BlockStore, Buf, Device, Key, Put, Settings, SsdStore};
use serde_json::json;

use crate::Bench;

/// Stores so many blocks of 4 KiB and ends at once, as kill -9 does.
pub(crate) fn fill_and_die(path: &Path, blocks: u64) -> ! {
    let bytes = (blocks + blocks / 8) * 4096 + (256 << 20);
    let store = SsdStore::open(Settings::default(), &[Device::file(path, bytes)]).expect("a store");
    let mut waiting = VecDeque::new();
    for n in 0..blocks {
        let put = Put::new(
            Key::from(u128::from(n)),
            Buf::copy_of(&n.to_le_bytes().repeat(512)),
        );
        waiting.push_back(store.put(put).expect("room"));
        if waiting.len() == 2048 {
            let first = waiting.pop_front().expect("2,048 wait");
            first.wait().result.expect("the device works");
        }
    }
    for ticket in waiting {
        ticket.wait().result.expect("the device works");
    }
    std::process::abort();
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub(crate) fn run(bench: &Bench, blocks: u64) {
    let path = bench.path.with_extension("open");
    let _ = std::fs::remove_file(&path);
    // The two files together must not be large.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open(&bench.path)
        .and_then(|f| f.set_len(0));
    let start = Instant::now();
    let child = Command::new(std::env::current_exe().expect("our own path"))
        .args([
            "--fill-and-die".as_ref(),
            path.as_os_str(),
            blocks.to_string().as_ref(),
        ])
        .stderr(std::process::Stdio::null())
        .status();
    let filled = start.elapsed().as_secs_f64();
    assert!(!child.expect("it ran").success(), "it dies");
    let start = Instant::now();
    let store = SsdStore::open(Settings::default(), &[Device::existing(&path)]).expect("it opens");
    let us = start.elapsed().as_micros() as f64;
    let (stats, report) = (store.stats(), store.recovery()[0].clone());
    assert_eq!(report.blocks, blocks, "{report:?}");
    let index_bytes = stats.index_bytes as f64 / blocks as f64;
    let line = json!({
        "bench": "ssd",
        "settings": {"op": "open_after_kill", "block_bytes": 4096, "depth": blocks, "direct": true},
        "machine": crate::machine(bench),
        "gb_per_s": null, "ops_per_s": blocks as f64 / us * 1e6,
        "p50_us": us, "p99_us": null, "p999_us": null,
        "floor": null, "floor_share": null,
        "index_bytes_per_block": index_bytes,
        "write_amplification": stats.write_amplification,
    });
    println!("{line}");
    eprintln!(
        "open {blocks} blocks after a kill: {:.3} s, {index_bytes:.1} bytes of index a block ({:.0} puts/s to fill); {report:?}",
        us / 1e6,
        blocks as f64 / filled
    );
    drop(store);
    let _ = std::fs::remove_file(&path);
}
