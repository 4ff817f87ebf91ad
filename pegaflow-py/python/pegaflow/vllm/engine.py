# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What the connector needs to know of the engine: its layout, its namespace, and who talks to the node."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base

from pegaflow import _native
from pegaflow.vllm import layout, rollback
from pegaflow.vllm.namespace import model_fingerprint, weights_fingerprint
from pegaflow.vllm.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from vllm.config import ParallelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

SPECS = ("FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec")
"""Cache specs that are served."""

logger = logging.getLogger("pegaflow.vllm")


def check(config: VllmConfig, cache: KVCacheConfig | None) -> None:
    """Refuses at start what the connector does not serve.

    Raises:
        layout.UnsupportedLayout: says what was seen and what would do.
    """
    if cache is None:
        raise layout.UnsupportedLayout("this vLLM gives its connectors no cache configuration; 0.26 and newer do")
    groups = cache.kv_cache_groups
    seen = ", ".join(
        f"{type(g.kv_cache_spec).__name__} of {g.kv_cache_spec.block_size} tokens x {len(g.layer_names)} layers"
        for g in groups
    )
    if any(type(g.kv_cache_spec).__name__ not in SPECS for g in groups):
        raise layout.UnsupportedLayout(f"cache specs that are served: {', '.join(SPECS)}. Seen: {seen}")
    parallel = config.parallel_config
    if is_hybrid(cache):
        _check_hybrid(groups, parallel, seen)
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        raise layout.UnsupportedLayout("decode context parallelism is not served yet")


def _check_hybrid(groups: list[KVCacheGroupSpec], parallel: ParallelConfig, seen: str) -> None:
    if len({g.kv_cache_spec.block_size for g in groups}) > 1:
        raise layout.UnsupportedLayout(f"all cache groups must have blocks of one size. Seen: {seen}")
    if parallel.pipeline_parallel_size > 1:
        raise layout.UnsupportedLayout(f"pipeline parallelism is not served with several cache groups. Seen: {seen}")
    if not hasattr(base, "KVConnectorTransferResults"):
        raise layout.UnsupportedLayout(f"this vLLM cannot take back loads of several cache groups. Seen: {seen}")


def is_hybrid(cache: KVCacheConfig) -> bool:
    """Whether some group does not need all blocks of a prefix, or there are several."""
    return len(cache.kv_cache_groups) > 1 or _window(cache.kv_cache_groups[0].kv_cache_spec) > 0


def computes_again_within_steps(config: VllmConfig) -> bool:
    """Whether a load within a step that failed is computed again rightly.

    Asynchronous scheduling, and the second model runner of GPUs, keep what was computed from the wrong blocks (vLLM
    issue 49250), unless `rollback` takes it back. Loads beside steps are proven before their request joins one, so they
    do not need it.
    """
    one_at_a_time = not config.scheduler_config.async_scheduling and not getattr(config, "use_v2_model_runner", False)
    return one_at_a_time or rollback.takes_back(config)


def _window(spec: Any) -> int:
    """Tokens that a sliding-window group must have; 0 for a group that needs all."""
    if type(spec).__name__ != "SlidingWindowSpec":
        return 0
    return int(spec.sliding_window) + int(getattr(spec, "extra_retained_tokens", 0))


def group_layouts(
    config: VllmConfig, cache: KVCacheConfig, kv_caches: dict[str, torch.Tensor]
) -> list[layout.GroupLayout]:
    """This rank's layout of each cache group, from the tensors that hold its KV."""
    return [_group_layout(config, cache, group, kv_caches) for group in cache.kv_cache_groups]


def _group_layout(
    config: VllmConfig, cache: KVCacheConfig, group: KVCacheGroupSpec, kv_caches: dict[str, torch.Tensor]
) -> layout.GroupLayout:
    spec = group.kv_cache_spec
    hybrid = is_hybrid(cache)
    facts = layout.SpecFacts(
        blocks=cache.num_blocks,
        block_tokens=spec.block_size,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_size,
        page_bytes=spec.page_size_bytes,
        mla=type(spec).__name__ == "MLAAttentionSpec",
    )
    names = sorted((name for name in kv_caches if name in group.layer_names), key=_layer_number)
    layers = [layout.detect(_tensor_facts(name, kv_caches[name]), facts) for name in names]
    parallel = config.parallel_config
    return layout.group(
        layers,
        spec=facts,
        element=_element(spec, kv_caches[names[0]]) + (_which(names) if hybrid else ""),
        # Layers of several groups take turns in the model: a block counts those of its own group.
        layers_total=len(names) if hybrid else _layers_total(config),
        first_layer=0 if hybrid else _layer_number(names[0]),
        kv_heads_total=config.model_config.get_total_num_kv_heads(),
        tp_rank=parallel.rank % parallel.tensor_parallel_size,
        tp_size=parallel.tensor_parallel_size,
        window_tokens=_window(spec),
    )


