# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""From an engine's KV tensors to PegaFlow's block layout, or a refusal that says why.

A block in a pool is ``[layer][part][head][inner]``. This module finds, from a tensor's shape and
strides and the cache spec of its layer, where the parts and heads of an engine block lie. What it
cannot name it keeps together: an order of bytes that does not separate heads is one *opaque* head
per rank, and then only ranks of the same tensor-parallel size share blocks.

Pure: sees numbers, never a tensor, so every supported layout is tested without its hardware.
"""

from __future__ import annotations

import dataclasses
import math


class UnsupportedLayout(ValueError):
    """KV tensors that PegaFlow cannot serve: which layer, what was seen, what is supported."""


SUPPORTED = (
    "[blocks, heads, tokens, 2*dim] (K and V interleaved), [2, blocks, tokens, heads, dim] and "
    "[blocks, 2, tokens, heads, dim] (K and V apart), each with heads before or after tokens in memory, "
    "and [blocks, tokens, dim] (MLA)"
)


@dataclasses.dataclass(frozen=True)
class TensorFacts:
    """What is known of one layer's KV tensor. Strides in elements."""

    layer: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int
    address: int
    storage_address: int
    storage_bytes: int


@dataclasses.dataclass(frozen=True)
class SpecFacts:
    """What the engine's cache spec says of a layer, for this rank."""

    blocks: int
    block_tokens: int
    kv_heads: int
    head_dim: int
    page_bytes: int
    mla: bool = False


@dataclasses.dataclass(frozen=True)
class LayerLayout:
    """Where one layer's blocks lie: sizes and strides in bytes."""

    layer: str
    name: str
    parts: int
    heads: int
    inner_bytes: int
    address: int
    block_stride: int
    part_stride: int
    head_stride: int
    storage_address: int
    storage_bytes: int

    @property
    def separates_heads(self) -> bool:
        return self.name.endswith("hnd")


def detect(tensor: TensorFacts, spec: SpecFacts) -> LayerLayout:
    """The layout of one layer.

    Raises:
        UnsupportedLayout: nothing of `SUPPORTED` matches.
    """
    axes = _axes(tensor, spec)
    stride = {axis: tensor.strides[at] * tensor.item_bytes for axis, at in axes.items()}
    size = {axis: tensor.shape[at] for axis, at in axes.items()}
    parts = size.get("part", 1)
    inside = [axis for axis in axes if axis not in ("block", "part")]
    run = _dense(tensor, inside, size, stride)
    per_part = spec.page_bytes // parts
    if run != per_part:
        raise _refuse(tensor, spec, f"one part of a block has {run} bytes, the cache spec says {per_part}")
    heads_out = "head" in axes and _heads_outermost(inside, size, stride)
    heads = size["head"] if heads_out else 1
    order = "mla" if spec.mla else "hnd" if heads_out else "nhd"
    kind = {1: "kv-together", 2: "kv-apart"}[parts]
    layout = LayerLayout(
        layer=tensor.layer,
        name=order if spec.mla else f"{kind}-{order}",
        parts=parts,
        heads=heads,
        inner_bytes=run // heads,
        address=tensor.address,
        block_stride=stride["block"],
        part_stride=stride.get("part", 0),
        head_stride=stride["head"] if heads_out else run,
        storage_address=tensor.storage_address,
        storage_bytes=tensor.storage_bytes,
    )
    _check_bounds(tensor, spec, layout)
    return layout


def _axes(tensor: TensorFacts, spec: SpecFacts) -> dict[str, int]:
    """Which dimension is which."""
    h, t, d, b = spec.kv_heads, spec.block_tokens, spec.head_dim, spec.blocks
    patterns: list[tuple[tuple[str, ...], tuple[int, ...]]]
    if spec.mla:
        patterns = [(("block", "token", "dim"), (b, t, d))]
    else:
        patterns = [
            (("block", "head", "token", "dim"), (b, h, t, 2 * d)),
            (("block", "token", "head", "dim"), (b, t, h, 2 * d)),
            (("part", "block", "token", "head", "dim"), (2, b, t, h, d)),
            (("part", "block", "head", "token", "dim"), (2, b, h, t, d)),
            (("block", "part", "token", "head", "dim"), (b, 2, t, h, d)),
            (("block", "part", "head", "token", "dim"), (b, 2, h, t, d)),
        ]
    found = [axes for axes, shape in patterns if shape == tensor.shape]
    if not found:
        raise _refuse(tensor, spec, "its shape is none of the known ones")
    axes = list(found[0])
    if len(found) > 1 and h > 1:
        # As many heads as tokens: the shape does not tell which is which. Together they are one opaque run.
        axes[axes.index("head")] = "other"
    return {axis: at for at, axis in enumerate(axes)}


