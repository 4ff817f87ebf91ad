# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""A scheduler that takes back what asynchronous steps computed from blocks whose load failed.

``--scheduler-cls pegaflow.vllm.rollback.RollbackScheduler``. With asynchronous scheduling vLLM plans a step before it
knows the end of the one before, and does not take back the tokens of either (vLLM issue 49250): so the connector loads
beside the steps there, and a request waits for the whole of its load. With this scheduler it loads within steps, under
the launch of the forward. What failed is taken back with vLLM's own means, as `reset_prefix_cache` does for all
requests: those that stand on a wrong block are preempted, their steps under way are dropped, and their blocks leave the
engine's prefix cache.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

_DROPS_STALE_OUTPUT = "drop_stale_output" in inspect.signature(AsyncScheduler._preempt_request).parameters
"""The engine itself counts what of a preempted request is under way, and drops it."""


class RollbackScheduler(AsyncScheduler):
    """vLLM's asynchronous scheduler; only the answer to failed loads differs."""

    def _handle_invalid_blocks(self, invalid_block_ids: set[int], *arguments: Any) -> set[str]:
        # From the last one on, so that they wait in the order in which they came; unless they are to fail instead.
        stand = [r for r in reversed(self.running) if self._stands_on(r, invalid_block_ids)]
        for request in stand if self.recompute_kv_load_failures else ():
            self.running.remove(request)
            self._take_back(request, invalid_block_ids)
        # What remains are loads beside steps: no step stands on them.
        affected: set[str] = super()._handle_invalid_blocks(invalid_block_ids, *arguments)
        return affected

    def _stands_on(self, request: Request, blocks: set[int]) -> bool:
        return any(not blocks.isdisjoint(table) for table in self.kv_cache_manager.get_block_ids(request.request_id))

    def _take_back(self, request: Request, wrong: Collection[int]) -> None:
        # What lies behind a wrong block was computed from it.
        for table in self.kv_cache_manager.get_block_ids(request.request_id):
            first = next((at for at, block in enumerate(table) if block in wrong), len(table))
            self.kv_cache_manager.evict_blocks(set(table[first:]))
        under_way = request.num_output_placeholders
        if _DROPS_STALE_OUTPUT:
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        else:
            self._preempt_request(request, time.monotonic())
            request.async_tokens_to_discard, request.num_output_placeholders = under_way, 0
        # The workers start it anew, also where the next step has it again.
        self.prev_step_scheduled_req_ids.discard(request.request_id)


def takes_back(config: VllmConfig) -> bool:
    """Whether the engine has this scheduler, and nothing that it cannot take back."""
    scheduling = config.scheduler_config
    if scheduling.scheduler_cls is None or not scheduling.async_scheduling:
        return False
    # Of drafted tokens it is not known how many steps they are.
    drafts = config.speculative_config is not None and not _DROPS_STALE_OUTPUT
    return issubclass(scheduling.get_scheduler_cls(), RollbackScheduler) and not drafts
