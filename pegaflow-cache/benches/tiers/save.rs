// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What the tier costs those who do not need it: lookups that the pool answers, and saves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pegaflow_cache::client::Client;
use pegaflow_cache::node::{NodeSettings, TraceSettings};
use pegaflow_cache::replay::engine::{engine_bytes, engine_layout};
use pegaflow_cache::worker::{Save, Worker, WorkerSettings};
use pegaflow_mem::Slot;
use pegaflow_mem::device::host::{HostDevice, HostMemory, HostSettings};
use pegaflow_meta::BlockKey;
use serde_json::json;

use crate::report::{Point, Times, now};
use crate::rig::{GROUP, Rig, Size, layout, settings};

/// Keys of one lookup.
const KEYS: u32 = 1024;
/// Keys of lookups beside traces: a trace costs the same for each, so the short one shows it most.
const TRACED: [u32; 2] = [64, KEYS];
/// Lookups timed together, so that the two nodes' turns are short and the clock costs nothing.
const LAP: u32 = 8;
/// Blocks of one save.
const SAVE: u32 = 16;
/// Saves of one turn.
const TURN: u32 = 10;
/// Prompts of saves that copy nothing are counted from here on.
const BARE: u32 = 1 << 20;
/// Between two saves.
const STEP: Duration = Duration::from_millis(20);

/// All-hit lookups with and without the tier, in turns.
pub(crate) fn lookup(dir: &Path, size: &Size) {
    let path = dir.join("lookup");
    let all = [None, Some(path.as_path())].map(|ssd| settings(pool_bytes(), ssd));
    let [without, with] = in_turns(&all, KEYS, size);
    let point = Point {
        op: "lookup",
        blocks: KEYS.into(),
        bytes: 0,
        floor: "the same lookup without SSD",
    };
    point.print(&with, &without);
}

/// All-hit lookups with traces as they are by default and without any, in turns. Lines are formatted, and
/// written to nobody.
pub(crate) fn trace(size: &Size) {
    let lines = tracing_subscriber::fmt().with_writer(std::io::sink);
    let _ = lines.try_init();
    let without = NodeSettings {
        trace: TraceSettings {
            one_in: 0,
            slow_ms: u32::MAX,
        },
        ..settings(pool_bytes(), None)
    };
    for keys in TRACED {
        let [without, with] =
            in_turns(&[without.clone(), settings(pool_bytes(), None)], keys, size);
        let point = Point {
            op: "trace",
            blocks: keys.into(),
            bytes: 0,
            floor: "the same lookup without traces",
        };
        point.print(&with, &without);
    }
}

fn pool_bytes() -> u64 {
    u64::from(KEYS) * Size::quick().block_bytes() * 2
}

/// Times of all-hit lookups of `count` keys on nodes of these settings.
fn in_turns(all: &[NodeSettings; 2], count: u32, size: &Size) -> [Times; 2] {
    let rigs = all
        .each_ref()
        .map(|settings| Rig::new(settings, Size::quick().shape));
    let keys = rigs[0].keys(0, count);
    for rig in &rigs {
        assert_eq!(rig.save(&keys), count);
        if rig.node.ssd_stats().is_some() {
            rig.settle();
        }
    }
    let mut times = [vec![], vec![]];
    for _ in 0..size.lookups {
        for (rig, times) in rigs.iter().zip(&mut times) {
            let started = now();
            for _ in 0..LAP {
                assert_eq!(rig.lookup(&keys), count as usize);
            }
            times.push(started.elapsed() / LAP);
        }
    }
    times.map(|times| Times::new(&times))
}

/// A worker that saves from memory of its own.
struct Engine {
    worker: Worker,
    runtime: tokio::runtime::Runtime,
}

