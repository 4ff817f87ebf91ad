// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Kills the server under replay. Every moment and victim follows from the seed; what they meet does not.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::NodeArgs;
use super::client::{Client, Seen};
use super::tally::Tally;
use crate::demo::parse_bytes;
use crate::programs::{Place, Programs, Running, now};
use crate::workspace::Workspace;

// How long clients may take to be served again before the round counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
// The hit rates before and after a kill are taken over so long.
const WINDOW_MS: u64 = 200;
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
    let mut chaos = Chaos {
        args,
        started,
        server: Running::server(&programs, &place)?,
        clients: vec![],
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
    clients: Vec<Client>,
    place: Place,
    tally: Tally,
    dice: Dice,
}

impl Chaos<'_> {
    fn play(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.args.clients.max(1) {
            let client = self.client()?;
            self.clients.push(client);
        }
        self.wait_until_served("at the start")?;
        for round in 1.. {
            if self.is_over(round) {
                break;
            }
            self.round()
                .with_context(|| format!("round {round} of seed {}", self.args.seed))?;
        }
        // The last window, then the end: the totals of those who are still there.
        self.sleep(WINDOW_MS)?;
        for client in &mut self.clients {
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
        self.sleep(random_ms)?;
        let mark = self.marks();
        self.sleep(WINDOW_MS)?;
        self.tally.before = self.sum_hits(&mark, self.tally.before);
        let killed = now();
        self.server.kill()?;
        if self.dice.below(CLIENT_KILL_ONE_IN) == 0 {
            self.replace_a_client()?;
        }
        self.server = Running::server(&self.programs, &self.place)?;
        let mark = self.wait_until_served("after the kill")?;
        let recovery = killed.elapsed().as_secs_f64() * 1000.0;
        self.sleep(WINDOW_MS)?;
        self.tally.after = self.sum_hits(&mark, self.tally.after);
        self.tally.rounds += 1;
        self.tally.recoveries_ms.push(recovery);
        for client in &self.clients {
            self.tally.outages_ms.extend(client.take_recoveries_ms());
        }
        self.say(recovery);
        Ok(())
    }

    fn say(&self, recovery_ms: f64) {
        let mut seen = self.tally.seen;
        self.clients
            .iter()
            .for_each(|client| seen.add(client.seen()));
        let rounds = self.tally.rounds;
        if rounds.is_multiple_of(10) || rounds == self.args.rounds {
            println!(
                "  round {rounds:>4}: served again after {recovery_ms:>4.0} ms; {:>6.2} GB verified, {} wrong blocks",
                seen.bytes_verified as f64 / 1e9,
                seen.mismatches,
            );
        }
    }

    fn client(&self) -> anyhow::Result<Client> {
        let ranks = self.args.ranks.to_string();
        let mut command: Command = self.programs.replay(&self.place.socket());
        command
            .args(["--sample-ms", "20", "--in-flight", "2", "--ranks", &ranks])
            .args(["--block-bytes", "64KiB", "--reconnect-ms-max", "30000"])
            .stderr(Stdio::inherit());
        if self.args.ssd {
            command.args(["--wait-ms", "5000"]);
        }
        Client::start(&mut command)
    }

    fn replace_a_client(&mut self) -> anyhow::Result<()> {
        let victim = self.dice.below(self.clients.len() as u64) as usize;
        self.clients[victim].kill()?;
        self.tally.clients_killed += 1;
        self.tally.seen.add(self.clients[victim].seen());
        self.tally
            .outages_ms
            .extend(self.clients[victim].take_recoveries_ms());
        self.clients[victim] = self.client()?;
        Ok(())
    }

    /// Waits until every client has finished a request from now on.
    fn wait_until_served(&mut self, when: &str) -> anyhow::Result<Vec<Seen>> {
        let (from, until) = (self.marks(), now() + PATIENCE);
        loop {
            self.check_clients()?;
            let marks = self.marks();
            if marks
                .iter()
                .zip(&from)
                .all(|(m, f)| m.requests > f.requests)
            {
                return Ok(marks);
            }
            if now() > until {
                bail!("not every client was served within {PATIENCE:?} {when}");
            }
            if !self.server.is_running() {
                bail!("the server ended by itself {when}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn check_clients(&mut self) -> anyhow::Result<()> {
        let gone = self
            .clients
            .iter_mut()
            .position(|client| !client.is_running());
        ensure!(gone.is_none(), "client {} gave up", gone.unwrap_or(0));
        Ok(())
    }

    fn sleep(&mut self, ms: u64) -> anyhow::Result<()> {
        std::thread::sleep(Duration::from_millis(ms));
        self.check_clients()
    }

    fn marks(&self) -> Vec<Seen> {
        self.clients.iter().map(Client::seen).collect()
    }

    fn sum_hits(&self, since: &[Seen], mut sum: (u64, u64)) -> (u64, u64) {
        for (client, mark) in self.clients.iter().zip(since) {
            let (hits, references) = client.seen().hits_since(mark);
            sum = (sum.0 + hits, sum.1 + references);
        }
        sum
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
