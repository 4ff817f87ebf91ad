# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The storage behind SGLang's hierarchical cache, against the interface of a release of SGLang.

Of SGLang only the files are there (``PEGAFLOW_SGLANG`` says where), not what it requires: its interface is imported, it
is not run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import pathlib
import sys

import pytest

SGLANG = os.environ.get("PEGAFLOW_SGLANG")
if SGLANG is None:
    pytest.skip("needs the files of SGLang: `cargo xtask test --vllm` fetches them", allow_module_level=True)
pytest.importorskip("torch", reason="the interface of SGLang needs it")


def package(name: str):
    """A package of SGLang's whose own initialisation, which needs all of SGLang, is left out."""
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, None, is_package=True))
    module.__path__ = [str(pathlib.Path(SGLANG, *name.split(".")))]
    return module


sys.modules["sglang"] = package("sglang")

import torch
from parts import address_of
from pegaflow.sglang import PegaFlowStorage
from pegaflow.vllm.settings import SettingsError
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig, HiCacheStorageExtraInfo
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

NOT_OURS = {"batch_exists_v2", "batch_get_v2", "batch_set_v2", "register_mem_host_pool_v2", "on_host_pools_registered"}
"""Several pools for a model, which SGLang uses only for models that have them."""
TOKENS, PAGES, PIECE = 4, 8, 1024
EXTRA = {
    "backend_name": "pegaflow",
    "module_path": "pegaflow.sglang",
    "class_name": "PegaFlowStorage",
    "interface_v1": 1,
}


class Pool:
    """Host memory of which K and V of a page lie together, each."""

    page_size, size, dtype = TOKENS, TOKENS * PAGES, "float16"

    def __init__(self, mla: bool = False, scattered: bool = False):
        self.parts, self.scattered = 1 if mla else 2, scattered
        self.memory = bytearray(self.parts * PAGES * PIECE)
        self.address = address_of(self.memory)

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


def indices(*pages: int) -> torch.Tensor:
    return torch.tensor([page * TOKENS + at for page in pages for at in range(TOKENS)])


def config(extra: dict, **changes) -> HiCacheStorageConfig:
    settings = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": True,
        "model_name": "model",
    }
    return HiCacheStorageConfig(extra_config=EXTRA | extra, **(settings | changes))


@pytest.fixture
def node(tmp_path):
    from pegaflow import _native

    path = str(tmp_path / "node.sock")
    client = _native.Client.embedded(16 << 20, path)
    yield path
    client.close()


def storage(node, pool, **changes) -> HiCacheStorage:
    """As SGLang makes it."""
    known = config({"endpoint": node, "weights_fingerprint": "ab" * 32}, **changes)
    made = StorageBackendFactory.create_backend("dynamic", known, pool)
    made.register_mem_pool_host(pool)
    return made


def test_every_method_has_the_signature_of_the_release():
    for name, theirs in inspect.getmembers(HiCacheStorage, inspect.isfunction):
        if name.startswith("_") or name in NOT_OURS:
            continue
        ours = getattr(PegaFlowStorage, name)
        known, wanted = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        assert list(known) == list(wanted), name
        assert all(known[each].default == wanted[each].default for each in wanted), name


@pytest.mark.parametrize("mla", [False, True])
def test_pages_come_back_in_another_engine(node, mla):
    one, other = Pool(mla), Pool(mla)
    one.memory[:] = bytes((at * 7 + at // 251) % 256 for at in range(len(one.memory)))
    writer = storage(node, one, is_mla_model=mla)
    assert writer.batch_set_v1(["a", "b"], indices(3, 1)) == [True, True]
    assert writer.batch_set_v1(["c"], indices(0), HiCacheStorageExtraInfo(["a", "b"])) == [True]
    reader = storage(node, other, is_mla_model=mla)
    assert [reader.batch_exists(list(keys)) for keys in ("abc", "abx", "xab")] == [3, 2, 0]
    assert reader.exists("a") and not reader.exists("x")
    assert reader.batch_get_v1(["a", "b", "x"], indices(5, 6, 7)) == [True, True, False]
    assert (other.page(5), other.page(6)) == (one.page(3), one.page(1))
    assert not any(map(any, other.page(7)))
    for each in (writer, reader):
        each.close()


def test_ranks_write_one_page_together(node):
    pools = [Pool(), Pool()]
    ranks = [storage(node, pool, tp_size=2, tp_rank=at) for at, pool in enumerate(pools)]
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


def test_pages_in_many_pieces_are_refused(node):
    with pytest.raises(SettingsError, match="page_first"):
        storage(node, Pool(scattered=True))


def test_several_ranks_need_a_server():
    with pytest.raises(SettingsError, match="pegaflow-server"):
        PegaFlowStorage(config({}, tp_size=2), {})
