# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The worker's side: brings blocks in before a forward, saves full blocks after it.

Never raises for the node: what cannot be loaded is reported by block, what cannot be saved is counted.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from pegaflow import _native
from pegaflow.vllm.meta import Load, Save, StepMeta, WorkerReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from pegaflow.vllm.layout import GroupLayout

logger = logging.getLogger("pegaflow.vllm")
T = TypeVar("T")


class Worker:
    """One rank's copies between the engine's KV and the node's pool."""

    def __init__(self, open_rank: Callable[[], _native.Rank]) -> None:
        self._open_rank = open_rank
        self._rank: _native.Rank | None = None
        self._failed: set[int] = set()
        self._report = WorkerReport()
        self._healthy = True

    def start(self) -> None:
        """Maps the pool and names the tensors to the copy engine. Harmless to call twice."""
        if self._rank is None:
            self._rank = self._open_rank()

    def load(self, meta: StepMeta) -> None:
        """Brings in what the step needs; returns when it is there, or known not to be."""
        if not meta.loads:
            return
        started = time.perf_counter_ns()
        for load in meta.loads:
            failed = self._attempt("load", functools.partial(self._load_one, load), list(range(len(load.blocks))))
            self._failed.update(load.blocks[at] for at in failed)
            self._report.failed_blocks += len(failed)
            self._report.loaded_blocks += len(load.blocks) - len(failed)
        self._report.load_us += (time.perf_counter_ns() - started) // 1000

    def save(self, meta: StepMeta) -> None:
        """Saves the blocks that the step completed, but for those the node has already."""
        started = time.perf_counter_ns()
        for save in meta.saves:
            saved = self._attempt("save", functools.partial(self._save_one, save), 0)
            self._report.saved_blocks += saved
        if meta.saves:
            self._report.save_us += (time.perf_counter_ns() - started) // 1000
        self._report.step = meta.step

    def take_failed(self) -> set[int]:
        """Engine blocks whose load failed since the last call."""
        failed, self._failed = self._failed, set()
        return failed

    def take_report(self) -> WorkerReport:
        """What was done since the last call."""
        report, self._report = self._report, WorkerReport(step=self._report.step)
        return report

    def close(self) -> None:
        """Ends the session with the node; waits for copies that still run."""
        rank, self._rank = self._rank, None
        if rank is not None:
            rank.close()

    def _load_one(self, load: Load) -> list[int]:
        self.start()
        assert self._rank is not None
        return self._rank.load(load.keys, load.places, load.generations, load.blocks)

    def _save_one(self, save: Save) -> int:
        self.start()
        assert self._rank is not None
        return self._rank.save(save.parent, save.keys, save.blocks)

    def _attempt(self, what: str, act: Callable[[], T], otherwise: T) -> T:
        """Runs a copy; says once when the node stops answering and once when it is back."""
        try:
            result = act()
        except _native.PegaFlowError as error:
            if self._healthy:
                logger.warning("PegaFlow: %s refused, the engine computes instead: %s", what, error)
            self._healthy = False
            return otherwise
        if not self._healthy:
            logger.info("PegaFlow: the cache answers again")
        self._healthy = True
        return result


def rank_layout(group: GroupLayout) -> _native.RankLayout:
    """Where a rank's blocks lie, as the native module wants it."""
    return {
        "layers": (group.first_layer, group.first_layer + len(group.layers)),
        "heads": (group.first_head, group.first_head + group.heads),
        "blocks": group.blocks,
        "views": [(v.address, v.block_stride, v.part_stride, v.head_stride) for v in group.layers],
        "memory": sorted({(v.storage_address, v.storage_bytes) for v in group.layers}),
    }
