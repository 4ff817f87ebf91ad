# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of the connector, as a user writes them in ``kv_connector_extra_config``.

Unknown keys and values of the wrong type are refused at start, with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
from collections.abc import Mapping
from typing import Any


class Mode(enum.Enum):
    """What this engine does with the cache."""

    OFFLOAD = "offload"
    SAVE_ONLY = "save_only"
    LOAD_ONLY = "load_only"

    @property
    def saves(self) -> bool:
        return self is not Mode.LOAD_ONLY

    @property
    def loads(self) -> bool:
        return self is not Mode.SAVE_ONLY


class SettingsError(ValueError):
    """A setting that cannot be; the message says which, why, and what would do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of the connector, with its default."""

    mode: Mode = Mode.OFFLOAD
    endpoint: str | None = None
    """Unix socket of a running `pegaflow-server`. None: a node inside this engine."""
    pool_bytes: int | None = None
    """Bytes of host memory for the node inside this engine. None: half of what is available, at most 64 GiB."""
    ssd_path: str | None = None
    """Files or block devices, separated by commas, that keep blocks of the node inside this engine for which its memory
    has no room. None: no SSD."""
    ssd_bytes: int = 64 << 30
    """Bytes of each file of `ssd_path` that has to be made."""
    tenant: str = "default"
    """Whose quota the blocks count against."""
    tenant_salt: str = ""
    """Secret that keeps this tenant's blocks apart from all others'. Empty: shared by all who have none."""
    weights_fingerprint: str | None = None
    """64 hex digits that name the weights. None: computed from the checkpoint's files at start."""
    rpc_timeout_ms: int = 1000
    """A call to the node that takes longer is given up; the engine recomputes."""
    lookup_wait_ms: int = 20
    """How long one request may wait, over scheduler steps, for its lookup; then it is a miss."""
    lookup_step_us: int = 500
    """How long one scheduler step may wait for lookups; those without an answer are asked for again in the next."""
    fetch_wait_ms: int = 1000
    """How long one request may wait, over scheduler steps, for blocks that are on their way from SSD or being saved;
    then it takes those that are there."""
    inline_load_bytes_max: int = 2 << 30
    """Bytes that a rank loads within one step, layer by layer under the forward. What is beyond is loaded beside the
    steps, and its requests join when it is there. Engines with asynchronous scheduling or the second model runner load
    beside the steps only: they would answer from blocks whose load failed."""
    lease_ttl_ms: int = 60_000
    """How long the node keeps blocks for a request that waits to be scheduled."""
    copy_threads: int = 2
    """Threads that copy between engine and pool where the engine's memory is host memory."""

    @staticmethod
    def parse(extra: Mapping[str, Any]) -> Settings:
        """Reads ``kv_connector_extra_config``.

        Raises:
            SettingsError: unknown key, wrong type, or a value out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(Settings)}
        values: dict[str, Any] = {}
        for key, value in extra.items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                known = ", ".join(sorted(fields))
                raise SettingsError(f"kv_connector_extra_config: unknown key {key!r}.{hint} Known keys: {known}.")
            values[key] = _check(key, value)
        if values.get("endpoint") is not None and values.get("ssd_path") is not None:
            raise SettingsError(
                "kv_connector_extra_config: ssd_path is for a node inside the engine; the server at endpoint has its "
                "own --ssd-path"
            )
        return Settings(**values)


_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_RANGES = {
    "pool_bytes": (16 << 20, 1 << 50),
    "ssd_bytes": (32 << 20, 1 << 50),
    "rpc_timeout_ms": (1, 600_000),
    "lookup_wait_ms": (0, 60_000),
    "lookup_step_us": (0, 1_000_000),
    "fetch_wait_ms": (0, 600_000),
    "inline_load_bytes_max": (0, 1 << 50),
    "lease_ttl_ms": (100, 3_600_000),
    "copy_threads": (1, 64),
}


def _check(key: str, value: Any) -> Any:
    if key == "mode":
        try:
            return Mode(value)
        except ValueError:
            names = ", ".join(repr(mode.value) for mode in Mode)
            raise SettingsError(f"kv_connector_extra_config: mode is {value!r}, must be one of {names}.") from None
    if key in _RANGES:
        return _integer(key, value)
    if key == "weights_fingerprint" and value is not None:
        if not isinstance(value, str) or len(value) != 64 or not all(c in "0123456789abcdef" for c in value):
            raise SettingsError("kv_connector_extra_config: weights_fingerprint must be 64 lower-case hex digits.")
        return value
    if value is None and key in ("endpoint", "ssd_path"):
        return None
    if not isinstance(value, str):
        raise SettingsError(f"kv_connector_extra_config: {key} is {value!r}, must be a string.")
    return value


def _integer(key: str, value: Any) -> int | None:
    if value is None and key == "pool_bytes":
        return None
    if key.endswith(("_bytes", "_bytes_max")) and isinstance(value, str):
        value = _bytes(key, value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"kv_connector_extra_config: {key} is {value!r}, must be an integer.")
    low, high = _RANGES[key]
    if not low <= value <= high:
        raise SettingsError(f"kv_connector_extra_config: {key} is {value}, must be {low} to {high}.")
    return value


def _bytes(key: str, text: str) -> int:
    for unit in sorted(_UNITS, key=len, reverse=True):
        number = text.strip().removesuffix(unit).strip()
        if text.strip().endswith(unit) and number.isdigit():
            return int(number) * _UNITS[unit]
    raise SettingsError(
        f"kv_connector_extra_config: {key} is {text!r}; write an integer or a number with one of "
        f"{', '.join(_UNITS)}, as in '16GiB'."
    )


def default_pool_bytes(meminfo: str | None = None, cgroup_free: int | None = None) -> int:
    """Half of the memory that is available to this process, at most 64 GiB, in whole 2 MiB pages."""
    if meminfo is None:
        with open("/proc/meminfo", encoding="ascii") as file:
            meminfo = file.read()
        cgroup_free = _cgroup_free()
    available = next(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    if cgroup_free is not None:
        available = min(available, cgroup_free)
    return max(min(available // 2, 64 << 30) >> 21 << 21, 64 << 20)


def _cgroup_free(root: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that a container may still use; None where nothing limits it."""
    values = []
    for name in ("memory.max", "memory.current"):
        try:
            with open(os.path.join(root, name), encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            return None
        if not text.isdigit():
            return None
        values.append(int(text))
    return max(0, values[0] - values[1])


def socket_path(engine_id: str) -> str:
    """Where the node inside an engine listens, so that the engine's other processes find it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/pegaflow-{os.getuid()}"
    return os.path.join(base, f"engine-{engine_id[:16]}.sock")
