# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side: which blocks of a request are in the cache, and which to save.

Waits for the node only for a lookup, and over all requests of a step no longer than `lookup_step_us`. Blocks on their
way from SSD are asked for in later steps, without a call to the node, until they are there or `fetch_wait_ms` is over.
Never raises for the node: one that is slow, full or gone is a miss.
"""

from __future__ import annotations

import array
import dataclasses
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from pegaflow import _native
from pegaflow.vllm.events import Events
from pegaflow.vllm.health import Health
from pegaflow.vllm.meta import (
    BLOCK_BYTES,
    GENERATION_BYTES,
    KEY_BYTES,
    NULL_BLOCK,
    PLACE_BYTES,
    Load,
    Save,
    StepMeta,
    WorkerReport,
)
from pegaflow.vllm.namespace import adapter_fingerprint
from pegaflow.vllm.settings import Settings
from pegaflow.vllm.stats import PegaFlowStats

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclasses.dataclass
class _Request:
    """What is known of one request between its first lookup and its end."""

    request: Request
    suffix: bytes = b""
    """What its keys depend on beside the engine's hashes."""
    keys: list[bytes] = dataclasses.field(default_factory=list)
    """Keys of its full blocks so far, group by group."""
    lookup: _native.Lookup | None = None
    found: _native.Found | None = None
    """What the lookup found, from `asked_from` on."""
    asked_from: int = 0
    """The first block that the lookup asks for."""
    found_at: float = 0.0
    first: int = 0
    """The first block to load; those before are in the engine."""
    loaded_from_ssd: int = 0
    """Of the blocks to load, those that came from SSD."""
    background: bool = False
    blocks: list[list[int]] = dataclasses.field(default_factory=list)
    """The engine's blocks, group by group."""
    saved: int = 0
    """Blocks handed to the workers to save, or known to be with the node."""
    last_save: int = 0
    """Number of its last save."""
    burnt: bool = False
    """A load failed: the rest of the request is computed."""
    private: bool = False
    """Its blocks cannot be named so that others know them: neither loaded nor saved."""


