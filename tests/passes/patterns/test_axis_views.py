"""Random chains of reshape, transpose, slice and split, read as one view and built again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.capture import capture
from mobilec.passes.graph import Editor
from mobilec.passes.patterns.axis_views import build, entries, trace

Step = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def _random_step(draw: random.Random, shape: torch.Size) -> Step:
    rank, axis = len(shape), draw.randrange(len(shape))
    kinds: list[Step] = []
    order = draw.sample(range(rank), rank)
    kinds.append(lambda x: x.permute(order))
    if rank > 1:
        kinds.append(lambda x: x.transpose(axis, axis - 1))
        first = min(axis, rank - 2)
        kinds.append(lambda x: x.flatten(first, first + 1))
    kinds.append(lambda x: x.unsqueeze(axis))
    for factor in (2, 3):
        if shape[axis] % factor == 0 and shape[axis] > factor:
            kinds.append(lambda x, factor=factor: x.unflatten(axis, (factor, -1)))
            kinds.append(lambda x, factor=factor: x.chunk(factor, dim=axis)[1])
    if shape[axis] > 2 and rank < 6:
        kinds.append(lambda x: x.narrow(axis, 1, shape[axis] - 1))
    if rank > 2:
        kinds.append(lambda x: x.select(axis, -1))
    return draw.choice(kinds)


@pytest.mark.parametrize("seed", range(25))
def test_a_view_says_where_every_entry_comes_from(seed: int) -> None:
    draw = random.Random(seed)
    x = torch.arange(2 * 12 * 6).reshape(2, 12, 6).double()
    value, steps = x, []
    for _ in range(5):
        steps.append(_random_step(draw, value.shape))
        value = steps[-1](value)
    editor = Editor(capture(Chain(steps), (x,)))
    output = editor.graph.output_node()
    end = output.args[0][0]
    view = trace(editor, end)
    if view.source.op != "placeholder":
        assert len(view.source.all_input_nodes) == 1  # an axis was cut unevenly on the way: the view starts there
        return
    for axis in range(3):
        held = entries(view, axis)
        assert held is not None
        found = {int(entry) // (72, 6, 1)[axis] % (2, 12, 6)[axis] for entry in value.reshape(-1)}
        assert held == found
    with editor.graph.inserting_before(output):
        built = build(editor, view, origin=end)
    if built is None:
        return
    output.args = ([built],)
    editor.erase(end)
    assert torch.equal(editor.close().module()(x), value)


def test_most_chains_are_followed_to_their_start() -> None:
    followed = 0
    for seed in range(25):
        draw = random.Random(seed)
        value, steps = torch.zeros(2, 12, 6), []
        for _ in range(5):
            steps.append(_random_step(draw, value.shape))
            value = steps[-1](value)
        editor = Editor(capture(Chain(steps), (torch.zeros(2, 12, 6),)))
        followed += trace(editor, editor.graph.output_node().args[0][0]).source.op == "placeholder"
    assert followed >= 15
