# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The tier inside a real engine's own offloading: what one engine offloaded, another takes from the node."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="needs a vLLM with tiered offloading")

from harness import Answers, engine
from pegaflow import _native
from vllm.distributed.kv_transfer import kv_transfer_state

TIER = {"type": "PegaFlowTier", "module_path": "pegaflow.vllm.tier"}


def offloading(folder: str, server, name: str):
    extra = {
        "spec_name": "HostTieringSpec",
        "spec_module_path": "host_offload",
        "cpu_bytes_to_use": 64 << 20,
        "secondary_tiers": [TIER | {"endpoint": server.socket, "lookup_wait_ms": 20_000}],
    }
    transfer = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "engine_id": name,
        "kv_connector_extra_config": extra,
    }
    return engine(folder, None, kv_transfer_config=transfer)


def until_saved(llm, server, blocks: int) -> None:
    """Steps of the engine in which its tiers go on, until the node has what was offloaded."""
    client = _native.Client.connect(server.socket, 5_000, 5_000)
    for _ in range(2_000):
        if client.stats()["sealed"] >= blocks:
            return
        Answers(llm, [[3, 4, 5]])
    raise AssertionError(client.stats())


def test_what_one_engine_offloaded_another_takes_from_the_node(folder, plain, server):
    first = offloading(folder, server, "one")
    assert Answers(first).tokens == plain[0].tokens
    until_saved(first, server, 10)
    kv_transfer_state._KV_CONNECTOR_AGENT.shutdown()
    second = offloading(folder, server, "two")
    after = Answers(second)
    assert after.tokens == plain[1].tokens
    assert after.cached == [192, 192, 192]
