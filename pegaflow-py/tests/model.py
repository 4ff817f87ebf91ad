# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny Llama with random weights, scaled up so that attention over the context decides every token."""

from __future__ import annotations

import json
import os

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "attention_bias": False,
    "mlp_bias": False,
}


def write(folder: str, seed: int = 1234, spread: float = 0.15, **changes) -> str:
    """Writes configuration and weights into `folder`; `changes` are of the configuration."""
    import torch
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(CONFIG | changes, file)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = spread) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    hidden, inner, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    query = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    weights = {
        "model.embed_tokens.weight": random(vocab, hidden, scale=1.0),
        "lm_head.weight": random(vocab, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range((CONFIG | changes)["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights |= {
            at + "self_attn.q_proj.weight": random(query, hidden),
            at + "self_attn.k_proj.weight": random(kv, hidden),
            at + "self_attn.v_proj.weight": random(kv, hidden, scale=2 * spread),
            at + "self_attn.o_proj.weight": random(hidden, query, scale=2 * spread),
            at + "mlp.gate_proj.weight": random(inner, hidden),
            at + "mlp.up_proj.weight": random(inner, hidden),
            at + "mlp.down_proj.weight": random(hidden, inner),
            at + "input_layernorm.weight": torch.ones(hidden),
            at + "post_attention_layernorm.weight": torch.ones(hidden),
        }
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    return folder
