# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""PegaFlow as the storage behind SGLang's hierarchical cache: pages of its host memory, by SGLang's keys.

``--hicache-storage-backend dynamic`` with ``{"backend_name": "pegaflow", "module_path": "pegaflow.sglang",
"class_name": "PegaFlowStorage", "interface_v1": 1, "endpoint": ...}``; the other keys are those of vLLM's connector.
SGLang calls from threads of its own, so calls here wait. Pages are opaque, one head for each rank: ranks of one
tensor-parallel size share them. Needs a host memory layout in which a page lies together (``page_first``).
"""

from __future__ import annotations

import array
import threading
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, HiCacheStorageConfig, HiCacheStorageExtraInfo

from pegaflow import _native
from pegaflow.vllm import door
from pegaflow.vllm.namespace import model_fingerprint, weights_fingerprint
from pegaflow.vllm.settings import Settings, SettingsError

if TYPE_CHECKING:
    import torch

_OWN_KEYS = ("backend_name", "module_path", "class_name", "interface_v1")
"""Keys of SGLang's, beside ours."""


class PegaFlowStorage(HiCacheStorage):
    """Keeps pages of SGLang's host memory in a PegaFlow node."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        extra = storage_config.extra_config or {}
        self._settings = Settings.parse({key: value for key, value in extra.items() if key not in _OWN_KEYS})
        self._config = storage_config
        if self._settings.endpoint is None and storage_config.tp_size * storage_config.pp_size > 1:
            raise SettingsError("PegaFlow: several ranks need one node: start pegaflow-server and name its socket")
        self._engine_id = f"sglang-{storage_config.dp_rank}-{id(self):x}"
        self._client = door.client(self._settings, self._engine_id, hosts=True)
        self._save_lock = threading.Lock()
        self._saves = 0

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._page_tokens = int(mem_pool_host.page_size)
        address, pages, page_stride, part_stride, parts, part_bytes = _layout(mem_pool_host)
        ranks = 1 if self._config.is_mla_model else self._config.tp_size
        rank = 0 if self._config.is_mla_model else self._config.tp_rank
        encoded = _native.encode_namespace(self._identity(parts, part_bytes))
        shape = (1, parts, ranks, part_bytes)
        self._namespace = self._client.namespace(encoded, self._settings.tenant, [(shape, [])])
        span = (parts - 1) * part_stride + (pages - 1) * page_stride + part_bytes
        device = _native.Device.host(self._settings.copy_threads, [(address, span)])
        views = [(address, page_stride, part_stride, 0)]
        layout: _native.RankLayout = {"layers": (0, 1), "heads": (rank, rank + 1), "blocks": pages, "views": views}
        self._rank = self._client.rank(device, self._namespace, 0, layout)

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        found = self._find(keys)
        self._client.release([found])
        return found.ready

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        found = self._find(keys)
        here = found.ready
        pages = self._pages(host_indices)[:here]
        item = (self._keys(keys[:here]), found.places, found.generations, _packed(pages))
        try:
            failed = set(self._rank.load([item]).finish()) if here else set()
        except _native.PegaFlowError:
            here, failed = 0, set()
        self._client.release([found])
        return [at < here and at not in failed for at in range(len(keys))]

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        before = extra_info.prefix_keys if extra_info is not None else None
        parent = self._keys(before[-1:]) if before else b""
        if not self._settings.mode.saves:
            return [False] * len(keys)
        with self._save_lock:
            self._saves += 1
            self._rank.save([(self._saves, parent, self._keys(keys), _packed(self._pages(host_indices)))])
            self._rank.settle(self._saves)
            refused = self._saves in self._rank.saves()[5]
        return [not refused] * len(keys)

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        raise NotImplementedError(_V1)

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> int:
        raise NotImplementedError(_V1)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        raise NotImplementedError(_V1)

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        raise NotImplementedError(_V1)

    def close(self) -> None:
        """Ends what runs, and the node if it lives here."""
        self._rank.close()
        door.close(self._engine_id)

    def _find(self, keys: list[str]) -> _native.Found:
        settings = self._settings
        lookup = self._client.lookup(self._namespace, self._keys(keys), settings.lease_ttl_ms)
        found = lookup.wait(settings.rpc_timeout_ms, settings.fetch_wait_ms)
        assert found is not None, "nobody else has the lookup"
        return found

    def _keys(self, keys: list[str]) -> bytes:
        return self._namespace.keys(0, [key.encode() for key in keys])

    def _pages(self, host_indices: torch.Tensor) -> list[int]:
        first = host_indices.tolist()[:: self._page_tokens]
        return [index // self._page_tokens for index in first]

    def _identity(self, parts: int, part_bytes: int) -> _native.NamespaceParts:
        config = self._config
        digest = self._settings.weights_fingerprint or (weights_fingerprint(config.model_name or "") or b"").hex()
        if not digest:
            raise SettingsError("PegaFlow: no weight files beside the model's configuration; set weights_fingerprint")
        stage = {"pp": [config.pp_rank, config.pp_size], "cp": [config.attn_cp_rank, config.attn_cp_size]}
        return {
            "model": model_fingerprint({"mla": config.is_mla_model}, stage),
            "weights": bytes.fromhex(digest),
            "kv_dtype": str(self.mem_pool_host.dtype),
            "kv_quantisation": "",
            "hash_algorithm": "sglang-page-hash",
            "hash_seed": b"",
            "groups": [("full", self._page_tokens, 0, f"sglang-page-{parts}x{part_bytes}-tp{config.tp_size}")],
            "tenant_salt": self._settings.tenant_salt.encode(),
        }


_V1 = 'PegaFlow serves the zero-copy interface: set "interface_v1": 1 in the storage backend\'s extra config'


def _layout(pool: Any) -> tuple[int, int, int, int, int, int]:
    """Where the pool's pages lie: address, pages, bytes from page to page and from part to part, parts, bytes of one.

    Asked of the pool itself, which names the pieces of a page.
    """
    tokens, pages = int(pool.page_size), int(pool.size) // int(pool.page_size)
    pieces, sizes = pool.get_page_buffer_meta(_Indices(range(tokens * min(pages, 2))))
    parts = len(pieces) // min(pages, 2)
    page_stride = pieces[parts] - pieces[0] if pages > 1 else sizes[0]
    part_stride = pieces[1] - pieces[0] if parts > 1 else 0
    if parts > 2 or len(set(sizes)) > 1 or sizes[0] % 8 or page_stride < sizes[0]:
        raise SettingsError(
            f"PegaFlow: pages of {parts} pieces of {sorted(set(sizes))} bytes each; "
            "served are those that lie together: --hicache-mem-layout page_first"
        )
    return pieces[0], pages, page_stride, part_stride, parts, sizes[0]


class _Indices(list[int]):
    """Indices as a pool expects them: a tensor's `tolist` and length."""

    def tolist(self) -> list[int]:
        return self


def _packed(pages: list[int]) -> bytes:
    return array.array("I", pages).tobytes()
