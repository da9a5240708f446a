from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mobilec.mobile.emov2 import WindowAttention, from_windows, to_windows
from mobilec.mobile.zoo import find_variant, list_models
from support.reference import load_reference, reference_input
from support.zoo import build, build_golden, relative_gap, shapes

SMALLEST = "emov2_1m"


def windows_as_published(x: Tensor, groups: int, window: int, *, remote: bool) -> Tensor:
    """One rearrangement of rank 7, axes named by what they count."""
    batch, channels, height, width = x.shape
    depth, rows, columns = channels // groups, height // window, width // window
    if remote:  # a pixel's line is a + rows * i
        named = x.reshape(batch, groups, depth, window, rows, window, columns)  # b g d i a j c
        named = named.permute(0, 1, 4, 6, 2, 3, 5)  # b g a c d i j
    else:  # a pixel's line is window * a + i
        named = x.reshape(batch, groups, depth, rows, window, columns, window)  # b g d a i c j
        named = named.permute(0, 1, 3, 5, 2, 4, 6)
    return named.reshape(batch, groups * rows * columns, depth, window * window)


SIDES = st.integers(1, 4)


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), SIDES, SIDES, st.booleans())
def test_windows_are_the_published_ones(
    batch: int, groups: int, depth: int, window: int, rows: int, columns: int, remote: bool
) -> None:
    shape = (batch, groups * depth, rows * window, columns * window)
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    windows = to_windows(x, groups, window, remote=remote)
    assert torch.equal(windows, windows_as_published(x, groups, window, remote=remote))
    assert torch.equal(from_windows(windows, groups, window, shape[2], shape[3], remote=remote), x)


def test_partitions_hold_the_pixels_their_names_say() -> None:
    lines = torch.arange(6).reshape(1, 1, 6, 1).expand(1, 1, 6, 6)
    assert to_windows(lines, 1, 2, remote=False)[0, :, 0, 0].tolist() == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert to_windows(lines, 1, 2, remote=True)[0, 4, 0].tolist() == [1, 1, 4, 4]


@pytest.mark.parametrize(("height", "width"), [(6, 9), (5, 7), (3, 3), (2, 1)])
def test_attention_against_the_formula(height: int, width: int) -> None:
    """Pixel by pixel in float64: which places a query sees, padded ones included, and what it makes of them."""
    torch.manual_seed(0)
    window, heads, channels, expanded = 3, 2, 8, 12
    attention = WindowAttention(channels, expanded, heads, window).double().eval()
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    padded = nn.functional.pad(x, (0, -width % window, 0, -height % window))
    tall, wide = padded.shape[2:]
    with torch.no_grad():
        actual = attention(x)
        q, k = attention.qk(padded).split(channels, dim=1)
        v = attention.v(padded)
    expected = torch.zeros_like(v)
    places = [(line, column) for line in range(tall) for column in range(wide)]
    close = {(r, c): (r // window, c // window) for r, c in places}
    remote = {(r, c): (r % (tall // window), c % (wide // window)) for r, c in places}
    for partition in (close, remote):
        for r, c in places:
            seen = [place for place in places if partition[place] == partition[r, c]]
            assert len(seen) == window * window
            rows, columns = (torch.tensor(axis) for axis in zip(*seen, strict=True))
            for head in range(heads):
                d, e = slice(4 * head, 4 * head + 4), slice(6 * head, 6 * head + 6)
                scores = torch.einsum("bd,bdn->bn", q[:, d, r, c], k[:, d, rows, columns]) * 4**-0.5
                expected[:, e, r, c] += torch.einsum("bn,ben->be", scores.softmax(-1), v[:, e, rows, columns])
    assert actual.shape == (2, expanded, height, width)
    assert relative_gap(actual, expected[:, :, :height, :width]) < 1e-12


@pytest.mark.parametrize("name", list_models("emov2*"))
def test_names_of_the_unpublished_variants_follow_the_rule(name: str) -> None:
    """First blocks expand by a convolution, twice as far; later ones of stages 3 and 4 by attention."""
    config = find_variant(name)[1].config
    with torch.device("meta"):
        model = build(name)
    state = shapes(model.state_dict())
    inputs = config["channels"][0] // 2
    for stage, (width, depth, ratio) in enumerate(
        zip(config["channels"], config["depths"], config["expansions"], strict=True), start=1
    ):
        norm = "norm.norm.weight" if stage > 2 else "norm.weight"
        assert state[f"stage{stage}.0.{norm}"] == (inputs,)
        assert state[f"stage{stage}.0.eops.0.net.conv.weight"] == (int(inputs * 2 * ratio), inputs, 1, 1)
        assert f"stage{stage}.{depth}.{norm}" not in state
        at, expanded = f"stage{stage}.{depth - 1}.", int(width * ratio)
        assert state[at + "conv_local.conv.weight"] == (expanded, 1, 5, 5)
        assert state[at + "ls.gamma"] == (1, width, 1, 1)
        if stage > 2:
            assert state[at + "eops.0.qk.conv.weight"] == (2 * width, width, 1, 1)
            assert state[at + "eops.0.v.conv.bias"] == (expanded,)
            assert width % config["head_dims"][stage - 3] == 0
        else:
            assert state[at + "eops.0.net.conv.bias"] == (expanded,)
        inputs = width
    assert state["head.weight"] == (1000, inputs)


@pytest.mark.parametrize("norm", ["stage2.1.norm", "stage1.0.conv_local.norm", "stage3.2.norm.norm", "norm.norm"])
def test_a_wrong_eps_is_seen(norm: str) -> None:
    """One norm with torch's usual 1e-5 for 1e-6, against the authors' logits."""
    reference = load_reference(SMALLEST)
    model = build_golden(SMALLEST).double()
    x = torch.from_numpy(reference_input(reference.resolution)[:1]).double()
    model.get_submodule(norm).eps = 1e-5
    with torch.no_grad():
        assert relative_gap(model(x), reference.logits[:1]) > 1e-8


def test_every_norm_has_the_small_eps() -> None:
    with torch.device("meta"):
        model = build(SMALLEST)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)]
    assert len(norms) > 30
    assert {norm.eps for norm in norms} == {1e-6}
