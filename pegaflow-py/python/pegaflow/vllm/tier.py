# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""PegaFlow as a tier behind vLLM's own offloading: chunks of its host memory, by vLLM's keys.

``{"type": "PegaFlowTier", "module_path": "pegaflow.vllm.tier", "endpoint": ...}`` in ``secondary_tiers``; the other
keys are the connector's settings. Chunks are opaque here, so only engines of one parallel layout share them. Nothing
waits for the node: a lookup without an answer is asked for again in the next step, and what fails is a miss.
"""

from __future__ import annotations

import array
import ctypes
import dataclasses
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from pegaflow import _native
from pegaflow.vllm import door
from pegaflow.vllm.namespace import model_fingerprint, weights_fingerprint
from pegaflow.vllm.settings import Settings, SettingsError

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec

WORD = 8
"""Bytes: chunks are a whole number of these."""


@dataclasses.dataclass(eq=False)
class _Load:
    job: TransferJob
    keys: list[OffloadKey]
    """Those that the node had."""
    found: list[_native.Found]
    loading: _native.Loading | None


class PegaFlowTier(SecondaryTierManager):
    """Keeps chunks of the primary tier in a PegaFlow node."""

    medium: ClassVar[Medium] = Medium.CPU

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        locality: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = None if locality is None else Locality(locality)
        self._settings = Settings.parse(settings)
        config = offloading_spec.config
        self._engine_id = f"tier-{config.engine_id}"
        self._client = door.client(self._settings, self._engine_id, hosts=True)
        chunk, chunks = self.block_size_bytes, len(primary_kv_view)
        if chunk % WORD:
            raise SettingsError(f"PegaFlow: chunks of {chunk} bytes; only multiples of {WORD} are served")
        namespace = _native.encode_namespace(_identity(config, self._settings, chunk))
        self._namespace = self._client.namespace(namespace, self._settings.tenant, [((1, 1, 1, chunk), [])])
        address = ctypes.addressof(ctypes.c_char.from_buffer(primary_kv_view))
        device = _native.Device.host(self._settings.copy_threads, [(address, chunk * chunks)])
        self._rank = self._client.rank(
            device,
            self._namespace,
            0,
            {"layers": (0, 1), "heads": (0, 1), "blocks": chunks, "views": [(address, chunk, 0, 0)]},
        )
        self._step = 0
        self._asked: dict[OffloadKey, tuple[_native.Lookup, int]] = {}
        """Lookups without an answer, and the step in which somebody asked for it last."""
        self._hits: dict[OffloadKey, _native.Found] = {}
        """Chunks that were said to be here and are not being loaded yet."""
        self._unused: dict[OffloadKey, _native.Found] = {}
        """The same, of the step before."""
        self._loads: list[_Load] = []
        self._stores: dict[int, TransferJob] = {}
        """By the number of their save."""
        self._saves = 0

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        if not self._settings.mode.loads:
            return LookupResult.MISS
        known = self._hits.get(key) or self._unused.pop(key, None)
        if known is not None:
            self._hits[key] = known
            return LookupResult.HIT
        lookup, _ = self._asked.pop(key, (None, 0))
        if lookup is None:
            keys, ttl_ms = self._namespace.keys(0, [key]), self._settings.lease_ttl_ms
            lookup = self._client.lookup(self._namespace, keys, ttl_ms)
        found = lookup.poll(0, self._settings.lookup_wait_ms, self._settings.fetch_wait_ms)
        if found is None:
            self._asked[key] = lookup, self._step
            return LookupResult.RETRY
        if not found.ready:
            self._client.release([found])
            return LookupResult.MISS
        self._hits[key] = found
        return LookupResult.HIT

    def submit_load(self, job_metadata: TransferJob) -> None:
        wanted = zip(job_metadata.keys, job_metadata.chunk_ids.tolist(), strict=True)
        taken = [(key, chunk, self._take_hit(key)) for key, chunk in wanted]
        here = [(key, chunk, found) for key, chunk, found in taken if found is not None]
        items = [
            (self._namespace.keys(0, [key]), found.places[:8], found.generations[:4], _packed([chunk]))
            for key, chunk, found in here
        ]
        try:
            loading = self._rank.load(items) if items else None
        except _native.PegaFlowError:
            loading = None
        self._loads.append(_Load(job_metadata, [k for k, _, _ in here], [f for _, _, f in here], loading))

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._saves += 1
        self._stores[self._saves] = job_metadata
        keys, chunks = list(job_metadata.keys), job_metadata.chunk_ids.tolist()
        if not self._settings.mode.saves:
            keys, chunks = [], []
        self._rank.save([(self._saves, b"", self._namespace.keys(0, keys), _packed(chunks))])

    def get_finished_jobs(self) -> Iterable[JobResult]:
        over = [load for load in self._loads if load.loading is None or load.loading.done()]
        self._loads = [load for load in self._loads if load not in over]
        return [self._loaded(load) for load in over] + self._stored()

    def has_pending_work(self) -> bool:
        return bool(self._loads or self._stores)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """What nobody has come back to within a step is not wanted: the request is gone, or there is no room for it."""
        self._step += 1
        for key in [key for key, (_, step) in self._asked.items() if step + 1 < self._step]:
            self._asked.pop(key)[0].cancel()
        if self._unused:
            self._client.release(list(self._unused.values()))
        self._unused, self._hits = self._hits, {}

    def drain_jobs(self) -> None:
        self._rank.settle(self._saves)
        for load in self._loads:
            if load.loading is not None:
                load.loading.hold(None)

    def shutdown(self) -> None:
        self.drain_jobs()
        self._rank.close()
        door.close(self._engine_id)

    def _take_hit(self, key: OffloadKey) -> _native.Found | None:
        return self._hits.pop(key, None) or self._unused.pop(key, None)

    def _loaded(self, load: _Load) -> JobResult:
        failed = set(load.loading.finish()) if load.loading is not None else set(range(len(load.keys)))
        self._client.release(load.found)
        good = [key for at, key in enumerate(load.keys) if at not in failed]
        return self._result(load.job, good)

    def _stored(self) -> list[JobResult]:
        through, _, _, _, _, refused, _ = self._rank.saves()
        over = [number for number in self._stores if number <= through]
        jobs = [(self._stores.pop(number), number in refused) for number in over]
        return [self._result(job, [] if bad else job.keys) for job, bad in jobs]

    def _result(self, job: TransferJob, good: Collection[OffloadKey]) -> JobResult:
        return JobResult(
            job_id=job.job_id,
            success=len(good) == len(job.keys),
            successful_keys=good if job.is_promotion else None,
            transfer_time=time.monotonic() - job.submit_time,
            transfer_bytes=len(good) * self.block_size_bytes,
        )


def _identity(config: Any, settings: Settings, chunk_bytes: int) -> _native.NamespaceParts:
    """What must match before two engines may use each other's chunks."""
    digest = settings.weights_fingerprint or (weights_fingerprint(config.model.name) or b"").hex()
    if not digest:
        raise SettingsError("PegaFlow: no weight files beside the model's configuration; set weights_fingerprint")
    parallel = config.parallel
    layout = {
        "parallel": [parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size],
        "groups": [dataclasses.asdict(group) for group in config.groups],
        "cache": dataclasses.asdict(config.cache),
        "canonical": config.canonical_layout,
        "kv_cache_layout": config.kv_cache_layout,
    }
    return {
        "model": model_fingerprint(layout, {}),
        "weights": bytes.fromhex(digest),
        "kv_dtype": str(config.model.dtype),
        "kv_quantisation": "",
        "hash_algorithm": "vllm-offload-key",
        "hash_seed": b"",
        "groups": [("full", config.cache.tokens_per_hash, 0, f"vllm-chunk-{chunk_bytes}")],
        "tenant_salt": settings.tenant_salt.encode(),
    }


def _packed(chunks: list[int]) -> bytes:
    return array.array("I", chunks).tobytes()
