# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Time to the first token and throughput of a real engine: without a connector, on its own prefix cache, with blocks
from PegaFlow, and with vLLM's own OffloadingConnector, in the same run.

`python engine.py [--quick]` on a CPU; on a GPU with `--shape 8b --tokens 10000 --attention FLASH_ATTN`. Each way runs
in a process of its own: on a CPU all at once, taking turns, on a GPU one after the other. One JSON line a point.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

SHAPES = {
    # hidden, inner, layers, heads, KV heads, head size, vocabulary
    "small": (512, 1024, 8, 8, 4, 64, 1024),
    "8b": (4096, 14336, 32, 32, 8, 128, 128256),
}
WAYS = ("none", "pegaflow", "offloading")
MARK = "BENCH "
"""Before what an engine answers, among what vLLM prints."""


def write_model(folder: str, shape: str) -> str:
    hidden, inner, layers, heads, kv_heads, head, vocabulary = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return folder


def connector(way: str, settings: argparse.Namespace) -> dict:
    if way == "pegaflow":
        extra = {"weights_fingerprint": "00" * 32, "pool_bytes": settings.pool_gib << 30}
        return {
            "kv_transfer_config": {
                "kv_connector": "PegaFlowConnector",
                "kv_connector_module_path": "pegaflow.vllm",
                "kv_role": "kv_both",
                "kv_connector_extra_config": extra,
            }
        }
    if way == "offloading":
        return {"kv_offloading_size": settings.pool_gib, "kv_offloading_backend": "native"}
    return {}


class Engine:
    """One way, in a process of its own, which does what it is told on its standard input."""

    def __init__(self, way: str, model: str, environment: dict[str, str]):
        self.way = way
        command = [sys.executable, __file__, *sys.argv[1:], "--serve", way, model]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self._said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self.is_up = self._answer() is not None

    def _listen(self) -> None:
        for text in self._process.stderr:
            self._said.append(text)

    def _answer(self):
        for text in self._process.stdout:
            if text.startswith(MARK):
                return json.loads(text.removeprefix(MARK))
        self._process.wait()
        why = "".join(self._said).strip().splitlines() or ["nothing said"]
        print(f"skipped: {self.way}: {why[-1]}", file=sys.stderr, flush=True)
        return None

    def ask(self, op: str, *numbers: int) -> tuple[float, int]:
        """Milliseconds, and tokens of the first prompt that came from a cache."""
        self._process.stdin.write(json.dumps([op, numbers]) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer is not None, "the engine ended"
        return answer

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(way: str, folder: str, settings: argparse.Namespace) -> None:
    """In a process of its own: one way."""
    llm = make(way, folder, settings)
    vocabulary = SHAPES[settings.shape][-1]

    def prompt(number: int) -> dict:
        dice = random.Random(str(number))
        return {"prompt_token_ids": [dice.randrange(3, vocabulary) for _ in range(settings.tokens)]}

    def generate(prompts: list[dict], tokens: int) -> int:
        import vllm

        sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return llm.generate(prompts, sampling, use_tqdm=False)[0].num_cached_tokens

    def forget() -> None:
        if way == "offloading":
            time.sleep(2)
        # A step or two, in which what waited for saves is freed; less than a block, so that it is not saved itself.
        generate([{"prompt_token_ids": [3, 4, 5]}], 2)
        assert llm.reset_prefix_cache(), "blocks are still held"

    generate([prompt(-1)], 1)
    print(MARK + "0", flush=True)
    for text in sys.stdin:
        op, numbers = json.loads(text)
        prompts = [prompt(number) for number in numbers]
        started = time.perf_counter()
        cached = 0
        if op == "forget":
            forget()
        else:
            cached = generate(prompts, settings.output if op == "batch" else 1)
        if op == "batch":
            until_saved(way, llm)
        took = (time.perf_counter() - started) * 1e3
        until_saved(way, llm)
        print(MARK + json.dumps([took, cached]), flush=True)


def until_saved(way: str, llm) -> None:
    """What is being copied yet counts as part of a batch, and must not run beside another way's turn."""
    if way == "pegaflow":
        from vllm.distributed.kv_transfer import kv_transfer_state

        scheduler = llm.llm_engine.engine_core.engine_core.scheduler.connector._scheduler
        for lane in kv_transfer_state._KV_CONNECTOR_AGENT._worker._lanes:
            lane.settle(scheduler._saves)


def make(way: str, folder: str, settings: argparse.Namespace):
    import vllm

    if settings.by_layer:
        import pegaflow.vllm.connector

        pegaflow.vllm.connector.BY_LAYER_BYTES_MIN = 0
    within_steps = settings.within_steps and way == "pegaflow"
    on_gpu = settings.attention is not None
    more = {"attention_backend": settings.attention, "gpu_memory_utilization": 0.6} if on_gpu else {}
    return vllm.LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=settings.tokens + 512,
        dtype="bfloat16" if on_gpu else "float32",
        enforce_eager=True,
        max_num_batched_tokens=settings.tokens + 512,
        max_num_seqs=16,
        block_size=16 if on_gpu else 32,
        **connector(way, settings),
        **more,
        **({"async_scheduling": False} if settings.one_step_at_a_time else {}),
        **({"scheduler_cls": "pegaflow.vllm.rollback.RollbackScheduler"} if within_steps else {}),
    )


