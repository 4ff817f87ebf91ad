// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! How a client reaches a node in another process.

use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};

use crate::describe::{first_line, read_file, settings};
use crate::error::{Error, Result};
use crate::rpc::ClientTls;

settings! {
    /// How a client reaches a node in another process.
    pub struct ClientSettings {
        /// The node's Unix socket, as its setting `socket` has it.
        pub socket: PathBuf = PathBuf::from("/tmp/pegaflow.sock"),
        /// Who this is, for the node's logs; 128 bytes at most.
        pub name: String = "client".to_owned(),
        /// Longest wait for one answer, in milliseconds. After it the call fails and the engine goes
        /// on without.
        pub call_timeout_ms: u32 = 2_000,
        /// Longest wait for the first connection, in milliseconds. 0 does not wait.
        pub connect_timeout_ms: u32 = 10_000,
        /// Longest pause between two attempts to reconnect, in milliseconds.
        pub reconnect_pause_ms_max: u32 = 500,
        /// Most connections open at once; further calls wait for one.
        pub connections_max: u32 = 8,
    }
}

settings! {
    /// How a client reaches a node over TCP.
    pub struct TcpSettings {
        /// Host and port, as the node's setting `tcp` has them.
        pub address: String = "127.0.0.1:7410".to_owned(),
        /// Who this is, for the node's logs; 128 bytes at most.
        pub name: String = "client".to_owned(),
        /// File whose first line is the node's token.
        pub token_file: Option<PathBuf> = None,
        /// TLS, where the node asks for it.
        pub tls: ClientTlsSettings = ClientTlsSettings::default(),
        /// Longest wait for one answer, in milliseconds.
        pub call_timeout_ms: u32 = 2_000,
        /// Longest wait for a connection, in milliseconds.
        pub connect_timeout_ms: u32 = 10_000,
    }
}

settings! {
    /// TLS of a client over TCP. Off unless `ca` is set.
    pub struct ClientTlsSettings {
        /// File with the certificates, in PEM, of authorities that vouch for the node.
        pub ca: Option<PathBuf> = None,
        /// File with the client's own certificate chain in PEM, where the node asks for one.
        pub certificate: Option<PathBuf> = None,
        /// File with the private key of `certificate` in PEM.
        pub key: Option<PathBuf> = None,
        /// What the node's certificate is for, where that is not the host of its address.
        pub name: Option<String> = None,
    }
}

impl TcpSettings {
    /// What proves to the node that this client knows the token.
    ///
    /// # Errors
    /// [`Error::Setting`] for a file that cannot be read, or holds no token.
    pub(super) fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>> {
        let Some(text) = read("token_file", self.token_file.as_deref())? else {
            return Ok(None);
        };
        let bearer = format!("Bearer {}", first_line(&text)).parse();
        bearer.map(Some).map_err(|_| Error::Setting {
            setting: "token_file",
            why: "the first line is not a token: write printable ASCII".to_owned(),
        })
    }
}

impl ClientTlsSettings {
    /// The TLS to use; none without `ca`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a file that cannot be read or used.
    pub(super) fn read(&self) -> Result<Option<ClientTls>> {
        let ca = read("tls.ca", self.ca.as_deref())?;
        let certificate = read("tls.certificate", self.certificate.as_deref())?;
        let key = read("tls.key", self.key.as_deref())?;
        let identity = certificate.as_deref().zip(key.as_deref());
        let wanted = [&certificate, &key].into_iter().any(Option::is_some);
        if wanted && (identity.is_none() || ca.is_none()) {
            return Err(Error::Setting {
                setting: "tls.certificate",
                why: "set `tls.certificate` and `tls.key` together, with `tls.ca`".to_owned(),
            });
        }
        let tls = ca.map(|ca| ClientTls::new(&ca, identity, self.name.as_deref()));
        tls.transpose()
    }
}

fn read(setting: &'static str, path: Option<&Path>) -> Result<Option<String>> {
    let text = path.map(read_file).transpose();
    text.map_err(|why| Error::Setting { setting, why })
}

/// The session socket that belongs to a node's gRPC socket: the same path and `.pool`.
#[must_use]
pub fn session_socket(socket: &std::path::Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".pool");
    path.into()
}
