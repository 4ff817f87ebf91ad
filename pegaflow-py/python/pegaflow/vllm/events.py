# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""KV events in vLLM's format, for routers that send a request where its prefix is.

Says what this engine knows of its node: a block is stored once its save is over, or a lookup has found it; it is
removed when a lookup finds it gone. The node tells nobody what it evicts, so a removal may come late: until then a
router's guess costs one miss, which corrects it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, maybe_convert_block_hash

if TYPE_CHECKING:
    from vllm.v1.request import Request

ANNOUNCED_MAX = 1 << 20
"""Blocks that are remembered as announced. Over it the oldest are announced as removed."""


class Events:
    """What was announced, and what is to be."""

    def __init__(self, block_tokens: int, announced_max: int = ANNOUNCED_MAX) -> None:
        self._block_tokens = block_tokens
        self._announced_max = announced_max
        self._announced: dict[Any, None] = {}
        self._saving: deque[tuple[int, BlockStored]] = deque()
        self._out: list[KVCacheEvent] = []

    def saving(self, number: int, request: Request, first: int, end: int) -> None:
        """A save of the request's blocks `first` to `end` was planned."""
        self._saving.append((number, self._stored(request, first, end)))

    def saved(self, through: int, refused: Iterable[int]) -> None:
        """Saves up to `through` are over; of those in `refused` not all blocks were taken."""
        refused = set(refused)
        while self._saving and self._saving[0][0] <= through:
            number, event = self._saving.popleft()
            if number not in refused:
                self._announce(event)

    def looked_up(self, request: Request, first: int, ready: int, end: int) -> None:
        """A lookup of the request's blocks `first` to `end` has found those before `ready`."""
        hashes = request.block_hashes
        new = next((at for at in range(first, ready) if hashes[at] not in self._announced), ready)
        if new < ready:
            self._announce(self._stored(request, new, ready))
        self._remove([block for block in hashes[max(first, ready) : end] if block in self._announced])

    def forget(self) -> None:
        """Nothing that was announced can be found any more."""
        self._saving.clear()
        self._remove(list(self._announced))

    def take(self) -> list[KVCacheEvent]:
        """Events since the last call."""
        out, self._out = self._out, []
        return out

    def _announce(self, event: BlockStored) -> None:
        self._announced.update(dict.fromkeys(event.block_hashes))
        self._out.append(self._outward(event))
        over = len(self._announced) - self._announced_max
        if over > 0:
            oldest = iter(self._announced)
            self._remove([next(oldest) for _ in range(over)])

    def _remove(self, hashes: list[Any]) -> None:
        for block in hashes:
            del self._announced[block]
        if hashes:
            self._out.append(
                BlockRemoved(
                    block_hashes=[maybe_convert_block_hash(block) for block in hashes],
                    medium=MEDIUM_CPU,
                    group_idx=0,
                )
            )

    def _outward(self, event: BlockStored) -> BlockStored:
        parent = event.parent_block_hash
        event.block_hashes = [maybe_convert_block_hash(block) for block in event.block_hashes]
        event.parent_block_hash = None if parent is None else maybe_convert_block_hash(parent)
        return event

    def _stored(self, request: Request, first: int, end: int) -> BlockStored:
        """The event with the engine's own hashes, as they are looked up by."""
        size, adapter = self._block_tokens, request.lora_request
        extra, feature = [], 0
        for at in range(first, end):
            keys, feature = generate_block_hash_extra_keys(request, at * size, (at + 1) * size, feature)
            extra.append(keys)
        return BlockStored(
            block_hashes=list(request.block_hashes[first:end]),
            parent_block_hash=request.block_hashes[first - 1] if first else None,
            token_ids=list(request.all_token_ids[first * size : end * size]),
            block_size=size,
            lora_id=adapter.adapter_id if adapter else None,
            medium=MEDIUM_CPU,
            lora_name=adapter.name if adapter else None,
            extra_keys=_published(extra),
            group_idx=0,
        )


def _published(extra: list[Any]) -> Any:
    """Extra keys of blocks as events carry them. Engines that tag the keys they hash can take the tags off again."""
    untag = getattr(kv_cache_utils, "to_event_extra_keys", None)
    return untag(extra) if untag is not None else extra