class Scheduler:
    """State of all requests on the scheduler's side."""

    def __init__(
        self,
        settings: Settings,
        client: _native.Client,
        block_tokens: int,
        delays_frees: bool,
        *,
        tells: bool = False,
        blocks: int,
        groups: int = 1,
        hybrid: bool = False,
        inline: bool = True,
    ) -> None:
        """`blocks`: how many the engine has. `inline`: blocks may be loaded within a step."""
        self._settings = settings
        # What is there at once is pinned no longer than that.
        self._fetch_wait_ms = min(settings.fetch_wait_ms, settings.lease_ttl_ms // 2)
        self._inline_max = settings.inline_load_bytes_max if inline else 0
        self._client = client
        self._block_tokens = block_tokens
        self._groups = groups
        self._hybrid = hybrid
        """Some group does not need all blocks of a prefix: all are looked up together, and loaded beside the steps (the
        engine takes back a load of several groups only as a whole, and only there)."""
        self._delays_frees = delays_frees
        """The engine goes on stepping while finished requests wait for their saves."""
        self._health = Health()
        self._namespace: _native.Namespace | None = None
        self._block_bytes = 1
        self._requests: dict[str, _Request] = {}
        self._loads: dict[str, tuple[list[Load], _native.Found]] = {}
        self._unneeded: list[_native.Found] = []
        """Leases nobody reads under: given back with the next step."""
        self._reading: dict[int, list[_native.Found]] = {}
        """Leases that inline loads read under, by step."""
        self._background: dict[str, _native.Found] = {}
        """Leases that background loads read under."""
        self._step = 0
        self._seen = 0
        """The last step that the workers have reported."""
        self._failed_steps: deque[int] = deque(maxlen=16)
        self._saves = 0
        self._saves_through = 0
        self._saved_as = array.array("Q", bytes(8 * blocks))
        """The number of the last save that reads each of the engine's blocks. An array: a table that grows with what is
        being saved would now and then cost a step milliseconds."""
        self._leaving: dict[str, int] = {}
        """Finished requests whose blocks wait for saves, not told to the workers yet."""
        self._left_to_come: set[str] = set()
        self._inline_bytes = 0
        self._waited_us = 0
        self._epoch = b""
        self._stats = PegaFlowStats()
        self._events = Events(block_tokens) if tells else None
        """None: nobody listens."""

    def reset(self) -> None:
        """The weights have changed: nothing that was saved may be found again by this engine."""
        self._epoch = os.urandom(16)
        if self._events is not None:
            self._events.forget()

    def bind(self, namespace: _native.Namespace, block_bytes: int) -> None:
        """The workers have named the layout: from now on keys can be made."""
        self._namespace = namespace
        self._block_bytes = block_bytes

    # ---- what the engine asks while it schedules

    def matched_tokens(self, request: Request, computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens beyond `computed_tokens` that the cache has, and whether they come beside steps. None: ask again."""
        if self._namespace is None or not self._settings.mode.loads or computed_tokens % self._block_tokens:
            return 0, False
        state = self._state(request)
        first = computed_tokens // self._block_tokens
        # One token at least must be computed, so that there is something to sample from.
        last = min((request.num_tokens - 1) // self._block_tokens, len(request.block_hashes))
        if last <= first or state.burnt or state.private:
            # What the engine has by itself it has saved when it computed it.
            state.saved = max(state.saved, first)
            self._drop_lookup(state)
            return 0, False
        found = self._find(state, first, last)
        if found is None:
            return None, False
        count = min(self._ready(state, found), last) - first
        if count <= 0:
            return 0, False
        state.first = first
        wanted = count * self._block_bytes
        state.background = self._hybrid or self._inline_bytes + wanted > self._inline_max
        return count * self._block_tokens, state.background

    def allocated(self, request: Request, blocks: KVCacheBlocks, external_tokens: int) -> None:
        """The engine gave the request its blocks; `external_tokens` of them are to be loaded."""
        state = self._state(request)
        found, state.found, state.lookup = state.found, None, None
        state.loaded_from_ssd = 0
        if found is None:
            return
        # Also fewer than before: what the node has lost since is saved again.
        state.saved = self._ready(state, found)
        count = external_tokens // self._block_tokens
        if count == 0:
            self._unneeded.append(found)
            return
        first, end = state.first, state.first + count
        # What came later lies behind what was there at once.
        state.loaded_from_ssd = min(found.from_ssd, max(0, end - max(first, state.asked_from + found.at_once)))
        tables = blocks.get_block_ids()
        if self._hybrid:
            loads = [self._load_of(state, found, group, table, first, end) for group, table in enumerate(tables)]
        else:
            loads = [self._load(state, found, tables[0][first:end])]
        if not state.background:
            self._inline_bytes += count * self._block_bytes
        self._loads[request.request_id] = (loads, found)

    def loaded_from_ssd(self, request_id: str) -> int:
        """Tokens of what the request is about to load that came from SSD."""
        state = self._requests.get(request_id)
        return state.loaded_from_ssd * self._block_tokens if state is not None else 0

    def step(self, output: SchedulerOutput) -> StepMeta:
        """The work of this step."""
        self._step += 1
        self._inline_bytes = self._waited_us = 0
        meta = StepMeta(step=self._step, seen=self._seen, failed_steps=list(self._failed_steps), leaving=self._leaving)
        self._leaving = {}
        for request_id, (loads, found) in self._loads.items():
            meta.loads.extend(loads)
            for load in loads:
                self._settle(meta, array.array("I", load.blocks))
            if loads[0].background:
                self._background[request_id] = found
            else:
                self._reading.setdefault(self._step, []).append(found)
        self._loads = {}
        self._follow(output, meta)
        if self._unneeded:
            self._client.release(self._unneeded)
            self._unneeded = []
        self._health.node(self._client.trouble())
        return meta

    # ---- what the engine says of steps and requests that are over

    def step_done(self, report: WorkerReport) -> None:
        """What every worker has done: leases of its loads end, blocks of its saves are free."""
        self._stats.add(report)
        for step in [step for step in self._reading if step <= report.step]:
            self._unneeded.extend(self._reading.pop(step))
        self._seen = max(self._seen, report.step)
        self._failed_steps.extend(sorted(report.failed_steps))
        for request_id in report.unsaved_requests:
            state = self._requests.get(request_id)
            if state is not None:
                state.saved = 0
        self._saves_through = report.saves_through
        if self._events is not None:
            self._events.saved(report.saves_through, report.refused_saves)
        for request_id in report.failed_requests:
            state = self._requests.get(request_id)
            if state is not None:
                # The blocks are computed after all, and the node may have lost them.
                state.burnt = True
                state.saved = min(state.saved, state.first)
        if report.failed_blocks:
            self._health.failed("loads failed, their blocks are computed", f"{report.failed_blocks} blocks")
        if report.error is not None:
            self._health.failed("the cache refused", report.error)

    def transfers_done(self, sent: set[str], loaded: set[str]) -> None:
        """Requests whose blocks saves have left, and whose background loads are over."""
        self._left_to_come -= sent
        for request_id in loaded:
            found = self._background.pop(request_id, None)
            if found is not None:
                self._unneeded.append(found)

    def finished(self, request_id: str) -> bool:
        """The request is over, whatever its end. Whether its blocks are still being saved."""
        state = self._requests.pop(request_id, None)
        planned = self._loads.pop(request_id, None)
        if planned is not None:
            self._unneeded.append(planned[1])
        if state is None:
            return False
        self._drop_lookup(state)
        loading = request_id in self._background
        if not self._delays_frees or loading or state.last_save <= self._saves_through:
            # The engine itself keeps the blocks of a background load. All others may go: should one be wanted before
            # its save is over, the step that wants it waits.
            return False
        self._leaving[request_id] = state.last_save
        self._left_to_come.add(request_id)
        return True

    def take_stats(self) -> PegaFlowStats:
        """What happened since the last call."""
        taken, self._stats = self._stats, PegaFlowStats()
        return taken

    def take_events(self) -> list[Any]:
        """What became of blocks since the last call, for those who follow this engine's cache."""
        return self._events.take() if self._events is not None else []

    def has_pending_frees(self) -> bool:
        """Whether blocks come back without anything being preempted."""
        return bool(self._left_to_come)

    # ---- parts

    def _find(self, state: _Request, first: int, last: int) -> _native.Found | None:
        """What the node has of the blocks before `last`, of which the engine has those before `first`; None if it has
        not said so yet."""
        assert self._namespace is not None
        age_ms = (time.monotonic() - state.found_at) * 1000
        if state.asked_from > first or (state.found is not None and age_ms > self._settings.lease_ttl_ms / 2):
            self._drop_lookup(state)
        if state.found is None:
            if state.lookup is None:
                # The engine's last block is asked for as well: the node keeps no block without those before it, so that
                # one tells whether it has them all, and what it has lost is saved again.
                state.asked_from = 0 if self._hybrid else max(0, first - 1)
                state.lookup = self._look_up(state, last)
            started = time.perf_counter_ns()
            left = max(0, self._settings.lookup_step_us - self._waited_us)
            state.found = state.lookup.poll(left, self._settings.lookup_wait_ms, self._fetch_wait_ms)
            self._waited_us += (time.perf_counter_ns() - started) // 1000
            state.found_at = time.monotonic()
            if state.found is not None:
                self._count(state, state.found, last)
                if self._events is not None and not state.found.given_up:
                    ready = self._ready(state, state.found)
                    self._events.looked_up(state.request, state.asked_from, ready, last)
        return state.found

    def _look_up(self, state: _Request, count: int) -> _native.Lookup:
        assert self._namespace is not None
        keys, ttl_ms = self._keys(state, count), self._settings.lease_ttl_ms
        if not self._hybrid:
            wanted = keys[0][state.asked_from * KEY_BYTES : count * KEY_BYTES]
            return self._client.lookup(self._namespace, wanted, ttl_ms)
        of_groups = [of_group[: count * KEY_BYTES] for of_group in keys]
        return self._client.lookup_hybrid(self._namespace, of_groups, ttl_ms)

    def _ready(self, state: _Request, found: _native.Found) -> int:
        """Blocks of the prefix that was found."""
        if self._hybrid:
            return found.tokens // self._block_tokens
        return state.asked_from + found.ready if found.ready else 0

    def _load(self, state: _Request, found: _native.Found, blocks: list[int]) -> Load:
        """Found blocks from the first one that the engine lacks on, into `blocks`."""
        first, end = state.first, state.first + len(blocks)
        at, to = first - state.asked_from, end - state.asked_from
        return Load(
            request=state.request.request_id,
            keys=state.keys[0][first * KEY_BYTES : end * KEY_BYTES],
            places=found.places[at * PLACE_BYTES : to * PLACE_BYTES],
            generations=found.generations[at * GENERATION_BYTES : to * GENERATION_BYTES],
            blocks=_packed(blocks),
            background=state.background,
        )

    def _load_of(
        self, state: _Request, found: _native.Found, group: int, table: list[int], first: int, end: int
    ) -> Load:
        """What one group needs of the blocks `first` to `end`: those that are in its window."""
        packed, places, generations = found.group(group)
        positions = array.array("I", packed)
        picks = [at for at, p in enumerate(positions) if first <= p < end and table[p] != NULL_BLOCK]
        return Load(
            request=state.request.request_id,
            keys=b"".join(_item(state.keys[group], positions[at], KEY_BYTES) for at in picks),
            places=b"".join(_item(places, at, PLACE_BYTES) for at in picks),
            generations=b"".join(_item(generations, at, GENERATION_BYTES) for at in picks),
            blocks=_packed([table[positions[at]] for at in picks]),
            background=True,
            group=group,
        )

    def _count(self, state: _Request, found: _native.Found, last: int) -> None:
        data = self._stats.data
        data["lookups"] += 1
        data["lookup_timeouts"] += found.given_up
        data["lookup_us"] += found.answer_us
        data["asked_blocks"] += last - state.asked_from
        data["found_blocks"] += max(0, self._ready(state, found) - state.asked_from)
        data["found_ssd_blocks"] += found.from_ssd
        data["fetches"] += found.fetch_us > 0
        data["fetch_us"] += found.fetch_us

    def _follow(self, output: SchedulerOutput, meta: StepMeta) -> None:
        """Keeps up with the blocks of scheduled requests; plans saves of those that are full."""
        scheduled = output.num_scheduled_tokens
        for new in output.scheduled_new_reqs:
            state = self._requests.get(new.req_id)
            if state is not None:
                self._start_tables(state, new.block_ids, new.num_computed_tokens, meta)
                self._plan_save(state, new.num_computed_tokens + scheduled[new.req_id], meta)
        cached: Any = output.scheduled_cached_reqs
        for at, request_id in enumerate(cached.req_ids):
            state = self._requests.get(request_id)
            if state is None:
                continue
            added = cached.new_block_ids[at]
            computed = cached.num_computed_tokens[at]
            if request_id in cached.resumed_req_ids:
                self._start_tables(state, added, computed, meta)
            elif added is not None:
                for table, blocks in zip(state.blocks, added, strict=True):
                    table.extend(blocks)
                    self._settle(meta, blocks)
            self._plan_save(state, computed + scheduled[request_id], meta)

    def _start_tables(self, state: _Request, tables: Any, computed_tokens: int, meta: StepMeta) -> None:
        state.blocks = [list(blocks) for blocks in tables]
        for blocks in state.blocks:
            self._settle(meta, blocks[computed_tokens // self._block_tokens :])

    def _plan_save(self, state: _Request, computed_tokens: int, meta: StepMeta) -> None:
        # Only blocks whose tokens are all known: a rejected draft token never gets a hash.
        full = min(computed_tokens // self._block_tokens, len(state.request.block_hashes))
        first = state.saved
        if full <= first or self._namespace is None or state.private or not self._settings.mode.saves:
            return
        keys = self._keys(state, full)
        full = min(full, *map(len, state.blocks)) if state.blocks else 0
        for group, table in enumerate(state.blocks):
            for start, end in _runs(table, first, full):
                meta.saves.append(self._save(state, group, keys[group], start, end))
                if self._events is not None and group == 0:
                    self._events.saving(self._saves, state.request, start, end)
        state.saved, state.last_save = max(first, full), self._saves

    def _save(self, state: _Request, group: int, keys: bytes, first: int, end: int) -> Save:
        blocks = state.blocks[group][first:end]
        self._saves += 1
        for block in blocks:
            self._saved_as[block] = self._saves
        return Save(
            request=state.request.request_id,
            number=self._saves,
            parent=_item(keys, first - 1, KEY_BYTES) if first else b"",
            keys=keys[first * KEY_BYTES : end * KEY_BYTES],
            blocks=_packed(blocks),
            group=group,
        )

    def _settle(self, meta: StepMeta, blocks: Any) -> None:
        """The step writes to these blocks: saves that read them must be over."""
        if self._saves > self._saves_through:
            newest = max(map(self._saved_as.__getitem__, blocks), default=0)
            if newest > self._saves_through:
                meta.settle = max(meta.settle, newest)

    def _keys(self, state: _Request, count: int) -> list[bytes]:
        """Keys of the first `count` blocks, or more, group by group."""
        state.keys = state.keys or [b""] * self._groups
        have = len(state.keys[0]) // KEY_BYTES
        if have < count:
            assert self._namespace is not None
            hashes: list[bytes] = state.request.block_hashes[have:count]
            if state.suffix:
                hashes = [block + state.suffix for block in hashes]
            for group in range(self._groups):
                state.keys[group] += self._namespace.keys(group, hashes)
        return state.keys

    def _state(self, request: Request) -> _Request:
        state = self._requests.get(request.request_id)
        if state is None:
            lora = adapter_fingerprint(request.lora_request)
            state = _Request(request, suffix=self._epoch + (lora or b""), private=lora is None)
            self._requests[request.request_id] = state
        return state

    def _drop_lookup(self, state: _Request) -> None:
        if state.found is not None:
            self._unneeded.append(state.found)
        elif state.lookup is not None:
            state.lookup.cancel()
        state.lookup = state.found = None


def _item(packed: bytes, at: int, size: int) -> bytes:
    return packed[at * size : (at + 1) * size]


def _runs(table: list[int], first: int, end: int) -> list[tuple[int, int]]:
    """Stretches of a table without blocks that are out of the window."""
    if NULL_BLOCK not in table[first:end]:
        return [(first, end)] if first < end else []
    runs, start = [], first
    for at in range(first, end + 1):
        if at == end or table[at] == NULL_BLOCK:
            if start < at:
                runs.append((start, at))
            start = at + 1
    return runs


def _packed(blocks: list[int]) -> bytes:
    packed = array.array("I", blocks)
    assert packed.itemsize == BLOCK_BYTES
    return packed.tobytes()
