# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The README's command line, word for word, serves."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import pytest

pytest.importorskip("vllm", reason="needs vLLM: see the package's README")
vllm_program = shutil.which("vllm")

ROOT = pathlib.Path(__file__).parents[2]
SMALL = "--skip-tokenizer-init --dtype float32 --max-model-len 512 --enforce-eager --block-size 32 --host 127.0.0.1"


@pytest.mark.skipif(vllm_program is None, reason="skipped: no program `vllm` on the PATH")
def test_the_line_of_the_readme_serves(folder, tmp_path):
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("vllm serve ")]
    command = [folder if word == "MODEL" else word for word in shlex.split(line)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += [*SMALL.split(), "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
    serving = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said = Said(serving)
    try:
        at = f"http://127.0.0.1:{port}"
        said.wait_for("Application startup complete", 400)
        until_it_listens(port, 60)
        prompt = {
            "model": folder,
            "prompt": [(i * 37) % 500 + 3 for i in range(200)],
            "max_tokens": 4,
            "temperature": 0,
        }
        for _ in range(2):
            assert ask(at + "/v1/completions", prompt)["usage"]["completion_tokens"] == 4
        metrics = ask(at + "/metrics")
        saved = [line for line in metrics.splitlines() if line.startswith("vllm:pegaflow_saved_blocks_total")]
        assert saved and float(saved[0].split()[-1]) > 0, saved
        said.wait_for("PegaFlow: node inside this engine with", 0)
    finally:
        os.killpg(serving.pid, signal.SIGTERM)
        try:
            serving.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(serving.pid, signal.SIGKILL)


def ask(url: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        said = reply.read().decode()
    return said if body is None else json.loads(said)


def until_it_listens(port: int, seconds: float) -> None:
    """The server says nothing when it begins to listen, shortly after its last line."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < until, f"nobody listens at port {port}"
            time.sleep(0.05)


class Said:
    """What a program prints, as it prints it."""

    def __init__(self, program: subprocess.Popen):
        self._lines: list[str] = []
        self._more, self._ended = threading.Condition(), False
        threading.Thread(target=self._read, args=(program.stdout,), daemon=True).start()

    def _read(self, stream) -> None:
        for line in stream:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def _has(self, words: str) -> bool:
        return any(words in line for line in self._lines)

    def wait_for(self, words: str, seconds: float) -> None:
        with self._more:
            self._more.wait_for(lambda: self._ended or self._has(words), seconds)
            assert self._has(words), "".join(self._lines[-40:])
