// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! `dashboard`: the panels of the Grafana dashboard as a picture, from a real server that a real Prometheus scraped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::demo::parse_bytes;
use crate::programs::{Place, Programs, Running};
use crate::workspace::Workspace;

mod picture;
mod prometheus;

use picture::{Curve, Panel};
use prometheus::Prometheus;

/// Draw the dashboard from a run: a server on two tiers under replay, scraped by a real Prometheus.
///
/// Reads `docs/src/monitoring/dashboard.json` and asks Prometheus each panel's queries. The pictures are ours, not
/// Grafana's. Needs `prometheus` and `promtool` (Debian: `apt install prometheus`).
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How long the workload runs
    #[arg(long, default_value_t = 45)]
    seconds: u32,
    /// Memory for KV blocks
    #[arg(long, default_value = "512MiB", value_name = "BYTES")]
    ram: String,
    /// File for blocks on SSD, below the build folder
    #[arg(long, default_value = "4GiB", value_name = "BYTES")]
    ssd: String,
    /// Where the picture goes
    #[arg(long, default_value = "docs/src/monitoring/dashboard.svg")]
    out: PathBuf,
    /// Build without optimisation (for tests)
    #[arg(long, hide = true)]
    debug: bool,
}

const STOP_PATIENCE: Duration = Duration::from_secs(15);
// Rates are taken over so long.
const RATE: &str = "5s";

pub(crate) fn run(ws: &Workspace, args: &Args) -> anyhow::Result<()> {
    let page = ws.root().join("docs/src/monitoring/dashboard.json");
    let page: Value = serde_json::from_str(&std::fs::read_to_string(page)?)?;
    let programs = Programs::build(ws, !args.debug)?;
    let http = prometheus::free_address()?;
    let place = Place::new(ws, "dashboard", parse_bytes(&args.ram)?)?;
    let place = place.with_ssd(ws, parse_bytes(&args.ssd)?)?.with_http(http);
    let mut server = Running::server(&programs, &place)?;
    let prometheus = Prometheus::start(place.run(), http)?;
    let mut replay = programs.replay(&place.socket());
    replay.args(["--seconds", &args.seconds.to_string()]);
    let replayed = replay.args(["--wait-ms", "10000"]).status()?;
    ensure!(replayed.success(), "the replay failed");
    let panels = panels(&page, |query| {
        prometheus.range(query, Duration::from_secs(args.seconds.into()))
    })?;
    server.stop(STOP_PATIENCE)?;
    let out = ws.root().join(&args.out);
    picture::draw(&out, &panels, f64::from(args.seconds))?;
    println!("{} panels in {}", panels.len(), out.display());
    Ok(())
}

/// The panels of a dashboard, with what `ask` answers to their queries.
fn panels(
    page: &Value,
    ask: impl Fn(&str) -> anyhow::Result<Vec<Curve>>,
) -> anyhow::Result<Vec<Panel>> {
    let all = page["panels"].as_array().context("no panels")?;
    let charts = all.iter().filter(|panel| panel["type"] != "row");
    charts
        .map(|panel| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let mut curves = vec![];
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = text(&target["expr"])
                    .replace("$__rate_interval", RATE)
                    .replace("$instance", ".*");
                let legend = text(&target["legendFormat"]);
                let found = ask(&query).with_context(|| query.clone())?;
                curves.extend(found.into_iter().map(|curve| curve.named(&legend)));
            }
            Ok(Panel {
                title: text(&panel["title"]),
                unit: text(&panel["fieldConfig"]["defaults"]["unit"]),
                curves,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_of_the_dashboard_is_drawn() {
        let ws = Workspace::find().expect("tests run inside the workspace");
        let page = ws.root().join("docs/src/monitoring/dashboard.json");
        let page = std::fs::read_to_string(page).expect("it is there");
        let page: Value = serde_json::from_str(&page).expect("it is JSON");
        let answer = |query: &str| {
            assert!(!query.contains('$'), "{query}");
            let labels = [("call", "lookup"), ("outcome", "hit"), ("reason", "slow")];
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Ok(vec![Curve {
                labels: labels.into(),
                name: String::new(),
                points: vec![(0.0, 1.0), (1.0, 0.5)],
            }])
        };
        let panels = panels(&page, answer).expect("every panel has queries");
        let folder = tempfile::tempdir().expect("a folder for the picture");
        let path = folder.path().join("dashboard.svg");
        picture::draw(&path, &panels, 1.0).expect("it can be drawn");
        let svg = std::fs::read_to_string(path).expect("it was written");
        for panel in &panels {
            assert!(svg.contains(&panel.title), "{}", panel.title);
        }
        assert!(svg.contains("lookup"), "legends name their labels");
    }
}