def _dense(tensor: TensorFacts, inside: list[str], size: dict[str, int], stride: dict[str, int]) -> int:
    """Bytes of the dimensions inside a block, which must fill a run without gaps or overlap."""
    expect = tensor.item_bytes
    for axis in sorted((axis for axis in inside if size[axis] > 1), key=lambda axis: stride[axis]):
        if stride[axis] != expect:
            raise UnsupportedLayout(
                f"layer {tensor.layer}: dimension of size {size[axis]} has a stride of {stride[axis]} bytes where "
                f"{expect} were expected (shape {tensor.shape}, strides {tensor.strides}); supported: {SUPPORTED}"
            )
        expect *= size[axis]
    return expect


def _heads_outermost(inside: list[str], size: dict[str, int], stride: dict[str, int]) -> bool:
    if size["head"] == 1:
        return True
    return all(stride["head"] > stride[axis] for axis in inside if axis != "head" and size[axis] > 1)


def _check_bounds(tensor: TensorFacts, spec: SpecFacts, layout: LayerLayout) -> None:
    last = (spec.blocks - 1) * layout.block_stride + (layout.parts - 1) * layout.part_stride
    end = tensor.address + last + (layout.heads - 1) * layout.head_stride + layout.inner_bytes
    if tensor.address < tensor.storage_address or end > tensor.storage_address + tensor.storage_bytes:
        raise _refuse(tensor, spec, "its blocks reach outside its storage")
    if layout.inner_bytes % 8:
        raise _refuse(tensor, spec, f"a head of a block has {layout.inner_bytes} bytes, not a multiple of 8")


def _refuse(tensor: TensorFacts, spec: SpecFacts, why: str) -> UnsupportedLayout:
    return UnsupportedLayout(
        f"layer {tensor.layer}: {why}. Seen: shape {tensor.shape}, strides {tensor.strides}, {tensor.item_bytes} bytes "
        f"an element; spec: {spec.blocks} blocks of {spec.block_tokens} tokens, {spec.kv_heads} KV heads, head size "
        f"{spec.head_dim}, {spec.page_bytes} bytes a block{', MLA' if spec.mla else ''}. Supported: {SUPPORTED}."
    )


@dataclasses.dataclass(frozen=True)
class GroupLayout:
    """One cache group of this rank in PegaFlow's terms."""

    layout_id: str
    block_tokens: int
    blocks: int
    layers_total: int
    first_layer: int
    parts: int
    heads_total: int
    first_head: int
    heads: int
    inner_bytes: int
    layers: tuple[LayerLayout, ...]
    layer_names: tuple[str, ...]
    """In the order of `layers`, as the engine calls them."""
    window_tokens: int = 0
    """Tokens that the next one sees, itself included; 0: all."""

    @property
    def is_mla(self) -> bool:
        return self.layout_id.startswith("mla")

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer of a block that this rank holds."""
        return self.parts * self.heads * self.inner_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a whole block: all layers, all heads of all ranks."""
        return self.layers_total * self.parts * self.heads_total * self.inner_bytes


@dataclasses.dataclass(frozen=True)
class GroupShape:
    """Shape of a group's blocks: layers, parts, heads and bytes of a head; and where pipeline stages end."""

    shape: tuple[int, int, int, int]
    stage_ends: list[int]


def group(
    layers: list[LayerLayout],
    *,
    spec: SpecFacts,
    element: str,
    layers_total: int,
    first_layer: int,
    kv_heads_total: int,
    tp_rank: int,
    tp_size: int,
    window_tokens: int = 0,
) -> GroupLayout:
    """This rank's slot of the group: layers and heads among all ranks'.

    Raises:
        UnsupportedLayout: layers of one group that differ in shape.
    """
    first = layers[0]
    for layer in layers[1:]:
        same = (layer.name, layer.parts, layer.heads, layer.inner_bytes)
        if same != (first.name, first.parts, first.heads, first.inner_bytes):
            raise UnsupportedLayout(
                f"layers of one cache group differ: {first.name} with {first.heads} heads of {first.inner_bytes} "
                f"bytes, and {layer.name} with {layer.heads} of {layer.inner_bytes}"
            )
    layout_id = f"{first.name}-{element}"
    if spec.mla:
        heads_total, first_head = 1, 0
    elif first.separates_heads:
        heads_total = max(kv_heads_total, first.heads)
        replicas = max(1, tp_size * first.heads // heads_total)
        first_head = tp_rank // replicas * first.heads
    else:
        heads_total, first_head = tp_size, tp_rank
        layout_id += f"-tp{tp_size}" if tp_size > 1 else ""
    assert math.prod((heads_total, first.inner_bytes)) > 0
    return GroupLayout(
        layout_id=layout_id,
        block_tokens=spec.block_tokens,
        blocks=spec.blocks,
        layers_total=layers_total,
        first_layer=first_layer,
        parts=first.parts,
        heads_total=heads_total,
        first_head=first_head,
        heads=first.heads,
        inner_bytes=first.inner_bytes,
        layers=tuple(layers),
        layer_names=tuple(layer.layer for layer in layers),
        window_tokens=window_tokens,
    )
