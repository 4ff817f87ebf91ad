# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What the scheduler side tells the worker side in one step, and back. Plain bytes: cheap to pickle."""

from __future__ import annotations

import dataclasses

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from pegaflow.vllm.layout import GroupShape


@dataclasses.dataclass
class Load:
    """Blocks to bring into the engine before the forward of this step."""

    request: str
    keys: bytes
    """16 bytes a block."""
    places: bytes
    """8 bytes a block, as the node gave them."""
    generations: bytes
    """4 bytes a block."""
    blocks: list[int]
    """The engine's block of each."""


@dataclasses.dataclass
class Save:
    """Full blocks that this step completes."""

    request: str
    parent: bytes
    """Key of the block before, or empty."""
    keys: bytes
    blocks: list[int]


@dataclasses.dataclass
class StepMeta(KVConnectorMetadata):
    """One step's work for the workers."""

    step: int = 0
    loads: list[Load] = dataclasses.field(default_factory=list)
    saves: list[Save] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """What the workers did in a step: counts summed over ranks, the step the one that all have finished."""

    step: int = 0
    loaded_blocks: int = 0
    failed_blocks: int = 0
    saved_blocks: int = 0
    refused_blocks: int = 0
    load_us: int = 0
    save_us: int = 0

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        assert isinstance(other, WorkerReport)
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(WorkerReport)}
        return WorkerReport(**{**total, "step": min(self.step, other.step)})


@dataclasses.dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """A worker's view of the KV layout, which the scheduler side needs to name keys."""

    groups: list[GroupShape]
    namespace: bytes
    """Canonical encoding."""
