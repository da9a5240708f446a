"""Chains of reshapes and permutations become as short as they can be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilec.passes.rules.simplify_movement import RULE
from support.rewriting import apply, inputs


class Chain(nn.Module):
    """A function of one tensor between two operators that do something."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * 2.0).sin()


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width)
    return x.transpose(1, 2).contiguous().view(batch, channels, height, width)


SHORT: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "there and back": (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), {}),
    "flatten and back": (lambda x: x.flatten(2).unflatten(2, (6, 5)), {}),
    "tokens and back": (lambda x: x.flatten(2).transpose(1, 2).transpose(-1, -2).reshape(x.shape), {}),
    "copies": (lambda x: x.contiguous().clone(), {}),
    "two permutations": (lambda x: x.permute(0, 2, 3, 1).transpose(1, 2), {"permute": 1}),
    "to tokens": (lambda x: x.flatten(2).transpose(1, 2).contiguous(), {"reshape": 1, "permute": 1}),
    "squeeze and unsqueeze": (lambda x: x.unsqueeze(2).squeeze(2).unsqueeze(-1), {"reshape": 1}),
    "views": (lambda x: x.view(-1, 8, 30).view(-1, 4, 2, 30).view(-1, 4, 60), {"reshape": 1}),
    "moved axis of size 1": (lambda x: x.unsqueeze(1).transpose(1, 2), {"reshape": 1}),
    "movedim": (lambda x: x.movedim(1, -1).movedim(-1, 1), {}),
    "swapped": (lambda x: x.swapaxes(1, 2).swapdims(1, 2), {}),
    "channel shuffle": (shuffle, {"reshape": 2, "permute": 1}),
}


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("case", SHORT)
def test_shortens(case: str, dynamic_batch: bool) -> None:
    function, left = SHORT[case]
    (x,) = inputs((2, 8, 6, 5))
    other = inputs((3, 8, 6, 5)) if dynamic_batch else (x,)
    outcome = apply(Chain(function), (x,), RULE, "remove_dead_code", dynamic_batch=dynamic_batch, check=[(x,), other])
    counts = {name: count for name, count in outcome.ops.items() if name not in ("mul", "sin", "sym_size")}
    assert counts == left
    assert outcome.gap == 0.0


def test_equal_chains_become_equal_calls() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.cos()
            first = x.flatten(2).transpose(1, 2)
            second = x.permute(0, 2, 3, 1).reshape(2, 30, 8)
            return first.sin() + second.sin()

    outcome = apply(Twice(), inputs((2, 8, 6, 5)), RULE, "merge_duplicates")
    assert outcome.ops["sin"] == 1
    assert outcome.gap == 0.0


def test_a_shared_beginning_stays_shared() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            last = x.cos().permute(0, 2, 3, 1)
            return last.sin(), last.reshape(2, 30, 8).cos(), last.permute(0, 3, 1, 2).exp()

    outcome = apply(Shared(), inputs((2, 8, 6, 5)), RULE)
    assert outcome.ops == {"cos": 2, "sin": 1, "exp": 1, "permute": 1, "reshape": 1}
    assert outcome.gap == 0.0


def test_small_permutations_never_become_a_large_one() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.cos().reshape(-1, 2, 2, 3 * 6).transpose(1, 2)
            return x.reshape(-1, 2 * 3, 2, 3).transpose(1, 2).reshape(2, 8, 2, 9).sin()

    outcome = apply(Windows(), inputs((2, 4, 6, 6)), RULE)
    assert outcome.ops == {"cos": 1, "sin": 1, "permute": 2, "reshape": 3}
    assert outcome.gap == 0.0


def test_views_survive_another_layout() -> None:
    """A view behind an element-wise operator fails on a tensor that is laid out otherwise; a reshape does not."""

    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos().permute(0, 2, 3, 1).contiguous().sin().view(2, -1).exp()

    outcome = apply(View(), inputs((2, 8, 6, 5)), RULE)
    assert outcome.ops == {"cos": 1, "permute": 1, "sin": 1, "reshape": 1, "exp": 1}
    assert outcome.gap == 0.0


def test_keeps_an_output_apart_from_the_input() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1).transpose(0, 1)

    outcome = apply(Same(), inputs((3, 4)), RULE)
    assert outcome.reasons == ["it keeps an output apart from an input or from another output"]


def test_leaves_what_is_as_short_as_it_can_be() -> None:
    class Short(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos().permute(0, 2, 3, 1).sin()

    assert apply(Short(), inputs((2, 8, 6, 5)), RULE).rewritten == 0


def test_refuses_beside_explicit_strides() -> None:
    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.cos().transpose(0, 1).transpose(0, 1)
            return torch.as_strided(y, (4, 3), (1, 4))

    outcome = apply(Strided(), inputs((3, 4)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == [
        "the model reads a tensor through explicit strides, which depend on how others are laid out"
    ]
