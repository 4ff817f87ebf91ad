// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Kills the server under replay. Every moment and victim follows from the seed; what they meet does not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::NodeArgs;
use super::fleet::{Drive, Fleet};
use super::tally::Tally;
use crate::demo::parse_bytes;
use crate::programs::{Place, Programs, Running, now};
use crate::workspace::Workspace;

// The hit rates before and after a kill are taken over so long.
const WINDOW: Duration = Duration::from_millis(200);
// Load between a recovery and the next kill: the window after, something random, the window before.
const LOAD_MS_MAX: u64 = 400;
// The file for blocks on SSD is so many times as large as the pool.
const SSD_POOLS: u64 = 8;
// One round in so many kills a client too.
const CLIENT_KILL_ONE_IN: u64 = 3;

pub(super) fn run(ws: &Workspace, args: &NodeArgs) -> anyhow::Result<()> {
    let programs = Programs::build(ws, !args.debug)?;
    let ram = parse_bytes(&args.ram)?;
    let mut place = Place::new(ws, "chaos", ram)?;
    if args.ssd {
        place = place.with_ssd(ws, ram * SSD_POOLS)?;
    }
    let length = match args.minutes {
        Some(minutes) => format!("{minutes} minutes"),
        None => format!("{} rounds", args.rounds),
    };
    println!("{length}, seed {}, {} clients", args.seed, args.clients);
    let started = now();
    let drive = Drive {
        clients: args.clients,
        ranks: args.ranks,
        ssd: args.ssd,
    };
    let mut server = Running::server(&programs, &place)?;
    let mut chaos = Chaos {
        args,
        started,
        fleet: Fleet::start(drive, &programs, &place, &mut server)?,
        server,
        tally: Tally::default(),
        dice: Dice(args.seed),
        programs,
        place,
    };
    let played = chaos.play();
    chaos.tally.seconds = started.elapsed().as_secs_f64();
    if played.is_err() {
        eprintln!("the end of the server's log:\n{}", chaos.place.log_tail());
    }
    played?;
    println!("\n{}", chaos.tally);
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&chaos.tally.json(args.seed))?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(
        chaos.tally.seen.mismatches == 0,
        "{} wrong blocks",
        chaos.tally.seen.mismatches
    );
    Ok(())
}

struct Chaos<'a> {
    args: &'a NodeArgs,
    started: Instant,
    programs: Programs,
    // Before the place: they must be gone when it is removed.
    server: Running,
    fleet: Fleet,
    place: Place,
    tally: Tally,
    dice: Dice,
}

impl Chaos<'_> {
    fn play(&mut self) -> anyhow::Result<()> {
        for round in 1.. {
            if self.is_over(round) {
                break;
            }
            self.round()
                .with_context(|| format!("round {round} of seed {}", self.args.seed))?;
        }
        // The last window, then the end: the totals of those who are still there.
        self.fleet.sleep(WINDOW)?;
        for client in &mut self.fleet.clients {
            client.kill()?;
            self.tally.seen.add(client.seen());
            self.tally.outages_ms.extend(client.take_recoveries_ms());
        }
        Ok(())
    }

    /// Whether the rounds before this one are enough.
    fn is_over(&self, round: u32) -> bool {
        match self.args.minutes {
            Some(minutes) => self.started.elapsed().as_secs_f64() >= minutes * 60.0,
            None => round > self.args.rounds,
        }
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let random_ms = self.dice.below(LOAD_MS_MAX);
        self.fleet.sleep(Duration::from_millis(random_ms))?;
        let marks = self.fleet.marks();
        self.fleet.sleep(WINDOW)?;
        self.tally.before.add(self.fleet.since(&marks));
        let killed = now();
        self.server.kill()?;
        if self.dice.below(CLIENT_KILL_ONE_IN) == 0 {
            self.replace_a_client()?;
        }
        self.server = Running::server(&self.programs, &self.place)?;
        let marks = self
            .fleet
            .wait_until_served(&mut self.server, "after the kill")?;
        let recovery = killed.elapsed().as_secs_f64() * 1000.0;
        self.fleet.sleep(WINDOW)?;
        self.tally.after.add(self.fleet.since(&marks));
        self.tally.rounds += 1;
        self.tally.recoveries_ms.push(recovery);
        for client in &self.fleet.clients {
            self.tally.outages_ms.extend(client.take_recoveries_ms());
        }
        self.say(recovery);
        Ok(())
    }

    fn say(&self, recovery_ms: f64) {
        let mut seen = self.tally.seen;
        let clients = self.fleet.clients.iter();
        clients.for_each(|client| seen.add(client.seen()));
        let rounds = self.tally.rounds;
        if rounds.is_multiple_of(10) || rounds == self.args.rounds {
            println!(
                "  round {rounds:>4}: served again after {recovery_ms:>4.0} ms; {:>6.2} GB verified, {} wrong blocks",
                seen.bytes_verified as f64 / 1e9,
                seen.mismatches,
            );
        }
    }

    fn replace_a_client(&mut self) -> anyhow::Result<()> {
        let victim = self.dice.below(self.fleet.clients.len() as u64) as usize;
        self.fleet.clients[victim].kill()?;
        self.tally.clients_killed += 1;
        self.tally.seen.add(self.fleet.clients[victim].seen());
        self.tally
            .outages_ms
            .extend(self.fleet.clients[victim].take_recoveries_ms());
        self.fleet.clients[victim] = self.fleet.client(&self.programs, &self.place)?;
        Ok(())
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}
