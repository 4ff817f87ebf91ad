// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! Kills a writing process again and again, and checks after each time that every block it was promised is there.
//!
//! `cargo run --release --example chaos -- --rounds 200 [--path FILE] [--seed N]`. The child says on its standard output what it hands
//! over (`p KEY VERSION`) and what was acknowledged (`a KEY VERSION BYTES_STORED_SO_FAR`); version 0 is a removal.
//!
//! `chaos --write PATH LEDGER` says the same to the end of a file, and counts on flushes; `chaos --verify PATH LEDGER` checks the store by it:
//! for power cuts, which end the parent too.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports"
)]

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pegaflow_ssd::settings::{Durability, Reclaim};
use pegaflow_ssd::{
    BlockStore, Buf, Device, Done, Fetched, Get, Key, Put, Settings, SsdStore, Stored, Ticket,
};

const KEYS: u64 = 400;
const FILE_BYTES: u64 = 192 << 20;
const SEGMENT_BYTES: u64 = 4 << 20;
/// What was stored before so many bytes may have been reclaimed; what was stored later must be there.
const SAFE_BYTES: u64 = FILE_BYTES / 2;

/// Stored by an earlier process: it may leave at any time.
const BEFORE: u64 = u64::MAX;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn body(key: u64, version: u64) -> Buf {
    let mut rng = Rng((key << 32 | version).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let bytes = match rng.next() % 3 {
        0 => 1 + rng.next() % 5000,
        1 => 4096 * (1 + rng.next() % 16),
        _ => 1 + rng.next() % (600 << 10),
    };
    let mut buf = Buf::new(bytes as usize);
    for word in buf.chunks_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes()[..word.len()]);
    }
    buf
}

fn open(path: &Path, round: u64, durability: Durability) -> SsdStore {
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        reclaim: [Reclaim::Fifo, Reclaim::Clock][round as usize % 2],
        durability,
        ..Settings::default()
    };
    SsdStore::open(settings, &[Device::file(path, FILE_BYTES)]).expect("the store opens")
}

enum Waiting {
    Put(Ticket<Stored>),
    Remove(Ticket<bool>),
}

fn write_for_ever(store: &SsdStore, seed: u64, mut version: u64, mut out: impl Write) -> ! {
    let mut rng = Rng(seed | 1);
    let mut waiting: VecDeque<(u64, u64, u64, Waiting)> = VecDeque::new();
    let mut stored = 0;
    loop {
        let key = rng.next() % KEYS;
        let name = Key::from(u128::from(key));
        version += 1;
        // Said before it is handed over: what was never said cannot be found.
        match rng.next() % 8 {
            0 => {
                writeln!(out, "p {key} 0").expect("the parent listens");
                let ticket = store.remove(name).expect("there is room");
                waiting.push_back((key, 0, 0, Waiting::Remove(ticket)));
            }
            _ => {
                writeln!(out, "p {key} {version}").expect("the parent listens");
                let buf = body(key, version);
                let bytes = buf.len() as u64;
                let ticket = store.put(Put::new(name, buf)).expect("there is room");
                waiting.push_back((key, version, bytes, Waiting::Put(ticket)));
            }
        }
        while waiting.len() > 24 {
            let (key, version, bytes, ticket) = waiting.pop_front().expect("24 wait");
            match ticket {
                Waiting::Put(t) => drop(t.wait().result.expect("the device works")),
                Waiting::Remove(t) => drop(t.wait().result.expect("the device works")),
            }
            stored += bytes;
            writeln!(out, "a {key} {version} {stored}").expect("the parent listens");
        }
    }
}

/// What may be there of one key.
#[derive(Default)]
struct Expected {
    /// The last acknowledged version and when, in bytes stored by this round's process; `BEFORE`: by an earlier one.
    acknowledged: Option<(u64, u64)>,
    /// Handed over since.
    open: Vec<u64>,
}

#[derive(Default)]
struct Tally {
    acknowledged: u64,
    checked: u64,
    reclaimed: u64,
    newest: u64,
}

impl Tally {
    fn tell(&self, when: &str) {
        println!(
            "{when}: {} blocks acknowledged, {} keys checked, {} of them gone as they may, none lost, no wrong byte",
            self.acknowledged, self.checked, self.reclaimed
        );
    }
}

fn child(path: &Path, round: u64, seed: u64, version: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.arg("--child").arg(path);
    command.args([round, seed, version].map(|n| n.to_string()));
    command.stdout(Stdio::piped()).spawn().expect("it starts")
}

fn listen(
    mut child: Child,
    life: Duration,
    keys: &mut HashMap<u64, Expected>,
    tally: &mut Tally,
) -> u64 {
    let out = child.stdout.take().expect("it is piped");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(life);
        // SIGKILL.
        child.kill().expect("it lives");
        child.wait().expect("it is ours");
    });
    let stored = read(BufReader::new(out), keys, tally);
    killer.join().expect("it killed");
    stored
}

