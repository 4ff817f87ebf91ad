# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""One log line for each change of state, however many requests see it."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("pegaflow.vllm")

_CALM_SECONDS = 30.0
"""Failures further apart than this are two events."""


class Health:
    """Whether the node answers, and whether saves and loads go well."""

    def __init__(self) -> None:
        self._away: str | None = None
        self._failed_at: dict[str, float] = {}

    def node(self, trouble: str | None) -> None:
        """Notes whether the node can be used; `trouble` says why not."""
        if (trouble is None) == (self._away is None):
            return
        self._away = trouble
        if trouble is None:
            logger.warning("PegaFlow: the node is back, blocks are saved and loaded again")
        else:
            logger.warning("PegaFlow: no node (%s); the engine computes everything until it is back", trouble)

    def failed(self, what: str, why: str) -> None:
        """Notes a failure while the node is there. The first of a row is logged."""
        now = time.monotonic()
        last = self._failed_at.get(what)
        self._failed_at[what] = now
        if self._away is None and (last is None or now - last > _CALM_SECONDS):
            logger.warning("PegaFlow: %s: %s", what, why)
