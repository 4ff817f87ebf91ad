# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What may go wrong while an engine serves: spoilt bytes, and a server that is killed, stopped or not there."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from harness import COMMON, Answers, Server, engine, forget, places, settle

LAYERS, HEADS = 3, 2
HEAD = 32 * 2 * 32 * 4  # tokens, K and V, dimensions, float32
LAYER = HEADS * HEAD
BLOCK_BYTES = LAYERS * LAYER


def swap(data: bytearray, a: int, b: int, size: int) -> None:
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def zero(data: bytearray, at: int, size: int) -> None:
    data[at : at + size] = bytes(size)


def one_float(data: bytearray, at: int) -> None:
    data[at + 5] ^= 0x40


def duplicate(data: bytearray, to: int, of: int) -> None:
    data[to : to + BLOCK_BYTES] = data[of : of + BLOCK_BYTES]


SPOIL = {
    "zero_all": lambda data, at: [zero(data, a, BLOCK_BYTES) for a in at],
    "zero_block": lambda data, at: zero(data, at[1], BLOCK_BYTES),
    "zero_layer": lambda data, at: [zero(data, a + LAYER, LAYER) for a in at],
    "layers_swapped": lambda data, at: [swap(data, a, a + LAYER, LAYER) for a in at],
    "block_twice": lambda data, at: duplicate(data, at[1], at[2]),
    "anothers_block": lambda data, at: duplicate(data, at[-1], at[0]),
    "halves_swapped": lambda data, at: [swap(data, a, a + HEAD // 2, HEAD // 2) for a in at],
    "heads_swapped": lambda data, at: [swap(data, a, a + HEAD, HEAD) for a in at],
    "one_float": lambda data, at: one_float(data, at[0]),
    "blocks_permuted": lambda data, at: swap(data, at[0], at[1], BLOCK_BYTES),
}


def test_every_corruption_is_caught(folder, plain, spy, server):
    """The pool's bytes are changed behind the node's back, right before they are loaded."""
    llm = engine(folder, {"endpoint": server.socket})
    Answers(llm)
    for name, spoil in SPOIL.items():
        hits(llm, plain)
        forget(llm)
        spy.forget_loads()
        spoil_first(spy, server, spoil)
        answers = Answers(llm)
        assert spy.refused, name
        # The comparison of this test sees it too: what came was wrong, and what was taken was not.
        assert spy.wrong() > 0, name
        spy.check()
        assert answers.tokens == plain[0].tokens, name
    # All of it was computed and saved again.
    forget(llm)
    spy.forget_loads()
    assert Answers(llm).cached == [192, 192, 192]
    assert not spy.refused


def test_what_was_computed_on_spoilt_blocks_is_not_saved(folder, plain, spy, server):
    """New blocks of the very step that loads a spoilt one are wrong too, and must not be kept under good keys."""
    llm = engine(folder, {"endpoint": server.socket})
    Answers(llm, [COMMON])
    forget(llm)
    spoil_first(spy, server, SPOIL["zero_all"])
    assert Answers(llm).tokens == plain[0].tokens
    assert spy.refused
    Answers(llm)
    forget(llm)
    again = Answers(llm)
    assert again.cached == [192, 192, 192]
    assert again.tokens == plain[0].tokens
    assert again.distance(plain[1]) < 1e-4


def spoil_first(spy, server: Server, spoil) -> None:
    """Spoils what is loaded next. Loads after it may be short: their requests share its first blocks."""

    def once(loads):
        spy.before_load = None
        edit(server, spoil, places(loads[0].places))

    spy.before_load = once


def edit(server: Server, spoil, at: list[int]) -> None:
    with open(server.pool_file(), "r+b") as file:
        low, high = min(at), max(at) + BLOCK_BYTES
        file.seek(low)
        data = bytearray(file.read(high - low))
        spoil(data, [a - low for a in at])
        file.seek(low)
        file.write(data)


def test_a_server_that_stops_answering(folder, plain, spy, server, caplog):
    llm = engine(folder, {"endpoint": server.socket, "rpc_timeout_ms": 300})
    Answers(llm)
    forget(llm)
    server.pause()
    with caplog.at_level(logging.WARNING, "pegaflow.vllm"):
        for _ in range(3):
            answers = Answers(llm)
            assert answers.tokens == plain[0].tokens
            forget(llm)
    assert len([r for r in caplog.records if "no node" in r.message]) <= 3
    server.resume()
    hits(llm, plain)
    spy.check()


@pytest.mark.parametrize("extra", [{}, {"inline_load_bytes_max": 0}], ids=["by_layers", "in_background"])
def test_a_server_that_is_killed(folder, plain, spy, server, caplog, extra):
    llm = engine(folder, {"endpoint": server.socket, "rpc_timeout_ms": 300} | extra)
    with caplog.at_level(logging.WARNING, "pegaflow.vllm"):
        Answers(llm)
        forget(llm)

        def kill(_loads):
            # In the middle: leases are given, blocks allocated, and now nobody is there.
            spy.before_load = None
            server.kill()

        spy.before_load = kill
        for _ in range(2):
            assert Answers(llm).tokens == plain[0].tokens
            forget(llm)
        server.start()
        hits(llm, plain)
    lines = [r.message for r in caplog.records if "no node" in r.message or "is back" in r.message]
    assert [("no node" in line) for line in lines] == [True, False], lines
    spy.check()


def test_a_server_that_comes_later(folder, plain, spy, tmp_path):
    extra = {"endpoint": str(tmp_path / "node.sock"), "rpc_timeout_ms": 300}
    llm = engine(folder, extra)
    assert Answers(llm).tokens == plain[0].tokens
    server = Server(tmp_path)
    try:
        hits(llm, plain)
        settle(llm)
    finally:
        server.end()
    spy.check()


def hits(llm, plain, rounds: int = 50) -> None:
    """The hit rate recovers: by a few rounds all that can be is loaded."""
    for _ in range(rounds):
        forget(llm)
        answers = Answers(llm)
        if answers.cached == [192, 192, 192]:
            assert answers.tokens == plain[1].tokens
            return
    raise AssertionError(f"still {answers.cached} after {rounds} rounds")
