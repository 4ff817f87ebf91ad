# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The worker's side: starts loads before a forward and saves after it, and says when they are over.

Never raises for the node: what cannot be loaded is reported by block, what cannot be saved is counted. No call here
waits for the node; what is waited for is copies, and only where the engine is about to use or overwrite their blocks.
"""

from __future__ import annotations

import array
import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from pegaflow import _native
from pegaflow.vllm.meta import BLOCK_BYTES, Load, Save, StepMeta, WorkerReport

if TYPE_CHECKING:
    from pegaflow.vllm.layout import GroupLayout


BY_LAYER_BYTES_MIN = 256 << 10
"""Bytes of a layer of a block from which on loads go layer after layer under the forward. Shorter ones make so many
pieces that nothing is gained: such loads go block after block, and the forward, launched meanwhile, begins when all is
there."""


@dataclasses.dataclass
class _Batch:
    """The saves of a step, until it is sure that its forward ran on the right bytes."""

    step: int
    seen: int
    """What the scheduler knew when it planned them."""
    loads_until: int
    """The last step with inline loads, up to this one."""
    saves: list[Save]


@dataclasses.dataclass
class _Background:
    """A load beside the engine's steps."""

    load: Load
    loading: _native.Loading | None

    def is_over(self) -> bool:
        return self.loading is None or self.loading.done()


