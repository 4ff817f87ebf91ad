// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! The server and the replay as programs: build them, start them, stop them, kill them.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::workspace::Workspace;

/// The programs, built.
#[derive(Debug)]
pub(crate) struct Programs {
    server: PathBuf,
    replay: PathBuf,
}

impl Programs {
    /// Builds both, with Cargo's own progress on standard error.
    pub(crate) fn build(ws: &Workspace, release: bool) -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args([
            "build",
            "-p",
            "pegaflow-cache",
            "--features",
            "replay",
            "--bins",
        ]);
        if release {
            command.arg("--release");
        } else {
            command.arg("--quiet");
        }
        let status = command
            .current_dir(ws.root())
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "the programs do not build");
        let dir = ws.target().join(if release { "release" } else { "debug" });
        Ok(Self {
            server: dir.join("pegaflow-server"),
            replay: dir.join("pegaflow-replay"),
        })
    }

    /// The same with another server: the one at `path`, or a copy of this one at another path.
    pub(crate) fn with_other_server(
        &self,
        path: Option<&Path>,
        place: &Place,
    ) -> anyhow::Result<Self> {
        let server = match path {
            Some(path) => path.to_owned(),
            None => {
                let copy = place.run.join("pegaflow-server-next");
                std::fs::copy(&self.server, &copy).context("cannot copy the server")?;
                copy
            }
        };
        let replay = self.replay.clone();
        Ok(Self { server, replay })
    }

    /// A replay against the server at `socket`.
    pub(crate) fn replay(&self, socket: &Path) -> Command {
        let mut command = self.embedded();
        command.arg("--connect").arg(socket);
        command
    }

    /// A replay with a node inside.
    pub(crate) fn embedded(&self) -> Command {
        let mut command = Command::new(&self.replay);
        command.stdin(Stdio::null());
        command
    }
}

/// Where a server keeps its pool and socket; removed when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pool: PathBuf,
    run: PathBuf,
    pool_bytes: u64,
    ssd: Option<(PathBuf, u64)>,
    eviction: Option<String>,
    http: SocketAddr,
}

impl Place {
    /// Folders for a pool of `pool_bytes`: in shared memory if it has room, else below the build folder.
    pub(crate) fn new(ws: &Workspace, name: &str, pool_bytes: u64) -> anyhow::Result<Self> {
        let own = format!("pegaflow-{name}-{}", std::process::id());
        let shared = Path::new("/dev/shm");
        let pool = if free_bytes(shared).is_some_and(|free| free > pool_bytes + (64 << 20)) {
            shared.join(&own)
        } else {
            let pool = ws.target().join(&own);
            eprintln!(
                "note: /dev/shm has no room for {} MiB; the pool goes to {}, which is slower",
                pool_bytes >> 20,
                pool.display()
            );
            pool
        };
        // Paths of sockets are short; build folders may not be.
        let run = std::env::temp_dir().join(own);
        for dir in [&pool, &run] {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(Self {
            pool,
            run,
            pool_bytes,
            ssd: None,
            eviction: None,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
        })
    }

    /// The same with another eviction policy than the server's default.
    pub(crate) fn with_eviction(mut self, policy: &str) -> Self {
        self.eviction = Some(policy.to_owned());
        self
    }

    /// The same with a file of `bytes` bytes for blocks on SSD, below the build folder.
    pub(crate) fn with_ssd(mut self, ws: &Workspace, bytes: u64) -> anyhow::Result<Self> {
        let name = format!(
            "{}-ssd",
            self.pool.file_name().unwrap_or_default().display()
        );
        let dir = ws.target().join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        self.ssd = Some((dir, bytes));
        Ok(self)
    }

    /// The file for blocks on SSD, and its size.
    pub(crate) fn ssd(&self) -> Option<(PathBuf, u64)> {
        let (dir, bytes) = self.ssd.as_ref()?;
        Some((dir.join("blocks"), *bytes))
    }

    /// Removes the files of the pool, as a reboot does with shared memory.
    pub(crate) fn lose_memory(&self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.pool)?;
        Ok(std::fs::create_dir_all(&self.pool)?)
    }

    /// The same with pages and metrics at this address, instead of at any free port.
    pub(crate) fn with_http(mut self, http: SocketAddr) -> Self {
        self.http = http;
        self
    }

    /// The folder of sockets and logs.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// The server's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("node.sock")
    }

    /// The server's log, of all its runs.
    pub(crate) fn log(&self) -> PathBuf {
        self.run.join("server.log")
    }

    /// The end of the log, to show why something failed.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ssd = self.ssd.as_ref().map(|(dir, _)| dir);
        for dir in [&self.pool, &self.run].into_iter().chain(ssd) {
            if let Err(error) = std::fs::remove_dir_all(dir) {
                eprintln!("warning: cannot remove {}: {error}", dir.display());
            }
        }
    }
}

// Asks `df`, which is everywhere; None if that fails.
fn free_bytes(dir: &Path) -> Option<u64> {
    let out = Command::new("df").arg("-Pk").arg(dir).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let kib: u64 = text
        .lines()
        .nth(1)?
        .split_whitespace()
        .nth(3)?
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

/// A process of ours; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts `command`.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn();
        Ok(Self(child.with_context(|| {
            format!("cannot start {:?}", command.get_program())
        })?))
    }

    /// Starts a server on the pool of `place`; an earlier run's blocks are found again.
    pub(crate) fn server(programs: &Programs, place: &Place) -> anyhow::Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(place.log())?;
        let mut command = Command::new(&programs.server);
        command
            .args([
                "--http",
                &place.http.to_string(),
                "--pool-bytes",
                &place.pool_bytes.to_string(),
            ])
            .arg("--pool-dir")
            .arg(&place.pool)
            .arg("--socket")
            .arg(place.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some((path, bytes)) = place.ssd() {
            command.arg("--ssd-path").arg(path);
            command.args(["--ssd-bytes", &bytes.to_string()]);
        }
        if let Some(policy) = &place.eviction {
            command.args(["--cache-eviction", policy]);
        }
        Self::start(&mut command)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// The child itself.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Kills it on the spot (SIGKILL) and waits until it is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits; kills it if it takes longer than `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) -> anyhow::Result<()> {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status()?;
        let until = now() + patience;
        while asked.success() && now() < until {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "the server ended with {status}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill()?;
        bail!("the server did not end within {patience:?} and was killed");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The time, for tools that watch processes.
#[expect(clippy::disallowed_methods, reason = "a tool that watches processes")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
