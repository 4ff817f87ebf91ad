# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""A real vLLM engine (CPU backend), what it answers, and the bytes of its blocks.

Attention does not see the order of blocks, so tokens and log-probabilities are not enough: the bytes of every block are
compared with those that were saved.
"""

from __future__ import annotations

import array
import gc
import hashlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time

import torch
import vllm
from pegaflow.vllm.connector import PegaFlowConnector
from pegaflow.vllm.worker import Worker
from vllm.distributed.kv_transfer import kv_transfer_state

BLOCK = 32
COMMON = [(i * 37 + 11) % 500 + 3 for i in range(130)]
PROMPTS = [COMMON + [(i * 7 + j * 13) % 500 + 3 for j in range(70)] for i in range(3)]
PATIENT = {"lookup_step_us": 1_000_000, "lookup_wait_ms": 20_000}
"""No lookup is asked for again in a later step, so requests that come together run together."""
SAMPLING = vllm.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False, logprobs=1)


def engine(folder: str, extra: dict | None, **changes) -> vllm.LLM:
    """An engine in this process, with the connector if `extra` is given."""
    transfer = {}
    if extra is not None:
        transfer["kv_transfer_config"] = {
            "kv_connector": "PegaFlowConnector",
            "kv_connector_module_path": "pegaflow.vllm",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }
    settings = dict(
        model=folder,
        skip_tokenizer_init=True,
        max_model_len=512,
        dtype="float32",
        enforce_eager=True,
        seed=0,
        max_num_seqs=8,
        max_num_batched_tokens=1024,
        block_size=BLOCK,
        kv_cache_memory_bytes=256 << 20,
    )
    # The end of an engine takes down what all engines of a process share, so it must not come later.
    gc.collect()
    # A process has one worker's connector, and an engine would take over that of the one before: only the engine that
    # was made last may be used.
    kv_transfer_state._KV_CONNECTOR_AGENT = None
    return vllm.LLM(**{**settings, **transfer, **changes})


def engine_beside(folder: str, extra: dict) -> subprocess.Popen:
    """An engine in a process of its own, which answers `PROMPTS` and says what it answered as JSON."""
    script = str(pathlib.Path(__file__).with_name("beside.py"))
    return subprocess.Popen([sys.executable, script, folder, json.dumps(extra)], stdout=subprocess.PIPE, text=True)


def close() -> None:
    """Ends the connector's worker side, as the end of the engine does."""
    kv_transfer_state._KV_CONNECTOR_AGENT.shutdown()


def scheduler_of(llm: vllm.LLM):
    """The connector's scheduler side."""
    return llm.llm_engine.engine_core.engine_core.scheduler.connector._scheduler


def rest(llm: vllm.LLM) -> None:
    """Waits until all saves are over and their blocks are free. An engine with a loop of its own steps by itself."""
    scheduler = scheduler_of(llm)
    for lane in _workers[-1]._lanes:
        lane.settle(scheduler._saves)
    while scheduler.has_pending_frees():
        llm.llm_engine.step()


def settle(llm: vllm.LLM, patience: float = 20.0) -> dict[str, int]:
    """Waits until all saves are over and no lease is held; the node's counters then."""
    scheduler = scheduler_of(llm)
    rest(llm)
    scheduler._client.release(scheduler._unneeded)
    scheduler._unneeded = []
    return node_says(llm, lambda stats: stats["leases"] == 0, patience)


def node_says(llm: vllm.LLM, enough, patience: float = 20.0) -> dict[str, int]:
    """Asks the node, one question after the other, until its counters are `enough`."""
    client = scheduler_of(llm)._client
    until = time.monotonic() + patience
    while True:
        stats = client.stats()
        if enough(stats):
            return stats
        assert time.monotonic() < until, stats


def spilled(llm: vllm.LLM) -> dict[str, int]:
    """Waits until all that is saved is on SSD too."""
    settle(llm)
    return node_says(llm, lambda stats: not stats["ssd_waiting"] and not stats["ssd_spilling_bytes"])


def forget(llm: vllm.LLM) -> None:
    """Empties the engine's own prefix cache, once what it computed is saved."""
    rest(llm)
    assert llm.reset_prefix_cache()


