# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""vLLM's own tests of its scheduler, with our connector where they put a mock: a pytest plugin, `-p swap`.

Where a test says how many tokens a connector has for a request, a node gets just these blocks, and the connector finds
them there as it always does. What a test expects of the scheduler, and how it plays the worker, stays as it is. After
each test the node must hold no lease but those of requests that the test has left in the middle.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
from typing import ClassVar
from unittest.mock import DEFAULT, Mock

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import conftest  # noqa: F401, sets the environment
from parts import address_of, encoding
from pegaflow import _native
from pegaflow.vllm import door
from pegaflow.vllm.connector import PegaFlowConnector
from pegaflow.vllm.layout import GroupShape
from pegaflow.vllm.meta import Handshake
from pegaflow.vllm.settings import Settings

OURS = {
    "test_scheduler.py": [
        "test_async_load_reservation_prevents_wedge_e2e",
        "test_external_prefix_cache_metrics",
        "test_has_sync_kv_loads",
        "test_kv_connector_basic",
        "test_kv_connector_handles_preemption",
        "test_kv_connector_honors_skip_reading_prefix_cache",
        "test_kv_connector_records_external_cache_hit_sources",
        "test_kv_connector_unable_to_allocate",
        "test_pause_new_drains_async_kv_loads",
        "test_spec_decode_padding_resumed_request_without_running_requests",
        "test_throttle_prefills_defers_remote_kv_resume_with_local_prefill",
    ],
    "test_invalid_blocks_correctness.py": [
        "test_async_recompute_blocks_not_cached_when_invalid",
        "test_sync_recompute_blocks_not_freed_for_running_requests",
    ],
    "test_kv_load_failure_recovery.py": [
        "test_async_load_failure",
        "test_async_progressive_load_failure",
        "test_failed_receive_completion_honors_failure_policy[recompute]",
        "test_sync_load_failure",
        "test_sync_load_failure_with_shared_blocks",
    ],
}
"""The tests that say something about a connector such as ours, with or without their parameters."""
NOT_OURS = {
    "test_external_prefix_cache_metrics[False-False]": "matches a part of a block",
    "test_external_prefix_cache_metrics[False-True]": "matches a part of a block",
}
INLINE = 1 << 50
"""Bytes: no load is too large for a step."""
BLOCK_BYTES = 4096


class Prepared(PegaFlowConnector):
    """Our connector, before a node that has what a test says it has."""

    made: ClassVar[list[Prepared]] = []

    def __init__(self, vllm_config, role, kv_cache_config):
        transfer = vllm_config.kv_transfer_config
        asked = transfer.kv_connector_extra_config
        ours = {"pool_bytes": 16 << 20, "lookup_step_us": 1_000_000, "lookup_wait_ms": 20_000}
        self._node = door.client(Settings.parse(ours), transfer.engine_id, hosts=True)
        transfer.kv_connector_extra_config = ours
        super().__init__(vllm_config, role, kv_cache_config)
        transfer.kv_connector_extra_config = asked
        self._matched = asked.get("matched_tokens", 0), asked.get("is_async", False)
        # No worker says when saves are over.
        self._scheduler._delays_frees = False
        layout = (1, 1, 1, BLOCK_BYTES)
        named = encoding(self._scheduler._block_tokens, "test")
        self.set_xfer_handshake_metadata({0: Handshake([GroupShape(layout, [])], named)})
        self._memory = bytearray(BLOCK_BYTES)
        at = address_of(self._memory)
        self._rank = self._node.rank(
            _native.Device.host(1, [(at, BLOCK_BYTES)]),
            self._scheduler._namespace,
            0,
            {"layers": (0, 1), "heads": (0, 1), "blocks": 1, "views": [(at, BLOCK_BYTES, 0, 0)]},
        )
        self._saves = 0
        self.made.append(self)

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return self.match(request, num_computed_tokens, *self._matched)

    def match(self, request, computed: int, tokens: int, background: bool):
        """The node has `tokens` behind those that are computed."""
        blocks = (computed + tokens) // self._scheduler._block_tokens
        keys = self._scheduler._namespace.keys(0, request.block_hashes[:blocks])
        self._saves += 1
        self._rank.save([(self._saves, b"", keys, bytes(len(keys) // 4))])
        self._rank.settle(self._saves)
        self._scheduler._inline_max = 0 if background else INLINE
        return super().get_num_new_matched_tokens(request, computed)

    def build_connector_meta(self, scheduler_output):
        meta = super().build_connector_meta(scheduler_output)
        # Their tests count the requests that a step starts.
        old = scheduler_output.scheduled_cached_reqs
        meta.requests = [new.req_id for new in scheduler_output.scheduled_new_reqs]
        meta.requests += [name for name in old.req_ids if name in old.resumed_req_ids]
        return meta

    def end(self) -> None:
        """Every lease is one of a request that is not over."""
        scheduler = self._scheduler
        self._node.release(scheduler._unneeded)
        held = [found for _, found in scheduler._loads.values()]
        held += [found for of_step in scheduler._reading.values() for found in of_step]
        held += scheduler._background.values()
        held += [state.found for state in scheduler._requests.values() if state.found is not None]
        leases = self._node.stats()["leases"]
        self._rank.close()
        door.close(self._engine_id)
        assert leases == sum(found.ready > 0 for found in held)


class Matched(Mock):
    """What a test says of a request comes out of the node."""

    def __call__(self, request, computed):
        answer = super().__call__(request, computed)
        return Prepared.made[-1].match(request, computed, *answer)


def spied() -> Mock:
    """Our connector where a test puts a mock of one, which is told what to answer and asked what it was asked."""
    ours = Prepared.made[-1]
    double = Mock(wraps=ours)
    double.get_num_new_matched_tokens = Matched()

    def finished(*arguments):
        ours.request_finished(*arguments)
        return DEFAULT

    double.request_finished.side_effect = finished
    return double


def pytest_configure(config) -> None:
    """Before a test is imported: a model is a folder here, and a mock is ours."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pegaflow-theirs-"), "facebook/opt-125m")
    folder.mkdir(parents=True)
    model = {"architectures": ["OPTForCausalLM"], "model_type": "opt", "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(model))
    os.chdir(folder.parents[1])

    import vllm.v1.structured_output
    from tests.v1.kv_connector.unit import utils
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    vllm.v1.structured_output.cached_tokenizer_from_config = Mock()
    KVConnectorFactory._registry["MockKVConnector"] = lambda: Prepared
    plain = utils.create_vllm_config

    def create_vllm_config(*arguments, **named):
        more = {"matched_tokens": 0, "is_async": False}
        named = {"kv_connector": "MockKVConnector", "kv_role": "kv_both", "kv_connector_extra_config": more} | named
        return plain(*arguments, **named)

    utils.create_vllm_config = create_vllm_config
    utils.create_mock_connector = spied


def pytest_collection_modifyitems(config, items) -> None:
    def is_ours(item) -> bool:
        wanted = OURS.get(item.path.name, [])
        named = item.name in wanted or item.name.partition("[")[0] in wanted
        return named and item.name not in NOT_OURS

    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = filter(is_ours, items)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    made, Prepared.made = Prepared.made, []
    assert made, "the test has not met our connector"
    for connector in made:
        connector.end()
