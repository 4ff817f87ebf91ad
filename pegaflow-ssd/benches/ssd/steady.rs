// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A full store that goes on taking blocks: what reclaim costs, by policy.
//!
//! A tenth of the blocks is read again and again, so that policies with a second chance have something to keep.

use std::collections::VecDeque;
use std::time::Instant;

use pegaflow_ssd::settings::Reclaim;
use pegaflow_ssd::{
    BlockStore, Buf, Device, Fetched, Get, Key, Put, Settings, SsdStore, cpu_time_us,
};
use serde_json::json;

use crate::{Bench, Figures};

const BLOCK_BYTES: usize = 256 << 10;
const DEPTH: usize = 16;
/// Every so many writes one hot block is read.
const READ_EVERY: u64 = 4;

/// Writes twice the device's bytes after it is full, under each policy.
pub(crate) fn run(bench: &Bench) {
    for policy in [Reclaim::Fifo, Reclaim::Clock, Reclaim::ExpectedReuse] {
        one(bench, policy);
    }
}

struct Writer {
    store: SsdStore,
    waiting: VecDeque<(Instant, pegaflow_ssd::Ticket<pegaflow_ssd::Stored>)>,
    read: Buf,
    next: u64,
    us: Vec<u32>,
    reads: u64,
    hits: u64,
}

impl Writer {
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
    fn write(&mut self, blocks: u64) {
        for _ in 0..blocks {
            let buf = match self.waiting.len() == DEPTH {
                true => self.wait(),
                false => Buf::copy_of(&vec![7; BLOCK_BYTES]),
            };
            let put = Put::new(Key::from(u128::from(self.next)), buf);
            let ticket = self.store.put(put).expect("room");
            self.waiting.push_back((Instant::now(), ticket));
            self.next += 1;
            if self.next.is_multiple_of(READ_EVERY) {
                self.read_a_hot_one();
            }
        }
    }

    fn wait(&mut self) -> Buf {
        let (since, ticket) = self.waiting.pop_front().expect("some wait");
        let mut done = ticket.wait();
        self.us.push(since.elapsed().as_micros() as u32);
        done.result.expect("the device works");
        done.bufs.pop().expect("it comes back")
    }

    // Of every ten blocks one is hot, for ever, as long as it is there.
    fn read_a_hot_one(&mut self) {
        let n = self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.next / 10 * 10;
        let buf = std::mem::replace(&mut self.read, Buf::new(1));
        let get = Get::new(Key::from(u128::from(n)), buf);
        let mut done = self.store.get(get).expect("room").wait();
        self.reads += 1;
        self.hits += u64::from(matches!(done.result, Ok(Fetched::Hit { .. })));
        self.read = done.bufs.pop().expect("it comes back");
    }
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn one(bench: &Bench, policy: Reclaim) {
    let settings = Settings {
        // At least 64 of them, so that those kept free are few.
        segment_bytes: (bench.bytes / 64).next_power_of_two().min(64 << 20) / 2,
        reclaim: policy,
        format: true,
        ..Settings::default()
    };
    let store = SsdStore::open(settings, &[Device::existing(&bench.path)]).expect("a store");
    let capacity = store.stats().capacity_bytes;
    let (waiting, read) = (VecDeque::new(), Buf::new(BLOCK_BYTES));
    let mut writer = Writer {
        store,
        waiting,
        read,
        next: 0,
        us: Vec::new(),
        reads: 0,
        hits: 0,
    };
    let blocks = capacity / BLOCK_BYTES as u64;
    writer.write(blocks);
    writer.us.clear();
    (writer.reads, writer.hits) = (0, 0);
    let (before, start, cpu) = (writer.store.stats(), Instant::now(), cpu_time_us());
    writer.write(2 * blocks);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_time_us() - cpu);
    while !writer.waiting.is_empty() {
        writer.wait();
    }
    let after = writer.store.stats();
    let stored = after.stored_bytes - before.stored_bytes;
    let amplification = (after.device_bytes - before.device_bytes) as f64 / stored as f64;
    let full = after.live_bytes as f64 / capacity as f64;
    let figures = Figures::new(2 * blocks, stored, seconds, cpu, &mut writer.us);
    let name = format!("{policy:?}").to_lowercase();
    let hit_share = writer.hits as f64 / writer.reads.max(1) as f64;
    let line = json!({
        "bench": "ssd",
        "settings": {"op": format!("steady_{name}"), "block_bytes": BLOCK_BYTES, "depth": DEPTH, "direct": true},
        "machine": crate::machine(bench),
        "gb_per_s": figures.gb_per_s, "ops_per_s": figures.ops_per_s,
        "p50_us": figures.p50_us, "p99_us": figures.p99_us, "p999_us": figures.p999_us,
        "floor": null, "floor_share": null,
        "write_amplification": amplification, "live_share": full, "hot_hit_share": hit_share,
    });
    println!("{line}");
    eprintln!(
        "steady {name}: {:.3} GB/s, write amplification {amplification:.3}, {:.0} % of the store is blocks, {:.0} % of hot reads hit",
        figures.gb_per_s,
        full * 100.0,
        hit_share * 100.0
    );
}
