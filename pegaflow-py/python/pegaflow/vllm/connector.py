# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""vLLM's connector interface in PegaFlow's terms. One class for both roles; the work is in `scheduler` and `worker`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA

from pegaflow import _native
from pegaflow.vllm import engine
from pegaflow.vllm.meta import Handshake, StepMeta, WorkerReport
from pegaflow.vllm.scheduler import Scheduler
from pegaflow.vllm.settings import Settings
from pegaflow.vllm.worker import Worker, rank_layout

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
        client = engine.scheduler_client(self._settings, self._config.kv_transfer_config.engine_id)
        assert self._cache_config is not None
        block_tokens = self._cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._scheduler = Scheduler(self._settings, client, block_tokens)

    # ---- worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        group = engine.group_layout(self._config, self._cache_config, kv_caches)
        namespace = engine.namespace(self._config, self._settings, group)
        shape = engine.group_shape(self._config, group)
        self._handshake = Handshake(groups=[shape], namespace=namespace)
        engine_id = self._config.kv_transfer_config.engine_id

        def open_rank() -> _native.Rank:
            client = engine.worker_client(self._settings, engine_id)
            handle = engine.register(client, self._settings, namespace, shape)
            return client.rank(handle, rank_layout(group), self._settings.copy_threads)

        self._worker = Worker(open_rank)
        logger.info("PegaFlow: %d layers, %s, %d bytes a block", len(group.layers), group.layout_id, group.block_bytes)

    def get_handshake_metadata(self) -> Handshake | None:
        return self._handshake

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.load(self._meta())

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.save(self._meta())

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_failed() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> WorkerReport | None:
        return self._worker.take_report() if self._worker is not None else None

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            engine.close_scheduler(self._config.kv_transfer_config.engine_id)

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
        client = engine.scheduler_client(self._settings, self._config.kv_transfer_config.engine_id)
        self._scheduler.bind(engine.register(client, self._settings, first.namespace, first.groups[0]))

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        assert self._scheduler is not None
        return self._scheduler.matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMeta:
        assert self._scheduler is not None
        return self._scheduler.step(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        assert self._scheduler is not None
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, WorkerReport):
            self._scheduler.step_done(report)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        assert self._scheduler is not None
        self._scheduler.finished(request.request_id)
        # Saves end within their step, so the blocks may go at once.
        return False, None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0] if block_ids else [])

    def _meta(self) -> StepMeta:
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        return meta
