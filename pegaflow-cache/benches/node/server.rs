// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The other process: a node behind its sockets, and an echo for the floor.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pegaflow_cache::client::session_socket;
use pegaflow_cache::node::{Node, NodeSettings, PoolFiles};
use pegaflow_cache::rpc::{Access, Listeners, serve as serve_node};

pub(crate) fn settings(dir: &Path, bytes: u64) -> NodeSettings {
    NodeSettings {
        files: PoolFiles::Directory(dir.join("pools")),
        pool_bytes: bytes,
        ..NodeSettings::default()
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("node.sock")
}

/// Serves until it is killed.
pub(crate) fn serve(dir: &Path, bytes: u64) {
    let bind = |path: PathBuf| {
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).expect("a free path")
    };
    let echo = bind(dir.join("echo.sock"));
    std::thread::spawn(move || echo_all(&echo));
    let node = Node::start(&settings(dir, bytes)).expect("starts");
    let listeners = Listeners {
        session: bind(session_socket(&socket(dir))),
        grpc: bind(socket(dir)),
        tcp: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let serving = serve_node(node, listeners, Access::default(), std::future::pending());
    runtime
        .expect("a runtime")
        .block_on(serving)
        .expect("serves");
}

/// Answers `[length in: 4][length out: 4][bytes]` with as many bytes as asked for.
fn echo_all(listener: &UnixListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || echo(stream));
    }
}

fn echo(mut stream: UnixStream) {
    let mut buffer = vec![0; 1 << 20];
    let mut header = [0; 8];
    while stream.read_exact(&mut header).is_ok() {
        let [wanted, answer] = [0, 4].map(|at| {
            let bytes = header[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        });
        if stream.read_exact(&mut buffer[..wanted]).is_err()
            || stream.write_all(&buffer[..answer]).is_err()
        {
            return;
        }
    }
}

/// A server process; killed when dropped.
pub(crate) struct Served {
    pub(crate) child: Child,
}

impl Served {
    pub(crate) fn spawn(dir: &Path, bytes: u64) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--serve", &dir.to_string_lossy(), &bytes.to_string()])
            .stdout(Stdio::null())
            .spawn();
        Self {
            child: child.expect("starts"),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
