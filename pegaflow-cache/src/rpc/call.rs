// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Every call of the protocol: its number, its reply, and what the node does for it.
//!
//! One definition serves all ways in: frames, gRPC, and a client embedded in the node's process.
//! Here bytes become names: whatever passes was checked for form, and the core checks the rest.

use bytes::{Bytes, BytesMut};
use pegaflow_mem::Slot;
use pegaflow_meta::{BlockKey, GroupId};
use prost::Message;

use super::frame::Op;
use super::proto as pb;
use crate::core::{
    Answer, BlockRef, GroupKeys, HintRequest, LeaseId, LookupMode, NamespaceIndex, Place,
    SessionId, TicketId,
};
use crate::error::{Error, Result};
use crate::node::{
    Hint, HybridCall, HybridRefs, LookupCall, NamespaceLayout, Node, Refs, ReserveCall,
};

/// A request that any transport may bring.
pub(crate) trait Call: Message + Default + Send + 'static {
    /// Its number in a frame.
    const OP: Op;
    /// What answers it.
    type Reply: Message + Default + Send + 'static;

    /// The session it names (over gRPC; elsewhere the connection says).
    fn session(&self) -> SessionId;

    /// Does it.
    ///
    /// # Errors
    /// [`Error::Protocol`] for bytes that mean nothing, and whatever the node refuses.
    fn serve(self, node: &Node, session: SessionId) -> Result<Self::Reply>;

    /// Does it, observed; `request` is the caller's number for it.
    ///
    /// # Errors
    /// As [`Call::serve`].
    fn answer(self, node: &Node, session: SessionId, request: u32) -> Result<Self::Reply> {
        let calls = node.calls();
        calls.observe(Self::OP, session, request, || self.serve(node, session))
    }
}

/// Stands for a place where the bytes are here already.
pub(crate) const PLACE_HAVE: u64 = u64::MAX;
/// Stands for a place where somebody else is writing the bytes.
pub(crate) const PLACE_IN_FLIGHT: u64 = u64::MAX - 1;
/// Stands for a place where there is no room.
pub(crate) const PLACE_NO_ROOM: u64 = u64::MAX - 2;

/// Keys from their concatenation.
fn keys(bytes: &Bytes) -> Result<Vec<BlockKey>> {
    Ok(BlockKey::parse_all(bytes)?.collect())
}

fn key(bytes: &Bytes) -> Result<BlockKey> {
    let key = bytes.as_ref().try_into();
    Ok(BlockKey(key.map_err(|_| {
        Error::protocol(format_args!("a key has 16 bytes, not {}", bytes.len()))
    })?))
}

/// The concatenation of keys.
#[must_use]
pub(crate) fn key_bytes(keys: &[BlockKey]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(keys.len() * BlockKey::BYTES);
    keys.iter().for_each(|key| bytes.extend_from_slice(&key.0));
    bytes.freeze()
}

fn group(group: u32) -> Result<GroupId> {
    let group = u16::try_from(group);
    Ok(GroupId(group.map_err(|_| {
        Error::protocol("a group number has 16 bits")
    })?))
}

/// Life of a lease; the node's longest for 0.
fn ttl(wanted: bool, ttl_ms: u32) -> Option<u64> {
    wanted.then_some(if ttl_ms == 0 { u64::MAX } else { ttl_ms.into() })
}

macro_rules! calls {
    ($($request:ident => $reply:ident, $op:ident, $serve:expr;)*) => {
        $(
            impl Call for pb::$request {
                const OP: Op = Op::$op;
                type Reply = pb::$reply;
                fn session(&self) -> SessionId {
                    SessionId(self.session)
                }
                fn serve(self, node: &Node, session: SessionId) -> Result<Self::Reply> {
                    let serve: fn(Self, &Node, SessionId) -> Result<Self::Reply> = $serve;
                    serve(self, node, session)
                }
            }
        )*

        /// Serves the call in a frame: decodes `body`, appends the reply's frame to `out`.
        ///
        /// # Errors
        /// As [`Call::serve`]; nothing was appended then.
        pub(super) fn serve_frame(
            node: &Node, session: SessionId, op: Op, id: u32, body: Bytes, out: &mut BytesMut,
        ) -> Result<()> {
            match op {
                $(Op::$op => serve_one::<pb::$request>(node, session, id, body, out),)*
                Op::Hello | Op::Event | Op::Attach => {
                    Err(Error::protocol(format_args!("{op:?} is not a call")))
                }
            }
        }
    };
}

fn serve_one<C: Call>(
    node: &Node,
    session: SessionId,
    id: u32,
    body: Bytes,
    out: &mut BytesMut,
) -> Result<()> {
    let reply = C::decode(body)?.answer(node, session, id)?;
    super::frame::put(out, super::frame::Header::reply(C::OP, id), &reply);
    Ok(())
}

