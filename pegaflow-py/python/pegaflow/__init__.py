# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""PegaFlow keeps every KV-cache block of an LLM cluster once. `pegaflow.vllm` is the connector for vLLM."""
