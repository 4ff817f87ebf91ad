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

KEY_BYTES = 16
PLACE_BYTES = 8
GENERATION_BYTES = 4
BLOCK_BYTES = 4
NULL_BLOCK = 0
"""The engine's block that stands for one out of its window."""


@dataclasses.dataclass
class Load:
    """Blocks to bring into the engine."""

    request: str
    keys: bytes
    places: bytes
    """As the node gave them."""
    generations: bytes
    blocks: bytes
    """The engine's block of each."""
    background: bool = False
    """Beside the engine's steps, not within this one."""
    group: int = 0
    """Cache group of the blocks."""


@dataclasses.dataclass
class Save:
    """Full blocks that this step completes."""

    request: str
    number: int
    """Rises with every save of the engine."""
    parent: bytes
    """Key of the block before, or empty."""
    keys: bytes
    blocks: bytes
    group: int = 0
    """Cache group of the blocks."""


@dataclasses.dataclass
class StepMeta(KVConnectorMetadata):
    """One step's work for the workers."""

    step: int = 0
    loads: list[Load] = dataclasses.field(default_factory=list)
    saves: list[Save] = dataclasses.field(default_factory=list)
    seen: int = 0
    """The last step whose report the scheduler knew when it planned this one."""
    failed_steps: list[int] = dataclasses.field(default_factory=list)
    """Steps, not long ago, in which some rank's load failed."""
    settle: int = 0
    """Saves up to this number must be over before the step: it writes to their blocks."""
    leaving: dict[str, int] = dataclasses.field(default_factory=dict)
    """Finished requests whose blocks are free once saves up to a number are over."""


@dataclasses.dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """What the workers did since their last report: counts are summed over ranks."""

    step: int = 0
    """Inline loads up to this step are over."""
    saves_through: int = 0
    """Saves up to this number are over."""
    loaded_blocks: int = 0
    failed_blocks: int = 0
    saved_blocks: int = 0
    known_blocks: int = 0
    refused_blocks: int = 0
    loaded_bytes: int = 0
    saved_bytes: int = 0
    load_us: int = 0
    """Time that steps waited for loads."""
    failed_requests: set[str] = dataclasses.field(default_factory=set)
    """Requests of which a block could not be loaded."""
    failed_steps: set[int] = dataclasses.field(default_factory=set)
    """Steps whose forward ran on a block that could not be loaded."""
    unsaved_requests: set[str] = dataclasses.field(default_factory=set)
    """Requests whose saves were dropped, as such a forward computed them."""
    refused_saves: set[int] = dataclasses.field(default_factory=set)
    """Numbers of saves that are not with the node whole."""
    error: str | None = None
    """What went wrong last."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> WorkerReport:
        assert isinstance(other, WorkerReport)
        counts = [f.name for f in dataclasses.fields(WorkerReport) if f.type == "int"]
        total = {name: getattr(self, name) + getattr(other, name) for name in counts}
        total["step"] = min(self.step, other.step)
        total["saves_through"] = min(self.saves_through, other.saves_through)
        return WorkerReport(
            **total,
            failed_requests=self.failed_requests | other.failed_requests,
            failed_steps=self.failed_steps | other.failed_steps,
            unsaved_requests=self.unsaved_requests | other.unsaved_requests,
            refused_saves=self.refused_saves | other.refused_saves,
            error=self.error or other.error,
        )


@dataclasses.dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """A worker's view of the KV layout, which the scheduler side needs to name keys."""

    groups: list[GroupShape]
    namespace: bytes
    """Canonical encoding."""
