// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `chaos restart`: the hit rate before and after a server is killed, loses its memory, and is upgraded.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::client::Seen;
use super::fleet::{Drive, Fleet};
use crate::demo::parse_bytes;
use crate::programs::{Place, Programs, Running, now};
use crate::workspace::Workspace;

// Longer than the server's own patience with running requests.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
// The pool turns over several times before anything is measured.
const WARM_WINDOWS: u32 = 2;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Seconds over which each hit rate is taken
    #[arg(long, default_value_t = 10.0)]
    pub(super) seconds: f64,
    /// Memory for KV blocks
    #[arg(long, default_value = "512MiB", value_name = "BYTES")]
    pub(super) ram: String,
    /// File for blocks on SSD, below the build folder
    #[arg(long, default_value = "4GiB", value_name = "BYTES")]
    pub(super) ssd: String,
    /// The `pegaflow-server` to upgrade to; by default a copy of the same at another path
    #[arg(long, value_name = "PROGRAM")]
    pub(super) upgrade: Option<PathBuf>,
    /// Replaying processes
    #[arg(long, default_value_t = 2)]
    pub(super) clients: u32,
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Build without optimisation (for tests)
    #[arg(long, hide = true)]
    pub(super) debug: bool,
}

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// Nothing: how far two windows of the workload differ by themselves.
    None,
    /// SIGKILL.
    Killed,
    /// SIGTERM, and another program on the same pool and drive.
    Upgraded,
    /// SIGKILL, and the pool's files are removed, as by a reboot: only the drive is left.
    MemoryLost,
}

impl Event {
    const ALL: [Self; 4] = [Self::None, Self::Killed, Self::Upgraded, Self::MemoryLost];

    fn name(self) -> &'static str {
        match self {
            Self::None => "nothing happens",
            Self::Killed => "kill -9",
            Self::Upgraded => "upgrade",
            Self::MemoryLost => "kill -9, memory lost",
        }
    }
}

struct Run {
    window: Duration,
    place: Place,
    programs: Programs,
    upgraded: Programs,
    server: Running,
    fleet: Fleet,
}

struct Row {
    event: Event,
    before: Seen,
    after: Seen,
    /// From the kill until every client was served again.
    outage: Duration,
}

pub(super) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let programs = Programs::build(ws, !args.debug)?;
    let place = Place::new(ws, "restart", parse_bytes(&args.ram)?)?;
    let place = place.with_ssd(ws, parse_bytes(&args.ssd)?)?;
    let upgraded = programs.with_other_server(args.upgrade.as_deref(), &place)?;
    let mut server = Running::server(&programs, &place)?;
    let drive = Drive {
        clients: args.clients,
        ranks: 2,
        ssd: true,
    };
    let mut run = Run {
        window: Duration::from_secs_f64(args.seconds),
        fleet: Fleet::start(drive, &programs, &place, &mut server)?,
        server,
        programs,
        upgraded,
        place,
    };
    let rows = run.rows();
    if rows.is_err() {
        eprintln!("the end of the server's log:\n{}", run.place.log_tail());
    }
    let rows = rows?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(
            &json!({ "rows": rows.iter().map(Row::json).collect::<Vec<_>>() }),
        )?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let wrong: u64 = rows.iter().map(|row| row.after.mismatches).sum();
    ensure!(wrong == 0, "{wrong} wrong blocks");
    Ok(())
}

impl Run {
    fn rows(&mut self) -> anyhow::Result<Vec<Row>> {
        self.fleet.sleep(self.window * WARM_WINDOWS)?;
        println!(
            "{:22}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "", "hits before", "hits after", "from RAM", "from SSD", "away, ms"
        );
        let mut rows = vec![];
        for event in Event::ALL {
            let row = self.row(event)?;
            row.print();
            rows.push(row);
        }
        Ok(rows)
    }

    fn row(&mut self, event: Event) -> anyhow::Result<Row> {
        let marks = self.fleet.marks();
        self.fleet.sleep(self.window)?;
        let before = self.fleet.since(&marks);
        let (marks, outage) = match event {
            Event::None => (self.fleet.marks(), Duration::ZERO),
            event => self.restart(event)?,
        };
        self.fleet.sleep(self.window)?;
        let after = self.fleet.since(&marks);
        Ok(Row {
            event,
            before,
            after,
            outage,
        })
    }

    fn restart(&mut self, event: Event) -> anyhow::Result<(Vec<Seen>, Duration)> {
        let away: Instant = now();
        let programs = match event {
            Event::Upgraded => &self.upgraded,
            _ => &self.programs,
        };
        match event {
            Event::Upgraded => self.server.stop(STOP_PATIENCE)?,
            _ => self.server.kill()?,
        }
        if event == Event::MemoryLost {
            self.place.lose_memory()?;
        }
        self.server = Running::server(programs, &self.place)?;
        let marks = self
            .fleet
            .wait_until_served(&mut self.server, "after a restart")?;
        Ok((marks, away.elapsed()))
    }
}

impl Row {
    fn shares(&self) -> [f64; 4] {
        let share = |seen: &Seen, hits: u64| hits as f64 / seen.blocks_referenced.max(1) as f64;
        let Self { before, after, .. } = self;
        let from_ram = after.prefix_hit_blocks - after.late_hit_blocks;
        [
            share(before, before.prefix_hit_blocks),
            share(after, after.prefix_hit_blocks),
            share(after, from_ram),
            share(after, after.late_hit_blocks),
        ]
    }

    fn print(&self) {
        let percent = self.shares().map(|share| format!("{:.1} %", share * 100.0));
        let [before, after, ram, ssd] = percent;
        let away = self.outage.as_millis();
        println!(
            "{:22}{before:>12}{after:>12}{ram:>12}{ssd:>12}{away:>12}",
            self.event.name()
        );
    }

    fn json(&self) -> Value {
        let [before, after, from_ram, from_ssd] = self.shares();
        json!({
            "event": self.event.name(),
            "hit_share_before": before,
            "hit_share_after": after,
            "hit_share_after_ram": from_ram,
            "hit_share_after_ssd": from_ssd,
            "away_ms": self.outage.as_secs_f64() * 1e3,
            "requests_after": self.after.requests,
            "bytes_verified_after": self.after.bytes_verified,
            "mismatches": self.after.mismatches,
        })
    }
}
