# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""The doctor: what it says and when it is not content."""

import json
import subprocess
import sys

from pegaflow import doctor


def run(*arguments):
    done = subprocess.run([sys.executable, "-m", "pegaflow.doctor", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_says_what_is_here():
    code, out = run("--json")
    lines = {line["name"]: line for line in json.loads(out)}
    assert code == 0
    assert lines["pegaflow"]["level"] == "good"
    assert "GiB of host memory" in lines["will be used"]["found"]


def test_a_server_that_is_not_there_is_to_be_fixed(tmp_path):
    code, out = run("--endpoint", str(tmp_path / "none.sock"))
    assert code == 1
    assert "FIX" in out and "pegaflow-server --socket" in out


def test_versions_that_were_not_tested_are_noted():
    assert [doctor._vllm(v).level for v in ("0.32.0+cpu", "0.26.0", "0.40.1", None)] == ["good", "good", "note", "note"]
