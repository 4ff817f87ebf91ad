# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The connector in a real vLLM engine: save, forget, load, compare."""

from __future__ import annotations

import json

import pytest

vllm = pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from harness import (
    BLOCK,
    COMMON,
    PATIENT,
    PROMPTS,
    SAMPLING,
    Answers,
    close,
    engine,
    engine_beside,
    forget,
    scheduler_of,
    settle,
)

POOL = {"pool_bytes": "256MiB"} | PATIENT


@pytest.mark.parametrize("extra", [{}, {"inline_load_bytes_max": 0}], ids=["by_layers", "in_background"])
def test_a_hit_gives_the_same_bytes_and_the_same_answer(folder, plain, spy, extra):
    llm = engine(folder, POOL | extra)
    cold = Answers(llm)
    assert cold.tokens == plain[0].tokens
    assert cold.distance(plain[0]) == 0
    assert len(spy.saved) == 10 and not spy.loaded

    forget(llm)
    warm = Answers(llm)
    assert warm.cached == [192, 192, 192]
    assert warm.tokens == plain[1].tokens
    # In the background requests join when they are there, and another batch shape gives other roundings.
    assert warm.distance(plain[1]) <= (1e-4 if extra else 0)
    assert spy.check() >= 10 and not spy.refused
    assert settle(llm)["corrupt"] == 0


def test_a_lookup_asks_for_what_the_engine_lacks(folder, plain, spy):
    llm = engine(folder, POOL)
    Answers(llm)
    settle(llm)
    forget(llm)
    asked = []
    look_up = type(scheduler_of(llm))._look_up

    def watched(scheduler, state, last):
        asked.append((state.asked_from, last))
        return look_up(scheduler, state, last)

    scheduler_of(llm)._look_up = watched.__get__(scheduler_of(llm))
    Answers(llm, [COMMON])
    spy.forget_loads()
    # The engine has four blocks now, of which the last is asked for as well, and two come.
    after = Answers(llm, PROMPTS[:1])
    assert asked == [(0, 4), (3, 6)]
    assert (after.cached, after.tokens) == ([192], plain[1].tokens[:1])
    assert spy.check() == 2


def test_what_the_node_has_lost_is_saved_again(folder, plain, spy):
    llm = engine(folder, POOL)
    Answers(llm, [COMMON])
    settle(llm)
    # Under new names the node has nothing; the engine still has its blocks.
    scheduler_of(llm).reset()
    spy.saved.clear()
    assert Answers(llm, PROMPTS[:1]).cached == [128]
    settle(llm)
    assert len(spy.saved) == 6
    forget(llm)
    assert Answers(llm, PROMPTS[:1]).cached == [192]
    assert spy.check() >= 6


def test_blocks_outlive_their_engine(folder, plain, spy, server):
    extra = {"endpoint": server.socket} | PATIENT
    first = engine(folder, extra)
    Answers(first)
    settle(first)
    close()
    second = engine(folder, extra)
    after = Answers(second)
    assert (after.cached, after.tokens) == ([192, 192, 192], plain[1].tokens)
    assert after.distance(plain[1]) == 0
    assert spy.check() == 10 and not spy.refused


def test_two_engines_share_a_server(folder, plain, spy, server):
    llm = engine(folder, {"endpoint": server.socket})
    Answers(llm, PROMPTS[:2])
    settle(llm)
    beside = engine_beside(folder, {"endpoint": server.socket})
    while beside.poll() is None:
        forget(llm)
        assert Answers(llm, PROMPTS[:2]).tokens == plain[0].tokens[:2]
    said = json.loads(beside.stdout.read().splitlines()[-1])
    assert said["tokens"] == plain[1].tokens
    assert said["cached"][:2] == [192, 192]
    # And back: the third prompt was computed over there.
    forget(llm)
    assert Answers(llm).cached == [192, 192, 192]
    assert not spy.refused


@pytest.mark.parametrize("different", [{"tenant_salt": "b"}, {"weights_fingerprint": "ab" * 32}])
def test_engines_that_may_not_share_cannot(folder, plain, spy, server, different):
    first = engine(folder, {"endpoint": server.socket})
    Answers(first)
    settle(first)
    other = Answers(engine(folder, {"endpoint": server.socket} | different))
    assert (other.tokens, spy.loaded) == (plain[0].tokens, [])
    # A lookup that is answered late makes another batch, with other roundings.
    assert other.distance(plain[0]) < 1e-4


