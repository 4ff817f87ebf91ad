// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! The session socket: hand-over of the pools, lifeline of a session, and calls without HTTP/2.
//!
//! A connection begins with one of two frames. `Hello` opens a session, is answered with the pools'
//! files, and stays as its lifeline: when it ends, so does the session. `Attach` makes it one more
//! connection of an open session, for calls. A client of another user is not answered at all.
//!
//! Invariant: one request of a connection is served at a time and its reply is written before the
//! next is read, so a client that does not read its replies holds up itself alone.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::Instrument;
use tracing::field::Empty;

use super::call::serve_frame;
use super::frame::{self, FrameReader, Header, Op};
use super::{FRAME_BYTES_MAX, VERSION_MAX, VERSION_MIN, handover, proto as pb};
use crate::core::SessionId;
use crate::error::{Error, Result};
use crate::node::process::Process;
use crate::node::{Client, Node};

/// How long the first frame may take, and how long a reply may wait for its reader.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most connections at once; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Events that wait for a client which does not read; further ones are dropped.
const EVENTS_MAX: usize = 256;
/// Bytes of a client's name.
const NAME_BYTES_MAX: usize = 128;

/// Serves the session socket until `stop` says true, and every connection has let go of the node.
pub(super) async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    mut stop: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let own = rustix::process::geteuid().as_raw();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may give some back.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(pid) = peer(&stream, own) else {
            continue;
        };
        let connection = Connection {
            node: node.clone(),
            stream,
            reader: FrameReader::new(FRAME_BYTES_MAX),
            read: now(),
            out: BytesMut::with_capacity(4096),
            pid,
        };
        let mut stop = stop.clone();
        // On at the usual level: whatever is logged of a client says whose it is.
        let span = tracing::info_span!("client", pid, name = Empty, session = Empty);
        let serve = async move {
            tokio::select! {
                ended = connection.serve() => if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                },
                _ = stop.wait_for(|stop| *stop) => {}
            }
            drop(permit);
        };
        tokio::spawn(serve.instrument(span));
    }
    // A connection drops the node before its permit: with all permits back, the pool can be opened anew.
    let _ = room.acquire_many(CONNECTIONS_MAX as u32).await;
}

/// The client's pid, if it is of this user or root.
fn peer(stream: &UnixStream, own: u32) -> Option<u32> {
    let credentials = stream.peer_cred().ok()?;
    let uid = credentials.uid();
    if uid != own && uid != 0 {
        tracing::warn!(uid, "refused a client of another user");
        return None;
    }
    u32::try_from(credentials.pid()?).ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "callers' patience is the shell's"
)]
fn now() -> Instant {
    Instant::now()
}

struct Connection {
    node: Arc<Node>,
    stream: UnixStream,
    reader: FrameReader,
    /// When bytes were last read: no frame in the reader is younger.
    read: Instant,
    out: BytesMut,
    pid: u32,
}

/// Ends its session when the lifeline ends, however it does.
struct Lifeline {
    node: Arc<Node>,
    session: SessionId,
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        tracing::debug!(session = self.session.0, "session ends");
        self.node.close_session(self.session);
    }
}

impl Connection {
    async fn serve(mut self) -> Result<()> {
        let first = timeout(PATIENCE, self.next()).await;
        let first = first.map_err(|_| Error::protocol("no hello came"))??;
        let Some((header, body)) = first else {
            return Ok(());
        };
        match Op::from_wire(header.op) {
            Some(Op::Hello) => match self.hello(&header, body).await {
                Ok((lifeline, events)) => self.keep(lifeline, events).await,
                Err(error) => self.refuse(&header, &error).await,
            },
            Some(Op::Attach) => match self.attach(body) {
                Ok(session) => {
                    tracing::Span::current().record("session", session.0);
                    let reply = Header::reply(Op::Attach, header.id);
                    frame::put(&mut self.out, reply, &pb::AttachReply {});
                    self.flush().await?;
                    self.calls(session).await
                }
                Err(error) => self.refuse(&header, &error).await,
            },
            _ => {
                let error = Error::protocol("a connection begins with hello or attach");
                self.refuse(&header, &error).await
            }
        }
    }

