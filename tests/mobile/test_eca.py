from __future__ import annotations

import math

import pytest
import torch

from mobilec.errors import ModelError
from mobilec.mobile.eca import ECA, adaptive_kernel
from mobilec.mobile.zoo import find_variant, list_models
from support.zoo import build, image, relative_gap, shapes


@pytest.mark.parametrize(
    ("channels", "taps"), [(1, 1), (8, 3), (16, 3), (64, 3), (96, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_adaptive_kernel(channels: int, taps: int) -> None:
    assert adaptive_kernel(channels) == taps
    assert ECA(channels).conv.weight.shape == (1, 1, taps)


def test_gate_is_the_formula() -> None:
    """Channel by channel, zeros beyond the first and the last."""
    gate = ECA(6, kernel_size=5)
    x = image(2, 4, 3).repeat(1, 2, 1, 1) * torch.arange(1, 7)[:, None, None]
    taps = gate.conv.weight.detach().flatten().tolist()
    means = x.double().mean((2, 3)).tolist()
    expected = x.double().clone()
    for sample in range(2):
        for channel in range(6):
            reach = [(tap, channel + tap - 2) for tap in range(5) if 0 <= channel + tap - 2 < 6]
            score = sum(taps[tap] * means[sample][other] for tap, other in reach)
            expected[sample, channel] /= 1 + math.exp(-score)
    assert relative_gap(gate(x), expected) < 1e-6


@pytest.mark.parametrize("taps", [0, 2, -1])
def test_even_kernels_are_refused(taps: int) -> None:
    with pytest.raises(ModelError, match=f"{taps} taps, expected an odd number"):
        ECA(16, kernel_size=taps)


def test_no_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="0 channels"):
        ECA(0)


@pytest.mark.parametrize("name", list_models("eca_resnet*"))
def test_resnet_gates_and_shortcuts(name: str) -> None:
    """One gate a block with its stage's kernel; a shortcut convolution where the first block changes the shape."""
    config = find_variant(name)[1].config
    with torch.device("meta"):
        state = shapes(build(name).state_dict())
    bottleneck = config["block"] == "bottleneck"
    for stage, (depth, taps) in enumerate(zip(config["depths"], config["kernels"], strict=True), start=1):
        gates = [state.get(f"layer{stage}.{index}.eca.conv.weight") for index in range(depth + 1)]
        assert gates == [(1, 1, taps)] * depth + [None]
        assert (f"layer{stage}.0.downsample.0.weight" in state) == (bottleneck or stage > 1)
        assert (f"layer{stage}.0.bn3.weight" in state) == bottleneck
        assert f"layer{stage}.1.downsample.0.weight" not in state
    assert state["fc.weight"] == (1000, 2048 if bottleneck else 512)


def test_bottleneck_strides_on_its_3x3() -> None:
    with torch.device("meta"):
        block = build("eca_resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))