def test_modes(folder, spy, server):
    writer = engine(folder, {"endpoint": server.socket, "mode": "save_only"})
    Answers(writer)
    forget(writer)
    Answers(writer)
    assert len(spy.saved) == 10 and not spy.loaded
    settle(writer)
    saved = {key: set(digests) for key, digests in spy.saved.items()}
    reader = engine(folder, {"endpoint": server.socket, "mode": "load_only"})
    assert Answers(reader).cached == [192, 192, 192]
    assert spy.saved == saved


def test_chunked_prefill_and_preemption(folder, plain, spy, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler as EngineScheduler

    preempted = []
    original = EngineScheduler._preempt_request

    def count(*args, **named):
        preempted.append(args)
        return original(*args, **named)

    monkeypatch.setattr(EngineScheduler, "_preempt_request", count)
    llm = engine(folder, POOL, max_num_batched_tokens=64, max_model_len=320, num_gpu_blocks_override=16)
    prompts = [[(i * 97 + j * 13) % 500 + 3 for j in range(200)] for i in range(3)]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=90, ignore_eos=True, detokenize=False, logprobs=1)
    alone = [Answers(llm, [p], sampling).tokens[0] for p in prompts]
    assert not preempted
    forget(llm)
    for _ in range(2):
        assert Answers(llm, prompts, sampling).tokens == alone
    assert preempted and spy.check() > 0 and not spy.refused


def test_aborted_requests_leave_nothing_behind(folder, plain, spy):
    llm = engine(folder, POOL | {"inline_load_bytes_max": 0})
    Answers(llm)
    forget(llm)
    core = llm.llm_engine
    for steps in range(6):
        core.add_request(f"gone-{steps}", {"prompt_token_ids": PROMPTS[steps % 3]}, SAMPLING)
        for _ in range(steps):
            core.step()
        core.abort_request([f"gone-{steps}"])
        while core.has_unfinished_requests():
            core.step()
    assert Answers(llm).tokens == plain[0].tokens
    scheduler = scheduler_of(llm)
    assert not scheduler._requests and not scheduler._loads
    settle(llm)
    spy.check()


def test_partial_blocks_and_short_prompts(folder, spy):
    llm = engine(folder, POOL)
    prompts = [COMMON[:n] for n in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK)]
    first = [Answers(llm, [p]) for p in prompts]
    forget(llm)
    again = [Answers(llm, [p]) for p in prompts]
    assert [a.tokens for a in again] == [a.tokens for a in first]
    # One token at least is computed. What was generated behind the shorter prompts lies in other blocks.
    assert [a.cached for a in again] == [[0], [0], [0], [BLOCK], [BLOCK]]
    spy.check()


def test_a_salt_keeps_requests_apart(folder, spy):
    llm = engine(folder, POOL)
    prompt = {"prompt_token_ids": PROMPTS[0], "cache_salt": "a"}
    llm.generate([prompt], SAMPLING, use_tqdm=False)
    forget(llm)
    assert Answers(llm, PROMPTS[:1]).cached == [0]
    forget(llm)
    (out,) = llm.generate([prompt], SAMPLING, use_tqdm=False)
    assert out.num_cached_tokens == 192


def test_after_a_reset_nothing_old_is_found(folder, plain, spy):
    llm = engine(folder, POOL)
    Answers(llm)
    forget(llm)
    assert llm.reset_prefix_cache(reset_connector=True)
    cold = Answers(llm)
    assert (cold.cached, cold.tokens) == (plain[0].cached, plain[0].tokens)
    forget(llm)
    assert Answers(llm).cached == [192, 192, 192]


def test_a_pool_that_is_full_refuses_and_the_engine_goes_on(folder, plain, spy):
    llm = engine(folder, {"pool_bytes": "16MiB"})
    many = [[(i * 131 + j * 17) % 500 + 3 for j in range(300)] for i in range(24)]
    assert all(len(t) == 24 for t in Answers(llm, many).tokens)
    assert Answers(llm).tokens == plain[0].tokens
    settle(llm)
    spy.check()
