# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What the book says is supported, row by row: taken or refused when the engine starts, and with which words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from pegaflow.vllm import engine
from pegaflow.vllm.layout import UnsupportedLayout
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

torch = pytest.importorskip("torch")
HEADS = dict(num_kv_heads=2, head_size=32, dtype=torch.float16)


def full(block_size: int = 16):
    return FullAttentionSpec(block_size=block_size, **HEADS)


def window(block_size: int = 16):
    return SlidingWindowSpec(block_size=block_size, sliding_window=70, **HEADS)


def mla():
    return MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, dtype=torch.float16)


def mamba():
    return MambaSpec(block_size=16, shapes=((4, 8), (8, 16)), dtypes=(torch.float16, torch.float32))


def check(*specs, **parallel) -> None:
    groups = [KVCacheGroupSpec([f"model.layers.{at}.attn"], spec) for at, spec in enumerate(specs)]
    ranks = dict(pipeline_parallel_size=1, decode_context_parallel_size=1) | parallel
    cache = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
    engine.check(SimpleNamespace(parallel_config=SimpleNamespace(**ranks)), cache)


TAKEN = {
    "full attention": [full()],
    "MLA": [mla()],
    "sliding window": [window()],
    "full attention and sliding window": [full(), window()],
}
REFUSED = {
    "Mamba state": ([mamba()], {}, ["served", "MambaSpec", "1 layers"]),
    "full attention and Mamba state": ([full(), mamba()], {}, ["FullAttentionSpec", "MambaSpec"]),
    "blocks of several sizes": ([full(), window(32)], {}, ["one size", "16 tokens", "32 tokens"]),
    "several groups in stages": ([full(), window()], {"pipeline_parallel_size": 2}, ["pipeline parallelism"]),
    "decode context parallel": ([full()], {"decode_context_parallel_size": 2}, ["decode context parallelism"]),
}
TAKES_BACK_GROUPS = hasattr(engine.base, "KVConnectorTransferResults")


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name):
    several = engine.is_hybrid(SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=s) for s in TAKEN[name]]))
    if several and not TAKES_BACK_GROUPS:
        with pytest.raises(UnsupportedLayout, match="cannot take back loads of several cache groups"):
            check(*TAKEN[name])
    else:
        check(*TAKEN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    specs, parallel, words = REFUSED[name]
    with pytest.raises(UnsupportedLayout) as error:
        check(*specs, **parallel)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("stages", [1, 2])
def test_pipeline_stages_of_one_group_are_taken(stages):
    check(full(), pipeline_parallel_size=stages)


def test_an_engine_that_gives_no_cache_configuration_is_refused():
    with pytest.raises(UnsupportedLayout, match=r"0\.26 and newer"):
        engine.check(SimpleNamespace(), None)
