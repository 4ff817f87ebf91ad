// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Health, readiness and metrics of a running server.

use std::collections::BTreeSet;

use pegaflow_cache::metrics::{Process, TABLE};

use crate::harness::Server;

#[test]
fn the_pages_answer() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    let (status, health) = server.get("/health");
    assert_eq!(
        (status, health.contains("\"phase\":\"ready\"")),
        (200, true),
        "{health}"
    );
    assert_eq!(
        server.get("/ready"),
        (200, "{\"phase\":\"ready\",\"ready\":true}".to_owned())
    );
    assert_eq!(server.get("/nothing").0, 404);
}

#[test]
fn every_exported_metric_is_in_the_table() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    server.get("/ready");
    let (status, text) = server.get("/metrics");
    assert_eq!(status, 200);
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let exported: BTreeSet<_> = types.collect();
    let known: BTreeSet<_> = TABLE.iter().map(|m| m.name).collect();
    assert!(
        exported.is_subset(&known),
        "{:?}",
        exported.difference(&known)
    );
    for name in [
        "pegaflow_ready",
        "pegaflow_build_info",
        "process_resident_memory_bytes",
    ] {
        assert!(exported.contains(name), "{name} is missing:\n{text}");
        assert!(
            text.contains(&format!("# HELP {name} ")),
            "{name} has no HELP"
        );
    }
    assert!(text.contains("\npegaflow_ready 1\n"), "{text}");
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    Server::start(dir.path(), &[]).promtool();
}

#[test]
fn top_shows_a_running_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    let http = server.ready.http.to_string();
    let args = ["top", "--http", &http, "--count", "1", "--every-ms", "100"];
    let out = crate::harness::output(dir.path(), &args);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("64MiB"), "{text}");
    drop(server);
    let out = crate::harness::output(dir.path(), &args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("cannot ask"),
        "{said}"
    );
}

#[test]
fn a_server_at_rest_is_small() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    let process = Process::read("/proc".as_ref(), &server.pid().to_string());
    assert!(process.private_bytes < 64 << 20, "{process:?}");
}
