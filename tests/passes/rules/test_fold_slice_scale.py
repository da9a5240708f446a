"""A scale on q goes into the rows of the layer that make q."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from mobilec.passes.rules.fold_slice_scale import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs, lively


class Packed(nn.Module):
    """A convolution ``conv`` and a linear layer ``linear``, each with q, k, v in its output."""

    def __init__(self, function: Callable[[Packed, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 12, 1)
        self.linear = nn.Linear(6, 24)
        self.function = function

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, x)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).flatten(2).split([3, 3, 6], 1)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        tokens = x.flatten(2).transpose(1, 2)
        packed = self.linear(tokens).reshape(tokens.shape[0], -1, 3, 2, 4)
        return packed.permute(2, 0, 3, 1, 4).unbind(0)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)


def on_q(m: Packed, x: Tensor) -> Tensor:
    q, k, v = m.parts(x)
    return attend(q * 0.3, k, v)


def on_scores(m: Packed, x: Tensor) -> Tensor:
    q, k, v = m.parts(x)
    return v @ ((q.transpose(1, 2) @ k) / 2.7).softmax(-1).transpose(1, 2)


def on_heads(m: Packed, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    return ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def on_slices(m: Packed, x: Tensor) -> Tensor:
    y = m.conv(x)
    return attend(0.3 * y[:, :3].flatten(2), y[:, 3:6].flatten(2), y.narrow(1, 6, 6).flatten(2))


def other_operand(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = m.parts(x)
    return ((q.transpose(1, 2) @ k) * 0.3).softmax(-1) @ v.transpose(1, 2), q  # q is read, so k takes the scale


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [on_q, on_scores, on_heads, on_slices, other_operand])
def test_folds(function: Callable[..., Tensor], dynamic: bool) -> None:
    outcome = apply(lively(Packed(function)), inputs((2, 6, 3, 5)), "remove_no_ops", RULE, dynamic_batch=dynamic)
    assert outcome.evidence[-1].rewritten >= 1
    assert outcome.ops["mul"] == outcome.ops["div"] == 0
    assert outcome.ops["conv2d"] + outcome.ops["linear"] == 1
    assert outcome.gap < FLOAT64_GAP


def read_whole(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    q, k, v = y.flatten(2).split([3, 3, 6], 1)
    return attend(q * 0.3, k, v), y.relu()


def read_twice(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = m.parts(x)
    return attend(q * 0.3, k, v), q


def overlapping(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x)
    return y[:, :3] * 0.3, y[:, 2:]


def by_pixels(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    left, right = m.conv(x)[..., :4].split(2, dim=3)
    return left * 0.3, right


@pytest.mark.parametrize("function", [read_whole, read_twice, overlapping, by_pixels])
def test_refuses_what_others_read(function: Callable[..., Tensor]) -> None:
    outcome = apply(lively(Packed(function)), inputs((2, 6, 3, 5)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons
    assert "read elsewhere" in outcome.reasons[0]


def test_leaves_what_comes_from_no_layer() -> None:
    def plain(_: Packed, x: Tensor) -> Tensor:
        return x[:, :3] * 0.3

    outcome = apply(lively(Packed(plain)), inputs((2, 6, 3, 5)), RULE)
    assert (outcome.rewritten, outcome.reasons) == (0, [])


def test_a_layer_applied_twice_keeps_its_other_use() -> None:
    def twice(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
        return on_q(m, x), m.conv(x + 1.0)

    outcome = apply(lively(Packed(twice)), inputs((2, 6, 3, 5)), RULE)
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP
