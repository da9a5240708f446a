from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilec.mobile.mobilevig import max_relative
from mobilec.mobile.zoo import list_models
from support.zoo import build, image, shapes

SMALLEST = "mobilevig_ti"


def max_relative_as_published(x: torch.Tensor, step: int) -> torch.Tensor:
    largest = torch.zeros_like(x)
    for shift in range(step, x.shape[2], step):
        largest = torch.maximum(largest, x - torch.roll(x, shift, dims=2))
    for shift in range(step, x.shape[3], step):
        largest = torch.maximum(largest, x - torch.roll(x, shift, dims=3))
    return largest


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_max_relative_equals_the_rolls_bit_for_bit(height: int, width: int, step: int, seed: int) -> None:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 1e3
    assert torch.equal(max_relative(x, step), max_relative_as_published(x, step))


def test_max_relative_is_directed() -> None:
    """On an odd side the shifts do not come in opposite pairs: rolling the other way is another function."""
    x = image(1, 7, 7)
    backwards = max_relative_as_published(x.flip(2, 3), 2).flip(2, 3)
    assert not torch.equal(max_relative(x, 2), backwards)


def test_max_relative_without_neighbours_is_zero() -> None:
    assert torch.equal(max_relative(image(2, 2, 2), 2), torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize("name", list_models("mobilevig*"))
def test_names_of_the_unpublished_variants_follow_the_rule(name: str) -> None:
    """Local blocks and halvings share one list; the graph stage and the heads stand apart."""
    with torch.device("meta"):
        model = build(name)
    state = shapes(model.state_dict())
    channels, embedding = state["backbone.0.0.fc1.0.weight"][0], state["head.weight"][1]
    last = len(model.local_backbone) - 1
    assert state[f"local_backbone.{last}.conv.0.weight"][0] == channels
    assert f"local_backbone.{last - 1}.layer_scale_2" in state
    assert state["prediction.1.weight"] == (embedding, channels, 1, 1)
    assert state["dist_head.weight"] == (1000, embedding, 1, 1)


def test_both_heads_count_in_train_mode() -> None:
    model = build(SMALLEST, num_classes=5).train()
    assert model(image(2, 64, 64)).shape == (2, 5)
