// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Telling others that the server is ready: a file, and systemd's notification socket.

use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::{Path, PathBuf};

/// What a ready server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ready {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// Its TCP address, if it listens on one.
    pub tcp: Option<std::net::SocketAddr>,
    /// Its HTTP address, with the port in use.
    pub http: std::net::SocketAddr,
    /// Its process.
    pub pid: u32,
}

/// A file that says the server is ready; removed when this is dropped.
#[derive(Debug)]
pub struct ReadyFile {
    /// `None` for what is not ours to remove (`/dev/fd/3`).
    remove: Option<PathBuf>,
}

impl ReadyFile {
    /// Writes one line of JSON. A regular file appears whole or not at all; anything else that exists
    /// (a pipe, `/dev/fd/N`) is written to.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(path: &Path, ready: &Ready) -> io::Result<Self> {
        let line = serde_json::to_string(ready).map_err(io::Error::other)? + "\n";
        let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
        if special || path.starts_with("/dev/fd") || path.starts_with("/proc") {
            std::fs::OpenOptions::new()
                .write(true)
                .open(path)?
                .write_all(line.as_bytes())?;
            return Ok(Self { remove: None });
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}~", std::process::id()));
        std::fs::write(&beside, line)?;
        std::fs::rename(&beside, path)?;
        Ok(Self {
            remove: Some(path.to_owned()),
        })
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Some(path) = &self.remove {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Sends `state` (`READY=1`, `STOPPING=1`) to the service manager, if `$NOTIFY_SOCKET` names one.
///
/// # Errors
/// Those of the socket. They matter little: the caller logs them at most.
pub fn service_manager(state: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    send(path.as_bytes(), state)
}

/// A path that starts with `@` names an abstract socket.
fn send(path: &[u8], state: &str) -> io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => UnixAddr::from_abstract_name(name)?,
        None => UnixAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(path)))?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_while_the_server_is_ready() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ready.json");
        let ready = Ready {
            socket: "/s".into(),
            tcp: None,
            http: "127.0.0.1:9".parse().expect("an address"),
            pid: 7,
        };
        let file = ReadyFile::write(&path, &ready).expect("writes");
        let text = std::fs::read_to_string(&path).expect("there");
        assert_eq!(serde_json::from_str::<Ready>(&text).expect("JSON"), ready);
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn the_service_manager_hears_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("binds");
        send(path.as_os_str().as_bytes(), "READY=1").expect("sends");
        let mut buffer = [0; 16];
        let n = manager.recv(&mut buffer).expect("hears");
        assert_eq!(&buffer[..n], b"READY=1");
    }
}
