# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""KV events: a follower that knows nothing but them knows what is in the cache."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from harness import BLOCK, COMMON, PROMPTS, Answers, engine, forget, scheduler_of, settle
from pegaflow.vllm.events import Events
from vllm.distributed.kv_events import BlockRemoved, BlockStored


class Follower:
    """As a router would: the set of blocks, kept by events."""

    def __init__(self):
        self.blocks = {}

    def take(self, events) -> None:
        for event in events:
            if isinstance(event, BlockStored):
                tokens = event.token_ids
                assert len(tokens) == len(event.block_hashes) * event.block_size
                parent = event.parent_block_hash
                for at, block in enumerate(event.block_hashes):
                    self.blocks[block] = (parent, tuple(tokens[at * event.block_size : (at + 1) * event.block_size]))
                    parent = block
            else:
                assert isinstance(event, BlockRemoved)
                for block in event.block_hashes:
                    del self.blocks[block]

    def prefix(self, tokens) -> int:
        """How many blocks of a prompt it believes to be there."""
        by_place = {place: block for block, place in self.blocks.items()}
        parent, count = None, 0
        while (parent := by_place.get((parent, tuple(tokens[count * BLOCK : (count + 1) * BLOCK])))) is not None:
            count += 1
        return count


def request(*blocks: int):
    """A request whose blocks are called by numbers."""
    return SimpleNamespace(
        block_hashes=[bytes([b]) for b in blocks],
        all_token_ids=[b for b in blocks for _ in range(4)],
        lora_request=None,
        cache_salt=None,
        mm_features=[],
        prompt_embeds=None,
    )


def check(acts, want: list[str], announced_max: int = 100) -> None:
    """What is said when `acts` happen; the engine publishes its hashes as numbers by default."""
    events = Events(4, announced_max)
    acts(events)
    said = [type(e).__name__[5:] + " " + "".join(map(str, e.block_hashes)) for e in events.take()]
    assert said == want
    assert events.take() == []


def test_a_save_is_announced_when_it_is_over():
    def acts(events):
        events.saving(1, request(1, 2, 3), 0, 2)
        events.saving(2, request(1, 2, 3), 2, 3)
        events.saving(3, request(4), 0, 1)
        events.saved(2, [])

    check(acts, ["Stored 12", "Stored 3"])


def test_what_was_refused_is_not_announced():
    def acts(events):
        events.saving(1, request(1, 2), 0, 2)
        events.saving(2, request(3), 0, 1)
        events.saved(2, [1])

    check(acts, ["Stored 3"])


def test_a_lookup_corrects_what_is_believed():
    def acts(events):
        events.saving(1, request(1, 2, 3), 0, 3)
        events.saved(1, [])
        events.looked_up(request(1, 2, 3), 0, 1, 3)
        events.looked_up(request(1, 2, 5), 1, 2, 3)
        events.looked_up(request(1, 2, 5), 1, 2, 3)

    check(acts, ["Stored 123", "Removed 23", "Stored 2"])


def test_a_lookup_says_nothing_of_blocks_it_did_not_ask_for():
    def acts(events):
        events.saving(1, request(1, 2, 3), 0, 3)
        events.saved(1, [])
        events.looked_up(request(1, 2, 3), 1, 0, 3)

    check(acts, ["Stored 123", "Removed 23"])


def test_what_is_announced_is_limited():
    def acts(events):
        events.saving(1, request(1, 2), 0, 2)
        events.saving(2, request(3, 4), 0, 2)
        events.saved(2, [])

    check(acts, ["Stored 12", "Stored 34", "Removed 1"], announced_max=3)


def test_after_a_reset_nothing_is_believed():
    def acts(events):
        events.saving(1, request(1, 2), 0, 2)
        events.saved(1, [])
        events.forget()

    check(acts, ["Stored 12", "Removed 12"])


def test_a_follower_of_a_real_engine_knows_its_cache(folder, spy, monkeypatch):
    from vllm.config import KVEventsConfig
    from vllm.v1.core.sched.scheduler import Scheduler as EngineScheduler

    follower = Follower()
    started = EngineScheduler.__init__

    def start(scheduler, *args, **named):
        started(scheduler, *args, **named)
        take = scheduler.connector.take_events

        def follow():
            events = take()
            follower.take(events)
            return events

        scheduler.connector.take_events = follow

    monkeypatch.setattr(EngineScheduler, "__init__", start)
    events = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    llm = engine(folder, {"pool_bytes": "256MiB"}, kv_events_config=events)
    Answers(llm)
    settle(llm)
    Answers(llm, [COMMON[:5]])
    assert [follower.prefix(prompt) for prompt in PROMPTS] == [6, 6, 6]
    assert len(follower.blocks) == len(spy.saved) == 10
    # The node forgets: the engine finds out when it asks.
    forget(llm)
    scheduler_of(llm).reset()
    Answers(llm, [COMMON[:5]])
    assert not follower.blocks
