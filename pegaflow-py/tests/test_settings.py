# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Settings: what is refused, and whether the message helps."""

from types import SimpleNamespace

import pytest
from pegaflow.vllm import engine
from pegaflow.vllm.settings import Mode, Settings, SettingsError, default_pool_bytes


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"endpont": "/x"}, ["'endpont'", "Did you mean 'endpoint'"]),
        ({"mode": "both"}, ["'both'", "'offload'"]),
        ({"pool_bytes": "16GB"}, ["'16GB'", "GiB"]),
        ({"pool_bytes": True}, ["True", "integer"]),
        ({"pool_bytes": 1}, ["must be"]),
        ({"rpc_timeout_ms": "5"}, ["'5'", "integer"]),
        ({"rpc_timeout_ms": 0}, ["must be 1 to"]),
        ({"endpoint": 7}, ["must be a string"]),
        ({"weights_fingerprint": "ab"}, ["64"]),
        ({"endpoint": "/x", "ssd_path": "/y"}, ["--ssd-path"]),
        ({"ssd_bytes": 1}, ["must be"]),
    ],
)
def test_refused(extra, words):
    with pytest.raises(SettingsError) as error:
        Settings.parse(extra)
    for word in words:
        assert word in str(error.value)


def test_accepted():
    parsed = Settings.parse({"mode": "save_only", "pool_bytes": "3 GiB", "endpoint": None})
    assert parsed.mode is Mode.SAVE_ONLY
    assert parsed.pool_bytes == 3 << 30
    assert not parsed.mode.loads
    assert Settings.parse({}) == Settings()


@pytest.mark.parametrize(("available_kib", "expect"), [(8 << 20, 4 << 30), (1 << 30, 64 << 30), (100, 64 << 20)])
def test_pool_follows_memory(available_kib, expect):
    assert default_pool_bytes(f"MemTotal: 9 kB\nMemAvailable:   {available_kib} kB\n") == expect


@pytest.mark.parametrize(
    ("ahead", "second_runner", "within"),
    [(False, False, True), (True, False, False), (False, True, False)],
)
def test_only_engines_that_compute_again_rightly_load_within_steps(ahead, second_runner, within):
    scheduler = SimpleNamespace(async_scheduling=ahead, scheduler_cls=None)
    config = SimpleNamespace(scheduler_config=scheduler, use_v2_model_runner=second_runner)
    assert engine.computes_again_within_steps(config) == within
