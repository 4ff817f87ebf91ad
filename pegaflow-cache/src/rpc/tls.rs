// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! TLS of the TCP listener and of those who call it: certificates in, configurations out.
//!
//! Reads no file. What is wrong with a certificate is found here, before anybody listens or calls.

use std::fmt;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

use crate::error::{Error, Result};

/// Longest wait for the other side's part of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who a server says it is, and whom it lets in.
#[derive(Clone)]
pub struct ServerTls {
    config: ServerTlsConfig,
    asks_for_certificates: bool,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("asks_for_certificates", &self.asks_for_certificates)
            .finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A server with this certificate chain and its key, all in PEM. With `client_ca` only callers
    /// get in whose certificate one of these authorities has signed.
    ///
    /// # Errors
    /// [`Error::Setting`] for what is no certificate, no key, or not the certificate's key.
    pub fn new(certificate: &str, key: &str, client_ca: Option<&str>) -> Result<Self> {
        let config = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .timeout(HANDSHAKE);
        check_server("tls.certificate", config.clone())?;
        let config = match client_ca {
            Some(ca) => config.client_ca_root(Certificate::from_pem(ca)),
            None => config,
        };
        check_server("tls.client_ca", config.clone())?;
        Ok(Self {
            config,
            asks_for_certificates: client_ca.is_some(),
        })
    }

    /// Whether callers must present a certificate: then TLS guards an address as a token does.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.asks_for_certificates
    }

    pub(super) fn config(&self) -> ServerTlsConfig {
        self.config.clone()
    }
}

fn check_server(setting: &'static str, config: ServerTlsConfig) -> Result<()> {
    let checked = Server::builder().tls_config(config);
    checked.map(drop).map_err(|error| refused(setting, &error))
}

/// Whom a caller trusts, and who it says it is.
#[derive(Clone)]
pub struct ClientTls(ClientTlsConfig);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// A caller that trusts servers whose certificate one of the authorities in `ca` has signed, and
    /// that says who it is by `identity`, a certificate chain and its key; all in PEM. `name` is
    /// what the server's certificate must be for, where that is not the host of its address.
    ///
    /// # Errors
    /// [`Error::Setting`] for what is no certificate or no key.
    pub fn new(ca: &str, identity: Option<(&str, &str)>, name: Option<&str>) -> Result<Self> {
        let mut config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .timeout(HANDSHAKE);
        if !ca.contains("BEGIN CERTIFICATE") {
            return Err(Error::Setting {
                setting: "tls.ca",
                why: "no certificate in PEM; name the file of the authority's certificate".into(),
            });
        }
        if let Some((certificate, key)) = identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = name {
            config = config.domain_name(name);
        }
        let tls = Self(config);
        let checked = tls.endpoint(Endpoint::from_static("https://localhost"));
        checked.map_err(|error| refused("tls.certificate", &error))?;
        Ok(tls)
    }

    pub(crate) fn endpoint(
        &self,
        endpoint: Endpoint,
    ) -> std::result::Result<Endpoint, tonic::transport::Error> {
        endpoint.tls_config(self.0.clone())
    }
}

fn refused(setting: &'static str, error: &dyn std::error::Error) -> Error {
    let mut why = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        why = error.to_string();
        next = error.source();
    }
    if why.is_empty() {
        why = error.to_string();
    }
    Error::Setting {
        setting,
        why: format!("{why}; wanted: PEM files, a certificate with the key it was made for"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    fn made() -> (String, String) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("makes a certificate");
        (cert.pem(), signing_key.serialize_pem())
    }

    #[test]
    fn what_is_no_certificate_is_refused_by_name() {
        let (certificate, key) = made();
        let (other, other_key) = made();
        let server = |certificate: &str, key: &str, ca: Option<&str>| {
            let made = ServerTls::new(certificate, key, ca);
            made.map(|_| String::new())
                .unwrap_or_else(|e| e.to_string())
        };
        assert_eq!(server(&certificate, &key, None), "");
        assert_eq!(server(&certificate, &key, Some(&other)), "");
        for (certificate, key, ca, setting) in [
            ("", &*key, None, "tls.certificate: "),
            (&*certificate, "", None, "tls.certificate: "),
            (&*certificate, &*other_key, None, "tls.certificate: "),
            (&*certificate, &*key, Some("rubbish"), "tls.client_ca: "),
        ] {
            let said = server(certificate, key, ca);
            assert!(said.starts_with(setting), "{said}");
            assert!(said.contains("PEM"), "{said}");
        }
        let client = |ca: &str, identity: Option<(&str, &str)>| {
            let made = ClientTls::new(ca, identity, None);
            made.map(|_| String::new())
                .unwrap_or_else(|e| e.to_string())
        };
        assert_eq!(client(&certificate, Some((&other, &other_key))), "");
        assert!(client("rubbish", None).starts_with("tls.ca: "));
        let swapped = client(&certificate, Some((&other, &key)));
        assert!(swapped.starts_with("tls.certificate: "), "{swapped}");
    }

    #[test]
    fn a_key_is_never_shown() {
        let (certificate, key) = made();
        let server = ServerTls::new(&certificate, &key, Some(&certificate)).expect("good");
        assert!(server.asks_for_certificates());
        let client = ClientTls::new(&certificate, Some((&certificate, &key)), None);
        let shown = format!("{server:?} {:?}", client.expect("good"));
        assert!(!shown.contains("PRIVATE") && shown.len() < 100, "{shown}");
    }
}
