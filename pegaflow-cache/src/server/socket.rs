// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Claiming the path of a Unix socket: a dead server's file is replaced, a living server's is not.
//!
//! Invariant: the file appears at its path with mode 0600 and already listening.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// A server listens there.
    #[error(
        "another server listens on {path}{holder}; stop it, or give this one another `name` or `socket`"
    )]
    Taken {
        /// The path.
        path: PathBuf,
        /// ` (process 12, pegaflow-server)`, or nothing when it cannot be told.
        holder: String,
    },
    /// Something else is there, and it is not ours to remove.
    #[error("{path} is there and is no socket; remove it or choose another `socket`")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried: `cannot make`.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A path that this process listens on; the file is removed when this is dropped, unless another
/// server has put its own there meanwhile.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    file: (u64, u64),
}

impl Drop for Claim {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Listens on `path` (mode 0600), making its directory (mode 0700) if there is none.
///
/// # Errors
/// [`SocketError`], with a message for the user.
pub fn claim(path: &Path) -> Result<(UnixListener, Claim), SocketError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { what, path, source }
    };
    if let Some(dir) = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty() && !dir.exists())
    {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(io("cannot make the socket's directory", dir))?;
    }
    refuse_if_taken(path)?;
    // Bound beside, made private, then moved in place: no moment with a wider mode, and no moment
    // without a socket where a dead server's one was.
    let beside = path.with_extension(format!("{}~", std::process::id()));
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).map_err(io("cannot listen on", path))?;
    let placed = fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))
        .and_then(|()| identity(&beside))
        .and_then(|file| fs::rename(&beside, path).map(|()| file));
    match placed {
        Ok(file) => Ok((
            listener,
            Claim {
                path: path.to_owned(),
                file,
            },
        )),
        Err(source) => {
            let _ = fs::remove_file(&beside);
            Err(io("cannot put a socket at", path)(source))
        }
    }
}

/// Says who listens on `path`, if someone does.
///
/// # Errors
/// [`SocketError::Taken`], [`SocketError::NotASocket`], or that the path cannot be looked at.
pub fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::Io {
                what: "cannot look at",
                path: path.to_owned(),
                source,
            });
        }
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Ok(stream) => Err(SocketError::Taken {
            path: path.to_owned(),
            holder: holder(&stream),
        }),
        // Refused: the file outlived its server. Anything else will show when the path is bound.
        Err(_) => Ok(()),
    }
}

/// Who listens at the other end of `stream`, for a message.
fn holder(stream: &UnixStream) -> String {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
        return String::new();
    };
    let pid = peer.pid.as_raw_nonzero();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim();
    let comma = if name.is_empty() { "" } else { ", " };
    format!(" (process {pid}{comma}{name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_server_is_named_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("made/for it/p.sock");
        let (listener, dead) = claim(&path).expect("a free path");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a directory")), 0o700);

        let error = claim(&path).expect_err("taken").to_string();
        let holder = format!("(process {}", std::process::id());
        assert!(
            error.contains(&holder) && error.contains("another `name` or `socket`"),
            "{error}"
        );

        drop(listener);
        let (again, living) = claim(&path).expect("a dead server's socket");
        drop(dead);
        UnixStream::connect(&path).expect("the new one listens: its file is not the old one's");
        let dir = path.parent().expect("a directory");
        let count = || fs::read_dir(dir).expect("readable").count();
        assert_eq!(count(), 1, "nothing lies beside the socket");
        drop((again, living));
        assert_eq!(count(), 0, "the last one takes its file away");
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("notes.txt");
        fs::write(&path, "mine").expect("write");
        assert!(matches!(claim(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "mine");
    }
}
