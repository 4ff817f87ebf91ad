# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What the connector needs to know of the engine: its layout, its namespace, and who talks to the node."""

from __future__ import annotations

import logging
import os
import platform
import re
from typing import TYPE_CHECKING, Any

from pegaflow import _native
from pegaflow.vllm import layout
from pegaflow.vllm.namespace import model_fingerprint, weights_fingerprint
from pegaflow.vllm.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger("pegaflow.vllm")


def check(config: VllmConfig, cache: KVCacheConfig | None) -> None:
    """Refuses at start what the connector does not serve.

    Raises:
        layout.UnsupportedLayout: says what was seen and what would do.
    """
    if cache is None:
        raise layout.UnsupportedLayout("this vLLM gives its connectors no cache configuration; 0.26 and newer do")
    groups = cache.kv_cache_groups
    if len(groups) != 1:
        seen = ", ".join(f"{type(g.kv_cache_spec).__name__} x {len(g.layer_names)} layers" for g in groups)
        raise layout.UnsupportedLayout(f"models with several KV cache groups are not served yet. Seen: {seen}")
    served = "FullAttentionSpec and MLAAttentionSpec are"
    spec = type(groups[0].kv_cache_spec).__name__
    if spec not in ("FullAttentionSpec", "MLAAttentionSpec"):
        raise layout.UnsupportedLayout(f"cache spec {spec} is not served yet; {served}")
    parallel = config.parallel_config
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        raise layout.UnsupportedLayout("decode context parallelism is not served yet")


def group_layout(config: VllmConfig, cache: KVCacheConfig, kv_caches: dict[str, torch.Tensor]) -> layout.GroupLayout:
    """This rank's layout, from the tensors that hold its KV."""
    group = cache.kv_cache_groups[0]
    spec = group.kv_cache_spec
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
        element=_element(spec, kv_caches[names[0]]),
        layers_total=_layers_total(config),
        first_layer=_layer_number(names[0]),
        kv_heads_total=config.model_config.get_total_num_kv_heads(),
        tp_rank=parallel.rank % parallel.tensor_parallel_size,
        tp_size=parallel.tensor_parallel_size,
    )


def group_shape(config: VllmConfig, group: layout.GroupLayout) -> layout.GroupShape:
    """The whole block's shape, alike on every rank, and where pipeline stages end."""
    return layout.GroupShape(
        shape=(group.layers_total, group.parts, group.heads_total, group.inner_bytes),
        stage_ends=_stage_ends(config, group.layers_total),
    )


def namespace(config: VllmConfig, settings: Settings, group: layout.GroupLayout) -> bytes:
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
            "groups": [(_kind(group), group.block_tokens, 0, group.layout_id)],
            "tenant_salt": settings.tenant_salt.encode(),
        }
    )


def device(group: layout.GroupLayout, tensor: torch.Tensor, settings: Settings) -> _native.Device:
    """Who copies from and to the engine's tensors.

    Raises:
        layout.UnsupportedLayout: tensors on a device that nobody here copies from.
    """
    if tensor.device.type == "cpu":
        memory = sorted({(v.storage_address, v.storage_bytes) for v in group.layers})
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
    return "mla" if group.layout_id.startswith("mla") else "full"


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
