from __future__ import annotations

import pytest
import torch

from mobilec.mobile.shvit import SHSA, SHViT, SqueezeExcite
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

SMALLEST = "shvit_s1"


def test_attention_is_softmax_over_keys() -> None:
    """Against the formula pixel by pixel: queries attend to keys, the other channels pass by."""
    torch.manual_seed(0)
    attention = SHSA(12, partial=8, qk_dim=4).eval()
    x = image(2, 5, 3).repeat(1, 4, 1, 1)  # [2, 12, 5, 3]
    seen = []
    attention.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        attention(x)
        qkv = attention.qkv(attention.pre_norm(x[:, :8])).flatten(2).double()
    q, k, v = qkv[:, :4], qkv[:, 4:8], qkv[:, 8:]
    expected = torch.zeros(2, 8, 15, dtype=torch.float64)
    for query in range(15):
        scores = (q[:, :, query, None] * k).sum(1) * 4**-0.5  # [2, 15]
        expected[:, :, query] = (scores.softmax(-1)[:, None] * v).sum(-1)
    assert relative_gap(seen[0][:, :8].flatten(2), expected) < 1e-6
    assert torch.equal(seen[0][:, 8:], x[:, 8:])


@pytest.mark.parametrize(("channels", "reduced"), [(512, 128), (896, 224), (1232, 312), (768, 192), (1408, 352)])
def test_squeeze_excite_width(channels: int, reduced: int) -> None:
    assert SqueezeExcite(channels).fc1.out_channels == reduced


@pytest.mark.parametrize("name", list_models("shvit*"))
def test_names_of_the_unpublished_variants_follow_the_rule(name: str) -> None:
    """Blocks follow the halving in one sequence; only stages of type s have a mixer."""
    config = find_variant(name)[1].config
    with torch.device("meta"):
        state = shapes(build(name).state_dict())
    for stage, (width, depth, partial) in enumerate(
        zip(config["channels"], config["depths"], config["partials"], strict=True), start=1
    ):
        last = depth - 1 if stage == 1 else depth + 2
        assert state[f"blocks{stage}.{last}.ffn.m.pw1.c.weight"] == (2 * width, width, 1, 1)
        assert not any(key.startswith(f"blocks{stage}.{last + 1}.") for key in state)
        qkv = state.get(f"blocks{stage}.{last}.mixer.m.qkv.c.weight")
        assert qkv == (None if stage == 1 else (32 + partial, partial, 1, 1))
    assert state["head.l.weight"] == (1000, config["channels"][-1])


def test_features_are_the_stage_maps() -> None:
    full, trunk = build_golden(SMALLEST), build_golden(SMALLEST, features_only=True)
    assert shapes(trunk.state_dict()) == shapes(without(full.state_dict(), SHViT.HEAD_PREFIXES))
    with torch.no_grad():
        maps = trunk(image(1, 96, 160))
        logits = full(image(1, 96, 160))
        again = full.head(maps[-1].mean((2, 3)))
    assert [tuple(m.shape) for m in maps] == [(1, 128, 6, 10), (1, 224, 3, 5), (1, 320, 2, 3)]
    assert torch.equal(logits, again)


def test_classifier_alone_depends_on_the_class_count() -> None:
    with torch.device("meta"):
        thousand, seven = (shapes(build(SMALLEST, num_classes=n).state_dict()) for n in (1000, 7))
    changed = {key for key in thousand if thousand[key] != seven[key]}
    assert changed == {key for key in thousand if key.startswith(SHViT.CLASSIFIER_PREFIXES)}
    assert seven["head.l.weight"] == (7, 320)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 160)])
def test_captures_with_any_batch(height: int, width: int) -> None:
    model = build_golden(SMALLEST)
    program = capture_any_batch(model, height, width)
    assert highest_rank(program) <= 4
    assert not operators(program) & {"index", "gather", "item", "_local_scalar_dense"}
    module = program.module()
    with torch.no_grad():
        for batch in (1, 3):
            x = image(batch, height, width, seed=batch)
            assert relative_gap(module(x), model(x)) < 1e-5


def test_features_capture() -> None:
    program = capture_any_batch(build_golden(SMALLEST, features_only=True), 96, 160)
    assert [tuple(m.shape[1:]) for m in program.module()(image(1, 96, 160))][-1] == (320, 2, 3)


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


def test_a_few_steps_learn_the_batch() -> None:
    torch.manual_seed(0)
    model = build(SMALLEST, num_classes=4).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, labels = image(8, 64, 64), torch.arange(8) % 4
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2
