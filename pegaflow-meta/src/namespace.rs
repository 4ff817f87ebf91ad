// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! What two caches must agree on before one may use the other's KV, and the one way to write it.
//!
//! Invariant: the encoding is canonical. Every namespace has exactly one encoding and every
//! accepted encoding is that of exactly one namespace, so equal fingerprints mean equal fields
//! (up to collisions of BLAKE3).
//!
//! # Encoding, version 1
//!
//! Integers are little-endian. `bytes` is a `u16` length and that many bytes; `text` is `bytes`
//! that are UTF-8.
//!
//! | field | type | note |
//! |---|---|---|
//! | magic | 4 bytes | `PFNS` |
//! | version | u16 | 1 |
//! | layout version | u16 | [`CANONICAL_LAYOUT_VERSION`] |
//! | model | 32 bytes | |
//! | weights | 32 bytes | |
//! | kv_dtype | text, at most 64 | |
//! | kv_quantisation | text, at most 256 | |
//! | hash_algorithm | text, at most 64 | |
//! | hash_seed | bytes, at most 64 | |
//! | groups | u16 count, at most 64, then each: | at least one |
//! | . kind | u8 | 0 full attention, 1 sliding window, 2 MLA, 3 state |
//! | . window_tokens | u32 | only for a sliding window, not 0 |
//! | . block_tokens | u32 | not 0 |
//! | . layout | text, at most 256 | |
//! | tenant_salt | bytes, at most 64 | |
//!
//! The fingerprint is BLAKE3 in its key-derivation mode with the context
//! `pegaflow namespace fingerprint v1`, over the encoding.

use crate::Error;
use crate::codec::{Reader, Writer};
use std::fmt;

/// Version of the order of bytes inside a block (`[layer][part][head][inner]`). Part of every
/// fingerprint: a build with another layout shares nothing with this one.
pub const CANONICAL_LAYOUT_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"PFNS";
const ENCODING_VERSION: u16 = 1;
const FINGERPRINT_CONTEXT: &str = "pegaflow namespace fingerprint v1";

/// The most of everything in a [`Namespace`]; over it, encoding and decoding both refuse.
pub mod limits {
    /// Bytes of [`kv_dtype`](super::Namespace::kv_dtype).
    pub const KV_DTYPE_BYTES_MAX: usize = 64;
    /// Bytes of [`kv_quantisation`](super::Namespace::kv_quantisation).
    pub const KV_QUANTISATION_BYTES_MAX: usize = 256;
    /// Bytes of [`hash_algorithm`](super::Namespace::hash_algorithm).
    pub const HASH_ALGORITHM_BYTES_MAX: usize = 64;
    /// Bytes of [`hash_seed`](super::Namespace::hash_seed).
    pub const HASH_SEED_BYTES_MAX: usize = 64;
    /// Groups of a namespace.
    pub const GROUPS_MAX: usize = 64;
    /// Bytes of a group's [`layout`](super::GroupSpec::layout).
    pub const LAYOUT_BYTES_MAX: usize = 256;
    /// Bytes of a [`TenantSalt`](super::TenantSalt).
    pub const TENANT_SALT_BYTES_MAX: usize = 64;
}

/// The fingerprint of a [`Namespace`]: 32 bytes of BLAKE3 over its canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub [u8; 32]);

crate::hex::hex_text!(NamespaceId);

/// A secret that keeps tenants' keys apart; empty where tenants share. Not printed by `Debug`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TenantSalt(pub Vec<u8>);

impl fmt::Debug for TenantSalt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantSalt({} bytes)", self.0.len())
    }
}

/// What the blocks of a group hold, as far as finding a usable prefix depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Every block from the first to the last is needed.
    FullAttention,
    /// Only the blocks under the last `window_tokens` tokens are needed.
    SlidingWindow {
        /// Tokens the window covers; not 0.
        window_tokens: u32,
    },
    /// Multi-head latent attention: needed like full attention, one head in its layout.
    Mla,
    /// A recurrent state (Mamba and the like): only the last block of a prefix is needed.
    State,
}

/// One cache group of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupSpec {
    /// What its blocks hold.
    pub kind: GroupKind,
    /// Tokens a block covers; not 0.
    pub block_tokens: u32,
    /// The engine's name for the order of bytes inside one head of one block ("hnd", ...). Opaque
    /// here: two engines share blocks of a group only if they name it alike.
    pub layout: String,
}

/// Everything that must match for KV to be interchangeable. Never the TP or PP size, never a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// Fingerprint of the model's configuration.
    pub model: [u8; 32],
    /// Fingerprint of the weights (of their contents or index, never of where they lie).
    pub weights: [u8; 32],
    /// Type of a KV element as the engine names it ("bfloat16", "fp8_e4m3", ...).
    pub kv_dtype: String,
    /// How KV is quantised, with scales or their fingerprint; empty for not at all.
    pub kv_quantisation: String,
    /// How the engine hashes blocks ("sha256_cbor", ...).
    pub hash_algorithm: String,
    /// Seed of that hash.
    pub hash_seed: Vec<u8>,
    /// The model's cache groups; a [`GroupId`](crate::GroupId) is an index into them.
    pub groups: Vec<GroupSpec>,
    /// Keeps this tenant's keys apart from others'.
    pub tenant_salt: TenantSalt,
}