    async fn hello(
        &mut self,
        header: &Header,
        body: Bytes,
    ) -> Result<(Lifeline, mpsc::Receiver<pb::SessionEvent>)> {
        let request = pb::HelloRequest::decode(body)?;
        let version = negotiate(&request)?;
        let process = Process::of(self.pid);
        let process = process.ok_or_else(|| Error::unavailable("the client is gone"))?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let session = self
            .node
            .open_session(&Client::Process(process), Some(sender))?;
        let lifeline = Lifeline {
            node: self.node.clone(),
            session,
        };
        tracing::Span::current().record("name", &request.client);
        tracing::Span::current().record("session", session.0);
        tracing::debug!(version, "session opens");
        let reply = hello_reply(&self.node, version, session, self.node.describe_pools());
        let files = self.node.handover()?;
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        frame::put(&mut self.out, Header::reply(Op::Hello, header.id), &reply);
        let sent = handover::send(&self.stream, &self.out, &files).await;
        let sent = sent.map_err(Error::unavailable)?;
        bytes::Buf::advance(&mut self.out, sent);
        self.flush().await?;
        Ok((lifeline, events))
    }

    /// Passes events on until the client closes the lifeline.
    async fn keep(
        &mut self,
        lifeline: Lifeline,
        mut events: mpsc::Receiver<pb::SessionEvent>,
    ) -> Result<()> {
        let mut byte = [0; 1];
        loop {
            tokio::select! {
                read = self.stream.read(&mut byte) => {
                    return match read.map_err(Error::unavailable)? {
                        0 => Ok(()),
                        _ => Err(Error::protocol("a lifeline carries no calls")),
                    };
                }
                Some(event) = events.recv() => {
                    frame::put(&mut self.out, Header::reply(Op::Event, 0), &event);
                    self.flush().await?;
                }
                else => break,
            }
        }
        drop(lifeline);
        Ok(())
    }

    fn attach(&self, body: Bytes) -> Result<SessionId> {
        let session = SessionId(pb::AttachRequest::decode(body)?.session);
        let process = Process::of(self.pid);
        if process.is_some() && self.node.owner_of(session) == process {
            return Ok(session);
        }
        Err(Error::Refused {
            why: "that is no open session of this process".to_owned(),
        })
    }

    async fn calls(&mut self, session: SessionId) -> Result<()> {
        let mut saved = false;
        while let Some((header, body)) = self.next_but_tidy(saved).await? {
            self.call(session, &header, body);
            self.flush().await?;
            saved = Op::from_wire(header.op) == Some(Op::Seal);
        }
        Ok(())
    }

    /// The next frame. If the client has just saved, the time until then is used to make room for what
    /// it saves next.
    async fn next_but_tidy(&mut self, mut tidy: bool) -> Result<Option<(Header, Bytes)>> {
        while tidy {
            tokio::select! {
                biased;
                frame = self.next() => return frame,
                () = tokio::task::yield_now() => tidy = self.node.evict_ahead(),
            }
        }
        self.next().await
    }

    fn call(&mut self, session: SessionId, header: &Header, body: Bytes) {
        let op = Op::from_wire(header.op);
        let span = tracing::debug_span!("call", ?op, request_id = header.id);
        let _entered = span.enter();
        let unknown = || Error::Remote {
            kind: crate::ErrorKind::Unsupported,
            message: format!("call {} is not known to this server", header.op),
        };
        let served = match (op, self.is_late(header)) {
            (_, true) => Err(Error::Timeout {
                timeout_ms: header.timeout_ms.into(),
            }),
            (Some(op), _) => serve_frame(&self.node, session, op, header.id, body, &mut self.out),
            (None, _) => Err(unknown()),
        };
        if let Err(error) = served {
            tracing::debug!(%error, "call refused");
            self.put_failure(header, &error);
        }
    }

    /// Whether nobody waits for the answer any more.
    fn is_late(&self, header: &Header) -> bool {
        let wait = Duration::from_millis(header.timeout_ms.into());
        !wait.is_zero() && self.read.elapsed() >= wait
    }

    fn put_failure(&mut self, header: &Header, error: &Error) {
        let failure = pb::Failure::from(error);
        let header = Header::failure(header.op, header.id);
        frame::put(&mut self.out, header, &failure);
    }

    async fn refuse(&mut self, header: &Header, error: &Error) -> Result<()> {
        tracing::debug!(%error, "client refused");
        self.put_failure(header, error);
        self.flush().await
    }