class Answers:
    """Tokens, log-probabilities and cached tokens of some prompts."""

    def __init__(self, llm: vllm.LLM, prompts=PROMPTS, sampling=SAMPLING):
        out = llm.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)
        self.tokens = [list(o.outputs[0].token_ids) for o in out]
        self.logprobs = [[next(iter(d.values())).logprob for d in o.outputs[0].logprobs] for o in out]
        self.cached = [o.num_cached_tokens for o in out]

    def distance(self, other: Answers) -> float:
        return max(
            abs(a - b) for u, v in zip(self.logprobs, other.logprobs, strict=True) for a, b in zip(u, v, strict=True)
        )


_workers: list[Worker] = []


class Spy:
    """Hashes of the engine's blocks by key, as saved and as loaded."""

    def __init__(self, monkeypatch):
        self.saved: dict[bytes, set[bytes]] = {}
        """All bytes that a block was offered with: computed again in another batch, it has other roundings."""
        self.loaded: list[tuple[bytes, bytes]] = []
        self.refused: list[tuple[bytes, bytes]] = []
        self.before_load = None
        self.tensors: dict[str, object] = {}
        save, judge, start = Worker.save, Worker._judge, Worker._start
        register = PegaFlowConnector.register_kv_caches

        def spy_save(worker, meta):
            for item in meta.saves:
                for key, block in zip(keys(item.keys), numbers(item.blocks), strict=True):
                    self.saved.setdefault(key, set()).add(self.hash(block))
            save(worker, meta)

        def spy_start(worker, loads, **how):
            if self.before_load is not None:
                self.before_load(loads)
            return start(worker, loads, **how)

        def spy_judge(worker, loads, loading):
            known, worker._failed = worker._failed, set()
            bad = judge(worker, loads, loading)
            for item, _ in loads:
                for key, block in zip(keys(item.keys), numbers(item.blocks), strict=True):
                    seen = self.refused if block in worker._failed else self.loaded
                    seen.append((key, self.hash(block)))
            worker._failed |= known
            return bad

        def spy_register(connector, caches):
            self.tensors = caches
            register(connector, caches)
            _workers.append(connector._worker)

        monkeypatch.setattr(Worker, "save", spy_save)
        monkeypatch.setattr(Worker, "_start", spy_start)
        monkeypatch.setattr(Worker, "_judge", spy_judge)
        monkeypatch.setattr(PegaFlowConnector, "register_kv_caches", spy_register)

    def hash(self, block: int) -> bytes:
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            part = self.tensors[name][block].contiguous().view(torch.uint8)
            digest.update(part.cpu().numpy().tobytes())
        return digest.digest()

    def check(self) -> int:
        """Every block that was taken for loaded has the bytes that were saved under its key."""
        for key, digest in self.loaded:
            assert digest in self.saved[key]
        return len(self.loaded)

    def wrong(self) -> int:
        """How many of the refused blocks were wrong indeed, by the same comparison."""
        return sum(digest not in self.saved[key] for key, digest in self.refused)

    def forget_loads(self) -> None:
        self.loaded, self.refused = [], []


def keys(packed: bytes) -> list[bytes]:
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


def numbers(packed: bytes) -> list[int]:
    return list(array.array("I", packed))


def places(packed: bytes) -> list[int]:
    """Byte offsets in the (only) pool."""
    return [place & ((1 << 56) - 1) for place in array.array("Q", packed)]


class Server:
    """A `pegaflow-server` with a pool that outlives it."""

    def __init__(self, folder: pathlib.Path, *arguments: str, pool_bytes: int = 256 << 20):
        self.socket = str(folder / "node.sock")
        self.pool = folder / "pool"
        self._folder, self._pool_bytes, self._arguments = folder, pool_bytes, arguments
        self.start()

    def start(self) -> None:
        program = os.environ.get("PEGAFLOW_SERVER") or shutil.which("pegaflow-server")
        assert program, "pegaflow-server is not on the PATH: the wheel brings it"
        said, ready = os.pipe()
        command = [program, "--socket", self.socket, "--pool-dir", str(self.pool), "--http", "127.0.0.1:0"]
        command += ["--pool-bytes", str(self._pool_bytes), "--ready-file", f"/dev/fd/{ready}", *self._arguments]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[ready])
        os.close(ready)
        with open(said, encoding="utf-8") as pipe:
            assert select.select([pipe], [], [], 30)[0], "the server does not start in time"
            assert pipe.readline(), "the server ended: " + (self._folder / "server.log").read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.resume()
        self.kill()

    def pool_file(self) -> pathlib.Path:
        (found,) = self.pool.rglob("*.data")
        return found
