// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Who may call over TCP: whoever knows the token, or has a certificate of the right authority.

use std::fmt;
use std::net::SocketAddr;

use tonic::Status;
use tonic::metadata::MetadataMap;

use super::ServerTls;
use crate::error::{Error, Result};

/// Who may call over TCP. The Unix sockets are guarded by their file mode.
#[derive(Clone, Default)]
pub struct Access {
    token: Option<blake3::Hash>,
    tls: Option<ServerTls>,
    insecure: bool,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("token", &self.token.map(|_| "..."))
            .field("tls", &self.tls)
            .field("insecure", &self.insecure)
            .finish()
    }
}

impl Access {
    /// Callers must present `token` as `authorization: Bearer ...`; `None` lets everybody in who
    /// reaches the port, which only loopback may do unless `insecure`.
    #[must_use]
    pub fn new(token: Option<&str>, insecure: bool) -> Self {
        Self {
            token: token.map(|token| blake3::hash(token.as_bytes())),
            tls: None,
            insecure,
        }
    }

    /// Callers must use TLS; with which certificates, `tls` says.
    #[must_use]
    pub fn with_tls(self, tls: Option<ServerTls>) -> Self {
        Self { tls, ..self }
    }

    pub(super) fn tls(&self) -> Option<&ServerTls> {
        self.tls.as_ref()
    }

    /// Refuses an address that strangers could reach.
    ///
    /// # Errors
    /// [`Error::Refused`], with what to do.
    pub fn check_address(&self, address: SocketAddr) -> Result<()> {
        let tls = self.tls.as_ref();
        let certified = tls.is_some_and(ServerTls::asks_for_certificates);
        if address.ip().is_loopback() || self.token.is_some() || certified || self.insecure {
            return Ok(());
        }
        Err(Error::Refused {
            why: format!(
                "{address} can be reached by other machines: set `token_file` or `tls.client_ca`, or `insecure` if everybody there may read and change the cache"
            ),
        })
    }

    /// Lets a call pass, or not. Takes the same time for every wrong token.
    pub(super) fn check_call(&self, metadata: &MetadataMap) -> std::result::Result<(), Status> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        let given = metadata.get("authorization");
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        match given {
            Some(given) if blake3::hash(given) == *token => Ok(()),
            Some(_) => Err(Status::unauthenticated("the token is not the server's")),
            None => Err(Status::unauthenticated(
                "a token is needed: send `authorization: Bearer <token>`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_need_a_token() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let open = Access::new(None, false);
        open.check_address(address("127.0.0.1:1"))
            .expect("loopback");
        open.check_address(address("[::1]:1")).expect("loopback");
        let refused = open
            .check_address(address("0.0.0.0:1"))
            .expect_err("open to all");
        assert!(refused.to_string().contains("token_file"), "{refused}");
        for access in [Access::new(Some("secret"), false), Access::new(None, true)] {
            access
                .check_address(address("0.0.0.0:1"))
                .expect("as wished");
        }
    }

    #[test]
    fn only_the_right_token_passes() {
        let access = Access::new(Some("a long secret"), false);
        let with = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().expect("ascii"));
            access.check_call(&metadata).is_ok()
        };
        assert!(with("Bearer a long secret"));
        for bad in [
            "Bearer a long secre",
            "Bearer ",
            "a long secret",
            "Basic a long secret",
        ] {
            assert!(!with(bad), "{bad}");
        }
        assert!(access.check_call(&MetadataMap::new()).is_err());
        assert!(!format!("{access:?}").contains("secret"));
    }
}
