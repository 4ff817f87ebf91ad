// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! RAM before an SSD: every block that is saved to RAM goes to the SSD once, where the oldest that was not used leaves
//! (a clock over a FIFO, as the store reclaims segments). What RAM misses and the SSD has is brought back into RAM.

use std::collections::{HashMap, VecDeque};

use pegaflow_cache::core::EvictionPolicy;
use pegaflow_cache::replay::baselines::{Simulated, optimum_hits};
use serde_json::json;

use crate::cache::CoreCache;
use crate::points::{count, cpu_us, print, shares};

/// Blocks on the SSD for one in RAM.
const SSD_TIMES_RAM: usize = 4;

/// The SSD tier.
struct Ssd {
    capacity: usize,
    queue: VecDeque<u64>,
    /// Whether a block was used since the clock passed it.
    used: HashMap<u64, bool>,
}

impl Ssd {
    fn put(&mut self, block: u64) {
        if self.used.contains_key(&block) {
            return;
        }
        while self.used.len() >= self.capacity
            && let Some(oldest) = self.queue.pop_front()
        {
            if self.used.insert(oldest, false) == Some(true) {
                self.queue.push_back(oldest);
            } else {
                self.used.remove(&oldest);
            }
        }
        self.queue.push_back(block);
        self.used.insert(block, false);
    }

    fn hit(&mut self, block: u64) -> bool {
        let used = self.used.get_mut(&block);
        used.map(|used| *used = true).is_some()
    }
}

pub(crate) fn measure(workload: &str, requests: &[Vec<u64>], quick: bool) {
    let (unique, references) = count(requests);
    for share in shares(quick).filter(|share| *share <= 0.1) {
        let capacity = (unique as f64 * share) as usize;
        let both = capacity * (1 + SSD_TIMES_RAM);
        let optimum = optimum_hits(requests.iter().map(Vec::as_slice), both);
        for (policy, name) in [
            (EvictionPolicy::Lru, "lru"),
            (EvictionPolicy::Gittins, "gittins"),
        ] {
            let start = cpu_us();
            let (ram, ssd) = replay(policy, capacity, requests);
            let per_s = references as f64 / (cpu_us() - start) * 1e6;
            let [ram, ssd, optimum] =
                [ram, ssd, optimum as usize].map(|hits| hits as f64 / references as f64);
            eprintln!("{workload:20} {share:4.2} {name:8} {ram:.4} from RAM, {ssd:.4} from SSD");
            let settings = json!({
                "op": "replay_ram_ssd", "policy": name, "workload": workload, "capacity_share": share,
                "capacity_blocks": capacity, "ssd_blocks": capacity * SSD_TIMES_RAM,
            });
            let floor = json!({
                "what": "offline optimum of both together", "gb_per_s": null, "us": null, "hit_share": optimum,
            });
            let extra = json!({"hit_share": ram + ssd, "ram_hit_share": ram, "ssd_hit_share": ssd});
            let share = (optimum > 0.0).then(|| (ram + ssd) / optimum);
            print(&settings, Some(per_s), &[], (&floor, share), &extra);
        }
    }
}

/// Prefix hits from RAM, and from the SSD.
fn replay(policy: EvictionPolicy, capacity: usize, requests: &[Vec<u64>]) -> (usize, usize) {
    let mut ram = CoreCache::new(policy, capacity);
    let mut ssd = Ssd {
        capacity: capacity * SSD_TIMES_RAM,
        queue: VecDeque::new(),
        used: HashMap::new(),
    };
    let (mut from_ram, mut from_ssd) = (0, 0);
    for blocks in requests {
        let in_ram = ram.has(blocks);
        for (block, in_ram) in blocks.iter().zip(in_ram) {
            let on_ssd = !in_ram && ssd.hit(*block);
            from_ram += usize::from(in_ram);
            from_ssd += usize::from(on_ssd);
            if !in_ram && !on_ssd {
                break;
            }
        }
        ram.request(blocks);
        blocks.iter().for_each(|block| ssd.put(*block));
    }
    (from_ram, from_ssd)
}
