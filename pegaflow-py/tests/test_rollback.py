# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What a step computed from a block whose load failed is taken back, and what the step after it computed too."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from harness import BLOCK, PATIENT, PROMPTS, SAMPLING, Answers, engine, forget
from pegaflow.vllm.meta import WorkerReport
from pegaflow.vllm.rollback import RollbackScheduler, takes_back
from test_faults import SPOIL, hits, spoil_first
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput


@pytest.fixture
def llm(folder, spy, server):
    return engine(folder, {"endpoint": server.socket} | PATIENT, scheduler_cls=RollbackScheduler)


def test_the_engine_answers_as_without_a_cache(llm, plain, spy, server):
    assert Answers(llm).tokens == plain[0].tokens
    for name, spoil in SPOIL.items():
        hits(llm, plain)
        forget(llm)
        spy.forget_loads()
        spoil_first(spy, server, spoil)
        answers = Answers(llm)
        assert spy.refused and spy.wrong() > 0, name
        assert answers.tokens == plain[0].tokens, name
    # Nothing wrong stayed in the engine's own prefix cache, or was saved.
    assert Answers(llm).tokens == plain[0].tokens
    forget(llm)
    spy.forget_loads()
    assert Answers(llm).tokens == plain[1].tokens
    assert not spy.refused and spy.check() > 0


class Steps:
    """Steps of the engine's scheduler, of which two may be under way; what they compute is made up."""

    def __init__(self, llm):
        self.scheduler = llm.llm_engine.engine_core.engine_core.scheduler

    def plan(self):
        return self.scheduler.schedule()

    def end(self, planned, token: int, failed: set[int] = frozenset(), requests: set[str] = frozenset()) -> None:
        ids = list(planned.num_scheduled_tokens)
        number = planned.kv_connector_metadata.step
        report = WorkerReport(step=number, failed_requests=requests, failed_steps={number} if failed else set())
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: at for at, name in enumerate(ids)},
            sampled_token_ids=[[token] for _ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
            kv_connector_output=KVConnectorOutput(invalid_block_ids=set(failed), kv_connector_worker_meta=report),
        )
        self.scheduler.update_from_output(planned, output)


def test_both_steps_under_way_are_dropped(llm):
    sampling = SAMPLING.clone()
    sampling.logprobs = None
    Answers(llm)
    forget(llm)
    for at, prompt in enumerate(PROMPTS[:2]):
        llm.llm_engine.add_request(str(at), {"prompt_token_ids": prompt}, sampling)
    steps = Steps(llm)
    requests = dict(steps.scheduler.requests)
    first = steps.plan()
    (load, *_) = first.kv_connector_metadata.loads
    (other,) = [name for name in requests if name != load.request]
    tables = steps.scheduler.kv_cache_manager.get_block_ids
    # The last block that was loaded, which the other request does not have.
    wrong = {tables(load.request)[0][len(load.blocks) // 4 - 1]}
    assert wrong.isdisjoint(tables(other)[0])
    second = steps.plan()
    assert set(second.num_scheduled_tokens) == set(requests)

    steps.end(first, 7, failed=wrong, requests={load.request})
    third = steps.plan()
    whole = requests[load.request].num_tokens
    assert whole - BLOCK > third.num_scheduled_tokens[load.request] > 1, "blocks before the wrong one stay"
    assert third.num_scheduled_tokens[other] == 1
    steps.end(second, 8)
    steps.end(third, 9)
    assert list(requests[load.request].output_token_ids) == [9]
    assert list(requests[other].output_token_ids) == [7, 8, 9]
    llm.llm_engine.abort_request(["0", "1"])


def test_all_who_share_the_wrong_block_are_taken_back(llm):
    sampling = SAMPLING.clone()
    sampling.logprobs = None
    Answers(llm)
    forget(llm)
    for at, prompt in enumerate(PROMPTS):
        llm.llm_engine.add_request(str(at), {"prompt_token_ids": prompt}, sampling)
    steps = Steps(llm)
    requests = dict(steps.scheduler.requests)
    first, second = steps.plan(), steps.plan()
    wrong = {steps.scheduler.kv_cache_manager.get_block_ids(next(iter(requests)))[0][0]}
    failed = {load.request for load in first.kv_connector_metadata.loads}
    steps.end(first, 7, failed=wrong, requests=failed)
    third = steps.plan()
    # All begin with that block. The one that comes first computes it, the others take it from there.
    assert sum(third.num_scheduled_tokens.values()) >= len(PROMPTS[0])
    steps.end(second, 8)
    steps.end(third, 9)
    assert [list(request.output_token_ids) for request in requests.values()] == [[9]] * 3
    llm.llm_engine.abort_request(["0", "1", "2"])


@dataclasses.dataclass
class Scheduling:
    scheduler_cls: object = RollbackScheduler
    async_scheduling: bool = True

    def get_scheduler_cls(self):
        return self.scheduler_cls


@dataclasses.dataclass
class Config:
    scheduler_config: Scheduling
    speculative_config: object = None


@pytest.mark.parametrize(
    ("scheduling", "taken_back"),
    [(Scheduling(), True), (Scheduling(None), False), (Scheduling(async_scheduling=False), False)],
)
def test_who_takes_back(scheduling, taken_back):
    assert takes_back(Config(scheduling)) == taken_back
