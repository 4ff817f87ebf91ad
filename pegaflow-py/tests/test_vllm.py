# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The connector in a real vLLM engine (CPU backend): save, forget, load, compare.

Attention does not see the order of blocks, so tokens and log-probabilities are not enough: the bytes of every block
are compared with those that were saved.
"""

from __future__ import annotations

import hashlib
import os

import pytest

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
)
vllm = pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

import model  # noqa: E402
from pegaflow.vllm.scheduler import Scheduler  # noqa: E402
from pegaflow.vllm.worker import Worker  # noqa: E402

BLOCK = 32
COMMON = [(i * 37 + 11) % 500 + 3 for i in range(130)]
PROMPTS = [COMMON + [(i * 7 + j * 13) % 500 + 3 for j in range(70)] for i in range(3)]
SAMPLING = vllm.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False, logprobs=1)


def engine(folder: str, extra: dict | None, **changes):
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
    )
    return vllm.LLM(**{**settings, **transfer, **changes})


class Answers:
    """Tokens, log-probabilities and cached tokens of some prompts."""

    def __init__(self, llm, prompts=PROMPTS):
        out = llm.generate([{"prompt_token_ids": p} for p in prompts], SAMPLING, use_tqdm=False)
        self.tokens = [list(o.outputs[0].token_ids) for o in out]
        self.logprobs = [[next(iter(d.values())).logprob for d in o.outputs[0].logprobs] for o in out]
        self.cached = [o.num_cached_tokens for o in out]

    def distance(self, other: Answers) -> float:
        return max(
            abs(a - b) for u, v in zip(self.logprobs, other.logprobs, strict=True) for a, b in zip(u, v, strict=True)
        )


class Spy:
    """Hashes of the engine's blocks by key, as saved and as loaded."""

    def __init__(self, monkeypatch):
        self.saved: dict[bytes, bytes] = {}
        self.loaded: list[tuple[bytes, bytes]] = []
        self.failed = 0
        self.tensors: dict[str, object] = {}
        save, load = Worker.save, Worker.load

        def spy_save(worker, meta):
            for item in meta.saves:
                self.saved.update(zip(keys(item.keys), map(self.hash, item.blocks), strict=True))
            save(worker, meta)

        def spy_load(worker, meta):
            load(worker, meta)
            failed = worker._failed
            self.failed += len(failed)
            for item in meta.loads:
                pairs = zip(keys(item.keys), item.blocks, strict=True)
                self.loaded.extend((key, self.hash(block)) for key, block in pairs if block not in failed)

        monkeypatch.setattr(Worker, "save", spy_save)
        monkeypatch.setattr(Worker, "load", spy_load)
        from pegaflow.vllm.connector import PegaFlowConnector

        register = PegaFlowConnector.register_kv_caches

        def spy_register(connector, caches):
            self.tensors = caches
            register(connector, caches)

        monkeypatch.setattr(PegaFlowConnector, "register_kv_caches", spy_register)

    def hash(self, block: int) -> bytes:
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(self.tensors[name][block].contiguous().view(-1).numpy().tobytes())
        return digest.digest()

    def check(self) -> int:
        """Every block that was loaded has the bytes that were saved under its key."""
        for key, digest in self.loaded:
            assert self.saved[key] == digest
        return len(self.loaded)


def keys(packed: bytes) -> list[bytes]:
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model.write(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def plain(folder):
    """Without a connector: computed, and again from the engine's own prefix cache."""
    llm = engine(folder, None)
    return Answers(llm), Answers(llm)


def test_a_hit_gives_the_same_bytes_and_the_same_answer(folder, plain, monkeypatch):
    spy = Spy(monkeypatch)
    llm = engine(folder, {"pool_bytes": "256MiB"})
    cold = Answers(llm)
    assert cold.tokens == plain[0].tokens
    assert cold.distance(plain[0]) == 0
    assert len(spy.saved) == 10 and not spy.loaded

    assert llm.reset_prefix_cache()
    warm = Answers(llm)
    assert warm.cached == [192, 192, 192]
    assert warm.tokens == plain[1].tokens
    assert warm.distance(plain[1]) == 0
    assert spy.check() == 10 and spy.failed == 0


def test_every_corruption_is_a_miss_and_the_answer_stays(folder, plain, monkeypatch):
    """The pool's bytes are changed behind the node's back, in one place a round: never an answer from them."""
    spy = Spy(monkeypatch)
    llm = engine(folder, {"pool_bytes": "256MiB"})
    Answers(llm)
    original = Worker._load_one
    spoiled = []

    def swap_places(worker, load):
        if len(load.blocks) >= 2 and not spoiled:
            spoiled.append(True)
            places = load.places
            load.places = places[8:16] + places[:8] + places[16:]
        return original(worker, load)

    monkeypatch.setattr(Worker, "_load_one", swap_places)
    assert llm.reset_prefix_cache()
    warm = Answers(llm)
    assert spoiled and spy.failed >= 2
    assert warm.tokens == plain[0].tokens
    spy.check()


def test_chunked_prefill_and_preemption(folder, plain, monkeypatch):
    spy = Spy(monkeypatch)
    small = dict(max_num_batched_tokens=64, max_model_len=256, num_gpu_blocks_override=16)
    llm = engine(folder, {"pool_bytes": "256MiB"}, **small)
    first = Answers(llm)
    assert llm.reset_prefix_cache()
    second = Answers(llm)
    assert first.tokens == second.tokens
    assert sum(second.cached) > 0
    spy.check()


def test_a_node_that_is_full_refuses_and_the_engine_goes_on(folder, plain, monkeypatch):
    spy = Spy(monkeypatch)
    llm = engine(folder, {"pool_bytes": "16MiB"})
    many = [[(i * 131 + j * 17) % 500 + 3 for j in range(300)] for i in range(24)]
    assert all(len(t) == 24 for t in Answers(llm, many).tokens)
    assert Answers(llm).tokens == plain[0].tokens
    spy.check()


def test_scheduler_gives_back_every_lease(folder, monkeypatch):
    held = []
    original = Scheduler.__init__

    def remember(scheduler, *args):
        original(scheduler, *args)
        held.append(scheduler)

    monkeypatch.setattr(Scheduler, "__init__", remember)
    llm = engine(folder, {"pool_bytes": "256MiB"})
    Answers(llm)
    assert llm.reset_prefix_cache()
    Answers(llm)
    Answers(llm, [[5] * 40])
    scheduler = held[0]
    assert not scheduler._requests and not scheduler._loads and not scheduler._reading
