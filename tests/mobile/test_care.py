from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.mobile import care
from mobilec.mobile.care import TokenMixer, linear_attention
from mobilec.mobile.zoo import find_variant, list_models
from support.reference import load_reference, reference_input
from support.zoo import build, build_golden, image, relative_gap, shapes

SMALLEST = "care_s0"


def attention_as_published(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Token by token, quadratic in N: weights of positive features, normalised by their mean. ``[B, heads, N, D]``."""
    q, k = (F.elu(t) + 1 for t in (q, k))
    tokens = q.shape[2]
    weights = torch.einsum("bhnd,bhmd->bhnm", q, k)
    summed = torch.einsum("bhnm,bhmd->bhnd", weights, v) / tokens
    return summed / (weights.mean(3, keepdim=True) + 1e-6)


SIZES = st.integers(1, 6)


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, SIZES, st.integers(1, 40), st.floats(0.1, 30), st.integers(0, 2**31))
def test_linear_attention_is_the_quadratic_one(
    batch: int, heads: int, depth: int, tokens: int, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, depth, tokens, generator=generator).double() * spread for _ in range(3))
    expected = attention_as_published(q.mT, k.mT, v.mT).mT
    assert relative_gap(linear_attention(q, k, v), expected) < 1e-11


def test_linear_attention_keeps_its_sums_small() -> None:
    """The mean is taken before anything is added: no intermediate grows with the number of pixels."""
    q = k = v = torch.full((1, 1, 4, 200 * 200), 8.0)
    program = torch.export.export(_Attention(), (q, k, v))
    largest = 0.0

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            nonlocal largest
            value = super().run_node(n)
            if n.op == "call_function":
                largest = max(largest, float(value.abs().max()))
            return value

    Watch(program.graph_module).run(q, k, v)
    assert largest < 9 * 9 * 8 * 4 + 1  # four channels of q times context


class _Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v)


def test_token_mixer_groups() -> None:
    """Memory passes by; q and k are cut heads outermost from one projection and v is the input itself."""
    torch.manual_seed(0)
    mixer = TokenMixer(20, mixed=4, head_dim=2).double().eval()
    x = torch.randn(2, 20, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        memory, mixed = mixer(x)
        qk = mixer.qk(x[:, 8:12])
    assert torch.equal(memory, x[:, :8])
    for head in range(2):
        d = slice(2 * head, 2 * head + 2)
        q, k, v = (t[:, d].flatten(2).mT[:, None] for t in (qk[:, :4], qk[:, 4:], x[:, 8:12]))  # [2, 1, 15, 2]
        expected = attention_as_published(q, k, v)[:, 0].mT.reshape(2, 2, 5, 3)
        assert relative_gap(mixed[:, d], expected) < 1e-12
    with torch.no_grad():
        assert torch.equal(mixed[:, 4:8], mixer.dwconv1(x[:, 12:16]))
        assert torch.equal(mixed[:, 8:], mixer.dwconv2(x[:, 16:]))


@pytest.mark.parametrize("name", list_models("care*"))
def test_names_of_the_unpublished_variants_follow_the_rule(name: str) -> None:
    """Strips in stages 1 and 2, attention in 3 and 4; the very last block lacks its closing 1x1 and its scale."""
    config = find_variant(name)[1].config
    with torch.device("meta"):
        state = shapes(build(name).state_dict())
    columns = zip(config["features"], config["memory"], config["depths"], config["ratios"], strict=True)
    for stage, (features, memory, depth, ratios) in enumerate(columns):
        width = features + memory
        assert (f"stages.{stage}.downsample.1.weight" in state) == (stage > 0)
        assert f"stages.{stage}.blocks.{depth}.token_mixer.dwconv1.weight" not in state
        for block in range(depth):
            at = f"stages.{stage}.blocks.{block}."
            assert state.get(at + "token_mixer.qk.weight") == ((2 * memory, memory, 1, 1) if stage > 1 else None)
            assert state.get(at + "token_mixer.dwconvatt_1.weight") == ((memory, 1, 11, 1) if stage < 2 else None)
            assert state[at + "inter_layer.inter1_fc1.weight"] == (3 * memory * ratios[0], 3 * memory, 1, 1)
            assert state[at + "inter_layer.inter2_conv.weight"] == (width * ratios[1], 1, 3, 3)
            assert at + "inter_layer.inter1_fc2.weight" in state
            is_last = stage == 3 and block == depth - 1
            assert (at + "gamma" in state) != is_last
            assert (at + "inter_layer.inter2_fc2.weight" in state) != is_last
    head = {"care_s0": 1024, "care_s1": 1024, "care_s2": 1536}[name]
    assert state["head.fc.weight"] == state["dist_head.fc.weight"] == (1000, head)


def golden_gap(model: nn.Module) -> float:
    reference = load_reference(SMALLEST)
    x = torch.from_numpy(reference_input(reference.resolution)[:1]).double()
    with torch.no_grad():
        return relative_gap(model(x), reference.logits[:1])


@pytest.mark.parametrize(
    ("norm", "eps"), [("dist_head.norm", 1e-5), ("stages.2.blocks.3.inter_layer.inter2_norm", 1e-6)]
)
def test_a_wrong_norm_eps_is_seen(norm: str, eps: float) -> None:
    model = build_golden(SMALLEST).double()
    model.get_submodule(norm).eps = eps
    assert golden_gap(model) > 1e-8


def test_a_wrong_attention_eps_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(care, "ATTENTION_EPS", 1e-5)
    assert golden_gap(build_golden(SMALLEST).double()) > 1e-8


def test_both_heads_count_in_train_mode() -> None:
    model = build(SMALLEST, num_classes=5).train()
    pooled: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        logits = model(image(2, 64, 64))
        assert torch.equal(logits, (model.head(pooled[0]) + model.dist_head(pooled[0])) / 2)
        assert not torch.equal(model.head(pooled[0]), model.dist_head(pooled[0]))
