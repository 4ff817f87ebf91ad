# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The worker's side with copies that are made up: what waits for what, and what counts as loaded."""

from __future__ import annotations

import array
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")

from pegaflow.vllm.meta import Load, StepMeta
from pegaflow.vllm.worker import Worker

STREAM = 7


class Loading:
    def __init__(self):
        self.held, self.finished = [], False

    def hold(self, stream, layers=None):
        assert stream == STREAM
        self.held.append(layers)

    def finish(self):
        self.finished = True
        return []


class Lane:
    """Copies that are over at once and well."""

    def __init__(self):
        self.loadings, self.by_layer = [], []

    def load(self, items, stream, by_layer):
        self.by_layer.append(by_layer)
        self.loadings.append(Loading())
        return self.loadings[-1]

    def saves(self):
        return 0, 0, 0, 0, 0, [], None


def worker(by_layer: bool):
    lane = Lane()
    layers = [SimpleNamespace()] * 3
    group = SimpleNamespace(layers=layers, parts=1, heads=1, inner_bytes=8, layer_names=("a", "b", "c"))
    return lane, Worker([(lane, group)], lambda: STREAM, by_layer=by_layer)


def step(*names: str, made: Worker, whole: bool = False) -> set[int]:
    """A step that loads blocks 4 and 5 and whose forward asks for the layers `names`; the blocks that failed."""
    load = Load("r", b"k" * 32, b"p" * 16, b"g" * 8, array.array("I", [4, 5]).tobytes())
    meta = StepMeta(step=1, loads=[load])
    made.settle(meta)
    made.load(meta, whole)
    for name in names:
        made.wait_for_layer(name)
    made.save(meta)
    return made.take_failed()


def test_each_layer_is_waited_for_by_itself():
    lane, made = worker(by_layer=True)
    assert step("a", "b", "c", made=made) == set()
    assert (lane.by_layer, lane.loadings[0].held) == ([True], [1, 2, 3])


@pytest.mark.parametrize(("by_layer", "whole"), [(False, False), (True, True)])
def test_short_layers_and_graphs_wait_for_all(by_layer, whole):
    lane, made = worker(by_layer)
    assert step(made=made, whole=whole) == set()
    assert (lane.by_layer, lane.loadings[0].held) == ([False], [None])


def test_a_forward_that_did_not_wait_read_something_else():
    lane, made = worker(by_layer=True)
    assert step("a", made=made) == {4, 5}
    assert lane.loadings[0].finished
    assert made.take_report().failed_steps == {1}
