# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""vLLM's tiered offloading for an engine in host memory: vLLM itself offloads from GPUs only.

Everything is vLLM's own but the copies between the engine's blocks and its host memory.
"""

from __future__ import annotations

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class HostTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches):
        region = SharedOffloadRegion(
            engine_id=self._engine_id,
            num_chunks=self.num_chunks,
            rank=0,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return Copies(kv_caches, region)


class Copies(OffloadingWorker):
    """Copies that are over when they were asked for."""

    def __init__(self, kv_caches, region):
        self._region, self._done = region, []
        tensors = [
            (t.tensor.view(torch.int8).view(-1, t.page_size_bytes), t.page_size_bytes) for t in kv_caches.tensors
        ]
        self._pairs = [(engine, region.create_next_worker_view(size)) for engine, size in tensors]

    def submit_store(self, job_id, src_spec, dst_spec):
        for engine, host in self._pairs:
            host[dst_spec.block_ids] = engine[src_spec.block_ids]
        return self._over(job_id)

    def submit_load(self, job_id, src_spec, dst_spec):
        for engine, host in self._pairs:
            engine[dst_spec.block_ids] = host[src_spec.block_ids]
        return self._over(job_id)

    def _over(self, job_id):
        self._done.append(TransferResult(job_id, True, 1, 1e-6))
        return True

    def get_finished(self):
        done, self._done = self._done, []
        return done

    def wait(self, job_ids):
        return

    def shutdown(self):
        self._pairs = []
        self._region.cleanup()
