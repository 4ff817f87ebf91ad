# Copyright PegaFlow contributors.
# SPDX-License-Identifier: Apache-2.0
"""Layout detection on synthetic tensors: every supported order of bytes, and refusals."""

import itertools

import pytest
from pegaflow.vllm.layout import LayerLayout, SpecFacts, TensorFacts, UnsupportedLayout, detect, group

B, T, H, D, ITEM = 5, 16, 4, 8, 2
SPEC = SpecFacts(blocks=B, block_tokens=T, kv_heads=H, head_dim=D, page_bytes=2 * T * H * D * ITEM)


def tensor(shape, order=None, offset=0, **changes):
    """A tensor of `shape` whose dimensions lie in memory in `order`, outermost first."""
    order = order or range(len(shape))
    strides, run = [0] * len(shape), 1
    for axis in reversed(list(order)):
        strides[axis] = run
        run *= shape[axis]
    facts = dict(
        layer="model.layers.3.attn",
        shape=tuple(shape),
        strides=tuple(strides),
        item_bytes=ITEM,
        address=1 << 20,
        storage_address=1 << 20,
        storage_bytes=run * ITEM + offset,
    )
    return TensorFacts(**{**facts, **changes})


@pytest.mark.parametrize(
    ("shape", "order", "name", "parts", "heads"),
    [
        ((B, H, T, 2 * D), None, "kv-together-hnd", 1, H),
        ((B, H, T, 2 * D), (0, 2, 1, 3), "kv-together-nhd", 1, 1),
        ((B, T, H, 2 * D), None, "kv-together-nhd", 1, 1),
        ((B, T, H, 2 * D), (0, 2, 1, 3), "kv-together-hnd", 1, H),
        ((2, B, T, H, D), None, "kv-apart-nhd", 2, 1),
        ((2, B, T, H, D), (0, 1, 3, 2, 4), "kv-apart-hnd", 2, H),
        ((2, B, H, T, D), None, "kv-apart-hnd", 2, H),
        ((B, 2, T, H, D), None, "kv-apart-nhd", 2, 1),
        ((B, 2, T, H, D), (0, 1, 3, 2, 4), "kv-apart-hnd", 2, H),
        ((2, B, T, H, D), (1, 0, 2, 3, 4), "kv-apart-nhd", 2, 1),
    ],
)
def test_known(shape, order, name, parts, heads):
    found = detect(tensor(shape, order), SPEC)
    assert (found.name, found.parts, found.heads) == (name, parts, heads)
    assert found.parts * found.heads * found.inner_bytes == SPEC.page_bytes
    assert runs_cover(found, SPEC) == set(range(B * SPEC.page_bytes))


def runs_cover(layout: LayerLayout, spec: SpecFacts) -> set[int]:
    """Every byte that the runs of all blocks touch, none of them twice."""
    seen: set[int] = set()
    for b, p, h in itertools.product(range(spec.blocks), range(layout.parts), range(layout.heads)):
        start = b * layout.block_stride + p * layout.part_stride + h * layout.head_stride
        run = set(range(start, start + layout.inner_bytes))
        assert not seen & run
        seen |= run
    return seen


def test_mla_has_no_heads():
    spec = SpecFacts(blocks=B, block_tokens=T, kv_heads=1, head_dim=576, page_bytes=T * 576 * ITEM, mla=True)
    found = detect(tensor((B, T, 576)), spec)
    assert (found.name, found.heads, found.inner_bytes) == ("mla", 1, T * 576 * ITEM)


def test_layers_may_interleave_in_one_storage():
    layers = 3
    stride = layers * SPEC.page_bytes // ITEM
    facts = tensor((B, H, T, 2 * D), strides=(stride, T * 2 * D, 2 * D, 1), storage_bytes=layers * B * SPEC.page_bytes)
    assert detect(facts, SPEC).block_stride == layers * SPEC.page_bytes


def test_heads_equal_to_tokens_stay_together():
    spec = SpecFacts(blocks=B, block_tokens=H, kv_heads=H, head_dim=D, page_bytes=2 * H * H * D * ITEM)
    assert detect(tensor((B, H, H, 2 * D)), spec).heads == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (tensor((B, 3, 7)), ["model.layers.3.attn", "(5, 3, 7)", "Supported"]),
        (tensor((B, H, T, 2 * D), strides=(H * T * 2 * D, T * 2 * D, 2 * D, 2)), ["stride"]),
        (tensor((B, H, T, 2 * D), item_bytes=1), ["cache spec says"]),
        (tensor((B, H, T, 2 * D), storage_bytes=100), ["outside its storage"]),
    ],
)
def test_refused(facts, words):
    with pytest.raises(UnsupportedLayout) as error:
        detect(facts, SPEC)
    for word in words:
        assert word in str(error.value)


def slots(name_order, tp_size, heads_total, rank_heads):
    spec = SpecFacts(B, T, rank_heads, D, 2 * T * rank_heads * D * ITEM)
    layer = detect(tensor((B, rank_heads, T, 2 * D), name_order), spec)
    return [
        group(
            [layer], spec=spec, element="f16", layers_total=1, first_layer=0,
            kv_heads_total=heads_total, tp_rank=rank, tp_size=tp_size,
        )
        for rank in range(tp_size)
    ]  # fmt: skip


def test_unlike_tp_shares_blocks_where_heads_are_apart():
    one, two, four = slots(None, 1, 4, 4), slots(None, 2, 4, 2), slots(None, 4, 4, 1)
    assert {g.layout_id for g in one + two + four} == {"kv-together-hnd-f16"}
    assert {g.block_bytes for g in one + two + four} == {one[0].block_bytes}
    assert [(g.first_head, g.heads) for g in two] == [(0, 2), (2, 2)]
    assert [(g.first_head, g.heads) for g in four] == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_more_ranks_than_heads_hold_copies():
    assert [(g.first_head, g.heads) for g in slots(None, 4, 2, 1)] == [(0, 1), (0, 1), (1, 1), (1, 1)]


def test_unlike_tp_shares_nothing_where_heads_are_not():
    order = (0, 2, 1, 3)
    assert (
        slots(order, 2, 4, 2)[0].layout_id != slots(order, 4, 4, 1)[0].layout_id or slots(order, 4, 4, 1)[0].heads == 1
    )
    assert [(g.first_head, g.heads_total) for g in slots(order, 2, 4, 2)] == [(0, 2), (1, 2)]