calls! {
    RegisterNamespaceRequest => RegisterNamespaceReply, RegisterNamespace, register;
    LookupRequest => LookupReply, Lookup, lookup;
    LookupHybridRequest => LookupHybridReply, LookupHybrid, lookup_hybrid;
    ClaimRequest => LookupReply, Claim, claim;
    ClaimHybridRequest => LookupHybridReply, ClaimHybrid, claim_hybrid;
    ReserveRequest => ReserveReply, Reserve, reserve;
    SealRequest => SealReply, Seal, seal;
    AbortRequest => AbortReply, Abort, abort;
    ReleaseRequest => ReleaseReply, Release, release;
    ReportCorruptRequest => ReportCorruptReply, ReportCorrupt, report_corrupt;
    QuiescedRequest => QuiescedReply, Quiesced, quiesced;
    HintRequest => HintReply, Hint, hint;
    StatsRequest => StatsReply, Stats, |_, node, _| Ok(node.stats());
}

fn register(
    request: pb::RegisterNamespaceRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::RegisterNamespaceReply> {
    let layout = NamespaceLayout::from_request(&request)?;
    let namespace = node.register_namespace(session, &layout)?.0;
    Ok(pb::RegisterNamespaceReply { namespace })
}

fn places(blocks: &[BlockRef]) -> (Vec<u64>, Vec<u32>) {
    let places = blocks.iter().map(|block| block.place.to_bits()).collect();
    let generations = blocks.iter().map(|block| block.generation).collect();
    (places, generations)
}

fn positions(blocks: &[BlockRef]) -> Vec<u32> {
    blocks.iter().map(|block| block.key).collect()
}

fn ticket(ticket: TicketId) -> pb::Ticket {
    pb::Ticket {
        index: ticket.0 as u32,
        generation: (ticket.0 >> 32) as u32,
    }
}

fn found(refs: Refs<'_>, mode: LookupMode) -> pb::LookupReply {
    let (places, generations) = places(refs.blocks);
    pb::LookupReply {
        lease: refs.lease.map_or(0, |lease| lease.0),
        ready: refs.blocks.len() as u32,
        pending: refs.pending,
        fetching: refs.fetching,
        places,
        generations,
        ticket: refs.ticket.map(ticket),
        positions: match mode {
            LookupMode::Prefix => vec![],
            LookupMode::Set => positions(refs.blocks),
        },
    }
}

fn lookup(request: pb::LookupRequest, node: &Node, session: SessionId) -> Result<pb::LookupReply> {
    let mode = match request.mode() {
        pb::LookupMode::Prefix => LookupMode::Prefix,
        pb::LookupMode::Set => LookupMode::Set,
    };
    let call = LookupCall {
        namespace: NamespaceIndex(request.namespace),
        group: group(request.group)?,
        keys: &keys(&request.keys)?,
        mode,
        lease_ttl_ms: ttl(request.lease, request.ttl_ms),
        ticket: request.ticket,
    };
    node.lookup(session, &call, |refs| found(refs, mode))
}

fn lookup_hybrid(
    request: pb::LookupHybridRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::LookupHybridReply> {
    let all = request.groups.iter().map(|group| keys(&group.keys));
    let all = all.collect::<Result<Vec<_>>>()?;
    let groups = request
        .groups
        .iter()
        .zip(&all)
        .map(|(named, keys)| group(named.group).map(|group| GroupKeys { group, keys }));
    let call = HybridCall {
        namespace: NamespaceIndex(request.namespace),
        groups: &groups.collect::<Result<Vec<_>>>()?,
        lease_ttl_ms: ttl(request.lease, request.ttl_ms),
        ticket: request.ticket,
    };
    node.lookup_hybrid(session, &call, found_hybrid)
}

fn found_hybrid(refs: HybridRefs<'_>) -> pb::LookupHybridReply {
    let found = refs.found;
    let groups = found.groups.iter().map(|range| {
        let blocks = &found.blocks[range.start as usize..range.end as usize];
        let (places, generations) = places(blocks);
        pb::GroupPlaces {
            places,
            generations,
            positions: positions(blocks),
        }
    });
    pb::LookupHybridReply {
        lease: found.lease.map_or(0, |lease| lease.0),
        tokens: found.tokens,
        pending_tokens: found.pending_tokens,
        groups: groups.collect(),
        ticket: refs.ticket.map(ticket),
        fetching: refs.fetching,
    }
}

fn claim_hybrid(
    request: pb::ClaimHybridRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::LookupHybridReply> {
    node.claim_hybrid(session, LeaseId(request.lease), found_hybrid)
}

fn claim(request: pb::ClaimRequest, node: &Node, session: SessionId) -> Result<pb::LookupReply> {
    let lease = LeaseId(request.lease);
    node.claim(session, lease, |refs| found(refs, LookupMode::Prefix))
}

/// A slot as the core has it; the core checks it against the block.
#[must_use]
pub(crate) fn slot_from_wire(slot: pb::Slot) -> Slot {
    Slot {
        layers: slot.layer_start..slot.layer_end,
        heads: slot.head_start..slot.head_end,
    }
}

/// A slot as it travels.
#[must_use]
pub(crate) fn slot_to_wire(slot: &Slot) -> pb::Slot {
    pb::Slot {
        layer_start: slot.layers.start,
        layer_end: slot.layers.end,
        head_start: slot.heads.start,
        head_end: slot.heads.end,
    }
}

fn answer(answer: &Answer) -> (u64, u32) {
    match answer {
        Answer::Place { place, generation } => (place.to_bits(), *generation),
        Answer::Have => (PLACE_HAVE, 0),
        Answer::InFlight => (PLACE_IN_FLIGHT, 0),
        Answer::OutOfBudget => (PLACE_NO_ROOM, 0),
    }
}

/// The answer that a place and a generation of the wire stand for.
#[must_use]
pub(crate) fn answer_from_wire(place: u64, generation: u32) -> Answer {
    match place {
        PLACE_HAVE => Answer::Have,
        PLACE_IN_FLIGHT => Answer::InFlight,
        PLACE_NO_ROOM => Answer::OutOfBudget,
        _ => Answer::Place {
            place: Place::from_bits(place),
            generation,
        },
    }
}

fn reserve(
    request: pb::ReserveRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::ReserveReply> {
    let slot = request
        .slot
        .ok_or_else(|| Error::protocol("a reservation needs a slot"))?;
    let call = ReserveCall {
        namespace: NamespaceIndex(request.namespace),
        group: group(request.group)?,
        slot: &slot_from_wire(slot),
        parent: match request.parent.is_empty() {
            true => None,
            false => Some(key(&request.parent)?),
        },
        keys: &keys(&request.keys)?,
    };
    node.reserve(session, &call, |reply| {
        let (places, generations) = reply.answers.iter().map(answer).unzip();
        pb::ReserveReply {
            lease: reply.lease.map_or(0, |lease| lease.0),
            places,
            generations,
        }
    })
}

fn seal(request: pb::SealRequest, node: &Node, session: SessionId) -> Result<pb::SealReply> {
    let lease = LeaseId(request.lease);
    let reply = node.seal(session, lease, &request.indices, &request.checksums)?;
    Ok(pb::SealReply {
        completed: reply.completed,
        partial: reply.partial,
        dropped: reply.dropped,
    })
}

fn abort(request: pb::AbortRequest, node: &Node, session: SessionId) -> Result<pb::AbortReply> {
    node.abort(session, LeaseId(request.lease), request.quiesced)?;
    Ok(pb::AbortReply {})
}

fn release(
    request: pb::ReleaseRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::ReleaseReply> {
    let ended = request
        .leases
        .iter()
        .map(|lease| node.release(session, LeaseId(*lease)));
    // All of them are tried; the first failure is told.
    ended.fold(Ok(()), Result::and)?;
    Ok(pb::ReleaseReply {})
}

fn report_corrupt(
    request: pb::ReportCorruptRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::ReportCorruptReply> {
    let (key, place) = (key(&request.key)?, Place::from_bits(request.place));
    let dropped = node.report_corrupt(session, &key, place, request.generation)?;
    Ok(pb::ReportCorruptReply { dropped })
}

fn quiesced(
    request: pb::QuiescedRequest,
    node: &Node,
    session: SessionId,
) -> Result<pb::QuiescedReply> {
    node.quiesced(session, SessionId(request.ended_session))?;
    Ok(pb::QuiescedReply {})
}

fn hint(request: pb::HintRequest, node: &Node, session: SessionId) -> Result<pb::HintReply> {
    use pb::hint_request::Hint as Wire;
    let hint = match request.hint {
        Some(Wire::Pin(pin)) => Hint::Pin {
            ttl_ms: ttl(true, pin.ttl_ms).unwrap_or(u64::MAX),
        },
        Some(Wire::Demote(_)) => Hint::Demote,
        Some(Wire::Prefetch(_)) => Hint::Prefetch,
        Some(Wire::ReleaseBranch(_)) => Hint::ReleaseBranch,
        None => return Err(Error::protocol("a hint of no kind that this server knows")),
    };
    let about = HintRequest {
        namespace: NamespaceIndex(request.namespace),
        group: group(request.group)?,
        keys: &keys(&request.keys)?,
    };
    let hinted = node.hint(session, &about, hint)?;
    Ok(pb::HintReply {
        lease: hinted.lease.map_or(0, |lease| lease.0),
        done: hinted.done,
        coming: hinted.coming,
        absent: hinted.absent,
        refused: hinted.refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Client, NodeSettings};
    use pegaflow_mem::BlockShape;
    use pegaflow_meta::{GroupKind, GroupSpec, Namespace, TenantSalt};
    use proptest::prelude::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn layout() -> NamespaceLayout {
        let namespace = Namespace {
            model: [1; 32],
            weights: [2; 32],
            kv_dtype: "bfloat16".to_owned(),
            kv_quantisation: String::new(),
            hash_algorithm: "sha256".to_owned(),
            hash_seed: vec![],
            groups: vec![GroupSpec {
                kind: GroupKind::FullAttention,
                block_tokens: 16,
                layout: "hnd".to_owned(),
            }],
            tenant_salt: TenantSalt::default(),
        };
        let shape = BlockShape {
            layers: 2,
            parts: 1,
            heads: 2,
            inner_bytes: 256,
        };
        NamespaceLayout::new(namespace, &[shape])
    }

    /// Few numbers, so that they often mean something, and now and then an absurd one.
    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..5, any::<u32>()]
    }

    fn keys() -> impl Strategy<Value = Bytes> {
        let whole = prop::collection::vec(0u8..4, 0..8)
            .prop_map(|keys| keys.iter().flat_map(|key| [*key; 16]).collect());
        prop_oneof![whole, bytes(64)]
    }

    prop_compose! {
        fn reserve_request()(
            numbers in [number(), number(), number(), number(), number()],
            namespace in 0u32..3, slot: bool, parent in keys(), keys in keys(),
        ) -> pb::ReserveRequest {
            let [group, layer_start, layer_end, head_start, head_end] = numbers;
            let rect = pb::Slot { layer_start, layer_end, head_start, head_end };
            let slot = slot.then_some(rect);
            pb::ReserveRequest { session: 0, namespace, group, slot, parent, keys }
        }
    }

    prop_compose! {
        fn namespace_request()(
            shape in [number(), number(), number(), number()],
            namespace in bytes(200), stage_ends in prop::collection::vec(number(), 0..4),
            groups in 0usize..3, tenant in ".{0,200}",
        ) -> pb::RegisterNamespaceRequest {
            let [layers, parts, heads, inner_bytes] = shape;
            let shape = Some(pb::Shape { layers, parts, heads, inner_bytes });
            let groups = vec![pb::Group { shape, stage_ends }; groups];
            pb::RegisterNamespaceRequest { session: 0, namespace, groups, tenant }
        }
    }

    /// A call and its body: random bytes, or a message with random fields.
    fn body() -> impl Strategy<Value = (Op, Bytes)> {
        let calls = (0..=u16::MAX).filter_map(Op::from_wire);
        let calls: Vec<_> = calls.filter(|op| op.call_index().is_some()).collect();
        let op = prop::sample::select(calls);
        let message = |op: Op, message: Vec<u8>| (op, Bytes::from(message));
        let lookup = (number(), number(), keys(), number(), any::<[bool; 2]>());
        let lookup = lookup.prop_map(move |(namespace, group, keys, mode, [lease, ticket])| {
            let request = pb::LookupRequest {
                session: 0,
                namespace,
                group,
                keys,
                mode: mode.cast_signed(),
                lease,
                ttl_ms: mode,
                ticket,
            };
            message(Op::Lookup, request.encode_to_vec())
        });
        let seal = (0u64..9, prop::collection::vec(number(), 0..6));
        let seal = (seal, prop::collection::vec(any::<u64>(), 0..9));
        let seal = seal.prop_map(move |((lease, indices), checksums)| {
            let request = pb::SealRequest {
                session: 0,
                lease,
                indices,
                checksums,
            };
            message(Op::Seal, request.encode_to_vec())
        });
        prop_oneof![
            (op, bytes(200)),
            lookup,
            seal,
            reserve_request().prop_map(move |r| message(Op::Reserve, r.encode_to_vec())),
            namespace_request()
                .prop_map(move |r| message(Op::RegisterNamespace, r.encode_to_vec())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever comes in a frame is answered or refused, and the node goes on.
        #[test]
        fn any_body_is_answered_or_refused(calls in prop::collection::vec(body(), 1..40)) {
            let settings = NodeSettings { pool_bytes: 1 << 20, ..NodeSettings::default() };
            let node = Node::start(&settings).expect("starts");
            let session = node.open_session(&Client::Embedded, None).expect("opens");
            node.register_namespace(session, &layout()).expect("registers");
            for (id, (op, body)) in (1..).zip(calls) {
                let mut out = BytesMut::new();
                let served = serve_frame(&node, session, op, id, body, &mut out);
                prop_assert_eq!(served.is_ok(), !out.is_empty());
            }
            node.inspect(crate::core::Core::check);
            prop_assert!(node.stats().capacity_bytes > 0);
        }
    }
}
