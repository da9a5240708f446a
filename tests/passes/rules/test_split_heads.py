"""Multi-head attention in every spelling: projections cut apart first, then one head after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules import (
    fold_slice_scale,
    lower_attention,
    lower_einsum,
    normalise_products,
    simplify_movement,
    split_heads,
    unpack_projections,
)
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs, lively

HEADS, WIDTH, TOKENS = 3, 4, 5
PREPARED = (
    "remove_no_ops",
    "remove_dead_code",
    simplify_movement.RULE,
    lower_einsum.RULE,
    lower_attention.RULE,
    normalise_products.RULE,
    unpack_projections.RULE,
    fold_slice_scale.RULE,
)


class Block(nn.Module):
    """Attention as vision transformers spell it; ``spelling`` does the work."""

    def __init__(self, spelling: Callable[[Block, Tensor], Tensor | tuple[Tensor, ...]], heads: int = HEADS) -> None:
        super().__init__()
        channels = heads * WIDTH
        self.heads, self.spelling = heads, spelling
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.batch_first = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.tokens_first = nn.MultiheadAttention(channels, heads)
        self.relative = nn.Parameter(torch.zeros(heads, TOKENS, TOKENS))
        self.register_buffer("causal", torch.full((TOKENS, TOKENS), -40000.0).triu(1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.spelling(self, x)

    def packed(self, x: Tensor) -> Tensor:
        return self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, WIDTH)

    def merged(self, y: Tensor) -> Tensor:
        return self.proj(y.transpose(1, 2).flatten(2))


def unbound(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).permute(2, 0, 3, 1, 4).unbind(0)
    return m.merged(((q * WIDTH**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v)


def indexed(m: Block, x: Tensor) -> Tensor:
    packed = m.packed(x).permute(2, 0, 3, 1, 4)
    q, k, v = packed[0], packed[1], packed[2]
    return m.merged(F.scaled_dot_product_attention(q, k, v))


def causal(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).permute(2, 0, 3, 1, 4).unbind(0)
    return m.merged(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def chunked(m: Block, x: Tensor) -> Tensor:
    q, k, v = (part.view(*x.shape[:2], m.heads, WIDTH).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1))
    return m.merged((q @ k.mT / 2 + m.causal).softmax(-1) @ v)


def relative(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).permute(2, 0, 3, 1, 4).unbind(0)
    return m.merged((q @ k.transpose(-2, -1) * WIDTH**-0.5 + m.relative[None]).softmax(-1) @ v)


def einsum(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).unbind(2)
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * WIDTH**-0.5).softmax(-1)
    return m.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


def module_batch_first(m: Block, x: Tensor) -> Tensor:
    return m.batch_first(x, x, x, need_weights=False)[0]


def module_tokens_first(m: Block, x: Tensor) -> Tensor:
    return m.tokens_first(x, x, x, need_weights=False)[0]


def module_cross(m: Block, x: Tensor) -> Tensor:
    return m.batch_first(x, x + 1.0, x - 1.0)[0]


SPELLINGS = (unbound, indexed, causal, chunked, relative, einsum, module_batch_first, module_tokens_first, module_cross)


def ranks(outcome: Outcome) -> int:
    values = [node.meta.get("val") for node in outcome.program.graph.nodes]
    return max(value.dim() for value in values if isinstance(value, Tensor))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_splits(spelling: Callable[..., Tensor]) -> None:
    outcome = apply(lively(Block(spelling)), inputs((2, TOKENS, HEADS * WIDTH)), *PREPARED, split_heads.RULE)
    assert outcome.evidence[-1].rewritten == 1
    assert (outcome.ops["matmul"], outcome.ops["softmax"], outcome.ops["cat"]) == (2 * HEADS, HEADS, 1)
    assert outcome.ops["select"] == outcome.ops["unbind"] == outcome.ops["bmm"] == 0
    assert ranks(outcome) <= 4
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("spelling", [unbound, indexed, chunked, relative, einsum])
def test_keeps_a_dynamic_batch(spelling: Callable[..., Tensor]) -> None:
    shape = (TOKENS, HEADS * WIDTH)
    example, other = inputs((2, *shape)), inputs((3, *shape))
    outcome = apply(
        lively(Block(spelling)), example, *PREPARED, split_heads.RULE, dynamic_batch=True, check=[example, other]
    )
    assert outcome.evidence[-1].rewritten == 1
    assert outcome.gap < FLOAT64_GAP


def qk_norm(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).permute(2, 0, 3, 1, 4).unbind(0)
    return m.merged((F.normalize(q, dim=-1) @ k.mT).softmax(-1) @ v)


def shown_weights(m: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = m.packed(x).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.mT).softmax(-1)
    return m.merged(weights @ v), weights


def unmerged(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.packed(x).permute(2, 0, 3, 1, 4).unbind(0)
    return (q @ k.mT).softmax(-1) @ v


def test_refuses() -> None:
    example = inputs((2, TOKENS, HEADS * WIDTH))
    assert apply(lively(Block(qk_norm)), example, *PREPARED, split_heads.RULE).evidence[-1].rewritten == 0
    for spelling, reason in (
        (shown_weights, "its attention weights are read elsewhere too"),
        (unmerged, "its heads are not put side by side again"),
    ):
        outcome = apply(lively(Block(spelling)), example, *PREPARED, split_heads.RULE)
        assert outcome.evidence[-1].rewritten == 0
        assert reason in outcome.reasons
    outcome = apply(lively(Block(unbound, heads=17)), inputs((1, TOKENS, 17 * WIDTH)), *PREPARED, split_heads.RULE)
    assert "17 heads are more than 16, and each costs five operators" in outcome.reasons


@pytest.mark.parametrize("spelling", [unbound, indexed, module_tokens_first])
def test_unpacks_without_rank_five(spelling: Callable[..., Tensor]) -> None:
    outcome = apply(
        lively(Block(spelling)), inputs((2, TOKENS, HEADS * WIDTH)), simplify_movement.RULE, unpack_projections.RULE
    )
    assert outcome.evidence[-1].rewritten == 1
    assert outcome.evidence[-1].gap == 0.0
    assert outcome.ops["split"] == 1
    assert outcome.ops["select"] == outcome.ops["unbind"] == 0
    assert ranks(outcome) <= 4
    assert outcome.gap < FLOAT64_GAP


def class_token(m: Block, x: Tensor) -> Tensor:
    return m.proj(x)[:, 0]


def two_of_three(m: Block, x: Tensor) -> Tensor:
    packed = m.packed(x).permute(2, 0, 3, 1, 4)
    return packed[0] @ packed[2].mT


def test_unpacks_some_parts_as_slices_and_leaves_class_tokens() -> None:
    example = inputs((2, TOKENS, HEADS * WIDTH))
    assert apply(lively(Block(class_token)), example, unpack_projections.RULE).rewritten == 0
    outcome = apply(lively(Block(two_of_three)), example, unpack_projections.RULE)
    assert outcome.rewritten == 1
    assert (outcome.ops["slice"], outcome.ops["select"]) == (2, 0)
    assert outcome.gap < FLOAT64_GAP


def test_unpacking_refuses_what_a_view_reads() -> None:
    def viewed(m: Block, x: Tensor) -> Tensor:
        q, k, v = m.packed(x).permute(2, 0, 1, 3, 4).contiguous().unbind(0)
        return (q + k + v).flatten(2) + q.view(2 * TOKENS, -1).sum()

    outcome = apply(lively(Block(viewed)), inputs((2, TOKENS, HEADS * WIDTH)), unpack_projections.RULE)
    assert outcome.rewritten == 0
    assert "a view reads one of its parts" in outcome.reasons[0]
