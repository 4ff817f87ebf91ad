# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The tier behind vLLM's own offloading, against the interface of the installed release."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

import numpy as np
from pegaflow.vllm.settings import SettingsError
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager, TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

CHUNKS, CHUNK = 16, 8192
TIER = {"type": "PegaFlowTier", "module_path": "pegaflow.vllm.tier", "weights_fingerprint": "ab" * 32}
CONTEXT = ReqContext("r")


def spec(tp_size: int = 1, engine: str = "e"):
    parallel = OffloadingParallelConfig(0, tp_size, tp_size, 1, 1, 1, 0, 1, None, False)
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("layer.0",), 0),),
        worker_kv_bytes_per_block=CHUNK,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id=engine,
        model=OffloadingModelConfig("model", "float16"),
        cache=OffloadingCacheConfig(16, 1),
        parallel=parallel,
    )
    return SimpleNamespace(config=config)


class Tier:
    """A tier over memory of its own."""

    def __init__(self, server, **changes):
        self.memory = np.zeros((CHUNKS, CHUNK), dtype=np.uint8)
        config = TIER | {"endpoint": server.socket, "lookup_wait_ms": 20_000, "fetch_wait_ms": 20_000}
        view = memoryview(self.memory)
        self.tier = SecondaryTierFactory.create_secondary_tier(config, view, spec(**changes))
        self._jobs = 0

    def job(self, names, chunks, is_promotion: bool) -> TransferJob:
        self._jobs += 1
        return TransferJob(self._jobs, [key(n) for n in names], np.array(chunks), is_promotion, CONTEXT)

    def store(self, names, chunks):
        self.tier.submit_store(self.job(names, chunks, False))
        return self.finish()

    def load(self, names, chunks):
        self.tier.submit_load(self.job(names, chunks, True))
        return self.finish()

    def finish(self):
        self.tier.drain_jobs()
        (done,) = self.tier.get_finished_jobs()
        assert done.job_id == self._jobs and not self.tier.has_pending_work()
        return done

    def lookup(self, name) -> LookupResult:
        """What it says once it knows."""
        while (said := self.tier.lookup(key(name), CONTEXT)) is LookupResult.RETRY:
            pass
        return said

    def leases(self) -> int:
        return self.tier._client.stats()["leases"]


def key(name: int):
    return make_offload_key(bytes([name]) * 32, 0)


@pytest.fixture
def open_tier(server):
    opened = []

    def open_one(**changes):
        opened.append(Tier(server, **{"engine": f"e{len(opened)}"} | changes))
        return opened[-1]

    yield open_one
    for one in opened:
        one.tier.shutdown()


def test_chunks_come_back_in_another_engine(open_tier):
    writer, reader = open_tier(), open_tier()
    assert isinstance(writer.tier, SecondaryTierManager)
    writer.memory[:] = np.arange(CHUNKS * CHUNK, dtype=np.uint32).reshape(CHUNKS, CHUNK) % 251
    assert writer.store([1, 2, 3], [4, 0, 9]).success
    assert [reader.lookup(n) for n in (3, 1, 7)] == [LookupResult.HIT, LookupResult.HIT, LookupResult.MISS]
    done = reader.load([3, 1], [5, 6])
    assert done.success and done.transfer_bytes == 2 * CHUNK
    assert (reader.memory[5] == writer.memory[9]).all() and (reader.memory[6] == writer.memory[4]).all()
    assert not reader.memory[7].any()


def test_what_is_not_there_fails_alone(open_tier):
    tier = open_tier()
    tier.store([1], [0])
    assert tier.lookup(1) is LookupResult.HIT
    done = tier.load([1, 2], [3, 4])
    assert (done.success, list(done.successful_keys)) == (False, [key(1)])


def test_hits_that_nobody_loads_are_given_back(open_tier):
    tier = open_tier()
    tier.store([1], [0])
    assert tier.lookup(1) is LookupResult.HIT and tier.leases() == 1
    tier.tier.on_schedule_end(None)
    assert tier.lookup(1) is LookupResult.HIT, "asked again in the next step"
    for _ in range(2):
        tier.tier.on_schedule_end(None)
    while tier.leases():
        pass


def test_engines_of_another_layout_see_nothing(open_tier):
    open_tier().store([1], [0])
    assert open_tier(tp_size=2).lookup(1) is LookupResult.MISS


def test_a_node_that_is_gone_has_nothing(open_tier, server):
    tier = open_tier()
    tier.store([1], [0])
    server.kill()
    assert tier.lookup(1) is LookupResult.MISS
    assert not tier.store([2], [1]).success
    server.start()


def test_settings_are_checked(server):
    with pytest.raises(SettingsError, match="endpoint"):
        SecondaryTierFactory.create_secondary_tier(TIER | {"endpont": "/x"}, memoryview(bytearray(64)), spec())
