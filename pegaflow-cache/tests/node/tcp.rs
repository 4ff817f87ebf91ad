// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Over TCP: who gets in, and what those may do.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use pegaflow_cache::ErrorKind;
use pegaflow_cache::client::{ClientTlsSettings, Present, TcpClient, TcpSettings};
use pegaflow_cache::core::LookupMode;
use pegaflow_cache::node::Node;
use pegaflow_cache::rpc::proto::{self as pb, node_client::NodeClient};
use pegaflow_cache::rpc::{Access, ServerTls, serve};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::support::*;

const TOKEN: &str = "a long secret of the test";

fn bind(address: &str) -> TcpListener {
    TcpListener::bind(address).expect("a free port")
}

/// How a client reaches a server that may be bound to any address.
fn calling(address: SocketAddr) -> TcpSettings {
    TcpSettings {
        address: format!("localhost:{}", address.port()),
        name: "test".to_owned(),
        ..TcpSettings::default()
    }
}

/// What such a client is refused with; the kind, and the sentence.
async fn refused(settings: TcpSettings) -> (ErrorKind, String) {
    let error = TcpClient::connect(settings).await.expect_err("not let in");
    (error.kind(), error.to_string())
}

/// An authority, and what it has signed.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            issuer: CertifiedIssuer::self_signed(params, key).expect("signs itself"),
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `name` and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signs");
        (signed.pem(), key.serialize_pem())
    }

    /// A server for localhost that asks for certificates of `callers`.
    fn server(&self, callers: Option<&Self>) -> ServerTls {
        let (certificate, key) = self.sign("localhost");
        let callers = callers.map(Self::pem);
        ServerTls::new(&certificate, &key, callers.as_deref()).expect("good files")
    }

    /// A client that trusts this authority, and has a certificate of `signer`.
    fn client(&self, signer: Option<&Self>) -> ClientTlsSettings {
        let own = signer.map(|signer| signer.sign("client"));
        ClientTlsSettings {
            ca: Some(self.file("ca.pem", &self.pem())),
            certificate: own.as_ref().map(|own| self.file("own.pem", &own.0)),
            key: own.as_ref().map(|own| self.file("own.key", &own.1)),
            name: None,
        }
    }
}

