// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Frames of the session socket: a fixed header and one protobuf message.
//!
//! Pure: turns bytes into frames and back, knows no socket and no meaning of a message.
//!
//! The header is 16 bytes, little-endian:
//!
//! | bytes | field | note |
//! |---|---|---|
//! | 0..4 | body bytes | at most the node's `frame_bytes_max` |
//! | 4..8 | id | the reply carries its request's; 0 for events |
//! | 8..10 | op | [`Op`] |
//! | 10..12 | status | 0 in requests and good replies, 1 where the body is a `Failure` |
//! | 12..16 | timeout, ms | how long the caller still waits; 0 for no limit. Counts from when the request was read; one that is begun later is refused and changes nothing |
//!
//! Invariant: a length is checked against the limit before anything is allocated for it.

use bytes::{Buf, Bytes, BytesMut};

/// What a frame asks for or answers. Numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[non_exhaustive]
pub enum Op {
    /// First frame of a connection, both ways; the answer carries the descriptors.
    Hello = 1,
    /// `RegisterNamespaceRequest`.
    RegisterNamespace = 2,
    /// `LookupRequest`.
    Lookup = 3,
    /// `LookupHybridRequest`.
    LookupHybrid = 4,
    /// `ClaimRequest`.
    Claim = 5,
    /// `ReserveRequest`.
    Reserve = 6,
    /// `SealRequest`.
    Seal = 7,
    /// `AbortRequest`.
    Abort = 8,
    /// `ReleaseRequest`.
    Release = 9,
    /// `ReportCorruptRequest`.
    ReportCorrupt = 10,
    /// `QuiescedRequest`.
    Quiesced = 11,
    /// `StatsRequest`.
    Stats = 12,
    /// `SessionEvent`, from the server without being asked.
    Event = 13,
    /// `AttachRequest`: first frame of a session's further connections.
    Attach = 14,
    /// `ClaimHybridRequest`.
    ClaimHybrid = 15,
    /// `HintRequest`.
    Hint = 16,
}

impl Op {
    const ALL: [Self; 16] = [
        Self::Hello,
        Self::RegisterNamespace,
        Self::Lookup,
        Self::LookupHybrid,
        Self::Claim,
        Self::Reserve,
        Self::Seal,
        Self::Abort,
        Self::Release,
        Self::ReportCorrupt,
        Self::Quiesced,
        Self::Stats,
        Self::Event,
        Self::Attach,
        Self::ClaimHybrid,
        Self::Hint,
    ];

    /// Which call it is, counted in the order of their numbers; none for what is no call.
    #[must_use]
    pub fn call_index(self) -> Option<usize> {
        match self {
            Self::Hello | Self::Event | Self::Attach => None,
            op if op as u16 <= Self::Stats as u16 => {
                Some(op as usize - Self::RegisterNamespace as usize)
            }
            op => Some(op as usize - Self::RegisterNamespace as usize - 2),
        }
    }

    /// The op of a number of the wire, if this build knows it.
    #[must_use]
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u16 == number)
    }
}

/// The fixed start of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the message behind the header.
    pub body_bytes: u32,
    /// Ties a reply to its request.
    pub id: u32,
    /// Number of the [`Op`]; kept raw so that an unknown one can be answered.
    pub op: u16,
    /// The body is a `Failure`.
    pub failed: bool,
    /// Milliseconds the caller still waits; 0 for no limit.
    pub timeout_ms: u32,
}

/// Why bytes are not a frame. The connection cannot go on after any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The body is longer than the receiver allows.
    #[error("a frame of {bytes} bytes, {max} allowed")]
    TooLong {
        /// Length the header states.
        bytes: u32,
        /// The most allowed.
        max: u32,
    },
    /// The status field is neither of its two values.
    #[error("frame status {0} is not known")]
    BadStatus(u16),
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 16;

    /// The header of a request; its length is filled in by [`put`].
    #[must_use]
    pub fn request(op: Op, id: u32, timeout_ms: u32) -> Self {
        Self {
            body_bytes: 0,
            id,
            op: op as u16,
            failed: false,
            timeout_ms,
        }
    }

    /// The header of a good reply; its length is filled in by [`put`].
    #[must_use]
    pub fn reply(op: Op, id: u32) -> Self {
        Self::request(op, id, 0)
    }

    /// The header of a reply whose body is a `Failure`. The number is kept as it came.
    #[must_use]
    pub fn failure(op: u16, id: u32) -> Self {
        Self {
            body_bytes: 0,
            id,
            op,
            failed: true,
            timeout_ms: 0,
        }
    }

    /// The header as it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..4].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[4..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.op.to_le_bytes());
        out[10..12].copy_from_slice(&u16::from(self.failed).to_le_bytes());
        out[12..16].copy_from_slice(&self.timeout_ms.to_le_bytes());
        out
    }

    /// Reads a header; a body may be `body_bytes_max` long.
    ///
    /// # Errors
    /// Any [`FrameError`].
    pub fn decode(bytes: [u8; Self::BYTES], body_bytes_max: u32) -> Result<Self, FrameError> {
        let mut rest = &bytes[..];
        let header = Self {
            body_bytes: rest.get_u32_le(),
            id: rest.get_u32_le(),
            op: rest.get_u16_le(),
            failed: match rest.get_u16_le() {
                0 => false,
                1 => true,
                other => return Err(FrameError::BadStatus(other)),
            },
            timeout_ms: rest.get_u32_le(),
        };
        if header.body_bytes > body_bytes_max {
            return Err(FrameError::TooLong {
                bytes: header.body_bytes,
                max: body_bytes_max,
            });
        }
        Ok(header)
    }
}