    /// The next frame; none at the stream's end.
    async fn next(&mut self) -> Result<Option<(Header, Bytes)>> {
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Ok(Some(frame));
            }
            let read = self.stream.read_buf(self.reader.buffer()).await;
            if read.map_err(Error::unavailable)? == 0 {
                return Ok(None);
            }
            self.read = now();
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let written = timeout(PATIENCE, self.stream.write_all_buf(&mut self.out)).await;
        let written = written.map_err(|_| Error::protocol("the client does not read its replies"));
        written?.map_err(Error::unavailable)
    }
}

/// The newest version that both sides speak.
pub(super) fn negotiate(request: &pb::HelloRequest) -> Result<u32> {
    let version = request.version_max.min(VERSION_MAX);
    if version < request.version_min.max(VERSION_MIN) {
        return Err(Error::Version {
            ours_min: VERSION_MIN,
            ours_max: VERSION_MAX,
            theirs_min: request.version_min,
            theirs_max: request.version_max,
        });
    }
    if request.client.len() > NAME_BYTES_MAX {
        return Err(Error::protocol(format_args!(
            "a client's name has at most {NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(version)
}

pub(super) fn hello_reply(
    node: &Node,
    version: u32,
    session: SessionId,
    pools: Vec<pb::Pool>,
) -> pb::HelloReply {
    pb::HelloReply {
        version,
        session: session.0,
        incarnation: node.incarnation(),
        server: concat!("pegaflow-cache ", env!("CARGO_PKG_VERSION")).to_owned(),
        pools,
        limits: Some(node.limits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeSettings;

    #[tokio::test]
    async fn a_request_begun_after_its_time_is_refused() {
        let settings = NodeSettings {
            pool_bytes: 1 << 20,
            ..NodeSettings::default()
        };
        let node = Node::start(&settings).expect("starts");
        let session = node.open_session(&Client::Embedded, None).expect("opens");
        let (mut client, server) = UnixStream::pair().expect("sockets");
        let mut connection = Connection {
            node,
            stream: server,
            reader: FrameReader::new(FRAME_BYTES_MAX),
            read: now(),
            out: BytesMut::new(),
            pid: std::process::id(),
        };
        let mut answers = FrameReader::new(FRAME_BYTES_MAX);
        // Both come at once; the second is begun when a millisecond has passed.
        let mut both = BytesMut::new();
        for timeout_ms in [60_000, 1, 0] {
            let header = Header::request(Op::Stats, timeout_ms + 1, timeout_ms);
            frame::put(&mut both, header, &pb::StatsRequest { session: 0 });
        }
        client.write_all(&both).await.expect("sends");
        let mut failed = vec![];
        for _ in 0..3 {
            let (header, body) = connection.next().await.expect("reads").expect("a frame");
            while connection.read.elapsed() < Duration::from_millis(1) {
                std::thread::yield_now();
            }
            connection.call(session, &header, body);
            answers.buffer().extend_from_slice(&connection.out.split());
            let (answer, body) = answers.next_frame().expect("frames").expect("an answer");
            assert_eq!(answer.id, header.id);
            if answer.failed {
                let failure: Error = pb::Failure::decode(body).expect("says why").into();
                failed.push((header.timeout_ms, failure.to_string()));
            }
        }
        assert_eq!(failed, [(1, "no answer within 1 ms".to_owned())]);
    }

    #[test]
    fn neighbouring_versions_agree_and_others_say_why_not() {
        let ask = |version_min, version_max| {
            negotiate(&pb::HelloRequest {
                version_min,
                version_max,
                client: String::new(),
            })
        };
        assert_eq!(ask(VERSION_MIN, VERSION_MAX).expect("ours"), VERSION_MAX);
        assert_eq!(ask(0, VERSION_MAX).expect("an older one"), VERSION_MAX);
        assert_eq!(
            ask(VERSION_MAX, VERSION_MAX + 9).expect("newer"),
            VERSION_MAX
        );
        for (min, max) in [
            (VERSION_MAX + 1, VERSION_MAX + 9),
            (0, VERSION_MIN - 1),
            (5, 2),
        ] {
            let error = ask(min, max).expect_err("nothing in common");
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
        }
    }
}
