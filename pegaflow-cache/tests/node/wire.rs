// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Bytes that no client of ours sends: cut short, too long, random, out of order. Whatever comes, the
//! server answers with a reason or hangs up, and goes on serving others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use pegaflow_cache::client::session_socket;
use pegaflow_cache::rpc::frame::{self, FrameReader, Header, Op};
use pegaflow_cache::rpc::proto as pb;
use proptest::prelude::*;
use prost::Message;

use crate::support::*;

/// A connection that says whatever it is told.
struct Raw {
    stream: UnixStream,
    reader: FrameReader,
}

impl Raw {
    fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(session_socket(socket)).expect("listens");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("a socket");
        Self {
            stream,
            reader: FrameReader::new(1 << 24),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        // The server may have hung up already.
        let _ = self.stream.write_all(bytes);
    }

    fn ask<M: Message>(&mut self, op: Op, message: &M) -> (Header, bytes::Bytes) {
        let mut out = BytesMut::new();
        frame::put(&mut out, Header::request(op, 7, 0), message);
        self.send(&out);
        self.answer().expect("an answer")
    }

    /// The next frame, or none if the server hung up.
    fn answer(&mut self) -> Option<(Header, bytes::Bytes)> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.reader.next_frame().expect("the server writes frames") {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.reader.buffer().extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Says that nothing more comes, and waits for the server to hang up.
    fn finish(mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        while self.answer().is_some() {}
    }

    fn hello(socket: &Path) -> (Self, pb::HelloReply) {
        let mut raw = Self::open(socket);
        let (header, body) = raw.ask(Op::Hello, &hello(1, 1));
        assert!(!header.failed, "{:?}", pb::Failure::decode(body));
        let reply = pb::HelloReply::decode(body).expect("a hello");
        (raw, reply)
    }

    /// A connection for calls, and the lifeline that it lives on.
    fn attached(socket: &Path) -> (Self, Self) {
        let (lifeline, hello) = Self::hello(socket);
        let mut raw = Self::open(socket);
        let session = hello.session;
        let (header, _) = raw.ask(Op::Attach, &pb::AttachRequest { session });
        assert!(!header.failed);
        (raw, lifeline)
    }
}

fn hello(version_min: u32, version_max: u32) -> pb::HelloRequest {
    pb::HelloRequest {
        version_min,
        version_max,
        client: "raw".to_owned(),
    }
}

fn failure(answer: (Header, bytes::Bytes)) -> pb::Failure {
    assert!(answer.0.failed, "{:?}", answer.0);
    pb::Failure::decode(answer.1).expect("a failure")
}

fn refused(answer: (Header, bytes::Bytes), kind: pb::failure::Kind, part: &str) {
    let failure = failure(answer);
    assert_eq!(failure.kind(), kind, "{}", failure.message);
    assert!(failure.message.contains(part), "{}", failure.message);
}

use pb::failure::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_begins_with_hello_or_attach() {
    let served = Served::start(&settings(8 << 20));
    let socket = &served.socket;
    let stats = pb::StatsRequest { session: 1 };
    refused(
        Raw::open(socket).ask(Op::Stats, &stats),
        Kind::Invalid,
        "begins with",
    );
    refused(
        Raw::open(socket).ask(Op::Event, &stats),
        Kind::Invalid,
        "begins with",
    );
    let newer = hello(77, 78);
    refused(
        Raw::open(socket).ask(Op::Hello, &newer),
        Kind::Unsupported,
        "77 to 78",
    );
    let mut named = hello(1, 1);
    named.client = "x".repeat(1000);
    refused(
        Raw::open(socket).ask(Op::Hello, &named),
        Kind::Invalid,
        "128 bytes",
    );
    let (_, older) = Raw::hello(socket);
    assert_eq!(older.version, 1);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_its_own_process_alone() {
    let served = Served::start(&settings(8 << 20));
    let (_lifeline, hello) = Raw::hello(&served.socket);
    for session in [0, 1, hello.session ^ 1, u64::MAX] {
        let attach = pb::AttachRequest { session };
        let answer = Raw::open(&served.socket).ask(Op::Attach, &attach);
        refused(answer, Kind::Invalid, "no open session");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_mean_nothing_are_refused_and_the_connection_goes_on() {
    let served = Served::start(&settings(8 << 20));
    let (mut raw, _lifeline) = Raw::attached(&served.socket);
    let unknown = |op: u16| {
        let header = Header {
            body_bytes: 0,
            id: 9,
            op,
            failed: false,
            timeout_ms: 0,
        };
        header.encode()
    };
    for op in [0, 999, u16::MAX] {
        raw.send(&unknown(op));
        refused(
            raw.answer().expect("an answer"),
            Kind::Unsupported,
            "not known",
        );
    }
    let lookup = |keys: Vec<u8>, namespace, group| pb::LookupRequest {
        keys: keys.into(),
        namespace,
        group,
        ..Default::default()
    };
    refused(
        raw.ask(Op::Lookup, &lookup(vec![1; 17], 0, 0)),
        Kind::Invalid,
        "",
    );
    refused(
        raw.ask(Op::Lookup, &lookup(vec![1; 16], 0, 0)),
        Kind::Invalid,
        "not registered",
    );
    refused(
        raw.ask(Op::Lookup, &lookup(vec![1; 16], 0, 70_000)),
        Kind::Invalid,
        "16 bits",
    );
    let namespace = layout(1, SHAPE, &[]).to_request().expect("valid");
    let (header, _) = raw.ask(Op::RegisterNamespace, &namespace);
    assert!(!header.failed);
    let many = lookup(vec![1; 16 * 65_537], 0, 0);
    refused(raw.ask(Op::Lookup, &many), Kind::Busy, "request_keys_max");
    refused(
        raw.ask(Op::Lookup, &lookup(vec![1; 16], 0, 1)),
        Kind::Invalid,
        "GroupId(1)",
    );
    let mut reserve = pb::ReserveRequest {
        keys: vec![1; 16].into(),
        ..Default::default()
    };
    refused(raw.ask(Op::Reserve, &reserve), Kind::Invalid, "slot");
    reserve.slot = Some(pb::Slot {
        layer_end: u32::MAX,
        head_end: u32::MAX,
        ..Default::default()
    });
    refused(raw.ask(Op::Reserve, &reserve), Kind::Invalid, "slot");
    reserve.parent = vec![1; 5].into();
    refused(
        raw.ask(Op::Reserve, &reserve),
        Kind::Invalid,
        "16 bytes, not 5",
    );
    let seal = pb::SealRequest {
        lease: 12_345,
        ..Default::default()
    };
    refused(raw.ask(Op::Seal, &seal), Kind::Closed, "not a lease");
    let quiesced = pb::QuiescedRequest {
        session: 0,
        ended_session: 77,
    };
    let (header, _) = raw.ask(Op::Quiesced, &quiesced);
    assert!(!header.failed, "nothing is left of such a session");
    let (header, _) = raw.ask(Op::Stats, &pb::StatsRequest { session: 0 });
    assert!(!header.failed, "the connection still serves");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_that_cannot_be_are_refused() {
    let served = Served::start(&settings(8 << 20));
    let (mut raw, _lifeline) = Raw::attached(&served.socket);
    let good = layout(1, SHAPE, &[]).to_request().expect("valid");
    let mut bad = vec![];
    let mut change = |f: &dyn Fn(&mut pb::RegisterNamespaceRequest)| {
        let mut request = good.clone();
        f(&mut request);
        bad.push(request);
    };
    change(&|request| request.namespace = vec![].into());
    change(&|request| request.namespace = request.namespace.slice(..20));
    change(&|request| request.groups.clear());
    change(&|request| request.groups.push(pb::Group::default()));
    change(&|request| request.groups[0].shape = None);
    change(&|request| request.tenant = "t".repeat(1000));
    change(&|request| request.groups[0].stage_ends = vec![0]);
    change(&|request| request.groups[0].stage_ends = vec![2]);
    change(&|request| request.groups[0].stage_ends = vec![1, 1]);
    for (layers, parts, heads, inner_bytes) in [
        (0, 1, 1, 8),
        (1, 0, 1, 8),
        (1, 1, 0, 8),
        (1, 1, 1, 0),
        (1, 1, 1, 7),
        (1 << 20, 1 << 20, 1 << 20, 1 << 20),
        (u32::MAX, u32::MAX, u32::MAX, u32::MAX - 7),
    ] {
        let shape = Some(pb::Shape {
            layers,
            parts,
            heads,
            inner_bytes,
        });
        change(&|request| request.groups[0].shape = shape);
    }
    for request in bad {
        let failure = failure(raw.ask(Op::RegisterNamespace, &request));
        assert_eq!(failure.kind(), Kind::Invalid, "{request:?}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_cut_short_or_too_long_ends_its_connection_alone() {
    let served = Served::start(&settings(8 << 20));
    let client = served.client().await;
    let mut whole = BytesMut::new();
    frame::put(&mut whole, Header::request(Op::Hello, 1, 0), &hello(1, 1));
    for cut in 0..whole.len() {
        let mut raw = Raw::open(&served.socket);
        raw.send(&whole[..cut]);
        raw.finish();
    }
    let (mut raw, _lifeline) = Raw::attached(&served.socket);
    let mut long = Header::request(Op::Lookup, 1, 0);
    long.body_bytes = u32::MAX;
    raw.send(&long.encode());
    assert!(raw.answer().is_none(), "hung up");
    client.stats().await.expect("others are served");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_harm_nobody() {
    let served = Served::start(&settings(8 << 20));
    let client = served.client().await;
    let namespace = client.register_namespace(layout(1, SHAPE, &[])).await;
    let namespace = namespace.expect("registers");
    let keys = keys(&namespace, 0..4);
    save(&client, &namespace, &keys).await;
    let socket = served.socket.clone();
    let bodies = (1u16..15, prop::collection::vec(any::<u8>(), 0..200));
    let strategy = prop::collection::vec(bodies, 0..6);
    let storm = tokio::task::spawn_blocking(move || {
        let config = ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        runner.run(&strategy, |frames| {
            let (mut raw, lifeline) = Raw::attached(&socket);
            for (op, body) in frames {
                let mut header = Header::request(Op::Lookup, 3, 0);
                (header.op, header.body_bytes) = (op, body.len() as u32);
                raw.send(&header.encode());
                raw.send(&body);
            }
            raw.finish();
            drop(lifeline);
            Ok(())
        })
    });
    storm.await.expect("no panic").expect("survives");
    let noise = prop::collection::vec(any::<u8>(), 0..400);
    let socket = served.socket.clone();
    let storm = tokio::task::spawn_blocking(move || {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        for _ in 0..64 {
            let tree = noise.new_tree(&mut runner).expect("bytes");
            let mut raw = Raw::open(&socket);
            raw.send(&proptest::strategy::ValueTree::current(&tree));
            raw.finish();
        }
    });
    storm.await.expect("no panic");
    assert_eq!(ready(&client, &namespace, &keys).await, 4);
    served.stop().await;
}
