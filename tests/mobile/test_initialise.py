from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import ModelError, UsageError
from mobilec.mobile.initialise import PROBE_IMAGES, VARIANCE_FLOOR, draw_weights, probe_images
from support.tiny import TinyNet


def drawn(model: nn.Module, seed: int = 0, resolution: int | tuple[int, int] = 32) -> nn.Module:
    draw_weights(model, seed=seed, resolution=resolution)
    return model.eval()


def test_the_same_seed_gives_the_same_numbers_whatever_was_there() -> None:
    torch.manual_seed(1)
    first = drawn(TinyNet())
    torch.manual_seed(2)
    second, other = drawn(TinyNet()), drawn(TinyNet(), seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    for name, value in first.named_parameters():
        assert not torch.equal(value, other.get_parameter(name)), name


def test_numbers_depend_on_the_name_not_on_the_order() -> None:
    names = ("first", "second", "third")
    there = drawn(nn.ModuleDict({name: nn.Linear(4, 4) for name in names}))
    back = drawn(nn.ModuleDict({name: nn.Linear(4, 4) for name in reversed(names)}))
    alone = drawn(nn.ModuleDict({"third": nn.Linear(4, 4)}))
    for name in names:
        assert torch.equal(there[name].weight, back[name].weight)
    assert torch.equal(there["third"].weight, alone["third"].weight)
    assert not torch.equal(there["first"].weight, there["second"].weight)


def test_global_random_states_are_left_alone() -> None:
    model = TinyNet()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    drawn(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


class EveryKind(nn.Module):
    """One parameter of each kind, most of them as dull as their usual initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 64, 3, groups=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, groups=2)
        self.line = nn.Conv1d(1, 1, 5, bias=False)
        self.linear = nn.Linear(200, 300)
        self.norm = nn.LayerNorm(64)
        self.group = nn.GroupNorm(2, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.prelu = nn.PReLU(16)
        self.gamma_1 = nn.Parameter(torch.full((16,), 1e-6))
        self.layer_scale = nn.Parameter(torch.full((16, 1, 1), 1e-5))
        self.alpha = nn.Parameter(torch.zeros(16))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 16))
        self.table = nn.Parameter(torch.arange(20.0).reshape(5, 4))
        self.temperature = nn.Parameter(torch.tensor(2.5))
        self.gate = nn.Parameter(torch.zeros(1))
        self.empty = nn.Parameter(torch.zeros(0, 3))


def test_each_kind_of_parameter_has_its_distribution() -> None:
    model = drawn(EveryKind())
    deviation = {
        "conv.weight": (1.6 / (8 * 9)) ** 0.5,
        "up.weight": (1.6 / (8 * 4)) ** 0.5,
        "linear.weight": (1.6 / 200) ** 0.5,
        "attention.out_proj.weight": (1.6 / 16) ** 0.5,
        "linear.bias": 0.1,
        "conv.bias": 0.1,
        "norm.bias": 0.1,
        "attention.in_proj_bias": 0.1,
        "pos_embed": 0.1,
    }
    for name, expected in deviation.items():
        value = model.get_parameter(name)
        error = 4 * expected / value.numel() ** 0.5  # four standard errors
        assert abs(value.mean()) < error, name
        assert abs(value.std() - expected) < error, name
    for names, low, high in (
        (("norm.weight", "group.weight"), 0.6, 1.4),
        (("gamma_1", "layer_scale", "alpha", "prelu.weight", "gate"), 0.3, 0.7),
    ):
        for name in names:
            value = model.get_parameter(name)
            assert low <= value.min() <= value.max() <= high, name
            assert value.numel() == 1 or value.std() > (high - low) / 8, name
    assert model.line.weight.abs().max() < 4 * (1.6 / 5) ** 0.5
    assert torch.equal(model.table, torch.arange(20.0).reshape(5, 4))
    assert model.temperature == 2.5


def test_shared_parameters_are_drawn_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    drawn(model)
    assert model[1].weight is model[0].weight
    assert torch.equal(model[0].weight, drawn(nn.Sequential(nn.Linear(4, 4)))[0].weight)


def test_statistics_are_those_of_the_probe_images() -> None:
    model = TinyNet()
    draw_weights(model, seed=5, resolution=(40, 24))
    images = torch.from_numpy(probe_images(5, PROBE_IMAGES, (40, 24)))
    with torch.no_grad():
        before = model.stem(images)
    torch.testing.assert_close(model.bn.running_mean, before.mean((0, 2, 3)))
    variance = before.var((0, 2, 3))
    torch.testing.assert_close(model.bn.running_var, variance.clamp(min=VARIANCE_FLOOR * variance.mean()))
    with torch.no_grad():  # so that every normalised channel has about unit variance, and logits are of order one
        after = nn.functional.batch_norm(before, model.bn.running_mean, model.bn.running_var)
        logits = model.eval()(images)
    assert 0.9 < after.var((0, 2, 3)).median() < 1.1
    assert 0.1 < logits.std() < 10


def test_channels_that_hardly_vary_keep_a_variance() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.cat([x, torch.zeros_like(x)], 1))

    model = drawn(Net())
    variance = model.bn.running_var
    torch.testing.assert_close(variance[3:], (variance[:3].sum() / 6 * VARIANCE_FLOOR).expand(3), rtol=0.2, atol=0)


def test_modes_and_momenta_are_given_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.03), nn.Dropout(0.9), nn.BatchNorm2d(4))
    model.train()
    model[3].eval()
    model[3].momentum = None
    draw_weights(model, seed=0, resolution=16)
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    assert model[1].momentum == 0.03
    assert model[3].momentum is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    # dropout was off: a second batch norm after a first one sees its unit variance times its weight
    expected = model[1].weight.square() * 4 * 14 * 14 / (4 * 14 * 14 - 1)
    torch.testing.assert_close(model[3].running_var, expected, rtol=1e-3, atol=1e-3)


def test_batch_norm_after_global_pooling_works() -> None:
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 5, 1),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.BatchNorm1d(5),
    )
    with torch.no_grad():
        assert drawn(model)(torch.randn(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_kept(dtype: torch.dtype) -> None:
    model = drawn(TinyNet().to(dtype))
    reference = drawn(TinyNet())
    assert model.stem.weight.dtype == model.bn.running_var.dtype == dtype
    assert torch.equal(model.stem.weight, reference.stem.weight.to(dtype))


def test_names_limit_the_drawing_and_measure_nothing() -> None:
    model = TinyNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw_weights(model, seed=0, resolution=1, names=("head.weight", "head.bias"))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert torch.equal(model.head.weight, drawn(TinyNet()).head.weight)
    draw_weights(model, seed=0, resolution=1, names=())
    with pytest.raises(UsageError, match="TinyNet has no parameter called"):
        draw_weights(model, seed=0, resolution=1, names=("head.wait",))


def test_a_model_that_cannot_take_images_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.2))
    with pytest.raises(ModelError, match=r"Sequential cannot run on random images \[4, 3, 32, 32\]") as caught:
        draw_weights(model, seed=0, resolution=32)
    assert "\n" not in str(caught.value)
    assert model[1].momentum == 0.2


def test_a_model_without_batch_norm_is_never_run() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("run")

    drawn(Net(3, 4))


def test_a_model_that_does_not_stay_finite_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(torch.exp(x * 1000))

    with pytest.raises(ModelError, match="Net does not stay finite"):
        drawn(Net())


def test_probe_images_have_structure_and_are_told_apart() -> None:
    images = probe_images(0, 4, (64, 48))
    assert images.shape == (4, 3, 64, 48)
    assert images.dtype == np.float32
    assert np.isfinite(images).all()

    def likeness(image: np.ndarray) -> float:
        """Correlation of neighbouring pixels: near 0 for white noise."""
        centred = image - image.mean((1, 2), keepdims=True)
        return float((centred[:, 1:] * centred[:, :-1]).mean() / (centred**2).mean())

    assert likeness(images[0]) > 0.7
    assert likeness(images[2]) > 0.3
    assert abs(likeness(images[3])) < 0.1
    assert images[1].std((1, 2)).max() < 0.2
    assert np.array_equal(images, probe_images(0, 4, (64, 48)))
    assert not np.array_equal(images, probe_images(1, 4, (64, 48)))