class Worker:
    """One rank's copies between the engine's KV and the node's pool."""

    def __init__(
        self,
        groups: list[tuple[_native.Rank, GroupLayout]],
        stream: Callable[[], int | None],
        by_layer: bool,
        ranks: int = 1,
        hybrid: bool = False,
    ) -> None:
        """`groups`: the copies of each cache group and where its blocks lie.

        `by_layer`: loads within a step go layer after layer. `hybrid`: failed loads are told by request.
        """
        self._lanes = [rank for rank, _ in groups]
        self._hybrid = hybrid
        self._ranks = ranks
        self._held: deque[_Batch] = deque()
        self._loads_until = 0
        self._failed_steps: set[int] = set()
        self._slot_bytes = [len(g.layers) * g.parts * g.heads * g.inner_bytes for _, g in groups]
        self._stream = stream
        names = groups[0][1].layer_names if by_layer else ()
        self._layer_ends = {name: at + 1 for at, name in enumerate(names)}
        self._inline: list[tuple[Load, int]] = []
        """Loads of this step, with the position of their first block."""
        self._loading: _native.Loading | None = None
        self._awaited = 0
        """Layers of it that the forward has waited for."""
        self._background: dict[str, list[_Background]] = {}
        self._leaving: dict[str, int] = {}
        self._failed: set[int] = set()
        self._failed_requests: set[str] = set()
        self._through = 0
        self._report = WorkerReport()

    # ---- in the order of a step

    def settle(self, meta: StepMeta) -> None:
        """Before the step changes any block: waits for saves that still read blocks it will write."""
        self._failed_steps.update(meta.failed_steps)
        if meta.settle > self._through:
            while self._held and any(save.number <= meta.settle for save in self._held[0].saves):
                self._submit(self._held.popleft(), keep=False)
            for lane in self._lanes:
                lane.settle(meta.settle)
        self._leaving.update(meta.leaving)

    def load(self, meta: StepMeta, whole: bool) -> None:
        """Starts the step's loads. `whole`: the forward will not ask for its layers one by one."""
        inline = [load for load in meta.loads if not load.background]
        if inline:
            self._loads_until = meta.step
            self._start_inline(inline, whole)
        for load in meta.loads:
            if load.background:
                self._background.setdefault(load.request, []).append(_Background(load, self._start([load])))

    def wait_for_layer(self, name: str) -> None:
        """The forward is about to read this layer."""
        end = self._layer_ends.get(name)
        if self._loading is not None and end is not None:
            self._loading.hold(self._stream(), end)
            self._awaited = max(self._awaited, end)

    def save(self, meta: StepMeta) -> None:
        """Lets the blocks that the step completes be saved, once it has computed them."""
        self._finish_inline()
        if meta.saves:
            self._held.append(_Batch(meta.step, meta.seen, self._loads_until, meta.saves))
        while self._held and self._is_sure(self._held[0], meta.seen):
            batch = self._held.popleft()
            tainted = any(batch.seen < step <= batch.step for step in self._failed_steps)
            self._submit(batch, keep=not tainted)
        if not self._held and self._failed_steps:
            # What the scheduler plans from now on it plans knowing of these.
            self._failed_steps = {step for step in self._failed_steps if step > meta.seen}
        self._report.step = meta.step

    def finished(self) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose blocks saves have left, and requests whose background loads are over; each once."""
        self._count_saves()
        left = {request for request, number in self._leaving.items() if number <= self._through}
        for request in left:
            del self._leaving[request]
        loaded = {request for request, jobs in self._background.items() if all(job.is_over() for job in jobs)}
        for request in loaded:
            for job in self._background.pop(request):
                if self._judge([(job.load, 0)], job.loading):
                    self._failed_requests.add(request)
        return left or None, loaded or None

    def take_failed_requests(self) -> set[str]:
        """Hybrid: requests of which a block could not be loaded."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed if self._hybrid else set()

    def take_failed(self) -> set[int]:
        """Engine blocks whose load failed since the last call; hybrid engines are told of requests instead."""
        self._finish_inline()
        failed, self._failed = self._failed, set()
        return set() if self._hybrid else failed

    def take_report(self) -> WorkerReport:
        """What was done since the last call."""
        self._count_saves()
        report = self._report
        report.saves_through = self._through
        self._report = WorkerReport(step=report.step)
        return report

    def close(self) -> None:
        """Waits for copies that run; what has not begun is dropped."""
        self._finish_inline()
        for jobs in self._background.values():
            for job in jobs:
                if job.loading is not None:
                    job.loading.finish()
        self._background.clear()
        for lane in self._lanes:
            lane.close()

    # ---- parts

    def _start_inline(self, loads: list[Load], whole: bool) -> None:
        at = 0
        for load in loads:
            self._inline.append((load, at))
            at += len(load.blocks) // BLOCK_BYTES
        self._loading = self._start(loads, by_layer=bool(self._layer_ends) and not whole)
        self._awaited = 0
        if self._loading is not None and (whole or not self._layer_ends):
            started = time.perf_counter_ns()
            self._loading.hold(self._stream())
            self._awaited = len(self._layer_ends)
            self._report.load_us += (time.perf_counter_ns() - started) // 1000

    def _start(self, loads: list[Load], by_layer: bool = False) -> _native.Loading | None:
        items = [(load.keys, load.places, load.generations, load.blocks) for load in loads]
        try:
            # Loads of one call are of one group: those within a step are of an engine's only one.
            return self._lanes[loads[0].group].load(items, self._stream(), by_layer)
        except _native.PegaFlowError as error:
            self._report.error = str(error)
            return None

    def _is_sure(self, batch: _Batch, seen: int) -> bool:
        """Whether all ranks' loads that the batch's forward stood on are judged, and the verdicts known here."""
        return self._ranks == 1 or batch.loads_until <= max(batch.seen, seen)

    def _submit(self, batch: _Batch, keep: bool) -> None:
        """Hands saves on. Those not kept, or of other groups, go without their blocks, so that numbers end in order."""
        for group, lane in enumerate(self._lanes):
            items = [
                (s.number, s.parent, s.keys, s.blocks) if keep and s.group == group else (s.number, b"", b"", b"")
                for s in batch.saves
            ]
            lane.save(items, self._stream())
        if not keep:
            self._report.unsaved_requests.update(s.request for s in batch.saves)
            self._report.refused_saves.update(s.number for s in batch.saves)

    def _finish_inline(self) -> None:
        """The step's loads must be proven before its tokens are given out."""
        if self._inline:
            loads, self._inline = self._inline, []
            loading, self._loading = self._loading, None
            started = time.perf_counter_ns()
            if loading is not None and self._awaited < len(self._layer_ends):
                # A forward that asked for no layers has not waited for them.
                loading.finish()
                loading = None
                self._report.error = "a forward did not wait for the layers that it read"
            if self._judge(loads, loading):
                self._failed_steps.add(self._loads_until)
                self._report.failed_steps.add(self._loads_until)
            self._report.load_us += (time.perf_counter_ns() - started) // 1000

    def _judge(self, loads: list[tuple[Load, int]], loading: _native.Loading | None) -> bool:
        """Notes which blocks came as they were saved; whether one did not."""
        before = self._report.failed_blocks
        bad = set(loading.finish()) if loading is not None else None
        for load, first in loads:
            blocks = array.array("I", load.blocks)
            failed = [b for at, b in enumerate(blocks, first) if bad is None or at in bad]
            self._failed.update(failed)
            if failed:
                self._report.failed_requests.add(load.request)
            good = len(blocks) - len(failed)
            self._report.failed_blocks += len(failed)
            self._report.loaded_blocks += good
            self._report.loaded_bytes += good * self._slot_bytes[load.group]
        return self._report.failed_blocks > before

    def _count_saves(self) -> None:
        over = []
        for lane in self._lanes:
            through, saved, known, refused, count, refused_saves, error = lane.saves()
            over.append(through)
            self._report.saved_blocks += saved
            self._report.known_blocks += known
            self._report.refused_blocks += refused
            self._report.saved_bytes += count
            self._report.refused_saves.update(refused_saves)
            self._report.error = error or self._report.error
        self._through = min(over)


def rank_layout(group: GroupLayout) -> _native.RankLayout:
    """Where a rank's blocks lie, as the native module wants it."""
    return {
        "layers": (group.first_layer, group.first_layer + len(group.layers)),
        "heads": (group.first_head, group.first_head + group.heads),
        "blocks": group.blocks,
        "views": [(v.address, v.block_stride, v.part_stride, v.head_stride) for v in group.layers],
    }