Points = dict[str, list[tuple[float, int]]]


def measure(engines: list[Engine], settings: argparse.Namespace) -> dict[str, Points]:
    """Engines that are up take turns in each round, so that whatever else the machine does meets all alike."""
    points: dict[str, Points] = {engine.way: {} for engine in engines}

    def ask(op: str, *numbers: int, told: str | None = None) -> None:
        engines.append(engines.pop(0))
        for engine in engines:
            points[engine.way].setdefault(op, []).append(engine.ask(told or op, *numbers))

    for at in range(settings.rounds):
        ask("cold", at)
        ask("prefix", at)
    for engine in engines:
        if engine.way != "none":
            engine.ask("forget")
            points[engine.way]["external"] = [engine.ask("external", at) for at in range(settings.rounds)]
    for at in range(settings.batches):
        first = settings.rounds + at * settings.prompts
        ask("batch", *range(first, first + settings.prompts))
    return points


def report(points: dict[str, Points], settings: argparse.Namespace) -> None:
    for way, of_way in points.items():
        for op, values in of_way.items():
            alone = points.get("none", {}).get(op) if way != "none" else None
            print(json.dumps(line(way, op, values, alone, settings)), flush=True)


def line(way: str, op: str, values: list, alone: list | None, settings: argparse.Namespace) -> dict:
    times = sorted(value for value, _ in values)
    middle = statistics.median(times)
    tokens = settings.prompts * (settings.tokens + settings.output) if op == "batch" else settings.tokens
    floor, share = None, None
    if alone is not None:
        # Round by round: the two came right after each other.
        shares = sorted(before / now for (now, _), (before, _) in zip(values, alone, strict=True))
        share = round(statistics.median(shares), 4)
        least = statistics.median(value for value, _ in alone)
        floor = {"what": f"no connector: {op}, in turns", "gb_per_s": None, "us": round(least * 1e3)}
        quarter = len(shares) // 4
        more = [100 * (1 / value - 1) for value in (shares[-1 - quarter], share, shares[quarter])]
        print("{}: {}: {:+.1f} % {:+.1f} % {:+.1f} % (quartiles)".format(way, op, *more), file=sys.stderr, flush=True)
    return {
        "bench": "vllm",
        "settings": {
            "op": f"{way}: {op}",
            "shape": settings.shape,
            "tokens": settings.tokens,
            "attention": settings.attention,
            "loads": how(settings),
            "rounds": len(values),
            "cached_tokens": values[-1][1],
        },
        "machine": {"cpus": os.cpu_count()},
        "gb_per_s": None,
        "ops_per_s": round(tokens / middle * 1e3, 1),
        "p50_us": round(middle * 1e3),
        "p99_us": round(times[-1] * 1e3),
        "p999_us": None,
        "floor": floor,
        "floor_share": share,
    }


def how(settings: argparse.Namespace) -> str:
    """Where PegaFlow's loads go."""
    within = settings.one_step_at_a_time or settings.within_steps
    where = "within steps" if within else "beside steps"
    return (
        where + (", one at a time" if settings.one_step_at_a_time else "") + (", by layer" if settings.by_layer else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter prompts")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="how often a batch of so many prompts is timed")
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--pool-gib", type=int, default=2)
    parser.add_argument("--attention", help="attention backend; given, the engine runs on a GPU")
    parser.add_argument(
        "--one-step-at-a-time",
        action="store_true",
        help="no asynchronous scheduling, and the first model runner: PegaFlow then loads within steps",
    )
    parser.add_argument("--within-steps", action="store_true", help="PegaFlow's scheduler: loads within steps")
    parser.add_argument(
        "--by-layer", action="store_true", help="loads within steps go layer after layer, however short"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    settings, _ = parser.parse_known_args()
    if settings.quick:
        settings.tokens, settings.rounds, settings.prompts, settings.output = 256, 2, 2, 4
        settings.batches = 1
    if settings.serve:
        serve(*settings.serve, settings)
        return
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    if settings.one_step_at_a_time:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(folder, settings.shape)
        # A GPU has memory for one of them at a time.
        turns = [[way] for way in settings.ways] if settings.attention else [settings.ways]
        points: dict[str, Points] = {}
        for ways in turns:
            engines = [engine for way in ways if (engine := Engine(way, model, environment)).is_up]
            points |= measure(engines, settings)
            for engine in engines:
                engine.end()
        report(points, settings)


if __name__ == "__main__":
    main()
