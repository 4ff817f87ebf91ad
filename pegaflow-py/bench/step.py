# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Time that the connector's own code takes in a step: scheduler and worker side, 64 running requests of 8k tokens.

No engine: requests and steps are made up, the node and the copies are real. One JSON line a point, as all benchmarks
here. `python step.py [--quick]`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import sys
import tempfile
import time
from types import SimpleNamespace

from pegaflow import _native
from pegaflow.vllm.layout import SpecFacts, TensorFacts, detect, group
from pegaflow.vllm.scheduler import Scheduler
from pegaflow.vllm.settings import Settings
from pegaflow.vllm.worker import Worker, rank_layout

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
from parts import address_of, namespace

RUNNING, TOKENS, BLOCK = 64, 8192, 16
LAYERS, HEADS, DIM, ITEM = 2, 2, 32, 2
PROMPT_BLOCKS = TOKENS // BLOCK


class Request:
    """As much of an engine's request as the connector reads."""

    def __init__(self, number: int, blocks: int):
        self.request_id = f"r{number}"
        self.lora_request = None
        self.num_tokens = blocks * BLOCK + 1
        self.block_hashes = [hashlib.sha256(f"{number}/{at}".encode()).digest() for at in range(blocks)]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def line(op: str, micros: list[float], floor: dict | None = None) -> None:
    points = {f"p{name}_us": round(percentile(micros, share), 1) for name, share in POINTS.items()}
    settings = {"op": op, "running": RUNNING, "tokens": TOKENS, "block_tokens": BLOCK}
    machine = {"cpus": os.cpu_count()}
    rest = {"gb_per_s": None, "ops_per_s": None, "floor": floor, "floor_share": None}
    print(json.dumps({"bench": "vllm-step", "settings": settings, "machine": machine, **points, **rest}), flush=True)


POINTS = {"50": 0.5, "99": 0.99, "999": 0.999}


def open_rank(folder: str, blocks: int):
    """A node, a namespace and a rank over tensors that are only bytes."""
    inner = 2 * DIM * BLOCK * ITEM
    memory = bytearray(LAYERS * blocks * HEADS * inner)
    address = address_of(memory)
    spec = SpecFacts(blocks, BLOCK, HEADS, DIM, HEADS * inner)
    strides = (HEADS * BLOCK * 2 * DIM, BLOCK * 2 * DIM, 2 * DIM, 1)
    layers = []
    for layer in range(LAYERS):
        at = address + layer * blocks * HEADS * inner
        shape = (blocks, HEADS, BLOCK, 2 * DIM)
        facts = TensorFacts(f"model.layers.{layer}.attn", shape, strides, ITEM, at, address, len(memory))
        layers.append(detect(facts, spec))
    whole = group(
        layers,
        spec=spec,
        element="f16",
        layers_total=LAYERS,
        first_layer=0,
        kv_heads_total=HEADS,
        tp_rank=0,
        tp_size=1,
    )
    client = _native.Client.embedded(512 << 20, os.path.join(folder, "bench.sock"))
    shape = (LAYERS, whole.parts, whole.heads_total, whole.inner_bytes)
    known = namespace(client, BLOCK, whole.layout_id, shape)
    device = _native.Device.host(1, [(address, len(memory))])
    rank = client.rank(device, known, 0, rank_layout(whole))
    return client, known, whole, Worker([(rank, whole)], lambda: None, by_layer=True), memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    steps = 200 if parser.parse_known_args()[0].quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        run(folder, steps)


def run(folder: str, steps: int) -> None:
    extra = steps // BLOCK + 2
    per_request = PROMPT_BLOCKS + extra
    client, known, whole, worker, _memory = open_rank(folder, RUNNING * per_request)
    scheduler = Scheduler(Settings(), client, BLOCK, delays_frees=True, blocks=RUNNING * per_request)
    scheduler.bind(known, whole.block_bytes)
    requests = [Request(n, per_request) for n in range(RUNNING)]
    tables = [list(range(n * per_request, (n + 1) * per_request)) for n in range(RUNNING)]
    times: dict[str, list[float]] = {"matched": [], "here": [], "scheduler": [], "worker": []}

    def timed(name: str, act):
        started = time.perf_counter_ns()
        result = act()
        times[name].append((time.perf_counter_ns() - started) / 1000)
        return result

    def step(output) -> None:
        meta = timed("scheduler", lambda: scheduler.step(output))

        def work():
            worker.settle(meta)
            worker.load(meta, whole=False)
            worker.save(meta)
            worker.finished()
            worker.take_failed()
            return worker.take_report()

        scheduler.step_done(timed("worker", work))

    # The first call of all pays for what is made once.
    scheduler.matched_tokens(Request(RUNNING, per_request), 0)
    scheduler.finished(f"r{RUNNING}")
    computed = [TOKENS] * RUNNING
    for at, request in enumerate(requests):
        while timed("matched", lambda request=request: scheduler.matched_tokens(request, 0))[0] is None:
            pass
        scheduler.allocated(request, SimpleNamespace(get_block_ids=lambda at=at: (tables[at],)), 0)
        new = SimpleNamespace(req_id=request.request_id, block_ids=(tables[at][:PROMPT_BLOCKS],), num_computed_tokens=0)
        step(output_of([new], {request.request_id: TOKENS}, cached([], [], [])))
    worker._lanes[0].settle(scheduler._saves)
    here = TOKENS - TOKENS // 8
    for at in range(RUNNING):
        again = Request(at, per_request)
        again.request_id = f"again{at}"
        while timed("here", lambda again=again: scheduler.matched_tokens(again, here))[0] is None:
            pass
        scheduler.finished(again.request_id)
    prefill = {name: values[:] for name, values in times.items()}
    for values in times.values():
        values.clear()
    ids = [request.request_id for request in requests]
    for _ in range(steps):
        added = []
        for at in range(RUNNING):
            first = computed[at] % BLOCK == 0
            added.append(([tables[at][computed[at] // BLOCK]],) if first else None)
        step(output_of([], dict.fromkeys(ids, 1), cached(ids, added, computed[:])))
        computed = [n + 1 for n in computed]
    line("lookup 8k tokens", prefill["matched"])
    line("lookup 8k tokens, 7k in the engine", prefill["here"])
    line("scheduler: prefill step of 8k tokens", prefill["scheduler"])
    line("worker: prefill step of 8k tokens", prefill["worker"])
    line("scheduler: decode step", times["scheduler"])
    line("worker: decode step", times["worker"])
    worker.close()
    client.close()


def cached(ids, added, computed):
    return SimpleNamespace(req_ids=ids, new_block_ids=added, num_computed_tokens=computed, resumed_req_ids=set())


def output_of(new, scheduled, old):
    return SimpleNamespace(scheduled_new_reqs=new, num_scheduled_tokens=scheduled, scheduled_cached_reqs=old)


if __name__ == "__main__":
    main()
