"""What every family of the zoo owes, checked on its smallest variant.

A new family is covered by standing in the zoo; ``FACTS`` asks it for a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mobilec.mobile.zoo import FAMILIES
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

SMALLEST = {family.name: min(family.variants, key=lambda row: row.parameters).name for family in FAMILIES}

# Operators that index by data, or that phones and converters handle badly.
UNWANTED = {"index", "index_select", "gather", "roll", "item", "_local_scalar_dense"}


@dataclass(frozen=True)
class Facts:
    """What is known of a family's smallest variant.

    ``maps``: [C, H, W] of the stages at 96 x 160. ``logits``: the head written once more, from the last map.
    ``classifiers``: weights' shapes at seven classes. ``unwanted``: operators beside those no family may have.
    ``oblong``, ``odd``: [H, W] to capture and to run at, beside those all families get.
    """

    maps: tuple[tuple[int, int, int], ...]
    logits: Callable[[nn.Module, Tensor], Tensor]
    classifiers: dict[str, tuple[int, ...]]
    unwanted: frozenset[str] = frozenset()
    oblong: tuple[int, int] = (96, 160)
    odd: tuple[int, int] = (100, 70)


def _mobilevig(model: nn.Module, last: Tensor) -> Tensor:
    pooled = model.prediction(last)
    return ((model.head(pooled) + model.dist_head(pooled)) / 2).flatten(1)


def _ghostnetv2(model: nn.Module, last: Tensor) -> Tensor:
    pooled = model.blocks[9](last).mean((2, 3), keepdim=True)
    return model.classifier(model.conv_head(pooled).relu().flatten(1))


def _care(model: nn.Module, last: Tensor) -> Tensor:
    pooled = last.mean((2, 3))
    return (model.head(pooled) + model.dist_head(pooled)) / 2


FACTS = {
    "mobilevig": Facts(
        maps=((42, 24, 40), (84, 12, 20), (168, 6, 10), (256, 3, 5)),
        logits=_mobilevig,
        classifiers={"head.weight": (7, 512, 1, 1), "dist_head.weight": (7, 512, 1, 1)},
    ),
    "shvit": Facts(
        maps=((128, 6, 10), (224, 3, 5), (320, 2, 3)),
        logits=lambda model, last: model.head(last.mean((2, 3))),
        classifiers={"head.l.weight": (7, 320)},
    ),
    "eca_mobilenetv2": Facts(
        maps=((24, 24, 40), (32, 12, 20), (96, 6, 10), (320, 3, 5)),
        logits=lambda model, last: model.classifier(model.features[-1](last).mean((2, 3))),
        classifiers={"classifier.1.weight": (7, 1280)},
        unwanted=frozenset({"expand", "expand_as"}),
    ),
    "eca_resnet": Facts(
        maps=((64, 24, 40), (128, 12, 20), (256, 6, 10), (512, 3, 5)),
        logits=lambda model, last: model.fc(last.mean((2, 3))),
        classifiers={"fc.weight": (7, 512)},
        unwanted=frozenset({"expand", "expand_as"}),
    ),
    "ghostnetv2": Facts(  # features: the last bottleneck of each stride
        maps=((24, 24, 40), (40, 12, 20), (112, 6, 10), (160, 3, 5)),
        logits=_ghostnetv2,
        classifiers={"classifier.weight": (7, 1280)},
        unwanted=frozenset({"alias"}),
        oblong=(73, 101),
    ),
    "care": Facts(  # the last map is the tensor handed to the heads: four times the stage's 256 channels
        maps=((32, 24, 40), (64, 12, 20), (128, 6, 10), (1024, 3, 5)),
        logits=_care,
        classifiers={"head.fc.weight": (7, 1024), "dist_head.fc.weight": (7, 1024)},
        unwanted=frozenset({"alias", "permute"}),
        oblong=(73, 101),
    ),
    "emov2": Facts(
        maps=((32, 24, 40), (48, 12, 20), (80, 6, 10), (180, 3, 5)),
        logits=lambda model, last: model.head(model.norm(last).mean((2, 3))),
        classifiers={"head.weight": (7, 180)},
        unwanted=frozenset({"alias"}),
        oblong=(73, 261),
        odd=(100, 270),
    ),
}


@pytest.fixture(params=SMALLEST, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    """Of module scope so that a family's tests run one after the other, on weights drawn once."""
    return request.param


@pytest.fixture(scope="module")
def name(family: str) -> str:
    return SMALLEST[family]


@pytest.fixture(scope="module")
def facts(family: str) -> Facts:
    return FACTS[family]


def test_features_are_the_stage_maps(name: str, facts: Facts) -> None:
    full, trunk = build_golden(name), build_golden(name, features_only=True)
    assert shapes(trunk.state_dict()) == shapes(without(full.state_dict(), type(full).HEAD_PREFIXES))
    with torch.no_grad():
        maps = trunk(image(1, 96, 160))
        logits = full(image(1, 96, 160))
        again = facts.logits(full, maps[-1])
    assert [tuple(each.shape) for each in maps] == [(1, *shape) for shape in facts.maps]
    assert torch.equal(logits, again)


def test_features_capture(name: str, facts: Facts) -> None:
    program = capture_any_batch(build_golden(name, features_only=True), 96, 160)
    maps = program.module()(image(1, 96, 160))
    assert [tuple(each.shape) for each in maps] == [(1, *shape) for shape in facts.maps]


def test_classifiers_alone_depend_on_the_class_count(name: str, facts: Facts) -> None:
    with torch.device("meta"):
        models = [build(name, num_classes=count) for count in (1000, 7)]
    thousand, seven = (shapes(model.state_dict()) for model in models)
    changed = {key for key in thousand if thousand[key] != seven[key]}
    assert changed == {key for key in thousand if key.startswith(type(models[0]).CLASSIFIER_PREFIXES)}
    assert {key: seven[key] for key in changed if key.endswith(".weight")} == facts.classifiers


@pytest.mark.parametrize("oblong", [False, True], ids=["square", "oblong"])
def test_captures_with_any_batch(name: str, facts: Facts, oblong: bool) -> None:
    height, width = facts.oblong if oblong else (224, 224)
    model = build_golden(name)
    program = capture_any_batch(model, height, width)
    assert highest_rank(program) <= 4
    assert not operators(program) & (UNWANTED | facts.unwanted)
    module = program.module()
    with torch.no_grad():
        for batch in (1, 3):
            x = image(batch, height, width, seed=batch)
            assert relative_gap(module(x), model(x)) < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (65, 97), "odd"], ids=["64x64", "65x97", "odd"])
def test_odd_sizes_and_batches(name: str, facts: Facts, size: tuple[int, int] | str) -> None:
    height, width = facts.odd if size == "odd" else size
    model = build_golden(name)
    x = image(3, height, width)
    kept = x.clone()
    with torch.no_grad():
        together = model(x)
        apart = torch.cat([model(one) for one in x.split(1)])
    assert together.shape == (3, 1000)
    assert relative_gap(apart, together) < 1e-5
    assert torch.equal(x, kept)


def test_every_parameter_trains(name: str) -> None:
    model = build(name, num_classes=5)
    assert untouched_by_training_step(model, image(4, 64, 64), torch.arange(4)) == []
