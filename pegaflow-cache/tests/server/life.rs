// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Start, stop, crash and start again.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::process::Signal;

use crate::harness::{DEADLINE, Server, command};

#[test]
fn a_server_starts_serves_and_ends_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(dir.path(), &[]);
    let socket = server.socket();
    let mode = std::fs::metadata(&socket)
        .expect("the socket is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, log) = server.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!socket.exists(), "the socket is gone");
    let mut at = 0;
    for step in ["starting", "ready", "draining", "stopped"] {
        at += log[at..]
            .find(step)
            .unwrap_or_else(|| panic!("no `{step}` in order:\n{log}"));
    }
}

#[test]
fn every_log_line_can_be_json() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, log) = Server::start(dir.path(), &["--log-format", "json"]).terminate();
    assert!(log.lines().count() >= 4, "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(
            line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn a_second_server_is_refused_and_told_by_whom() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = Server::start(dir.path(), &[]);
    let log = Server::try_start(dir.path(), &[]).err().expect("refused");
    let holder = format!("(process {}, pegaflow-server)", first.pid());
    assert!(
        log.contains("another server listens on") && log.contains(&holder),
        "{log}"
    );
    assert_eq!(first.get("/ready").0, 200, "the first is not disturbed");
}

#[test]
fn a_pool_has_one_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = Server::start(dir.path(), &["--tcp", "127.0.0.1:0"]);
    let tcp = first.ready.tcp.expect("a TCP address");
    assert_ne!(tcp.port(), 0, "the port in use is told");
    TcpStream::connect(tcp).expect("it listens there");
    let other = dir.path().join("other.sock");
    let flags = ["--socket", other.to_str().expect("text")];
    let log = Server::try_start(dir.path(), &flags)
        .err()
        .expect("refused");
    assert!(log.contains("another") && log.contains("pool"), "{log}");
    assert!(!other.exists(), "no socket is left");
}

#[test]
fn a_killed_server_starts_again_in_the_same_place() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for _ in 0..3 {
        let server = Server::start(dir.path(), &[]);
        UnixStream::connect(server.socket()).expect("it listens");
        server.kill();
        assert!(
            dir.path().join("p.sock").exists(),
            "a killed server leaves its socket"
        );
    }
    Server::start(dir.path(), &[]).terminate();
}

#[test]
fn a_second_signal_ends_a_server_that_waits_for_a_request() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::start(dir.path(), &["--shutdown-drain-ms", "600000"]);
    // A request that never ends: its head is announced and does not come.
    let mut stuck = TcpStream::connect(server.ready.http).expect("the pages are there");
    stuck
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n")
        .expect("sends");
    // The pages answer others, so the server has seen the first bytes by now.
    assert_eq!(server.get("/health").0, 200);
    server.signal(Signal::TERM);
    server.wait_for("draining");
    server.signal(Signal::INT);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(128 + 2), "{log}");
    assert!(log.contains("a second signal"), "{log}");
}

#[test]
fn systemd_hears_ready_and_stopping() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("binds");
    manager.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut command = command(dir.path());
    command.env("NOTIFY_SOCKET", &path).args([
        "--http",
        "127.0.0.1:0",
        "--ready-file",
        "/dev/fd/1",
    ]);
    command
        .args(["--pool-bytes", "64MiB", "--pool-dir"])
        .arg(dir.path().join("pool"));
    let server = Server::spawn(command).expect("starts");
    assert!(
        server.socket().starts_with(dir.path()),
        "the default socket is in XDG_RUNTIME_DIR"
    );
    server.terminate();
    let mut buffer = [0; 64];
    for expect in ["READY=1", "STOPPING=1"] {
        let n = manager.recv(&mut buffer).expect("hears");
        assert_eq!(&buffer[..n], expect.as_bytes());
    }
}
