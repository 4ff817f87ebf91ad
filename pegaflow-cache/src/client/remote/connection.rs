// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! One connection to a node's session socket: a call at a time, in frames.

use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::error::{Error, Result};
use crate::rpc::frame::{self, FrameReader, Header, Op};
use crate::rpc::handover;
use crate::rpc::proto as pb;

/// A connection and the bytes that wait on either side of it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    reader: FrameReader,
    out: BytesMut,
    last_id: u32,
}

impl Connection {
    pub(super) async fn open(path: &Path, frame_bytes_max: u32) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(Error::os("connect to", path))?;
        Ok(Self {
            stream,
            reader: FrameReader::new(frame_bytes_max),
            out: BytesMut::with_capacity(4096),
            last_id: 0,
        })
    }

    /// Says hello and takes over the files that come with the answer.
    pub(super) async fn hello(
        &mut self,
        request: &pb::HelloRequest,
        body_bytes_max: u32,
    ) -> Result<(pb::HelloReply, Vec<OwnedFd>)> {
        self.send(Op::Hello, request, 0).await?;
        let mut header = [0; Header::BYTES];
        let files = handover::receive_exact(&self.stream, &mut header)
            .await
            .map_err(Error::unavailable)?;
        let header = Header::decode(header, body_bytes_max)?;
        let mut body = vec![0; header.body_bytes as usize];
        self.stream
            .read_exact(&mut body)
            .await
            .map_err(Error::unavailable)?;
        let reply = read_reply(Op::Hello, header, body.into())?;
        Ok((reply, files))
    }

    /// One call. If the future is dropped before it is done, the reply is still to come: see
    /// [`finish`](Self::finish).
    pub(super) async fn call<Q: Message, R: Message + Default>(
        &mut self,
        op: Op,
        request: &Q,
        timeout_ms: u32,
    ) -> Result<R> {
        self.send(op, request, timeout_ms).await?;
        self.finish(op).await
    }

    /// Reads the reply to the last request.
    pub(super) async fn finish<R: Message + Default>(&mut self, op: Op) -> Result<R> {
        self.flush().await?;
        loop {
            let (header, body) = self.next().await?;
            if header.id == self.last_id {
                return read_reply(op, header, body);
            }
        }
    }

    /// The next frame, whatever it is.
    pub(super) async fn next(&mut self) -> Result<(Header, Bytes)> {
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Ok(frame);
            }
            let read = self.stream.read_buf(self.reader.buffer()).await;
            if read.map_err(Error::unavailable)? == 0 {
                return Err(Error::unavailable("the node closed the connection"));
            }
        }
    }

    async fn send<Q: Message>(&mut self, op: Op, request: &Q, timeout_ms: u32) -> Result<()> {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let header = Header::request(op, self.last_id, timeout_ms);
        frame::put(&mut self.out, header, request);
        self.flush().await
    }

    /// Writes what waits; picks up where a dropped future left off.
    async fn flush(&mut self) -> Result<()> {
        while !self.out.is_empty() {
            let written = self.stream.write_buf(&mut self.out).await;
            if written.map_err(Error::unavailable)? == 0 {
                return Err(Error::unavailable("the node closed the connection"));
            }
        }
        Ok(())
    }
}

fn read_reply<R: Message + Default>(op: Op, header: Header, body: Bytes) -> Result<R> {
    if header.failed {
        return Err(pb::Failure::decode(body)?.into());
    }
    if header.op != op as u16 {
        return Err(Error::protocol(format_args!(
            "answer {} to {op:?}",
            header.op
        )));
    }
    Ok(R::decode(body)?)
}