impl Engine {
    fn new(size: &Size, ssd: Option<&Path>) -> (Self, Rig) {
        let pool = u64::from(4 * SAVE) * size.block_bytes() + (256 << 20);
        let rig = Rig::new(&settings(pool, ssd), size.shape);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let client = Client::embedded(&rig.node).expect("opens");
        let registered = client.register_namespace(layout(size.shape));
        let namespace = runtime.block_on(registered).expect("registers");
        let slot = Slot::whole(&size.shape);
        let bytes = engine_bytes(&size.shape, &slot, SAVE);
        let memory = HostMemory::zeroed(bytes).expect("memory");
        let device = HostDevice::new(&HostSettings::default()).expect("a device");
        device.register(memory.clone()).expect("registers");
        let layout = engine_layout(size.shape, slot, memory.base(), SAVE).expect("fits");
        let (device, layout) = (Arc::new(device), Arc::new(layout));
        let settings = WorkerSettings::default();
        let worker = Worker::new(client, device, namespace, GROUP, layout, settings);
        let worker = worker.expect("fits");
        (Self { worker, runtime }, rig)
    }

    fn save(&self, keys: Vec<BlockKey>) {
        let blocks = (0..keys.len() as u32).collect();
        let save = Save {
            keys,
            blocks,
            ..Save::default()
        };
        let saved = self
            .runtime
            .block_on(self.worker.save(save))
            .expect("saves");
        assert_eq!(saved.out_of_budget, 0, "there is room for all");
    }
}

/// Saves with and without the tier, in turns of some saves each: those of one turn meet the writes of
/// the saves before them. A pause stands for the step that an engine computes between two saves. And the
/// node's part of it, which is what the tier can add to.
pub(crate) fn save(dir: &Path, size: &Size) {
    let path = dir.join("save");
    let engines = [None, Some(path.as_path())].map(|ssd| Engine::new(size, ssd));
    let (mut times, mut bare) = ([vec![], vec![]], [vec![], vec![]]);
    for turn in 0..size.saves / TURN {
        for (((engine, rig), times), bare) in engines.iter().zip(&mut times).zip(&mut bare) {
            for at in (turn * TURN..).take(TURN as usize) {
                let time = |save: &dyn Fn()| {
                    let started = now();
                    save();
                    let took = started.elapsed();
                    std::thread::sleep(STEP);
                    took
                };
                let (keys, others) = (rig.keys(at, SAVE), rig.keys(BARE + at, SAVE));
                times.push(time(&|| engine.save(keys.clone())));
                bare.push(time(&|| assert_eq!(rig.save(&others), SAVE)));
            }
            if rig.node.ssd_stats().is_some() {
                rig.settle();
            }
        }
    }
    let bytes = u64::from(SAVE) * size.block_bytes();
    for (op, times, bytes) in [("save", times, bytes), ("reserve_seal", bare, 0)] {
        let [without, with] = times.map(|times| Times::new(&times));
        let point = Point {
            op,
            blocks: SAVE.into(),
            bytes,
            floor: "the same without SSD",
        };
        point.print(&with, &without);
    }
}

/// A burst of four times the spill budget: what the pool still holds must be on the drive.
pub(crate) fn burst(dir: &Path, size: &Size) {
    let path = dir.join("burst");
    let mut settings = settings(2 * size.bytes(), Some(&path));
    settings.ssd.spill_bytes_max = size.bytes() / 4;
    let rig = Rig::new(&settings, size.shape);
    let keys = rig.keys(0, size.blocks);
    assert_eq!(rig.save(&keys), size.blocks);
    let ready = rig.lookup(&keys);
    rig.settle();
    let stats = rig.stats();
    let point = Point {
        op: "burst",
        blocks: size.blocks.into(),
        bytes: size.bytes(),
        floor: "every block that the pool holds is written",
    };
    let share = stats.spilled_blocks as f64 / ready as f64;
    let lost = ready as u64 - stats.spilled_blocks;
    point.print_share(
        share,
        json!({"held": ready, "written": stats.spilled_blocks, "lost": lost}),
    );
}
