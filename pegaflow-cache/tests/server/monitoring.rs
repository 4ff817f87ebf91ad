// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The dashboard and the alert rules of the book ask for metrics that a node really has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use pegaflow_cache::metrics::{Metric, TABLE, Type, Values};
use serde_json::Value;

use crate::harness::Server;

/// Exported only once something of the kind has happened, or is configured.
const AFTER_AN_EVENT: &[&str] = &[
    "pegaflow_call_failures_total",
    "pegaflow_tenant_limit_bytes",
];

fn page(name: &str) -> PathBuf {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/monitoring");
    book.join(name)
}

fn expressions() -> Vec<String> {
    let read = |name| std::fs::read_to_string(page(name)).expect("the file is there");
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let exprs = targets.map(|target| target["expr"].as_str().expect("an expression").to_owned());
    let mut all: Vec<_> = exprs.collect();
    assert!(all.len() > 20, "{}", all.len());
    all.push(read("alerts.yaml"));
    all
}

/// The metrics that are named, each with the text up to the next.
fn metrics(text: &str) -> Vec<(Metric, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let families = ["pegaflow_", "process_"];
    let starts = families
        .iter()
        .flat_map(|family| text.match_indices(family));
    let starts = starts.map(|(at, _)| at);
    let mut starts: Vec<_> = starts
        .filter(|at| !text[..*at].ends_with(is_word))
        .collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let found = starts.iter().zip(ends).map(|(start, end)| {
        let rest = &text[*start..end];
        let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        let of = |metric: &&Metric| {
            let parts = ["_bucket", "_count", "_sum"];
            let base = parts.iter().find_map(|part| name.strip_suffix(part));
            match metric.kind {
                Type::Histogram => base == Some(metric.name),
                _ => metric.name == name,
            }
        };
        let metric = TABLE.iter().find(of);
        (
            *metric.unwrap_or_else(|| panic!("there is no metric {name}")),
            rest,
        )
    });
    found.collect()
}

/// Every `label="a|b"` behind a metric names values that it has.
fn check_labels(metric: &Metric, text: &str) {
    let selector = text.split_once('{').map_or("", |(before, rest)| {
        let own = before.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if own.is_empty() {
            rest.split('}').next().unwrap_or("")
        } else {
            ""
        }
    });
    for part in selector.split(',').filter(|part| part.contains('"')) {
        let (label, values) = part.split_once(['=', '!']).expect("a comparison");
        if label == "instance" {
            continue;
        }
        let known = metric.labels.iter().find(|(name, _)| *name == label);
        let (_, known) = known.unwrap_or_else(|| panic!("{} has no label {label}", metric.name));
        let values = values.trim_matches(|c| "=~\"".contains(c));
        for value in values.split('|') {
            if let Values::Of(all) = known {
                assert!(all.contains(&value), "{}: {label}={value}", metric.name);
            }
        }
    }
}

#[test]
fn dashboard_and_alerts_ask_for_what_a_node_exports() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ssd = dir.path().join("blocks").display().to_string();
    let server = Server::start(dir.path(), &["--ssd-path", &ssd, "--ssd-bytes", "64MiB"]);
    server.get("/metrics");
    let (_, text) = server.get("/metrics");
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let exported: BTreeSet<_> = types.collect();
    for expression in &expressions() {
        for (metric, text) in metrics(expression) {
            check_labels(&metric, text);
            // Histograms come with the first observation.
            let later = metric.kind == Type::Histogram || AFTER_AN_EVENT.contains(&metric.name);
            assert!(
                later || exported.contains(metric.name),
                "{} is not exported",
                metric.name
            );
        }
    }
}

#[test]
fn promtool_accepts_the_alert_rules() {
    let mut promtool = Command::new("promtool");
    let Ok(out) = promtool
        .args(["check", "rules"])
        .arg(page("alerts.yaml"))
        .output()
    else {
        println!("skipped: promtool is not installed (Debian: apt install prometheus)");
        return;
    };
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}
