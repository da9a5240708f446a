from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilec.mobile.mobilevig import MobileViG, max_relative
from mobilec.mobile.zoo import list_models
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


def test_features_are_the_stage_maps() -> None:
    full, trunk = build_golden(SMALLEST), build_golden(SMALLEST, features_only=True)
    assert shapes(trunk.state_dict()) == shapes(without(full.state_dict(), MobileViG.HEAD_PREFIXES))
    with torch.no_grad():
        maps = trunk(image(1, 96, 160))
        logits = full(image(1, 96, 160))
        pooled = full.prediction(maps[-1])
        again = ((full.head(pooled) + full.dist_head(pooled)) / 2).flatten(1)
    assert [tuple(m.shape) for m in maps] == [(1, 42, 24, 40), (1, 84, 12, 20), (1, 168, 6, 10), (1, 256, 3, 5)]
    assert torch.equal(logits, again)


def test_classifiers_alone_depend_on_the_class_count() -> None:
    with torch.device("meta"):
        thousand, seven = (shapes(build(SMALLEST, num_classes=n).state_dict()) for n in (1000, 7))
    changed = {key for key in thousand if thousand[key] != seven[key]}
    assert changed == {key for key in thousand if key.startswith(MobileViG.CLASSIFIER_PREFIXES)}
    assert seven["head.weight"] == seven["dist_head.weight"] == (7, 512, 1, 1)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 160)])
def test_captures_with_any_batch(height: int, width: int) -> None:
    model = build_golden(SMALLEST)
    program = capture_any_batch(model, height, width)
    assert highest_rank(program) <= 4
    assert not operators(program) & {"roll", "index", "gather", "item", "_local_scalar_dense"}
    module = program.module()
    with torch.no_grad():
        for batch in (1, 3):
            x = image(batch, height, width, seed=batch)
            assert relative_gap(module(x), model(x)) < 1e-5


def test_features_capture() -> None:
    program = capture_any_batch(build_golden(SMALLEST, features_only=True), 96, 160)
    assert [tuple(m.shape[1:]) for m in program.module()(image(1, 96, 160))][-1] == (256, 3, 5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (100, 70)])
def test_odd_sizes_and_batches(height: int, width: int) -> None:
    model = build_golden(SMALLEST)
    x = image(3, height, width)
    kept = x.clone()
    with torch.no_grad():
        together = model(x)
        apart = torch.cat([model(one) for one in x.split(1)])
    assert together.shape == (3, 1000)
    assert relative_gap(apart, together) < 1e-5
    assert torch.equal(x, kept)


def test_every_parameter_trains() -> None:
    model = build(SMALLEST, num_classes=5)
    assert untouched_by_training_step(model, image(4, 64, 64), torch.arange(4)) == []


def test_both_heads_count_in_train_mode() -> None:
    model = build(SMALLEST, num_classes=5).train()
    assert model(image(2, 64, 64)).shape == (2, 5)
