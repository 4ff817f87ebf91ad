# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The native module without an engine: lookups that wait for blocks which somebody is writing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from parts import address_of, namespace
from pegaflow import _native

BLOCKS, HEAD = 8, 4096
PATIENT = 600_000
"""Milliseconds, or microseconds."""


class Rig:
    """A node, and two ranks that hold one of two heads each."""

    def __init__(self, folder):
        self.client = _native.Client.embedded(16 << 20, str(folder / "node.sock"))
        self.namespace = namespace(self.client, 16, "test", (1, 1, 2, HEAD))
        self.keys = self.namespace.keys(0, [bytes([at]) for at in range(BLOCKS)])
        self.memory = bytearray(2 * BLOCKS * HEAD)
        self.ranks = [self._rank(address_of(self.memory), head) for head in (0, 1)]
        self.saves = [0, 0]

    def _rank(self, address, head):
        at = address + head * BLOCKS * HEAD
        device = _native.Device.host(1, [(at, BLOCKS * HEAD)])
        layout = {"layers": (0, 1), "heads": (head, head + 1), "blocks": BLOCKS, "views": [(at, HEAD, 0, 0)]}
        return self.client.rank(device, self.namespace, 0, layout)

    def save(self, rank, first, end):
        """Saves a rank's half of some blocks."""
        self.saves[rank] += 1
        numbers = b"".join(at.to_bytes(4, "little") for at in range(first, end))
        parent = self.keys[16 * (first - 1) : 16 * first] if first else b""
        self.ranks[rank].save([(self.saves[rank], parent, self.keys[16 * first : 16 * end], numbers)])
        self.ranks[rank].settle(self.saves[rank])

    def save_some(self):
        """Three blocks; of the others one half, the other is on its way."""
        self.save(0, 0, 8)
        self.save(1, 0, 3)

    def pending(self):
        """A lookup of all blocks, which the node has answered: some are on their way."""
        lookup = self.lookup()
        assert lookup.poll(PATIENT, PATIENT, PATIENT) is None
        return lookup

    def lookup(self):
        return self.client.lookup(self.namespace, self.keys, PATIENT)


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    for rank in made.ranks:
        rank.close()
    made.client.close()


def test_what_is_being_saved_is_waited_for_without_asking_again(rig):
    rig.save_some()
    lookup = rig.pending()
    rig.save(1, 3, 8)
    found = lookup.poll(PATIENT, PATIENT, PATIENT)
    assert (found.ready, found.at_once, found.from_ssd, found.given_up) == (8, 3, 0, False)
    assert len(found.places) == 64 and found.fetch_us > 0
    rig.client.release([found])
    assert rig.client.stats()["leases"] == 0


def test_at_the_deadline_what_is_there_counts(rig):
    rig.save_some()
    lookup = rig.pending()
    rig.save(1, 3, 5)
    assert lookup.poll(PATIENT, PATIENT, PATIENT) is None, "more may come"
    found = lookup.poll(PATIENT, PATIENT, 0)
    assert (found.ready, found.at_once) == (5, 3)
    rig.client.release([found])


def test_who_has_a_thread_of_its_own_waits(rig):
    rig.save_some()
    lookup = rig.pending()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lookup.wait, PATIENT, PATIENT)
        rig.save(1, 3, 8)
        found = waiting.result()
    assert (found.ready, found.at_once) == (8, 3)
    rig.client.release([found])
    assert lookup.wait(PATIENT, PATIENT) is None, "taken before"


def test_who_waits_is_told_at_the_deadline_what_is_there(rig):
    rig.save_some()
    found = rig.lookup().wait(PATIENT, 0)
    assert (found.ready, found.at_once) == (3, 3)
    rig.client.release([found])


def test_nothing_that_is_there_at_once_is_waited_for(rig):
    rig.save(0, 0, 3)
    rig.save(1, 0, 3)
    found = rig.lookup().poll(0, PATIENT, PATIENT)
    assert (found.ready, found.at_once, found.fetch_us) == (3, 3, 0)
    rig.client.release([found])


@pytest.mark.parametrize("polled", [False, True])
def test_a_cancelled_lookup_holds_nothing(rig, polled):
    rig.save_some()
    lookup = rig.pending() if polled else rig.lookup()
    lookup.cancel()
    assert lookup.poll(0, PATIENT, PATIENT) is None
    assert rig.client.stats()["leases"] == 0
