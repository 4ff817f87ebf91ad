# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The storage behind SGLang's hierarchical cache, against the signatures of SGLang 0.5.23 (which is not installed)."""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import inspect
import sys
import types

import pytest
from pegaflow.vllm.settings import SettingsError

SIGNATURES = {
    "register_mem_pool_host": ["self", "mem_pool_host"],
    "batch_get_v1": ["self", "keys", "host_indices", "extra_info"],
    "batch_set_v1": ["self", "keys", "host_indices", "extra_info"],
    "get": ["self", "key", "target_location", "target_sizes"],
    "batch_get": ["self", "keys", "target_locations", "target_sizes"],
    "set": ["self", "key", "value", "target_location", "target_sizes"],
    "batch_set": ["self", "keys", "values", "target_locations", "target_sizes"],
    "exists": ["self", "key"],
    "batch_exists": ["self", "keys", "extra_info"],
}
ABSTRACT = ("get", "batch_get", "set", "batch_set", "exists")
TOKENS, PAGES, PIECE = 4, 8, 1024


@dataclasses.dataclass
class Config:
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    attn_cp_rank: int = 0
    attn_cp_size: int = 1
    is_mla_model: bool = False
    dp_rank: int = 0
    model_name: str = "model"
    extra_config: dict | None = None


@dataclasses.dataclass
class ExtraInfo:
    prefix_keys: list[str] | None = None


class Pool:
    """Host memory of which K and V of a page lie together, each."""

    page_size, size, dtype = TOKENS, TOKENS * PAGES, "float16"

    def __init__(self, mla: bool = False, scattered: bool = False):
        self.parts, self.scattered = 1 if mla else 2, scattered
        self.memory = bytearray(self.parts * PAGES * PIECE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def get_page_buffer_meta(self, indices):
        pages = [index // TOKENS for index in indices.tolist()[::TOKENS]]
        copies = 3 if self.scattered else 1
        pieces = [
            self.address + (part * PAGES + page) * PIECE
            for page in pages
            for part in range(self.parts)
            for _ in range(copies)
        ]
        return pieces, [PIECE] * len(pieces)

    def page(self, page: int) -> list[bytes]:
        starts = [(part * PAGES + page) * PIECE for part in range(self.parts)]
        return [bytes(self.memory[at : at + PIECE]) for at in starts]


class Tensor(list):
    def tolist(self):
        return list(self)


def indices(*pages: int) -> Tensor:
    return Tensor(page * TOKENS + at for page in pages for at in range(TOKENS))


@pytest.fixture
def module(monkeypatch):
    """Our module over a stand-in for SGLang's."""

    def register(self, mem_pool_host):
        self.mem_pool_host = mem_pool_host

    names = {name: abc.abstractmethod(lambda self: None) for name in ABSTRACT}
    base = abc.ABCMeta("HiCacheStorage", (), names | {"register_mem_pool_host": register})
    there = types.ModuleType("sglang.srt.mem_cache.hicache_storage")
    there.HiCacheStorage, there.HiCacheStorageConfig, there.HiCacheStorageExtraInfo = base, Config, ExtraInfo
    for name in ("sglang", "sglang.srt", "sglang.srt.mem_cache"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, there.__name__, there)
    monkeypatch.delitem(sys.modules, "pegaflow.sglang", raising=False)
    import pegaflow.sglang as ours

    yield ours
    sys.modules.pop("pegaflow.sglang", None)


@pytest.fixture
def node(tmp_path):
    from pegaflow import _native

    path = str(tmp_path / "node.sock")
    client = _native.Client.embedded(16 << 20, path)
    yield path
    client.close()


def storage(module, node, pool, **changes):
    extra = {"backend_name": "pegaflow", "module_path": "pegaflow.sglang", "class_name": "PegaFlowStorage"}
    extra |= {"interface_v1": 1, "endpoint": node, "weights_fingerprint": "ab" * 32}
    made = module.PegaFlowStorage(Config(extra_config=extra, **changes), {})
    made.register_mem_pool_host(pool)
    return made


def test_signatures_are_those_of_the_release(module):
    for name, parameters in SIGNATURES.items():
        assert list(inspect.signature(getattr(module.PegaFlowStorage, name)).parameters) == parameters, name


@pytest.mark.parametrize("mla", [False, True])
def test_pages_come_back_in_another_engine(module, node, mla):
    one, other = Pool(mla), Pool(mla)
    one.memory[:] = bytes((at * 7 + at // 251) % 256 for at in range(len(one.memory)))
    writer = storage(module, node, one, is_mla_model=mla)
    assert writer.batch_set_v1(["a", "b"], indices(3, 1)) == [True, True]
    assert writer.batch_set_v1(["c"], indices(0), ExtraInfo(["a", "b"])) == [True]
    reader = storage(module, node, other, is_mla_model=mla)
    assert [reader.batch_exists(list(keys)) for keys in ("abc", "abx", "xab")] == [3, 2, 0]
    assert reader.exists("a") and not reader.exists("x")
    assert reader.batch_get_v1(["a", "b", "x"], indices(5, 6, 7)) == [True, True, False]
    assert (other.page(5), other.page(6)) == (one.page(3), one.page(1))
    assert not any(map(any, other.page(7)))
    for each in (writer, reader):
        each.close()


def test_ranks_write_one_page_together(module, node):
    pools = [Pool(), Pool()]
    ranks = [storage(module, node, pool, tp_size=2, tp_rank=at) for at, pool in enumerate(pools)]
    pools[0].memory[:], pools[1].memory[:] = b"\x01" * len(pools[0].memory), b"\x02" * len(pools[1].memory)
    ranks[0].batch_set_v1(["a"], indices(0))
    ranks[0]._settings = dataclasses.replace(ranks[0]._settings, fetch_wait_ms=0)
    assert ranks[0].batch_exists(["a"]) == 0, "the other half is missing"
    ranks[1].batch_set_v1(["a"], indices(0))
    assert ranks[0].batch_exists(["a"]) == 1
    assert ranks[1].batch_get_v1(["a"], indices(4)) == [True]
    assert pools[1].page(4) == [b"\x02" * PIECE] * 2
    for rank in ranks:
        rank.close()


def test_pages_in_many_pieces_are_refused(module, node):
    with pytest.raises(SettingsError, match="page_first"):
        storage(module, node, Pool(scattered=True))


def test_several_ranks_need_a_server(module):
    with pytest.raises(SettingsError, match="pegaflow-server"):
        module.PegaFlowStorage(Config(tp_size=2, extra_config={"backend_name": "pegaflow"}), {})
