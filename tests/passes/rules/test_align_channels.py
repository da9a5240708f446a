"""Channels padded to whole blocks through everything that stands between dense convolutions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.errors import RewriteError
from mobilec.passes.rule import Match
from mobilec.passes.rules import align_channels
from mobilec.passes.rules.align_channels import RULE
from support.rewriting import FLOAT64_GAP, Outcome, apply, inputs, lively, ops


def conv(inputs: int, outputs: int, size: int = 1, **settings: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **settings)  # type: ignore[arg-type]


class Ghosts(nn.Module):
    """Two ghost modules with a sum around the second, and what stands between in GhostNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = conv(3, 12), conv(12, 12, 3, groups=12)
        self.short, self.strip = conv(3, 24), conv(24, 24, 3, groups=24)
        self.reduce, self.expand = conv(24, 6), conv(6, 24)
        self.second, self.second_cheap = conv(24, 20), conv(20, 20, 3, groups=20)
        self.shortcut = conv(3, 40)
        self.head = conv(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.primary(x))
        y = torch.cat([y, F.relu(self.cheap(y))], 1)
        gate = self.strip(self.short(F.avg_pool2d(x, 2))).sigmoid()
        y = y * F.interpolate(gate, scale_factor=2.0)
        y = y * F.hardsigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        z = self.second(y)
        z = torch.cat([z, self.second_cheap(z)], 1) + self.shortcut(x)
        return self.head(z)


class Stream(nn.Module):
    """A residual stream of 21 channels: no convolution works on blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 21, 3), conv(21, 4, 3)
        self.expand, self.mix, self.project = conv(21, 42), conv(42, 42, 3, groups=42), conv(42, 21)
        self.scale = nn.Parameter(torch.ones(21, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        x = x + self.scale * self.project(F.gelu(self.mix(F.gelu(self.expand(x)))))
        x = torch.maximum(x, F.max_pool2d(x, 3, 1, 1))
        return self.head(x)


class Halves(nn.Module):
    """Slices of the channels go along with their parts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = conv(3, 30), conv(10, 10, 3, groups=10), conv(20, 6), conv(10, 4)
        self.whole = conv(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left, right = x[:, :10], x[:, 10:]
        return self.head(self.left(left).relu()) + self.whole(torch.cat([left, right], 1)) + self.right(right)[:, :4]


def run(module: nn.Module, shape: tuple[int, ...] = (2, 3, 8, 6)) -> Outcome:
    return apply(lively(module), inputs(shape), RULE)


def channels(outcome: Outcome) -> set[int]:
    """Of all maps but what the program is given and gives."""
    nodes = [node for node in outcome.program.graph.nodes if node.op == "call_function"]
    return {node.meta["val"].shape[1] for node in nodes if not any(user.op == "output" for user in node.users)}


def test_ghosts_fill_blocks_part_by_part() -> None:
    outcome = run(Ghosts(), (2, 3, 8, 8))
    assert outcome.gap < FLOAT64_GAP
    assert outcome.rewritten == 3  # what each ghost joins, and the 6 channels of the squeeze
    assert outcome.ops == ops(outcome.before)
    assert channels(outcome) == {3, 16, 32, 64}


def test_streams_that_no_convolution_works_on() -> None:
    outcome = run(Stream())
    assert outcome.gap < FLOAT64_GAP
    assert outcome.rewritten == 2  # the stream, and what the expansion makes of it
    assert channels(outcome) == {32, 48}


def test_slices_go_along() -> None:
    outcome = run(Halves())
    assert outcome.gap < FLOAT64_GAP
    assert outcome.rewritten == 1
    assert {16, 32, 48} <= channels(outcome)


def test_the_batch_may_be_open() -> None:
    module = lively(Ghosts())
    outcome = apply(module, inputs((2, 3, 8, 8)), RULE, dynamic_batch=True, check=[inputs((5, 3, 8, 8))])
    assert outcome.rewritten == 3
    assert outcome.gap < FLOAT64_GAP


class Reader(nn.Module):
    """A map of 21 channels with one reader more, which wants its channels as they are."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.stem, self.head, self.other, self.read = conv(3, 21), conv(21, 4), conv(4, 21), read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        if self.read == "output":
            return self.head(y), y
        if self.read == "reshape":
            return self.head(y), y.flatten(2).softmax(1)
        if self.read == "softmax":
            return self.head(y), self.head(y.softmax(1))
        if self.read == "input":
            return self.head(y * x.mean(1, keepdim=True).expand(-1, 21, -1, -1)), x
        if self.read == "group":
            return self.head(y), F.conv2d(y, self.head.weight[:3, :7], groups=3)
        return self.head(y), self.head(F.pad(y, (0, 0, 0, 0, 1, 0))[:, 1:])


@pytest.mark.parametrize("read", ["output", "reshape", "softmax", "input", "group", "pad"])
def test_refuses_open_regions(read: str) -> None:
    outcome = run(Reader(read))
    assert outcome.rewritten == 0
    assert len(outcome.reasons) == 1


def test_reasons_name_the_reader() -> None:
    assert run(Reader("softmax")).reasons == ["softmax (softmax) needs the channels as they are"]


def test_leaves_whole_blocks_and_what_is_cheap_already() -> None:
    aligned = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 4))
    fours = nn.Sequential(conv(3, 20), nn.ReLU(), conv(20, 4))  # blocked already, rounded up inside
    for module in (aligned, fours):
        outcome = run(module)
        assert outcome.rewritten == 0
        assert outcome.reasons == []


class Narrow(nn.Module):
    """Two halves of 1 channel that 256 channels read: 32 instead of 16 to multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv(3, 4), conv(3, 4), conv(8, 256, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.two(x)], 1))


def test_refuses_where_products_cost_more() -> None:
    outcome = run(Narrow())
    assert outcome.rewritten == 0
    assert "products of wider layers would cost more" in outcome.reasons[0]


def test_leaves_a_map_that_is_written_to_in_place() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 21), conv(21, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            y[:, 0].mul_(2.0)
            return self.head(y)

    outcome = run(Written())
    assert outcome.rewritten == 0
    assert outcome.gap < FLOAT64_GAP


def test_weights_in_the_wrong_columns_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(parts: tuple[int, ...]) -> Tensor:
        return torch.arange(sum(parts)) if len(parts) > 1 else original(parts)

    original = align_channels._positions
    monkeypatch.setattr(align_channels, "_positions", shuffled)
    with pytest.raises(RewriteError, match="align_channels"):
        run(Ghosts(), (2, 3, 8, 8))


def test_the_runner_sees_all_that_a_region_adds() -> None:
    """New nodes stand all over the region; a rule whose budget they break is stopped."""

    def off(editor, match: Match):  # type: ignore[no-untyped-def]
        first, *rest = align_channels.rewrite(editor, match)
        return (editor.call(torch.ops.aten.mul.Tensor, first, 1.001, origin=match.replaced[0]), *rest)

    with pytest.raises(RewriteError, match="more than its budget"):
        apply(lively(Stream()), inputs((2, 3, 8, 6)), dataclasses.replace(RULE, rewrite=off))
