# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""PegaFlow for vLLM: ``kv_connector="PegaFlowConnector"``, ``kv_connector_module_path="pegaflow.vllm"``.

The connector is imported when asked for, so that the pure modules here are usable without vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegaflow.vllm.connector import PegaFlowConnector

__all__ = ["PegaFlowConnector"]


def __getattr__(name: str) -> Any:
    if name == "PegaFlowConnector":
        from pegaflow.vllm.connector import PegaFlowConnector

        return PegaFlowConnector
    raise AttributeError(name)
