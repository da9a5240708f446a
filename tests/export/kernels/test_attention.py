"""Attention as one kernel against PyTorch, and where it must stay separate kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from support.native import Several, With, check_native, run_native


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kernels_of(part: object, inputs: list[torch.Tensor]) -> list[str]:
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.lowering import lower

    program = torch.export.export(Several(part).eval(), tuple(inputs))
    return list(lower(program, find_cpu("host")).kernels)


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v


def channels_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v.transpose(-2, -1) @ (q @ k.transpose(-2, -1)).softmax(-1).transpose(-2, -1)


@pytest.mark.parametrize(("queries", "keys"), [(49, 49), (67, 21), (9, 70)])
def test_sizes_that_fit_no_block(queries: int, keys: int) -> None:
    shapes = [(2, 3, queries, 20), (2, 3, keys, 20), (2, 3, keys, 13)]
    inputs = [numbers(*shape, seed=at) for at, shape in enumerate(shapes)]
    check_native([plain, channels_first], inputs)
    assert len([name for name in kernels_of(plain, inputs) if name.startswith("attention")]) == 1


def test_windows_written_where_they_belong() -> None:
    """Rows of windows, strided ones too, put back and added, as in EMOv2 and Swin."""

    def near(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 2, 7, 2, 7, 2, 20).permute(0, 1, 3, 5, 2, 4, 6).reshape(4, 2, 49, 20)

    def far(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 7, 2, 7, 2, 2, 20).permute(0, 2, 4, 5, 1, 3, 6).reshape(4, 2, 49, 20)

    def both(x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        a = plain(near(x), near(x), near(x)).reshape(1, 2, 2, 2, 7, 7, 20)
        b = plain(far(x), far(x), far(x)).reshape(1, 2, 2, 2, 7, 7, 20)
        a = a.permute(0, 1, 4, 2, 5, 3, 6).reshape(1, 14, 14, 40)
        return (a + b.permute(0, 4, 1, 5, 2, 3, 6).reshape(1, 14, 14, 40)).permute(0, 3, 1, 2)

    part = With(lambda before, after, x: after(both(before(x))), nn.Conv2d(9, 40, 1), nn.Conv2d(40, 8, 1))
    check_native([part], [numbers(1, 9, 14, 14)])
    check_native([both], [numbers(1, 40, 14, 14)])
    kinds = [name.split("_")[0] for name in kernels_of(part, [numbers(1, 9, 14, 14)])]
    assert sorted(kinds) == ["attention", "attention", "conv", "conv", "output"]


def test_masks_and_biases() -> None:
    mask = torch.zeros(30, 30).masked_fill(torch.ones(30, 30).triu(1) > 0, float("-inf"))
    bias = numbers(3, 30, 30, seed=9)

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1) + mask).softmax(-1) @ v

    def biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ((q @ k.transpose(-2, -1)) * 0.5 + bias).softmax(-1) @ v

    inputs = [numbers(2, 3, 30, 8, seed=at) for at in range(3)]
    check_native([masked, biased, lambda q, k, v: plain(q * 60, k, v)], inputs)


def test_learned_values_and_narrow_vectors() -> None:
    def learned(held: nn.Module, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ held.weight

    def learned_first(held: nn.Module, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return held.weight.transpose(0, 1) @ (q @ k.transpose(-2, -1)).softmax(-1).transpose(-2, -1)

    parts = [With(part, nn.Linear(8, 30)) for part in (learned, learned_first)]
    check_native(parts, [numbers(2, 3, 21, 8, seed=1), numbers(2, 3, 30, 8)])
    check_native([plain], [numbers(2, 21, 8, seed=at) for at in range(3)], "x86-64-v3")


def test_nan_stays_in_its_row() -> None:
    q, k, v = (numbers(1, 20, 8, seed=at) for at in range(3))
    q[0, 3, 2] = float("nan")
    (found,) = run_native(Several(plain), [q, k, v])
    assert np.isnan(found[0, 3]).all()
    assert not np.isnan(np.delete(found[0], 3, axis=0)).any()


def test_what_is_not_attention_stays_apart() -> None:
    def read_twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return weights @ v + weights.sum(-1, keepdim=True)

    def over_queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-2) @ v

    def other_side(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return v.transpose(-2, -1) @ (q @ k.transpose(-2, -1)).softmax(-1)

    def few(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return plain(q[:, :, :2], k, v)

    inputs = [numbers(2, 3, 20, 12, seed=at) for at in range(3)]
    parts = [read_twice, over_queries, other_side, few]
    check_native(parts, inputs)
    for part in parts:
        assert "softmax" in " ".join(kernels_of(part, inputs))