#[tokio::test]
async fn over_loopback_anybody_may_ask_and_nobody_write() {
    let served = Served::over_tcp(&settings(8 << 20), bind("127.0.0.1:0"), Access::default());
    let local = served.client().await;
    let namespace = local.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let all = keys(&namespace, 0..4);
    assert_eq!(save(&local, &namespace, &all[..2]).await, 2);

    let address = served.tcp.expect("it listens");
    let remote = TcpClient::connect(calling(address)).await.expect("let in");
    let known = remote.register_namespace(layout(1, SHAPE, &[])).await;
    let known = known.expect("registers");
    assert_eq!(known.id(), namespace.id());
    let look = async |keys: &[_], mode| {
        let found: Present = remote.lookup(&known, GROUP, keys, mode).await?;
        pegaflow_cache::Result::Ok(found.blocks.len())
    };
    assert_eq!(look(&all, LookupMode::Prefix).await.expect("finds"), 2);
    let set = [all[3], all[1]];
    assert_eq!(look(&set, LookupMode::Set).await.expect("finds"), 1);
    assert_eq!(remote.stats().await.expect("answers").blocks, 2);

    // Whoever shares no memory with the node can reserve nothing.
    let mut raw = NodeClient::connect(format!("http://{address}")).await;
    let raw = raw.as_mut().expect("connects");
    let hello = pb::HelloRequest {
        version_min: 1,
        version_max: 1,
        client: String::new(),
    };
    let hello = raw.hello(hello).await.expect("let in").into_inner();
    assert!(hello.pools.is_empty(), "no memory is described");
    let reserve = pb::ReserveRequest {
        session: hello.session,
        slot: Some(pb::Slot {
            layer_end: SHAPE.layers,
            head_end: SHAPE.heads,
            ..Default::default()
        }),
        keys: vec![7; 16].into(),
        ..Default::default()
    };
    let status = raw.reserve(reserve).await.expect_err("no memory");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("session socket"), "{status}");
    served.stop().await;
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_guard() {
    let authority = Authority::new();
    let guards = [
        (Access::default(), false),
        (
            Access::default().with_tls(Some(authority.server(None))),
            false,
        ),
        (Access::new(Some(TOKEN), false), true),
        (Access::new(None, true), true),
        (
            Access::default().with_tls(Some(authority.server(Some(&authority)))),
            true,
        ),
    ];
    for (access, open) in guards {
        let node = Node::start(&settings(8 << 20)).expect("starts");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut listeners = listen(&dir.path().join("node.sock"));
        listeners.tcp = Some(bind("0.0.0.0:0"));
        let shown = format!("{access:?}");
        match serve(node, listeners, access, std::future::ready(())).await {
            Ok(()) => assert!(open, "{shown}"),
            Err(error) => {
                assert!(!open, "{shown}: {error}");
                assert!(error.to_string().contains("`tls.client_ca`"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_token_lets_in_and_others_do_not() {
    let access = Access::new(Some(TOKEN), false);
    let served = Served::over_tcp(&settings(8 << 20), bind("0.0.0.0:0"), access);
    let calling = calling(served.tcp.expect("it listens"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let with = |text: &str| {
        let file = dir.path().join("token");
        std::fs::write(&file, text).expect("write");
        TcpSettings {
            token_file: Some(file),
            ..calling.clone()
        }
    };
    let client = TcpClient::connect(with(&format!("{TOKEN}\n"))).await;
    client.expect("let in").stats().await.expect("answers");
    let (kind, why) = refused(with("some other secret")).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(why.contains("not the server's"), "{why}");
    let (kind, why) = refused(calling.clone()).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(why.contains("a token is needed"), "{why}");
    let nowhere = TcpSettings {
        token_file: Some(dir.path().join("no")),
        ..calling
    };
    assert!(refused(nowhere).await.1.contains("does not exist"));
    served.stop().await;
}

#[tokio::test]
async fn tls_shows_who_the_node_is() {
    let (good, other) = (Authority::new(), Authority::new());
    let access = Access::default().with_tls(Some(good.server(None)));
    let served = Served::over_tcp(&settings(8 << 20), bind("127.0.0.1:0"), access);
    let calling = calling(served.tcp.expect("it listens"));
    let with = |tls: ClientTlsSettings| TcpSettings {
        tls,
        ..calling.clone()
    };
    let client = TcpClient::connect(with(good.client(None))).await;
    client.expect("let in").stats().await.expect("answers");

    let (kind, why) = refused(with(other.client(None))).await;
    assert_eq!(kind, ErrorKind::Retry, "{why}");
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    let misnamed = ClientTlsSettings {
        name: Some("elsewhere".to_owned()),
        ..good.client(None)
    };
    let (_, why) = refused(with(misnamed)).await;
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    let (kind, _) = refused(calling.clone()).await;
    assert_eq!(kind, ErrorKind::Retry, "plain text is not answered");
    let (kind, why) = refused(with(ClientTlsSettings {
        ca: None,
        ..good.client(Some(&good))
    }))
    .await;
    assert_eq!(kind, ErrorKind::Invalid, "{why}");
    served.stop().await;
}

#[tokio::test]
async fn a_node_that_asks_for_certificates_takes_those_of_its_authority() {
    let (node, callers, others) = (Authority::new(), Authority::new(), Authority::new());
    let access = Access::default().with_tls(Some(node.server(Some(&callers))));
    let served = Served::over_tcp(&settings(8 << 20), bind("0.0.0.0:0"), access);
    let calling = calling(served.tcp.expect("it listens"));
    let with = |signer: Option<&Authority>| TcpSettings {
        tls: node.client(signer),
        ..calling.clone()
    };
    let client = TcpClient::connect(with(Some(&callers))).await;
    client.expect("let in").stats().await.expect("answers");
    for signer in [None, Some(&others)] {
        let (kind, why) = refused(with(signer)).await;
        assert_eq!(kind, ErrorKind::Retry, "{why}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_node_started_anew_is_met_with_a_new_session() {
    let listener = bind("127.0.0.1:0");
    let address = listener.local_addr().expect("bound");
    let served = Served::over_tcp(&settings(8 << 20), listener, Access::default());
    let client = TcpClient::connect(calling(address)).await.expect("let in");
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    served.stop().await;
    let error = client.stats().await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");

    let again = bind(&address.to_string());
    let served = Served::over_tcp(&settings(8 << 20), again, Access::default());
    let local = served.client().await;
    // Another namespace first, so that numbers differ from those of the earlier run.
    let other = local.register_namespace(layout(2, SHAPE, &[])).await;
    other.expect("registers");
    let same = local.register_namespace(layout(1, SHAPE, &[])).await;
    let same = same.expect("registers");
    let blocks = keys(&same, 0..2);
    assert_eq!(save(&local, &same, &blocks).await, 2);
    let found = client.lookup(&namespace, GROUP, &blocks, LookupMode::Prefix);
    assert_eq!(found.await.expect("answers").blocks.len(), 2);
    served.stop().await;
}
