// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//! Registered namespaces: their groups' shapes, and whose they are.

use super::block::ClassIdx;
use super::error::{Error, within};
use super::need::GroupNeed;
use super::types::{NamespaceIndex, TenantIndex};
use super::write::SIDE_MAX;
use pegaflow_mem::{BlockShape, SlabAllocator};
use pegaflow_meta::{GroupId, GroupKind, NamespaceId, limits::GROUPS_MAX};
use std::collections::HashMap;

/// What a node must know of a namespace to keep its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Fingerprint of the namespace.
    pub id: NamespaceId,
    /// Whose blocks these are.
    pub tenant: String,
    /// The cache groups; a [`GroupId`] is an index into them.
    pub groups: Vec<GroupShape>,
}

/// One cache group of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupShape {
    /// What its blocks hold, which decides how many of them a prefix needs.
    pub kind: GroupKind,
    /// Tokens a block covers.
    pub block_tokens: u32,
    /// Size of a block.
    pub shape: BlockShape,
}

/// A namespace and group, as blocks refer to it.
#[derive(Debug, Clone)]
pub(crate) struct Class {
    pub(crate) namespace: NamespaceIndex,
    pub(crate) group: GroupId,
    pub(crate) tenant: TenantIndex,
    pub(crate) shape: GroupShape,
    /// Bytes of a block.
    pub(crate) bytes: u64,
    /// Bytes its place takes: rounded up as the allocator does.
    pub(crate) place_bytes: u64,
}

/// Most groups of all namespaces together: what fits into a [`ClassIdx`].
const CLASSES_MAX: u32 = 1 << 16;

impl Class {
    /// What a prefix needs of it.
    pub(crate) fn need(&self) -> GroupNeed {
        GroupNeed {
            kind: self.shape.kind,
            block_tokens: u64::from(self.shape.block_tokens),
        }
    }
}

#[derive(Debug)]
struct Entry {
    id: NamespaceId,
    first_class: u32,
    groups: u16,
}

/// All namespaces of a node. They are never forgotten within one life of the pool.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    entries: Vec<Entry>,
    classes: Vec<Class>,
    by_id: HashMap<NamespaceId, NamespaceIndex>,
}

impl Namespaces {
    pub(crate) fn by_id(&self, id: &NamespaceId) -> Option<NamespaceIndex> {
        self.by_id.get(id).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Checks a specification, before anything is changed.
    pub(crate) fn validate(spec: &NamespaceSpec) -> Result<(), Error> {
        let bad = |reason| {
            Err(Error::Bad {
                what: "namespace",
                reason,
            })
        };
        if spec.groups.is_empty() || spec.groups.len() > GROUPS_MAX {
            return bad("must have 1 to 64 groups");
        }
        for group in &spec.groups {
            if group.shape.validate().is_err() {
                return bad(
                    "block shape: sides of at least 1, inner_bytes a multiple of 8, at most 256 MiB",
                );
            }
            if group.shape.layers > SIDE_MAX || group.shape.heads > SIDE_MAX {
                return bad("at most 65535 layers and heads");
            }
            if group.block_tokens == 0 {
                return bad("block_tokens must be at least 1");
            }
            if group.kind == (GroupKind::SlidingWindow { window_tokens: 0 }) {
                return bad("window_tokens must be at least 1");
            }
        }
        Ok(())
    }

    /// Refuses a specification that more classes would be needed for than there are.
    pub(crate) fn check_room(&self, spec: &NamespaceSpec) -> Result<(), Error> {
        let wanted = self.classes.len() + spec.groups.len();
        within("groups of all namespaces", wanted, CLASSES_MAX)
    }

    /// Whether `spec` is what was registered under `index`.
    pub(crate) fn check_same(
        &self,
        index: NamespaceIndex,
        spec: &NamespaceSpec,
    ) -> Result<(), Error> {
        let entry = &self.entries[index.0 as usize];
        let differs = |group: usize, what| Error::NamespaceMismatch {
            id: spec.id,
            group: group as u16,
            what,
        };
        if spec.groups.len() != usize::from(entry.groups) {
            return Err(differs(spec.groups.len(), "the number of groups"));
        }
        let known = &self.classes[entry.first_class as usize..];
        for (i, (new, known)) in spec.groups.iter().zip(known).enumerate() {
            if new.shape != known.shape.shape {
                return Err(differs(i, "the block shape"));
            }
            if *new != known.shape {
                return Err(differs(i, "the kind or block_tokens"));
            }
        }
        Ok(())
    }

    /// Adds a valid specification with an id that is not known yet.
    pub(crate) fn insert(
        &mut self,
        spec: &NamespaceSpec,
        tenant: TenantIndex,
        max: u32,
    ) -> Result<NamespaceIndex, Error> {
        within("namespaces_max", self.entries.len() + 1, max)?;
        let namespace = NamespaceIndex(self.entries.len() as u32);
        let first_class = self.classes.len() as u32;
        let groups = spec.groups.len() as u16;
        for (group, shape) in (0..).map(GroupId).zip(&spec.groups) {
            let (shape, bytes) = (*shape, shape.shape.bytes());
            let place_bytes = SlabAllocator::class_bytes(bytes);
            self.classes.push(Class {
                namespace,
                group,
                tenant,
                shape,
                bytes,
                place_bytes,
            });
        }
        self.entries.push(Entry {
            id: spec.id,
            first_class,
            groups,
        });
        self.by_id.insert(spec.id, namespace);
        Ok(namespace)
    }

    pub(crate) fn id(&self, namespace: NamespaceIndex) -> Option<NamespaceId> {
        self.entries.get(namespace.0 as usize).map(|entry| entry.id)
    }

    /// How many groups a namespace has.
    pub(crate) fn groups(&self, namespace: NamespaceIndex) -> Result<u16, Error> {
        let entry = self.entries.get(namespace.0 as usize);
        entry
            .map(|entry| entry.groups)
            .ok_or(Error::UnknownNamespace(namespace))
    }

    pub(crate) fn class_of(
        &self,
        namespace: NamespaceIndex,
        group: GroupId,
    ) -> Result<ClassIdx, Error> {
        let entry = self.entries.get(namespace.0 as usize);
        let entry = entry.ok_or(Error::UnknownNamespace(namespace))?;
        if group.0 >= entry.groups {
            return Err(Error::UnknownGroup(namespace, group));
        }
        Ok(ClassIdx((entry.first_class + u32::from(group.0)) as u16))
    }

    pub(crate) fn class(&self, class: ClassIdx) -> &Class {
        &self.classes[class.0 as usize]
    }
}