def group_shape(config: VllmConfig, group: layout.GroupLayout) -> layout.GroupShape:
    """The whole block's shape, alike on every rank, and where pipeline stages end."""
    return layout.GroupShape(
        shape=(group.layers_total, group.parts, group.heads_total, group.inner_bytes),
        stage_ends=_stage_ends(config, group.layers_total),
    )


def namespace(config: VllmConfig, settings: Settings, groups: list[layout.GroupLayout]) -> bytes:
    """Canonical encoding of everything that must match for blocks to be interchangeable."""
    model = config.model_config
    cache = config.cache_config
    weights = settings.weights_fingerprint
    digest = bytes.fromhex(weights) if weights else weights_fingerprint(model.model)
    if digest is None:
        raise SettingsError(
            "PegaFlow: no weight files beside the model's configuration, so its weights cannot be told from others'; "
            "set weights_fingerprint (64 hex digits, the same on every engine that serves these weights)"
        )
    extra = {"quantization": model.quantization, "kv_heads": model.get_total_num_kv_heads()}
    return _native.encode_namespace(
        {
            "model": model_fingerprint(model.hf_config.to_dict(), extra),
            "weights": digest,
            "kv_dtype": f"{cache.cache_dtype}:{model.dtype}",
            "kv_quantisation": "",
            "hash_algorithm": str(cache.prefix_caching_hash_algo),
            "hash_seed": os.environ.get("PYTHONHASHSEED", "").encode()[:64],
            "groups": [(_kind(g), g.block_tokens, g.window_tokens, g.layout_id) for g in groups],
            "tenant_salt": settings.tenant_salt.encode(),
        }
    )


def device(groups: list[layout.GroupLayout], tensor: torch.Tensor, settings: Settings) -> _native.Device:
    """Who copies from and to the engine's tensors.

    Raises:
        layout.UnsupportedLayout: tensors on a device that nobody here copies from.
    """
    if tensor.device.type == "cpu":
        memory = sorted({(v.storage_address, v.storage_bytes) for group in groups for v in group.layers})
        return _native.Device.host(settings.copy_threads, memory)
    if tensor.device.type == "cuda":
        cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pegaflow")
        opened = _native.Device.cuda(tensor.device.index or 0, cache)
        for limit in opened.limits:
            logger.warning("PegaFlow: %s: %s", opened.name, limit)
        return opened
    raise layout.UnsupportedLayout(f"KV on {tensor.device}; host memory and CUDA devices are served")


def current_stream(tensor: torch.Tensor) -> Callable[[], int | None]:
    """Gives the engine's stream of the moment; None for an engine in host memory."""
    if tensor.device.type != "cuda":
        return lambda: None
    import torch

    where = tensor.device
    return lambda: int(torch.cuda.current_stream(where).cuda_stream)


def _kind(group: layout.GroupLayout) -> str:
    if group.window_tokens:
        return "window"
    return "mla" if group.is_mla else "full"


def _tensor_facts(layer: str, tensor: torch.Tensor) -> layout.TensorFacts:
    storage = tensor.untyped_storage()
    return layout.TensorFacts(
        layer=layer,
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        item_bytes=tensor.element_size(),
        address=tensor.data_ptr(),
        storage_address=storage.data_ptr(),
        storage_bytes=storage.nbytes(),
    )


def _element(spec: Any, tensor: torch.Tensor) -> str:
    """Names the order of bytes inside a head. On the CPU backend it is packed for the instruction set."""
    name = str(tensor.dtype).removeprefix("torch.")
    return f"{name}-cpu-{_cpu_isa()}" if tensor.device.type == "cpu" else name


def _which(names: list[str]) -> str:
    """Names the layers of a group: how an engine groups them is not written in the model's configuration."""
    numbers = ",".join(str(_layer_number(name)) for name in names)
    return "-" + hashlib.blake2b(numbers.encode(), digest_size=4).hexdigest()


def _cpu_isa() -> str:
    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    words = set(flags.split())
    found = [isa for isa in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve") if isa in words]
    return "-".join([platform.machine(), *found])


def _layer_number(name: str) -> int:
    numbers = re.findall(r"\.(\d+)(?=\.|$)", name)
    if not numbers:
        raise layout.UnsupportedLayout(f"layer {name!r} has no number in its name, so its place in a block is unknown")
    return int(numbers[0])


def _layers_total(config: VllmConfig) -> int:
    return int(config.model_config.get_total_num_hidden_layers())


def _stage_ends(config: VllmConfig, layers_total: int) -> list[int]:
    stages = config.parallel_config.pipeline_parallel_size
    if stages == 1:
        return []
    from vllm.distributed.utils import get_pp_indices

    return [get_pp_indices(layers_total, rank, stages)[1] for rank in range(stages - 1)]
