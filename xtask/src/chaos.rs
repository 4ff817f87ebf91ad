// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `chaos`: breaks things on purpose, over and over, and proves that nobody ever got a wrong byte.

use std::path::PathBuf;

use crate::workspace::Workspace;

mod client;
mod fleet;
mod node;
mod restart;
mod ssd;
mod tally;

/// Break things on purpose and prove that no byte is ever wrong.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Kill the server with SIGKILL under replay, and start it again on the same pool.
    ///
    /// Clients keep replaying a synthetic workload and verify every byte they load. They must see the node gone,
    /// reconnect by themselves and go on. Now and then a client is killed as well.
    Node(NodeArgs),
    /// Kill the server under replay, upgrade it and take its memory away, and show the hit rate before and after.
    Restart(restart::Args),
    /// Kill a process that writes to a block store, and check every block it was promised.
    Ssd(ssd::Args),
}

#[derive(Debug, Clone, clap::Args)]
struct NodeArgs {
    /// How often the server is killed
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Go on for so many minutes instead
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<f64>,
    /// Keep blocks on SSD as well, in a file below the build folder of eight times the pool
    #[arg(long)]
    ssd: bool,
    /// Decides when and whom to kill
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replaying processes
    #[arg(long, default_value_t = 2)]
    clients: u32,
    /// Memory for KV blocks
    #[arg(long, default_value = "512MiB", value_name = "BYTES")]
    ram: String,
    /// Tensor-parallel ranks of each client
    #[arg(long, default_value_t = 2)]
    ranks: u32,
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Build without optimisation (for tests)
    #[arg(long, hide = true)]
    debug: bool,
}

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Node(args) => node::run(ws, args),
        What::Restart(args) => restart::run(ws, args),
        What::Ssd(args) => ssd::run(ws, args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short version of what runs for 100 rounds by hand.
    #[test]
    fn a_few_rounds_lose_nothing() {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let folder = tempfile::tempdir().expect("a folder for the result");
        let json = folder.path().join("chaos.json");
        let args = NodeArgs {
            rounds: 4,
            minutes: None,
            ssd: true,
            seed: 3,
            clients: 2,
            ram: "64MiB".into(),
            ranks: 2,
            json: Some(json.clone()),
            debug: true,
        };
        run(
            &ws,
            &Args {
                what: What::Node(args),
            },
        )
        .expect("every byte is right");
        let text = std::fs::read_to_string(json).expect("it was written");
        let result: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(
            (&result["rounds"], &result["mismatches"]),
            (&4.into(), &0.into())
        );
        assert!(
            result["bytes_verified"].as_u64().is_some_and(|n| n > 0),
            "{text}"
        );
        assert!(
            result["outages_seen"].as_u64().is_some_and(|n| n > 0),
            "{text}"
        );
        assert!(
            result["late_hit_blocks"].as_u64().is_some_and(|n| n > 0),
            "nothing came from SSD: {text}"
        );
    }

    #[test]
    fn hits_come_back_after_a_kill_an_upgrade_and_the_loss_of_memory() {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let folder = tempfile::tempdir().expect("a folder for the result");
        let json = folder.path().join("restart.json");
        let args = restart::Args {
            seconds: 0.5,
            ram: "64MiB".into(),
            ssd: "512MiB".into(),
            upgrade: None,
            clients: 2,
            json: Some(json.clone()),
            debug: true,
        };
        restart::run(&ws, &args).expect("every byte is right");
        let text = std::fs::read_to_string(json).expect("it was written");
        let result: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let rows = result["rows"].as_array().expect("a row for each event");
        assert_eq!(rows.len(), 4);
        for row in rows {
            let hits = row["hit_share_after"].as_f64();
            assert!(hits.is_some_and(|share| share > 0.2), "{text}");
        }
    }
}
