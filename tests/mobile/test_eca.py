from __future__ import annotations

import math

import pytest
import torch

from mobilec.errors import ModelError
from mobilec.mobile.eca import ECA, adaptive_kernel
from mobilec.mobile.zoo import find_variant, list_models
from support.zoo import (
    build,
    build_golden,
    capture_any_batch,
    highest_rank,
    image,
    operators,
    relative_gap,
    shapes,
    untouched_by_training_step,
    without,
)

SMALLEST = ("eca_mobilenetv2", "eca_resnet18")
MAPS_96X160 = {
    "eca_mobilenetv2": [(1, 24, 24, 40), (1, 32, 12, 20), (1, 96, 6, 10), (1, 320, 3, 5)],
    "eca_resnet18": [(1, 64, 24, 40), (1, 128, 12, 20), (1, 256, 6, 10), (1, 512, 3, 5)],
}


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


@pytest.mark.parametrize("name", SMALLEST)
def test_features_are_the_stage_maps(name: str) -> None:
    full, trunk = build_golden(name), build_golden(name, features_only=True)
    assert shapes(trunk.state_dict()) == shapes(without(full.state_dict(), type(full).HEAD_PREFIXES))
    with torch.no_grad():
        maps = trunk(image(1, 96, 160))
        logits = full(image(1, 96, 160))
        last = maps[-1]
        if name == "eca_mobilenetv2":
            again = full.classifier(full.features[-1](last).mean((2, 3)))
        else:
            again = full.fc(last.mean((2, 3)))
    assert [tuple(m.shape) for m in maps] == MAPS_96X160[name]
    assert torch.equal(logits, again)


@pytest.mark.parametrize("name", SMALLEST)
def test_classifier_alone_depends_on_the_class_count(name: str) -> None:
    with torch.device("meta"):
        models = [build(name, num_classes=n) for n in (1000, 7)]
    thousand, seven = (shapes(model.state_dict()) for model in models)
    changed = {key for key in thousand if thousand[key] != seven[key]}
    assert changed == {key for key in thousand if key.startswith(type(models[0]).CLASSIFIER_PREFIXES)}


@pytest.mark.parametrize(
    ("name", "height", "width"), [(SMALLEST[0], 224, 224), (SMALLEST[0], 96, 160), (SMALLEST[1], 96, 160)]
)
def test_captures_with_any_batch(name: str, height: int, width: int) -> None:
    model = build_golden(name)
    program = capture_any_batch(model, height, width)
    assert highest_rank(program) <= 4
    assert not operators(program) & {"expand", "expand_as", "index", "gather", "item", "_local_scalar_dense"}
    module = program.module()
    with torch.no_grad():
        for batch in (1, 3):
            x = image(batch, height, width, seed=batch)
            assert relative_gap(module(x), model(x)) < 1e-5


@pytest.mark.parametrize("name", SMALLEST)
def test_features_capture(name: str) -> None:
    program = capture_any_batch(build_golden(name, features_only=True), 96, 160)
    assert [tuple(m.shape) for m in program.module()(image(1, 96, 160))] == MAPS_96X160[name]


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97)])
def test_odd_sizes_and_batches(name: str, height: int, width: int) -> None:
    model = build_golden(name)
    x = image(3, height, width)
    kept = x.clone()
    with torch.no_grad():
        together = model(x)
        apart = torch.cat([model(one) for one in x.split(1)])
    assert together.shape == (3, 1000)
    assert relative_gap(apart, together) < 1e-5
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_trains(name: str) -> None:
    model = build(name, num_classes=5)
    assert untouched_by_training_step(model, image(4, 64, 64), torch.arange(4)) == []
