# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Blocks that are on SSD only, in a real engine: they come back, with the same bytes and answers, and are counted."""

from __future__ import annotations

import pytest

vllm = pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from harness import PROMPTS, Answers, Server, close, engine, engine_beside, forget, scheduler_of, settle, spilled
from pegaflow.vllm.stats import PegaFlowStats

TINY = 16 << 20
"""A pool for 340 blocks."""


@pytest.fixture(scope="module")
def one_by_one(folder):
    """Answers to each prompt alone, without a connector: computed, and again from the engine's own prefix cache."""
    llm = engine(folder, None)
    return [(Answers(llm, [p]), Answers(llm, [p])) for p in PROMPTS]


@pytest.fixture
def counted(monkeypatch):
    """All that the connector has told vLLM's metrics."""
    from pegaflow.vllm.scheduler import Scheduler

    total, take = PegaFlowStats(), Scheduler.take_stats

    def take_and_add(scheduler):
        taken = take(scheduler)
        total.aggregate(taken)
        return taken

    monkeypatch.setattr(Scheduler, "take_stats", take_and_add)
    return total.data


def answers_of(llm) -> list[Answers]:
    return [Answers(llm, [prompt]) for prompt in PROMPTS]


def push_out(llm) -> None:
    """Other prompts until nothing of `PROMPTS` is left in the pool."""
    once = vllm.SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=1)
    for start in range(0, 32, 8):
        many = [[(i * 131 + j * 17) % 500 + 3 for j in range(480)] for i in range(start, start + 8)]
        Answers(llm, many, once)
        settle(llm)


def check_warm(warm: list[Answers], one_by_one) -> None:
    for now, (_, before) in zip(warm, one_by_one, strict=True):
        assert (now.cached, now.tokens) == ([192], before.tokens)
        assert now.distance(before) == 0


def test_what_the_pool_has_no_room_for_comes_back(folder, one_by_one, spy, counted, tmp_path):
    ssd = ["--ssd-path", str(tmp_path / "ssd"), "--ssd-bytes", str(64 << 20), "--cache-eviction", "lru"]
    server = Server(tmp_path, *ssd, pool_bytes=TINY)
    try:
        first = engine(folder, {"endpoint": server.socket, "fetch_wait_ms": 20_000})
        answers_of(first)
        assert spilled(first)["ssd_spilled"] == 10
        push_out(first)
        close()
        counted.update(dict.fromkeys(counted, 0))
        second = engine(folder, {"endpoint": server.socket, "fetch_wait_ms": 20_000})
        check_warm(answers_of(second), one_by_one)
        # The second and the third prompt ask for what the engine lacks, and for the one block before it.
        assert (counted["found_blocks"], counted["found_ssd_blocks"], counted["fetches"]) == (12, 10, 3)
        assert counted["fetch_us"] > 0 and settle(second)["corrupt"] == 0
        assert spy.check() == 10 and not spy.refused
    finally:
        server.end()


def test_a_node_inside_the_engine_finds_its_blocks_after_a_restart(folder, one_by_one, spy, counted, tmp_path):
    ssd = {"pool_bytes": TINY, "ssd_path": str(tmp_path / "ssd"), "ssd_bytes": "64MiB", "fetch_wait_ms": 20_000}
    before = engine_beside(folder, ssd)
    assert before.wait(300) == 0
    llm = engine(folder, ssd, disable_log_stats=False)
    sources = []
    connector = llm.llm_engine.engine_core.engine_core.scheduler.connector
    ask = connector.get_external_cache_hit_sources
    connector.get_external_cache_hit_sources = lambda *args: sources.append(ask(*args)) or sources[-1]
    check_warm(answers_of(llm), one_by_one)
    assert counted["found_ssd_blocks"] == 10
    # In tokens: 192 from SSD, then 64 behind what the engine has by itself.
    assert [{source.value: n for source, n in said.items()} for said in sources] == [
        {"disk": 192},
        {"disk": 64},
        {"disk": 64},
    ]
    assert spy.loaded and not spy.refused


def test_who_may_not_wait_takes_what_is_there(folder, one_by_one, spy, counted, tmp_path):
    """Without patience a prefix on SSD is computed; it comes into the pool all the same, for the next who asks."""
    ssd = {"pool_bytes": TINY, "ssd_path": str(tmp_path / "ssd"), "ssd_bytes": "64MiB", "fetch_wait_ms": 0}
    assert engine_beside(folder, ssd).wait(300) == 0
    llm = engine(folder, ssd)
    for now, (cold, _) in zip(answers_of(llm), one_by_one, strict=True):
        assert now.tokens == cold.tokens
    settle(llm)
    forget(llm)
    assert [answers.cached for answers in answers_of(llm)] == [[192]] * 3
    assert counted["lookup_timeouts"] == 0 and not spy.refused
    assert not scheduler_of(llm)._requests