/// What a writer said; returns how many bytes it had stored in the end.
fn read(said: impl BufRead, keys: &mut HashMap<u64, Expected>, tally: &mut Tally) -> u64 {
    let mut stored = 0;
    for line in said.lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words.get(i).and_then(|w| w.parse::<u64>().ok());
        // The last line may be cut.
        match (words[0], number(1), number(2), number(3)) {
            ("p", Some(key), Some(version), None) => {
                keys.entry(key).or_default().open.push(version);
                tally.newest = tally.newest.max(version);
            }
            ("a", Some(key), Some(version), Some(now)) => {
                let expected = keys.entry(key).or_default();
                let handed = expected.open.iter().position(|v| *v == version);
                expected.open.drain(..=handed.expect("it was handed over"));
                expected.acknowledged = Some((version, now));
                (stored, tally.acknowledged) = (now, tally.acknowledged + 1);
            }
            ("life", ..) => {
                stored = 0;
                let old = keys.values_mut().filter_map(|e| e.acknowledged.as_mut());
                old.for_each(|(_, at)| *at = BEFORE);
            }
            _ => {}
        }
    }
    stored
}

fn write_to_ledger(path: &Path, ledger: &Path) -> ! {
    let said = std::fs::read_to_string(ledger).unwrap_or_default();
    let mut tally = Tally::default();
    read(said.as_bytes(), &mut HashMap::new(), &mut tally);
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).append(true).open(ledger);
    let mut out = std::io::LineWriter::new(file.expect("the ledger can be written"));
    // The newline ends a line that the last cut left unfinished.
    writeln!(out, "\nlife").expect("the ledger can be written");
    let store = open(path, 0, Durability::Flushed);
    write_for_ever(&store, tally.newest + 1, tally.newest, out)
}

fn verify_by_ledger(path: &Path, ledger: &Path) {
    let said = std::fs::read(ledger).expect("the ledger can be read");
    let (mut keys, mut tally) = (HashMap::new(), Tally::default());
    let stored = read(&said[..], &mut keys, &mut tally);
    let store = open(path, 0, Durability::Flushed);
    eprintln!("{:?}", store.recovery());
    check(&store, stored, &mut keys, &mut tally);
    tally.tell("after a power cut");
}

fn check(store: &SsdStore, stored: u64, keys: &mut HashMap<u64, Expected>, tally: &mut Tally) {
    for (key, expected) in keys {
        let get = Get::new(Key::from(u128::from(*key)), Buf::new(640 << 10));
        let done: Done<Fetched> = store.get(get).expect("there is room").wait();
        let possible = expected
            .open
            .iter()
            .copied()
            .chain(expected.acknowledged.map(|(v, _)| v));
        let found = match done.result.expect("every byte is what was written") {
            Fetched::Hit { .. } => {
                let got = &done.bufs[0][..];
                let hit = possible
                    .clone()
                    .find(|v| *v != 0 && body(*key, *v)[..] == *got);
                hit.unwrap_or_else(|| {
                    panic!("key {key}: none of {:?}", possible.collect::<Vec<_>>())
                })
            }
            Fetched::Miss => {
                let old = expected
                    .acknowledged
                    .is_none_or(|(v, at)| v == 0 || at == BEFORE || stored - at > SAFE_BYTES);
                let removed = possible.clone().any(|v| v == 0);
                assert!(old || removed, "key {key}: acknowledged, and lost");
                tally.reclaimed += 1;
                0
            }
        };
        tally.checked += 1;
        // What was found is as good as acknowledged, and counts as old: it may leave at any time.
        *expected = Expected {
            acknowledged: (found != 0).then_some((found, BEFORE)),
            open: vec![],
        };
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<u64>().ok());
    if args.get(1).is_some_and(|a| a == "--child") {
        let (seed, version) = (number(4).unwrap_or(1), number(5).unwrap_or(0));
        let store = open(
            Path::new(&args[2]),
            number(3).unwrap_or(0),
            Durability::Written,
        );
        write_for_ever(&store, seed, version, std::io::stdout().lock());
    }
    if let [_, what, path, ledger] = &args[..] {
        match what.as_str() {
            "--write" => write_to_ledger(Path::new(path), Path::new(ledger)),
            "--verify" => return verify_by_ledger(Path::new(path), Path::new(ledger)),
            _ => {}
        }
    }
    let after = |name: &str| args.iter().position(|a| a == name).map(|i| i + 1);
    let rounds = after("--rounds").and_then(number).unwrap_or(20);
    let seed = after("--seed")
        .and_then(number)
        .unwrap_or(u64::from(std::process::id()));
    let made = PathBuf::from(format!("chaos-ssd-{}", std::process::id()));
    let named = after("--path").and_then(|i| args.get(i)).map(PathBuf::from);
    let path = named.clone().unwrap_or(std::env::temp_dir().join(made));
    let (mut rng, mut keys, mut tally) = (Rng(seed | 1), HashMap::new(), Tally::default());
    eprintln!("seed {seed}, {}", path.display());
    for round in 0..rounds {
        let life = Duration::from_millis(30 + rng.next() % 400);
        let child = child(&path, round, rng.next(), tally.newest);
        let stored = listen(child, life, &mut keys, &mut tally);
        let store = open(&path, round, Durability::Written);
        check(&store, stored, &mut keys, &mut tally);
        drop(store);
    }
    tally.tell(&format!("{rounds} rounds"));
    if named.is_none() {
        let _ = std::fs::remove_file(&path);
    }
}
