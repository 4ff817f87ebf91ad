# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What must match before one engine may use another's KV: model, weights, element type, hashing, layout.

Never a path, never the tensor- or pipeline-parallel size.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from typing import Any

_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Fields of a model's configuration that say nothing about its KV, or are stated apart."""
_SAMPLE_BYTES = 1 << 20


def model_fingerprint(config: dict[str, Any], extra: dict[str, Any]) -> bytes:
    """32 bytes over the model's configuration without names and paths, and what the engine adds to it."""
    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    text = json.dumps([kept, extra], sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.blake2b(text.encode(), digest_size=32, person=b"pegaflow-model").digest()


def weights_fingerprint(folder: str) -> bytes | None:
    """32 bytes over the checkpoint in `folder`: names, sizes, and head, middle and tail of each weight file.

    None if the folder has no weight files (the caller then needs `weights_fingerprint` from the settings).
    Reads at most 3 MiB a file: new weights of the same size that differ nowhere in those samples are taken for the
    old ones. A training run changes every tensor, so its header, head or tail differ.
    """
    names = sorted(name for name in _files(folder) if name.endswith((".safetensors", ".bin", ".pt", ".gguf")))
    if not names:
        return None
    digest = hashlib.blake2b(digest_size=32, person=b"pegaflow-weight")
    for name in names:
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        digest.update(json.dumps([name, size]).encode())
        with open(path, "rb") as file:
            for start in sorted({0, max(0, size // 2), max(0, size - _SAMPLE_BYTES)}):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


def adapter_fingerprint(lora: Any) -> bytes | None:
    """What tells one LoRA adapter's blocks from another's: nothing without an adapter, else 32 bytes over its files.

    None for an adapter whose files are not here. The engine's own hashes hold the adapter's name only, which two
    engines may use for different weights.
    """
    return b"" if lora is None else _folder_fingerprint(str(lora.lora_path))


@functools.lru_cache(maxsize=1024)
def _folder_fingerprint(folder: str) -> bytes | None:
    return weights_fingerprint(folder)


def _files(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
