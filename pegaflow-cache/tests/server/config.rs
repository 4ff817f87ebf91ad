// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Wrong configuration: the message says what, where, and how to fix it; the exit status is 2.

use std::path::Path;

use crate::harness::{command, output};

/// Runs `--check-config` on a file with this text.
fn check(toml: &str, parts: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("node.toml"), toml).expect("write");
    refused(
        dir.path(),
        &["--config", "node.toml", "--check-config"],
        parts,
    );
}

fn refused(dir: &Path, args: &[&str], parts: &[&str]) {
    let out = output(dir, args);
    let message = String::from_utf8(out.stderr).expect("text");
    assert_eq!(out.status.code(), Some(2), "{args:?}: {message}");
    for part in parts {
        assert!(
            message.contains(part),
            "{args:?} should say `{part}`:\n{message}"
        );
    }
}

#[test]
fn a_wrong_file_is_refused_with_line_and_fix() {
    check(
        "[pool]\nbytez = 1\n",
        &["node.toml:2: `pool.bytez`", "did you mean `pool.bytes`?"],
    );
    check(
        "\npool.bytes = \"2G\"\n",
        &["node.toml:2: `pool.bytes`", "`2GiB` (powers of 1024)"],
    );
    check(
        "shutdown.drain_ms = \"5s\"\n",
        &["node.toml:1", "write 5000"],
    );
    check("[pool\n", &["node.toml:1: "]);
    check(
        "tcp = \"0.0.0.0:7410\"\n",
        &["other machines can reach", "token_file", "--insecure"],
    );
    check(
        "token_file = \"/nowhere/token\"\n",
        &["/nowhere/token does not exist", "umask 077"],
    );
    check(
        "pool.dir = \"/proc/self/stat\"\n",
        &["is not a directory", "name a directory"],
    );
}

#[test]
fn a_file_that_is_not_there_or_a_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    refused(
        dir.path(),
        &["--config", "no.toml"],
        &["no.toml does not exist", "--print-config"],
    );
    refused(
        dir.path(),
        &["--config", "."],
        &[". is a directory, a file is wanted", "./pegaflow.toml"],
    );
    refused(
        dir.path(),
        &["--socket", "/tmp"],
        &["--socket: `socket`: /tmp is a directory"],
    );
}

#[test]
fn a_pool_that_does_not_fit_is_refused_before_it_hurts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    refused(
        dir.path(),
        &["--pool-bytes", "4000TiB", "--pool-dir", "pool"],
        &[
            "--pool-bytes: `pool.bytes`: the pool wants 4000TiB",
            "set `pool.dir`",
        ],
    );
}

#[test]
fn a_wrong_flag_or_variable_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    refused(dir.path(), &["--pool-bites", "1"], &["--pool-bytes"]);
    refused(
        dir.path(),
        &["--http", "7411"],
        &["--http: `http`: `7411` is only a port"],
    );
    let out = command(dir.path())
        .arg("--check-config")
        .env("PEGAFLOW_POOL_BYTES", "much")
        .output();
    let message = String::from_utf8(out.expect("runs").stderr).expect("text");
    assert!(
        message.contains("environment variable PEGAFLOW_POOL_BYTES"),
        "{message}"
    );
}

#[test]
fn what_is_printed_is_good_and_prints_the_same() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = output(
        dir.path(),
        &[
            "--pool-bytes",
            "3GiB",
            "--log-format",
            "json",
            "--print-config",
        ],
    );
    assert!(first.status.success());
    std::fs::write(dir.path().join("node.toml"), &first.stdout).expect("write");
    let good = output(dir.path(), &["--config", "node.toml", "--check-config"]);
    assert_eq!(good.stdout, b"the configuration is good\n");
    let strip = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let line = |line: &str| {
            line.split("  # from ")
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        text.lines().map(line).collect::<Vec<_>>()
    };
    let second = output(dir.path(), &["--config", "node.toml", "--print-config"]);
    assert_eq!(strip(&first.stdout), strip(&second.stdout));
}

#[test]
fn help_teaches_and_the_description_is_complete() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let help = String::from_utf8(output(dir.path(), &["--help"]).stdout).expect("text");
    let described = output(dir.path(), &["describe"]).stdout;
    let described: serde_json::Value = serde_json::from_slice(&described).expect("JSON");
    for setting in described["settings"].as_array().expect("a list") {
        let flag = setting["flag"].as_str().expect("text");
        let shown = help.contains(flag) || flag.contains('*');
        assert!(shown, "{flag} is not in --help");
        assert!(
            !setting["doc"].as_str().expect("text").is_empty(),
            "{flag} has no documentation"
        );
    }
    for part in [
        "Examples:",
        "Where a setting comes from",
        "Signals:",
        "Exit status:",
    ] {
        assert!(help.contains(part), "{part}");
    }
}

#[test]
fn probe_speaks_to_people_and_to_programs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = String::from_utf8(output(dir.path(), &["probe"]).stdout).expect("text");
    assert!(
        text.contains("io_uring") && text.contains("huge pages"),
        "{text}"
    );
    let json = output(dir.path(), &["probe", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert!(
        json["facts"]["memory_bytes"]
            .as_u64()
            .is_some_and(|b| b > 0),
        "{json}"
    );
}
