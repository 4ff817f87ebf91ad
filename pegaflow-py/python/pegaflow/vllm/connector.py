# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""vLLM's connector interface in PegaFlow's terms. One class for both roles; the work is in `scheduler` and `worker`."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA

from pegaflow.vllm import door, engine
from pegaflow.vllm.meta import Handshake, StepMeta, WorkerReport
from pegaflow.vllm.scheduler import Scheduler
from pegaflow.vllm.settings import Settings
from pegaflow.vllm.stats import PegaFlowPromMetrics, PegaFlowStats
from pegaflow.vllm.worker import BY_LAYER_BYTES_MIN, Worker, rank_layout

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = logging.getLogger("pegaflow.vllm")


class PegaFlowConnector(KVConnectorBase_V1, SupportsHMA):
    """Saves full KV blocks to PegaFlow and loads those it has instead of computing them."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig | None = None
    ) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._settings = Settings.parse(transfer.kv_connector_extra_config)
        self._config = vllm_config
        self._cache_config = kv_cache_config
        self._engine_id: str = transfer.engine_id
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        self._handshake: Handshake | None = None
        engine.check(vllm_config, kv_cache_config)
        if transfer.kv_load_failure_policy != "recompute":
            # A block that cannot be loaded is a miss, not an error of the request.
            transfer.kv_load_failure_policy = "recompute"
        if role == KVConnectorRole.SCHEDULER:
            self._open_scheduler()

    def _open_scheduler(self) -> None:
        assert self._cache_config is not None
        client = door.client(self._settings, self._engine_id, hosts=False)
        block_tokens = self._cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        # Engines that ask this go on stepping while finished requests wait for their saves; older ones may fall asleep.
        delays_frees = hasattr(KVConnectorBase_V1, "has_pending_block_frees")
        events = self._config.kv_events_config
        tells = events is not None and events.enable_kv_cache_events
        self._scheduler = Scheduler(
            self._settings,
            client,
            block_tokens,
            delays_frees,
            tells=tells,
            blocks=self._cache_config.num_blocks,
            groups=len(self._cache_config.kv_cache_groups),
            hybrid=engine.is_hybrid(self._cache_config),
            inline=engine.computes_again_within_steps(self._config),
        )

    # ---- worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        assert self._cache_config is not None
        groups = engine.group_layouts(self._config, self._cache_config, kv_caches)
        namespace = engine.namespace(self._config, self._settings, groups)
        shapes = [engine.group_shape(self._config, group) for group in groups]
        self._handshake = Handshake(groups=shapes, namespace=namespace)
        hosts = self._config.parallel_config.rank == 0
        client = door.client(self._settings, self._engine_id, hosts)
        known = client.namespace(namespace, self._settings.tenant, [(s.shape, s.stage_ends) for s in shapes])
        tensor = kv_caches[groups[0].layer_names[0]]
        device = engine.device(groups, tensor, self._settings)
        started = time.perf_counter()
        lanes = [client.rank(device, known, at, rank_layout(group)) for at, group in enumerate(groups)]
        hybrid = engine.is_hybrid(self._cache_config)
        self._worker = Worker(
            list(zip(lanes, groups, strict=True)),
            engine.current_stream(tensor),
            by_layer=not hybrid and not groups[0].is_mla and groups[0].layer_bytes >= BY_LAYER_BYTES_MIN,
            ranks=self._config.parallel_config.world_size,
            hybrid=hybrid,
        )
        for group in groups:
            logger.info(
                "PegaFlow: %d layers, %s, %d bytes a block, copied by %s (ready in %.1f s)",
                len(group.layers),
                group.layout_id,
                group.block_bytes,
                device.name,
                time.perf_counter() - started,
            )

    def get_handshake_metadata(self) -> Handshake | None:
        return self._handshake

    def bind_connector_metadata(self, connector_metadata: StepMeta) -> None:
        super().bind_connector_metadata(connector_metadata)
        # Engines that do not call `handle_preemptions` every step come here before the forward.
        self.handle_preemptions(connector_metadata)

    def handle_preemptions(self, kv_connector_metadata: StepMeta) -> None:
        if self._worker is not None:
            self._worker.settle(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            # A full CUDA graph replays without calling `wait_for_layer_load`; the second model runner says so by a
            # context of no forward.
            mode = getattr(forward_context, "cudagraph_runtime_mode", None)
            graph = getattr(mode, "name", "") == "FULL" or getattr(forward_context, "attn_metadata", None) is None
            self._worker.load(self._meta(), whole=graph)

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._worker is not None:
            self._worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.save(self._meta())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return self._worker.finished() if self._worker is not None else (None, None)

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        # Engines that ask this have the class.
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        sent, loaded = self.get_finished(finished_req_ids)
        failed = self._worker.take_failed_requests() if self._worker is not None else set()
        return KVConnectorTransferResults(sent or set(), loaded or set(), failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_failed() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> WorkerReport | None:
        return self._worker.take_report() if self._worker is not None else None

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
        door.close(self._engine_id)

    # ---- scheduler

    def set_xfer_handshake_metadata(self, metadata: dict[int, Handshake]) -> None:
        self._bind(list(metadata.values()))

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Handshake]) -> None:
        self._bind(list(metadata.values()))

    def _bind(self, handshakes: list[Handshake]) -> None:
        assert self._scheduler is not None
        first = handshakes[0]
        if any(other.namespace != first.namespace or other.groups != first.groups for other in handshakes[1:]):
            raise ValueError("PegaFlow: the workers of this engine see different KV layouts; they cannot share blocks")
        client = door.client(self._settings, self._engine_id, hosts=False)
        shapes = [(shape.shape, shape.stage_ends) for shape in first.groups]
        known = client.namespace(first.namespace, self._settings.tenant, shapes)
        layers, parts, heads, inner_bytes = first.groups[0].shape
        self._scheduler.bind(known, layers * parts * heads * inner_bytes // len(handshakes))

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def get_external_cache_hit_sources(self, request: Request, num_external_tokens: int) -> dict[Any, int]:
        # Engines that ask this have the module.
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        assert self._scheduler is not None
        disk = min(self._scheduler.loaded_from_ssd(request.request_id), num_external_tokens)
        tokens = {CacheHitSource.HOST: num_external_tokens - disk, CacheHitSource.DISK: disk}
        return {source: count for source, count in tokens.items() if count}

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMeta:
        assert self._scheduler is not None
        return self._scheduler.step(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        assert self._scheduler is not None
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, WorkerReport):
            self._scheduler.step_done(report)
        sent, loaded = connector_output.finished_sending, connector_output.finished_recving
        if sent or loaded:
            self._scheduler.transfers_done(sent or set(), loaded or set())

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler is not None
        return self._scheduler.finished(request.request_id), None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0] if block_ids else [])

    def reset_cache(self) -> bool | None:
        if self._scheduler is not None:
            self._scheduler.reset()
        return True

    def get_kv_connector_stats(self) -> PegaFlowStats | None:
        return self._scheduler.take_stats() if self._scheduler is not None else None

    def take_events(self) -> list[Any]:
        return self._scheduler.take_events() if self._scheduler is not None else []

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> PegaFlowStats:
        return PegaFlowStats(data)

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: VllmConfig, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> PegaFlowPromMetrics:
        return PegaFlowPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def has_pending_block_frees(self) -> bool:
        return self._scheduler is not None and self._scheduler.has_pending_frees()

    def _meta(self) -> StepMeta:
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        return meta
