# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side: which blocks of a request are in the cache, and which to save.

Never blocks on the node and never raises for it: a node that is slow, full or gone is a miss.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pegaflow import _native
from pegaflow.vllm.meta import Load, Save, StepMeta, WorkerReport
from pegaflow.vllm.settings import Settings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger("pegaflow.vllm")
KEY_BYTES = 16


@dataclasses.dataclass
class _Request:
    """What is known of one request between its first lookup and its end."""

    request: Request
    keys: bytes = b""
    """Keys of its full blocks so far."""
    lookup: _native.Lookup | None = None
    first: int = 0
    """Block at which the lookup starts: those before are in the engine."""
    found: _native.Found | None = None
    blocks: list[int] = dataclasses.field(default_factory=list)
    saved: int = 0
    """Blocks handed to the workers to save, or loaded from the cache."""


class Scheduler:
    """State of all requests on the scheduler's side."""

    def __init__(self, settings: Settings, client: _native.Client, block_tokens: int) -> None:
        self._settings = settings
        self._client = client
        self._block_tokens = block_tokens
        self._namespace: _native.Namespace | None = None
        self._requests: dict[str, _Request] = {}
        self._loads: dict[str, tuple[Load, _native.Found]] = {}
        self._unneeded: list[_native.Found] = []
        """Leases nobody reads under: given back with the next step."""
        self._reading: dict[int, list[_native.Found]] = {}
        """Leases the workers read under, by step."""
        self._step = 0
        self.hit_blocks = 0
        self.asked_blocks = 0

    def bind(self, namespace: _native.Namespace) -> None:
        """The workers have named the layout: from now on keys can be made."""
        self._namespace = namespace

    def matched_tokens(self, request: Request, computed_tokens: int) -> int | None:
        """Tokens beyond `computed_tokens` that the cache has. None: not known yet, ask again."""
        if self._namespace is None or not self._settings.mode.loads:
            return 0
        state = self._state(request)
        first = computed_tokens // self._block_tokens
        # One token at least must be computed, so that there is something to sample from.
        last = min((request.num_tokens - 1) // self._block_tokens, len(request.block_hashes))
        if state.lookup is None or state.first != first:
            self._drop_lookup(state)
            if last <= first:
                return 0
            keys = self._keys(state, last)[first * KEY_BYTES :]
            state.lookup = self._client.lookup(self._namespace, keys, self._settings.lease_ttl_ms)
            state.first = first
            self.asked_blocks += last - first
        if state.found is None:
            state.found = state.lookup.poll(self._settings.lookup_wait_ms)
            if state.found is None:
                return None
        return state.found.ready * self._block_tokens

    def allocated(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        """The engine gave the request its blocks; `external_tokens` of them are to be loaded."""
        state = self._state(request)
        found, state.found, state.lookup = state.found, None, None
        if found is None or found.ready == 0:
            return
        count = external_tokens // self._block_tokens
        if count == 0:
            self._unneeded.append(found)
            return
        ids = blocks.get_block_ids()[0]
        at = slice(state.first, state.first + count)
        load = Load(
            request=request.request_id,
            keys=self._keys(state, at.stop)[at.start * KEY_BYTES :],
            places=found.places[: count * 8],
            generations=found.generations[: count * 4],
            blocks=list(ids[at]),
        )
        state.saved = max(state.saved, at.stop) if state.first == 0 else state.saved
        self.hit_blocks += count
        self._loads[request.request_id] = (load, found)

    def step(self, output: SchedulerOutput) -> StepMeta:
        """The work of this step."""
        self._step += 1
        meta = StepMeta(step=self._step)
        for load, found in self._loads.values():
            meta.loads.append(load)
            self._reading.setdefault(self._step, []).append(found)
        self._loads = {}
        if self._settings.mode.saves and self._namespace is not None:
            self._plan_saves(output, meta)
        if self._unneeded:
            self._client.release(self._unneeded)
            self._unneeded = []
        return meta

    def step_done(self, report: WorkerReport) -> None:
        """Every worker is through with the step: its copies are done, so its leases end."""
        for step in [step for step in self._reading if step <= report.step]:
            self._unneeded.extend(self._reading.pop(step))

    def finished(self, request_id: str) -> None:
        """The request is over, whatever its end."""
        state = self._requests.pop(request_id, None)
        if state is not None:
            self._drop_lookup(state)
        planned = self._loads.pop(request_id, None)
        if planned is not None:
            self._unneeded.append(planned[1])

    def load_failed(self, request_ids: Sequence[str]) -> None:
        """These requests recompute blocks they took for loaded: they are to be saved after all."""
        for request_id in request_ids:
            if request_id in self._requests:
                self._requests[request_id].saved = 0

    def _plan_saves(self, output: SchedulerOutput, meta: StepMeta) -> None:
        scheduled = output.num_scheduled_tokens
        for new in output.scheduled_new_reqs:
            state = self._requests.get(new.req_id)
            if state is not None:
                state.blocks = list(new.block_ids[0])
                self._plan_save(state, new.num_computed_tokens + scheduled[new.req_id], meta)
        cached: Any = output.scheduled_cached_reqs
        for at, request_id in enumerate(cached.req_ids):
            state = self._requests.get(request_id)
            if state is None:
                continue
            added = cached.new_block_ids[at]
            if request_id in cached.resumed_req_ids:
                state.blocks = list(added[0])
            elif added is not None:
                state.blocks.extend(added[0])
            self._plan_save(state, cached.num_computed_tokens[at] + scheduled[request_id], meta)

    def _plan_save(self, state: _Request, computed_tokens: int, meta: StepMeta) -> None:
        # Only blocks whose tokens are all known: a rejected draft token never gets a hash.
        full = min(computed_tokens // self._block_tokens, len(state.request.block_hashes), len(state.blocks))
        first = state.saved
        if full <= first:
            return
        keys = self._keys(state, full)
        meta.saves.append(
            Save(
                request=state.request.request_id,
                parent=keys[(first - 1) * KEY_BYTES : first * KEY_BYTES] if first else b"",
                keys=keys[first * KEY_BYTES :],
                blocks=state.blocks[first:full],
            )
        )
        state.saved = full

    def _keys(self, state: _Request, count: int) -> bytes:
        """Keys of the first `count` blocks."""
        have = len(state.keys) // KEY_BYTES
        if have < count:
            assert self._namespace is not None
            hashes = [bytes(h) for h in state.request.block_hashes[have:count]]
            state.keys += self._namespace.keys(0, hashes)
        return state.keys[: count * KEY_BYTES]

    def _state(self, request: Request) -> _Request:
        state = self._requests.get(request.request_id)
        if state is None:
            state = self._requests[request.request_id] = _Request(request)
        return state

    def _drop_lookup(self, state: _Request) -> None:
        if state.found is not None:
            self._unneeded.append(state.found)
        elif state.lookup is not None:
            state.lookup.cancel()
        state.lookup = state.found = None