/// Appends a frame whose body is `message`.
pub fn put<M: prost::Message>(out: &mut BytesMut, mut header: Header, message: &M) {
    let body = message.encoded_len();
    header.body_bytes = u32::try_from(body).unwrap_or(u32::MAX);
    out.reserve(Header::BYTES + body);
    out.extend_from_slice(&header.encode());
    message
        .encode(out)
        .expect("the buffer grows as the message needs");
}

/// Cuts frames off a stream's bytes.
#[derive(Debug)]
pub struct FrameReader {
    buffer: BytesMut,
    body_bytes_max: u32,
}

impl FrameReader {
    /// A reader of frames whose bodies may be `body_bytes_max` long.
    #[must_use]
    pub fn new(body_bytes_max: u32) -> Self {
        Self {
            buffer: BytesMut::with_capacity(64 << 10),
            body_bytes_max,
        }
    }

    /// Where bytes of the stream go. Has room for at least the rest of the frame that has begun.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let wanted = match self.peek() {
            Ok(Some(header)) => Header::BYTES + header.body_bytes as usize,
            _ => Header::BYTES,
        };
        let room = wanted.saturating_sub(self.buffer.len()).max(16 << 10);
        self.buffer.reserve(room);
        &mut self.buffer
    }

    fn peek(&self) -> Result<Option<Header>, FrameError> {
        match self.buffer.first_chunk() {
            Some(bytes) => Header::decode(*bytes, self.body_bytes_max).map(Some),
            None => Ok(None),
        }
    }

    /// The next whole frame, or `None` if bytes of it are missing.
    ///
    /// # Errors
    /// Any [`FrameError`]; the stream is then of no further use.
    pub fn next_frame(&mut self) -> Result<Option<(Header, Bytes)>, FrameError> {
        let Some(header) = self.peek()? else {
            return Ok(None);
        };
        let body = header.body_bytes as usize;
        if self.buffer.len() < Header::BYTES + body {
            return Ok(None);
        }
        self.buffer.advance(Header::BYTES);
        Ok(Some((header, self.buffer.split_to(body).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u32 = 1 << 16;

    fn header() -> impl Strategy<Value = Header> {
        (any::<u32>(), any::<u16>(), any::<bool>(), any::<u32>()).prop_map(
            |(id, op, failed, timeout_ms)| Header {
                body_bytes: 0,
                id,
                op,
                failed,
                timeout_ms,
            },
        )
    }

    #[test]
    fn ops_have_numbers_of_their_own() {
        for (i, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, i + 1);
            assert_eq!(Op::from_wire(op as u16), Some(op));
        }
        assert_eq!(Op::from_wire(0), None);
        assert_eq!(Op::from_wire(u16::MAX), None);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut reader = FrameReader::new(MAX);
        let header = Header {
            body_bytes: u32::MAX,
            id: 1,
            op: 3,
            failed: false,
            timeout_ms: 0,
        };
        reader.buffer().extend_from_slice(&header.encode());
        let want = FrameError::TooLong {
            bytes: u32::MAX,
            max: MAX,
        };
        assert_eq!(reader.next_frame(), Err(want));
        assert!(reader.buffer().capacity() < 1 << 20);
    }

    proptest! {
        /// However the stream is cut, the same frames come out.
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec((header(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1usize..200, 1..40),
        ) {
            let mut wire = BytesMut::new();
            for (header, body) in &frames {
                put(&mut wire, *header, &Bytes::from(body.clone()));
            }
            let mut reader = FrameReader::new(MAX);
            let mut got = vec![];
            let mut cuts = cuts.into_iter().cycle();
            while !wire.is_empty() {
                let n = cuts.next().expect("a cycle never ends").min(wire.len());
                reader.buffer().extend_from_slice(&wire.split_to(n));
                while let Some((header, body)) = reader.next_frame().expect("we wrote it") {
                    let message: Bytes = prost::Message::decode(body).expect("we wrote it");
                    got.push((Header { body_bytes: 0, ..header }, message.to_vec()));
                }
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn any_bytes_give_frames_or_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut reader = FrameReader::new(256);
            reader.buffer().extend_from_slice(&bytes);
            while let Ok(Some((header, body))) = reader.next_frame() {
                prop_assert!(body.len() <= 256);
                prop_assert_eq!(body.len(), header.body_bytes as usize);
            }
        }
    }
}
