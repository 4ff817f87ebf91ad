# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Time to the first token and throughput of a real engine: without a connector, on its own prefix cache, with blocks
from PegaFlow, and with vLLM's own OffloadingConnector, one after the other in the same run.

`python engine.py [--quick]` on a CPU; on a GPU with `--shape 8b --tokens 10000 --attention FLASH_ATTN`. Each way runs
in a process of its own. One JSON line a point.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {
    # hidden, inner, layers, heads, KV heads, head size, vocabulary
    "small": (512, 1024, 8, 8, 4, 64, 1024),
    "8b": (4096, 14336, 32, 32, 8, 128, 128256),
}
WAYS = ("none", "pegaflow", "offloading")


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


def measure(way: str, folder: str, settings: argparse.Namespace) -> None:
    """In a process of its own: one way, all its points."""
    import vllm

    if settings.by_layer:
        import pegaflow.vllm.connector

        pegaflow.vllm.connector.BY_LAYER_BYTES_MIN = 0
    within_steps = settings.within_steps and way == "pegaflow"
    on_gpu = settings.attention is not None
    more = {"attention_backend": settings.attention, "gpu_memory_utilization": 0.6} if on_gpu else {}
    llm = vllm.LLM(
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
    vocabulary = SHAPES[settings.shape][-1]

    def prompt(number: int) -> dict:
        ids = [(number * 7919 + at * 104729) % (vocabulary - 10) + 3 for at in range(settings.tokens)]
        return {"prompt_token_ids": ids}

    def generate(prompts: list[dict], tokens: int) -> tuple[float, int]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        out = llm.generate(prompts, sampling, use_tqdm=False)
        return (time.perf_counter() - started) * 1e3, out[0].num_cached_tokens

    generate([prompt(999)], 1)
    points = {"cold": [generate([prompt(n)], 1) for n in range(settings.rounds)]}
    points["prefix"] = [generate([prompt(n)], 1) for n in range(settings.rounds)]
    if way != "none":
        time.sleep(2)
        # A step or two, in which what waited for saves is freed; less than a block, so that it is not saved itself.
        generate([{"prompt_token_ids": [3, 4, 5]}], 2)
        assert llm.reset_prefix_cache(), "blocks are still held"
        points["external"] = [generate([prompt(n)], 1) for n in range(settings.rounds)]
    batches = [[prompt(100 * (at + 1) + n) for n in range(settings.prompts)] for at in range(settings.batches)]
    points["batch"] = [generate(batch, settings.output) for batch in batches]
    print("POINTS " + json.dumps(points), flush=True)


def report(way: str, points: dict, settings: argparse.Namespace) -> None:
    for op, values in points.items():
        times = sorted(value for value, _ in values)
        middle = statistics.median(times)
        tokens = settings.prompts * (settings.tokens + settings.output) if op == "batch" else settings.tokens
        line = {
            "bench": "vllm",
            "settings": {
                "op": f"{way}: {op}",
                "shape": settings.shape,
                "tokens": settings.tokens,
                "attention": settings.attention,
                "loads": how(settings),
                "cached_tokens": values[-1][1],
            },
            "machine": {"cpus": os.cpu_count()},
            "gb_per_s": None,
            "ops_per_s": round(tokens / middle * 1e3, 1),
            "p50_us": round(middle * 1e3),
            "p99_us": round(times[-1] * 1e3),
            "p999_us": None,
            "floor": None,
            "floor_share": None,
        }
        print(json.dumps(line), flush=True)


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
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    settings, _ = parser.parse_known_args()
    if settings.quick:
        settings.tokens, settings.rounds, settings.prompts, settings.output = 256, 2, 2, 4
        settings.batches = 1
    if settings.measure:
        measure(*settings.measure, settings)
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
        for way in settings.ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", way, model]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            found = [line[7:] for line in done.stdout.splitlines() if line.startswith("POINTS ")]
            if found:
                report(way, json.loads(found[0]), settings)
            else:
                why = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
                print(f"skipped: {way}: {why[-1]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
