# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The connector in a real engine on a GPU: save, forget, load, compare bytes, tokens and log-probabilities.

`check.py FLASH_ATTN|TRITON_ATTN HND|NHD`, run by `run.sh`; one attention backend and layout a process.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_USE_FLASHINFER_SAMPLER="0",
    PYTHONHASHSEED="0",
)


class Forever:
    """Stands in for pytest's monkeypatch: nothing is undone."""

    setattr = staticmethod(setattr)


def main() -> None:
    attention, order = sys.argv[1:]
    os.environ["VLLM_KV_CACHE_LAYOUT"] = order
    import harness
    import model
    from pegaflow.vllm import connector, worker

    config = model.CONFIG | {"head_dim": 64, "torch_dtype": "bfloat16"}
    model.CONFIG.update(config)
    with tempfile.TemporaryDirectory() as folder:
        model.write(folder)
        spy = harness.Spy(Forever())
        same = dict(dtype="bfloat16", block_size=16, gpu_memory_utilization=0.05, attention_backend=attention)
        rollback = {"scheduler_cls": "pegaflow.vllm.rollback.RollbackScheduler"}
        ways = {"by layer": {"async_scheduling": False}, "within steps": rollback, "beside steps": {}}
        for name, more in ways.items():
            # Only the first model runner computes again by itself what was loaded wrongly.
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(name != "by layer"))
            connector.BY_LAYER_BYTES_MIN = 0 if name == "by layer" else worker.BY_LAYER_BYTES_MIN
            llm = harness.engine(folder, {"pool_bytes": "1GiB"}, **same, **more)
            cold = harness.Answers(llm)
            local = harness.Answers(llm)
            harness.settle(llm)
            assert llm.reset_prefix_cache()
            warm = harness.Answers(llm)
            checked = spy.check()
            assert warm.cached == local.cached and min(warm.cached) > 0, (warm.cached, local.cached)
            assert checked > 0 and not spy.refused, (checked, len(spy.refused))
            equal = sum(a == b for a, b in zip(warm.tokens, local.tokens, strict=True))
            print(
                f"ok {attention} {order} {name}: {checked} blocks equal, {equal}/3 answers equal, "
                f"log-probability differs by {warm.distance(local):.3g} (cold: {cold.distance(local):.3g})",
                flush=True,
            )
            spy.forget_loads()
            corrupt(harness, spy, llm, cold)


def corrupt(harness, spy, llm, cold) -> None:
    """A block that is not what was saved is computed, not used: here two places are exchanged."""

    def swap(loads) -> None:
        spy.before_load = None
        places = loads[0].places
        loads[0].places = places[8:16] + places[:8] + places[16:]

    harness.settle(llm)
    assert llm.reset_prefix_cache()
    spy.before_load = swap
    answers = harness.Answers(llm)
    assert spy.refused and spy.wrong() > 0
    spy.check()
    equal = sum(a == b for a, b in zip(answers.tokens, cold.tokens, strict=True))
    assert equal == 3, (answers.tokens, cold.tokens)
    print(f"ok exchanged blocks: {len(spy.refused)} refused, 3/3 answers as computed", flush=True)
    spy.forget_loads()


if __name__ == "__main__":
    main()