impl Namespace {
    /// The canonical encoding (see the module's page).
    ///
    /// # Errors
    /// [`Error::TooLong`] over a limit of [`limits`]; [`Error::BadValue`] for no group at all, or
    /// a block or window of no tokens.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut w = Writer::default();
        w.fixed(&MAGIC);
        w.u16(ENCODING_VERSION);
        w.u16(CANONICAL_LAYOUT_VERSION);
        w.fixed(&self.model);
        w.fixed(&self.weights);
        w.bytes(
            "kv_dtype",
            self.kv_dtype.as_bytes(),
            limits::KV_DTYPE_BYTES_MAX,
        )?;
        let quantisation = self.kv_quantisation.as_bytes();
        w.bytes(
            "kv_quantisation",
            quantisation,
            limits::KV_QUANTISATION_BYTES_MAX,
        )?;
        let algorithm = self.hash_algorithm.as_bytes();
        w.bytes(
            "hash_algorithm",
            algorithm,
            limits::HASH_ALGORITHM_BYTES_MAX,
        )?;
        w.bytes("hash_seed", &self.hash_seed, limits::HASH_SEED_BYTES_MAX)?;
        let groups = group_count(self.groups.len())?;
        w.u16(groups);
        self.groups
            .iter()
            .try_for_each(|group| encode_group(&mut w, group))?;
        w.bytes(
            "tenant_salt",
            &self.tenant_salt.0,
            limits::TENANT_SALT_BYTES_MAX,
        )?;
        Ok(w.0)
    }

    /// Reads what [`encode`](Self::encode) wrote, and nothing else.
    ///
    /// # Errors
    /// Any [`Error`]: the bytes are not a canonical encoding of a namespace.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut r = Reader::new(bytes);
        let magic = r.array::<4>("magic")?;
        if magic != MAGIC {
            let value = u64::from(u32::from_le_bytes(magic));
            return Err(Error::BadValue {
                field: "magic",
                value,
            });
        }
        for known in [ENCODING_VERSION, CANONICAL_LAYOUT_VERSION] {
            let version = r.u16("version")?;
            if version != known {
                return Err(Error::UnknownVersion(version));
            }
        }
        let namespace = Self {
            model: r.array("model")?,
            weights: r.array("weights")?,
            kv_dtype: r.text("kv_dtype", limits::KV_DTYPE_BYTES_MAX)?,
            kv_quantisation: r.text("kv_quantisation", limits::KV_QUANTISATION_BYTES_MAX)?,
            hash_algorithm: r.text("hash_algorithm", limits::HASH_ALGORITHM_BYTES_MAX)?,
            hash_seed: r.bytes("hash_seed", limits::HASH_SEED_BYTES_MAX)?.to_vec(),
            groups: decode_groups(&mut r)?,
            tenant_salt: TenantSalt(
                r.bytes("tenant_salt", limits::TENANT_SALT_BYTES_MAX)?
                    .to_vec(),
            ),
        };
        r.end()?;
        Ok(namespace)
    }

    /// The namespace's fingerprint, from which keys are derived.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn fingerprint(&self) -> Result<NamespaceId, Error> {
        let mut hasher = blake3::Hasher::new_derive_key(FINGERPRINT_CONTEXT);
        hasher.update(&self.encode()?);
        Ok(NamespaceId(*hasher.finalize().as_bytes()))
    }
}

fn group_count(len: usize) -> Result<u16, Error> {
    match u16::try_from(len) {
        Ok(0) => Err(Error::BadValue {
            field: "groups",
            value: 0,
        }),
        Ok(count) if len <= limits::GROUPS_MAX => Ok(count),
        _ => Err(Error::TooLong {
            field: "groups",
            len,
            max: limits::GROUPS_MAX,
        }),
    }
}

fn not_zero(field: &'static str, value: u32) -> Result<u32, Error> {
    if value == 0 {
        Err(Error::BadValue { field, value: 0 })
    } else {
        Ok(value)
    }
}

fn encode_group(w: &mut Writer, group: &GroupSpec) -> Result<(), Error> {
    match group.kind {
        GroupKind::FullAttention => w.fixed(&[0]),
        GroupKind::SlidingWindow { window_tokens } => {
            w.fixed(&[1]);
            w.u32(not_zero("window_tokens", window_tokens)?);
        }
        GroupKind::Mla => w.fixed(&[2]),
        GroupKind::State => w.fixed(&[3]),
    }
    w.u32(not_zero("block_tokens", group.block_tokens)?);
    w.bytes("layout", group.layout.as_bytes(), limits::LAYOUT_BYTES_MAX)
}

fn decode_groups(r: &mut Reader<'_>) -> Result<Vec<GroupSpec>, Error> {
    let count = group_count(usize::from(r.u16("groups")?))?;
    (0..count).map(|_| decode_group(r)).collect()
}

fn decode_group(r: &mut Reader<'_>) -> Result<GroupSpec, Error> {
    let [tag] = r.array("kind")?;
    let kind = match tag {
        0 => GroupKind::FullAttention,
        1 => {
            let window_tokens = not_zero("window_tokens", r.u32("window_tokens")?)?;
            GroupKind::SlidingWindow { window_tokens }
        }
        2 => GroupKind::Mla,
        3 => GroupKind::State,
        _ => {
            return Err(Error::BadValue {
                field: "kind",
                value: tag.into(),
            });
        }
    };
    let block_tokens = not_zero("block_tokens", r.u32("block_tokens")?)?;
    Ok(GroupSpec {
        kind,
        block_tokens,
        layout: r.text("layout", limits::LAYOUT_BYTES_MAX)?,
    })
}

#[cfg(test)]
mod tests;
