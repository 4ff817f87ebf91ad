# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""A model of which every other layer sees only a window, in a real engine: two cache groups, one prefix."""

from __future__ import annotations

import pytest

vllm = pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

import model
from harness import BLOCK, COMMON, PROMPTS, Answers, engine, forget, keys, places, scheduler_of, settle
from pegaflow.vllm.scheduler import _runs
from test_faults import LAYER, edit, zero

WINDOW = 70
"""Tokens: no whole number of blocks."""
POOL = {"pool_bytes": "256MiB"}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    kinds = ["sliding_attention", "full_attention"] * 2
    folder = str(tmp_path_factory.mktemp("hybrid"))
    return model.write(folder, num_hidden_layers=4, layer_types=kinds, sliding_window=WINDOW)


@pytest.fixture(scope="module")
def alone(hybrid):
    """Answers to each prompt alone without a connector: computed, and again from the engine's own prefix cache."""
    llm = engine(hybrid, None)
    return [(Answers(llm, [p]), Answers(llm, [p])) for p in PROMPTS]


def check(llm, alone, cached: int) -> None:
    for prompt, (cold, warm) in zip(PROMPTS, alone, strict=True):
        answers = Answers(llm, [prompt])
        want = warm if cached else cold
        assert answers.cached == [cached]
        assert answers.tokens == want.tokens
        assert answers.distance(want) == 0
        forget(llm)


def test_a_hit_gives_the_same_bytes_and_the_same_answer(hybrid, alone, spy):
    llm = engine(hybrid, POOL)
    scheduler = scheduler_of(llm)
    assert scheduler._groups == 2
    first = Answers(llm, PROMPTS[:1])
    assert first.tokens == alone[0][0].tokens
    forget(llm)
    warm = Answers(llm, PROMPTS[:1])
    assert (warm.cached, warm.tokens) == ([192], alone[0][1].tokens)
    assert warm.distance(alone[0][1]) == 0
    # Six blocks of the layers that see all; of the others only those in the window of the next token: 69 before it.
    assert spy.check() == 6 + 3 and not spy.refused
    for prompt in PROMPTS[1:]:
        Answers(llm, [prompt])
    forget(llm)
    check(llm, alone, cached=192)
    assert settle(llm)["corrupt"] == 0


def test_blocks_outlive_their_engine(hybrid, alone, spy, server):
    first = engine(hybrid, {"endpoint": server.socket})
    for prompt in PROMPTS:
        Answers(first, [prompt])
    settle(first)
    second = engine(hybrid, {"endpoint": server.socket})
    check(second, alone, cached=192)
    assert spy.loaded and not spy.refused


@pytest.mark.parametrize("group", [0, 1])
def test_a_spoilt_block_of_either_group_is_computed(hybrid, alone, spy, server, group):
    llm = engine(hybrid, {"endpoint": server.socket})
    Answers(llm, PROMPTS[:1])
    forget(llm)

    def spoil(loads):
        if loads[0].group == group:
            at = places(loads[0].places)[-1:]
            edit(server, lambda data, at: zero(data, at[0], LAYER), at)

    spy.before_load = spoil
    answers = Answers(llm, PROMPTS[:1])
    spy.before_load = None
    assert spy.refused and spy.wrong() == len(spy.refused)
    assert (answers.tokens, answers.cached) == (alone[0][0].tokens, [0])
    forget(llm)
    spy.forget_loads()
    assert Answers(llm, PROMPTS[:1]).cached == [192], "what was computed was saved again"
    assert not spy.refused


def test_a_prefix_is_found_where_every_group_has_what_it_needs(hybrid, alone, spy, server):
    """The last block of the window is lost: shorter prefixes still stand on blocks further ahead."""
    llm = engine(hybrid, {"endpoint": server.socket})
    Answers(llm, [COMMON])
    forget(llm)
    assert Answers(llm, PROMPTS[:1]).cached == [128]
    assert Answers(llm, PROMPTS[:1]).tokens == alone[0][1].tokens
    spy.check()


def test_chunked_prefill_and_preemption(hybrid, spy):
    llm = engine(hybrid, POOL, max_num_batched_tokens=64, max_model_len=320, num_gpu_blocks_override=30)
    prompts = [[(i * 97 + j * 13) % 500 + 3 for j in range(200)] for i in range(3)]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, detokenize=False, logprobs=1)
    one = [Answers(llm, [p], sampling).tokens[0] for p in prompts]
    forget(llm)
    for _ in range(2):
        assert Answers(llm, prompts, sampling).tokens == one
    assert spy.check() > 0 and not spy.refused
    scheduler = scheduler_of(llm)
    assert not scheduler._requests and not scheduler._loads
    settle(llm)


@pytest.mark.parametrize(
    ("table", "first", "end", "want"),
    [
        ([1, 2, 3], 0, 3, [(0, 3)]),
        ([1, 2, 3], 3, 3, []),
        ([0, 0, 3], 0, 3, [(2, 3)]),
        ([1, 0, 3, 4, 0], 0, 5, [(0, 1), (2, 4)]),
        ([0, 1, 0], 1, 2, [(1, 2)]),
        ([0, 0], 0, 2, []),
    ],
)
def test_blocks_out_of_the_window_are_not_saved(table, first, end, want):
    assert _runs(table, first, end) == want


def test_keys_of_groups_differ(hybrid, spy):
    llm = engine(hybrid, POOL)
    Answers(llm, [COMMON[: 2 * BLOCK]])
    scheduler = scheduler_of(llm)
    assert scheduler._namespace is not None
    one, other = (keys(scheduler._namespace.keys(group, [b"x"])) for group in (0, 1))
    assert one != other
