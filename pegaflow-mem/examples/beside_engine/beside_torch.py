# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Copies beside PyTorch in one process. Usage: beside_torch.py LIBRARY; run it once more with
PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."""

import ctypes
import os
import sys

import torch


class EngineKv(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("layers", ctypes.c_uint32),
        ("parts", ctypes.c_uint32),
        ("blocks", ctypes.c_uint32),
        ("inner_bytes", ctypes.c_uint32),
    ]


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.pegaflow_beside.argtypes = [ctypes.POINTER(EngineKv), ctypes.c_uint32, ctypes.c_uint64]
    layers, parts, blocks, n, inner = 16, 2, 512, 96, 64 << 10
    stream = torch.cuda.Stream()
    weights = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        with torch.cuda.stream(stream):
            kv = torch.zeros((layers, parts, blocks, inner // 4), dtype=torch.int32, device="cuda")
            activations = weights
            for _ in range(40):  # work that the save must wait for
                activations = activations @ weights
            kv[:, :, :n] = torch.randint(-(1 << 30), 1 << 30, kv[:, :, :n].shape, device="cuda", dtype=torch.int32)
            description = EngineKv(kv.data_ptr(), layers, parts, blocks, inner)
            wrong = library.pegaflow_beside(ctypes.byref(description), n, stream.cuda_stream)
            assert wrong == 0, "checksums differ"
            same = torch.equal(kv[:, :, :n], kv[:, :, n : 2 * n])
            rest = int(kv[:, :, 2 * n :].abs().max())
        assert same and rest == 0, "bytes differ"
        del kv
    context = torch.cuda.current_device()
    torch.cuda.synchronize()
    conf = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default allocator")
    print(f"beside PyTorch {torch.__version__} on device {context}, {conf}: 5 rounds, all bytes equal")


if __name__ == "__main__":
    main()
