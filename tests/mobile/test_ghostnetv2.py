from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.mobile import ghostnetv2
from mobilec.mobile.ghostnetv2 import STAGES, double_to, round_width
from mobilec.mobile.zoo import find_variant, list_models
from support.reference import load_reference, reference_input
from support.zoo import build, build_golden, capture_any_batch, image, relative_gap, shapes

SMALLEST = "ghostnetv2_100"


def nearest_as_published(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="nearest")


@pytest.mark.parametrize("odd", [0, 1])
def test_doubling_reads_the_nearest_indices(odd: int) -> None:
    """Every length a map of up to 1200 lines can have, along both axes, in exact integers."""
    for pooled in range(1, 600):
        size = 2 * pooled + odd
        indices = torch.arange(pooled, dtype=torch.float64)
        expected = torch.tensor([line * pooled // size for line in range(size)], dtype=torch.float64)
        assert torch.equal(double_to(indices.reshape(1, 1, -1, 1), size, 2)[0, 0, :, 0], expected)
        assert torch.equal(double_to(indices.reshape(1, 1, 1, -1), 2, size)[0, 0, 0], expected)


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 2**31))
def test_doubling_equals_interpolate_on_any_pooled_map(height: int, width: int, seed: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    pooled = F.avg_pool2d(x, 2, 2)
    assert torch.equal(double_to(pooled, height, width), nearest_as_published(pooled, height, width))


def test_half_pixel_indices_would_be_seen() -> None:
    """The misreading that one converter makes of 3 -> 7 (0 0 1 1 1 2 2) is another function."""
    x = torch.arange(3.0).reshape(1, 1, 1, 3)
    assert double_to(x, 2, 7)[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 2, 2]
    half_pixel = F.interpolate(x, size=(2, 7), mode="nearest-exact")
    assert half_pixel[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 127), (100, 203)])
def test_network_equals_the_one_with_a_free_resize(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build_golden(SMALLEST), image(1, height, width)
    with torch.no_grad():
        logits = model(x)
        monkeypatch.setattr(ghostnetv2, "double_to", nearest_as_published)
        assert torch.equal(logits, model(x))


@pytest.mark.parametrize(
    ("value", "width"), [(1, 4), (5.2, 8), (18, 20), (20.8, 20), (25.6, 24), (31.2, 32), (62.4, 64), (6, 8), (11, 12)]
)
def test_round_width(value: float, width: int) -> None:
    assert round_width(value) == width
    assert width % 4 == 0
    assert width >= 0.9 * value


@pytest.mark.parametrize("name", list_models("ghostnetv2*"))
def test_names_of_the_unpublished_variants_follow_the_rule(name: str) -> None:
    """Attention from the third bottleneck on, in the first ghost only; a strided bottleneck has its own depthwise."""
    factor = find_variant(name)[1].config["width"]
    with torch.device("meta"):
        state = shapes(build(name).state_dict())
    count = 0
    for stage, rows in enumerate(STAGES):
        for index, row in enumerate(rows):
            at = f"blocks.{stage}.{index}."
            expanded, outputs = round_width(row.expansion * factor), round_width(row.out * factor)
            assert state[at + "ghost1.primary_conv.0.weight"][0] == expanded // 2
            assert state[at + "ghost2.cheap_operation.0.weight"] == (outputs // 2, 1, 3, 3)
            assert state.get(at + "ghost1.short_conv.2.weight") == ((expanded, 1, 1, 5) if count > 1 else None)
            assert state.get(at + "ghost1.short_conv.4.weight") == ((expanded, 1, 5, 1) if count > 1 else None)
            assert at + "ghost2.short_conv.0.weight" not in state
            assert (at + "conv_dw.weight" in state) == (row.stride == 2)
            assert (at + "se.conv_reduce.bias" in state) == (row.se > 0)
            count += 1
    assert state["blocks.9.0.conv.weight"][0] == round_width(960 * factor)
    assert state["conv_head.weight"] == (1280, round_width(960 * factor), 1, 1)
    assert state["classifier.weight"] == (1000, 1280)


def test_a_wrong_eps_is_seen() -> None:
    """One batch norm with 1e-6 for 1e-5, against the authors' logits."""
    reference = load_reference(SMALLEST)
    model = build_golden(SMALLEST).double()
    x = torch.from_numpy(reference_input(reference.resolution)[:1]).double()
    norm = model.get_submodule("blocks.4.0.ghost1.short_conv.3")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        assert relative_gap(model(x), reference.logits[:1]) <= 1e-9
        norm.eps = 1e-6
        assert relative_gap(model(x), reference.logits[:1]) > 1e-8


@pytest.mark.parametrize(("height", "width"), [(224, 224), (73, 101)])
def test_resizes_are_doublings_in_a_captured_network(height: int, width: int) -> None:
    program = capture_any_batch(build_golden(SMALLEST), height, width)
    resizes = [node for node in program.graph.nodes if "upsample" in str(node.target)]
    assert len(resizes) == 14
    assert all(node.args[1:] == (None, [2.0, 2.0]) for node in resizes)
