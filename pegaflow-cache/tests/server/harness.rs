// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Starting the binary and talking to it. Nothing sleeps: readiness is a line on a pipe.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use pegaflow_cache::server::notify::Ready;
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before the test fails instead of hanging.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The binary with a clean environment; `dir` is where its files go.
pub(crate) fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pegaflow-server"));
    let ours = std::env::vars_os().map(|(name, _)| name);
    for name in ours.filter(|n| n.to_string_lossy().starts_with("PEGAFLOW_")) {
        command.env_remove(name);
    }
    command
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET")
        .env("XDG_RUNTIME_DIR", dir);
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn output(dir: &Path, args: &[&str]) -> Output {
    command(dir).args(args).output().expect("the binary runs")
}

/// A server that runs; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) ready: Ready,
    log: mpsc::Receiver<String>,
    seen: String,
}

impl Server {
    /// Starts a server with a small pool in `dir` and waits until it is ready.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        Self::try_start(dir, args).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// As [`Server::start`]; a server that ends before it is ready gives its log.
    pub(crate) fn try_start(dir: &Path, args: &[&str]) -> Result<Self, String> {
        let mut command = command(dir);
        command.args(["--http", "127.0.0.1:0", "--pool-bytes", "64MiB"]);
        command.arg("--pool-dir").arg(dir.join("pool"));
        command.arg("--socket").arg(dir.join("p.sock"));
        command.args(["--ready-file", "/dev/fd/1"]).args(args);
        Self::spawn(command)
    }

    /// Starts `command`, which must write its ready line to standard output.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, String> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stdout = child.stdout.take().expect("a pipe");
        let mut stderr = child.stderr.take().expect("a pipe");
        let (logged, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(&mut stderr).lines().map_while(Result::ok) {
                let _ = logged.send(line);
            }
        });
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = line.recv_timeout(DEADLINE).unwrap_or_default();
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(Self {
                child,
                ready,
                log,
                seen: String::new(),
            }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(log.iter().map(|line| line + "\n").collect())
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        get(self.ready.http, path)
    }

    /// The value of one series.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get("/metrics").1;
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value)
    }

    /// Lets `promtool` look for anything that is not as Prometheus wants it.
    #[expect(
        clippy::print_stdout,
        reason = "`cargo xtask test` collects these lines"
    )]
    pub(crate) fn promtool(&self) {
        let (_, text) = self.get("/metrics");
        let mut command = Command::new("promtool");
        command.args(["check", "metrics"]).stdin(Stdio::piped());
        let Ok(mut promtool) = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            println!("skipped: promtool is not installed (Debian: apt install prometheus)");
            return;
        };
        let mut stdin = promtool.stdin.take().expect("a pipe");
        stdin.write_all(text.as_bytes()).expect("sends");
        drop(stdin);
        let out = promtool.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success() && said.trim().is_empty(),
            "{said}\n{text}"
        );
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.ready.socket.clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    /// Sends SIGTERM, waits, and gives the exit status and everything logged.
    pub(crate) fn terminate(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Kills the process: no code of its own runs any more.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.end();
    }

    /// Waits until a line with `text` is logged.
    pub(crate) fn wait_for(&mut self, text: &str) {
        while !self.seen.lines().any(|line| line.contains(text)) {
            let line = self.log.recv_timeout(DEADLINE);
            let line = line.unwrap_or_else(|_| panic!("no `{text}` in the log:\n{}", self.seen));
            self.seen += &(line + "\n");
        }
    }

    /// Waits for the end; gives the exit status and everything logged.
    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        self.seen.extend(self.log.iter().map(|line| line + "\n"));
        (status, std::mem::take(&mut self.seen))
    }
}

/// Waits for a child with the deadline, by the file descriptor of its process.
fn wait(child: &mut Child) -> ExitStatus {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd =
        rustix::process::pidfd_open(Pid::from_child(child), rustix::process::PidfdFlags::empty());
    let fd = fd.expect("a descriptor of the process");
    let deadline = Timespec {
        tv_sec: DEADLINE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let ended = poll(&mut fds, Some(&deadline)).expect("polls");
    assert_eq!(ended, 1, "the server did not end in time");
    child.wait().expect("it has ended")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A GET with its status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the pages are there");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    (status, body.to_owned())
}
