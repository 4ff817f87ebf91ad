# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""What all tests with a real engine share."""

import os

import pytest

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    # Releases before 0.32 seed their block hashes with it, at random without.
    PYTHONHASHSEED="0",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model."""
    import model

    return model.write(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def plain(folder):
    """Answers without a connector: computed, and again from the engine's own prefix cache."""
    from harness import Answers, engine

    llm = engine(folder, None)
    return Answers(llm), Answers(llm)


@pytest.fixture
def spy(monkeypatch):
    from harness import Spy

    return Spy(monkeypatch)


@pytest.fixture
def server(tmp_path):
    """A server of our own."""
    from harness import Server

    started = Server(tmp_path)
    yield started
    started.end()
