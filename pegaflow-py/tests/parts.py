# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What tests and benchmarks of the native module share: memory of their own, and a namespace of made-up KV."""

from __future__ import annotations

import ctypes

from pegaflow import _native


def address_of(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def encoding(block_tokens: int, layout_id: str) -> bytes:
    """A namespace with one cache group."""
    return _native.encode_namespace(
        {
            "model": b"m" * 32,
            "weights": b"w" * 32,
            "kv_dtype": "f16",
            "kv_quantisation": "",
            "hash_algorithm": "sha256",
            "hash_seed": b"",
            "groups": [("full", block_tokens, 0, layout_id)],
            "tenant_salt": b"",
        }
    )


def namespace(client: _native.Client, block_tokens: int, layout_id: str, shape: tuple) -> _native.Namespace:
    """One cache group of blocks of `shape`: layers, parts, heads and bytes of a head."""
    return client.namespace(encoding(block_tokens, layout_id), "default", [(shape, [])])
