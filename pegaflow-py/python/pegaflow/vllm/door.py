# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Who talks to the node: one client for each engine in a process, and the node itself where none is named.

Without an `endpoint` the node lives in the process of the engine's first worker (with one worker that is the
scheduler's process too); the others find it by a socket named after the engine.
"""

from __future__ import annotations

import logging
import os
import threading

from pegaflow import _native
from pegaflow.vllm.settings import Settings, default_pool_bytes, socket_path

logger = logging.getLogger("pegaflow.vllm")

_FIRST_WAIT_MS = 2_000
"""How long an engine's start waits for a node that others run."""
_SIBLING_WAIT_MS = 60_000
"""How long for the one that this engine's first worker starts."""

_clients: dict[str, _native.Client] = {}
_lock = threading.Lock()


def client(settings: Settings, engine_id: str, hosts: bool) -> _native.Client:
    """This process's way to the node. `hosts`: without an endpoint, the node runs here."""
    with _lock:
        found = _clients.get(engine_id)
        if found is None:
            found = _clients[engine_id] = _open(settings, engine_id, hosts)
        return found


def close(engine_id: str) -> None:
    """Ends this process's connection, and the node if it runs here."""
    with _lock:
        found = _clients.pop(engine_id, None)
    if found is not None:
        found.close()


def _open(settings: Settings, engine_id: str, hosts: bool) -> _native.Client:
    if settings.endpoint is not None:
        opened = _native.Client.connect(settings.endpoint, settings.rpc_timeout_ms, _FIRST_WAIT_MS)
        trouble = opened.trouble()
        if trouble is not None:
            logger.warning(
                "PegaFlow: no node at %s (%s); the engine serves without and goes on trying", settings.endpoint, trouble
            )
        return opened
    path = socket_path(engine_id)
    if not hosts:
        return _native.Client.connect(path, settings.rpc_timeout_ms, _SIBLING_WAIT_MS)
    pool_bytes = settings.pool_bytes or default_pool_bytes()
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    opened = _native.Client.embedded(pool_bytes, path, settings.ssd_path or "", settings.ssd_bytes)
    why = "as set" if settings.pool_bytes else "half of what is free; pool_bytes changes it"
    ssd = f", SSD at {settings.ssd_path}" if settings.ssd_path else ""
    logger.warning(
        "PegaFlow: node inside this engine with %.1f GiB of host memory (%s)%s", pool_bytes / (1 << 30), why, ssd
    )
    return opened
