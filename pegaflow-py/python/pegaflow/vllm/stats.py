# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What the connector tells vLLM's log line and Prometheus endpoint."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from pegaflow.vllm.meta import WorkerReport

COUNTERS = {
    "lookups": "Lookups of requests",
    "lookup_timeouts": "Lookups that had no answer in time and counted as misses",
    "asked_blocks": "Blocks that lookups asked for",
    "found_blocks": "Blocks that lookups found",
    "found_ssd_blocks": "Of these, blocks that came from SSD",
    "lookup_us": "Microseconds until the node answered lookups",
    "fetches": "Lookups that waited for blocks on their way from SSD or being saved",
    "fetch_us": "Microseconds that these waited",
    "loaded_blocks": "Blocks loaded and proven, summed over ranks",
    "failed_blocks": "Blocks that could not be loaded as they were saved, and were computed",
    "saved_blocks": "Blocks saved, summed over ranks",
    "known_blocks": "Blocks that the node had when they were to be saved",
    "refused_blocks": "Blocks not saved: no room, no answer, or too many waiting",
    "loaded_bytes": "Bytes loaded",
    "saved_bytes": "Bytes saved",
    "load_us": "Microseconds that steps waited for loads",
}


class PegaFlowStats(KVConnectorStats):
    """Counts of some steps."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data=dict.fromkeys(COUNTERS, 0) | (data or {}))

    def reset(self) -> None:
        self.data = dict.fromkeys(COUNTERS, 0)

    def add(self, report: WorkerReport) -> None:
        """Adds what workers did."""
        for name in COUNTERS:
            self.data[name] += getattr(report, name, 0)

    def aggregate(self, other: KVConnectorStats) -> PegaFlowStats:
        for name in COUNTERS:
            self.data[name] += other.data.get(name, 0)
        return self

    def reduce(self) -> dict[str, int | float]:
        asked = self.data["asked_blocks"]
        shown = ("found_blocks", "loaded_blocks", "failed_blocks", "saved_blocks", "refused_blocks")
        short: dict[str, int | float] = {name.replace("_", " "): self.data[name] for name in shown}
        fetches = self.data["fetches"]
        rates: dict[str, int | float] = {
            "hit rate %": round(100 * self.data["found_blocks"] / asked, 1) if asked else 0.0,
            "from SSD %": round(100 * self.data["found_ssd_blocks"] / asked, 1) if asked else 0.0,
            "fetch ms": round(self.data["fetch_us"] / fetches / 1000, 1) if fetches else 0.0,
        }
        return rates | short

    def is_empty(self) -> bool:
        return not any(self.data.values())


class PegaFlowPromMetrics(KVConnectorPromMetrics):
    """The same counts as Prometheus counters, ``vllm:pegaflow_*``."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, labelvalues)
        self._counters: dict[tuple[str, int], Any] = {}
        for name, text in COUNTERS.items():
            counter = self._counter_cls(name=f"vllm:pegaflow_{name}", documentation=text, labelnames=labelnames)
            for engine, values in labelvalues.items():
                self._counters[name, engine] = counter.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name in COUNTERS:
            count = transfer_stats_data.get(name, 0)
            if count:
                self._counters[name, engine_idx].inc(count)
