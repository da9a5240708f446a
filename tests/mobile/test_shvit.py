from __future__ import annotations

import pytest
import torch

from mobilec.mobile.shvit import SHSA, SqueezeExcite
from mobilec.mobile.zoo import find_variant, list_models
from support.zoo import build, image, relative_gap, shapes

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
