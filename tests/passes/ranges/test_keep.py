"""Few operators in float32, enough of them, and those that must go along."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mobilec
from mobilec.errors import ExportError
from mobilec.mobile.images import probe_images
from mobilec.mobile.preprocessing import Preprocessing, normalise
from mobilec.passes.capture import capture
from mobilec.passes.ranges.judge import BREAKS, judge
from mobilec.passes.ranges.keep import Kept, holds, keep_enough
from mobilec.passes.ranges.run import Agreement, Runner


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(module: nn.Module, x: Tensor) -> Kept:
    runner = Runner(capture(module, (x,)), "coreml")
    measured = runner.measure([[x]])
    return keep_enough(runner, measured, lambda: [[x]])


class Cliff(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(20 * torch.tanh(self.first(x)))
        return self.last(torch.log(y.reshape(-1, 4, 4).transpose(1, 2) + 1).reshape(-1, 16))


def test_nothing_is_kept_where_half_precision_does() -> None:
    found = kept(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), noise(2, 16))
    assert not found.nodes
    assert found.tries == 0
    assert holds(found.before)


def test_what_breaks_is_kept_with_its_readers_up_to_where_it_fits_again() -> None:
    found = kept(Cliff(), 3 * noise(2, 16))
    ops = set(found.nodes)
    assert {"exp", "add", "log"} <= ops
    assert {"linear", "linear_1", "tanh"}.isdisjoint(ops)
    assert any(name.startswith(("view", "reshape")) for name in ops)  # movement in between hands float32 on
    assert "reads what exp hands on" in " ".join(found.nodes.values())
    assert found.before.broken
    assert holds(found.after)
    assert found.tries == 1


def test_the_source_of_what_vanishes_is_kept_too() -> None:
    class Ratio(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(x)
            return x / (x.sum(1, keepdim=True) * 1e-9)

    class Normal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Ratio()(x) * 1e-9

    found = kept(Normal(), noise(3, 16))
    assert {"mul", "div"} <= set(found.nodes)
    assert "gives div what half precision cannot hold" in found.nodes["mul"]
    assert holds(found.after)


def test_where_nothing_breaks_the_greatest_losses_are_kept_until_it_holds() -> None:
    class Cancels(nn.Module):
        """A large number is added and taken away: three digits are left of four."""

        def forward(self, x: Tensor) -> Tensor:
            return (torch.sin(x) + 2000.0) - 2000.0

    x = noise(4, 64)
    runner = Runner(capture(Cancels(), (x,)), "coreml")
    measured = runner.measure([[x]])
    assert not measured.half.broken
    assert not holds(measured.half)
    assert all(verdict.level != BREAKS for verdict in judge(measured))
    found = keep_enough(runner, measured, lambda: [[x]])
    assert set(found.nodes) >= {"add", "sub"}
    assert holds(found.after)


def test_an_output_beyond_half_precision_cannot_be_saved() -> None:
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x * 30)

    with pytest.raises(ExportError, match="--precision fp32"):
        kept(Far(), noise(2, 16).abs() + 1)


@pytest.mark.parametrize(
    ("agreement", "expected"),
    [
        (Agreement(40.0, 0.999, 0), True),
        (Agreement(39.9, 1.0, 0), False),
        (Agreement(80.0, 0.998, 0), False),
        (Agreement(80.0, 1.0, 1), False),
    ],
)
def test_the_gates_are_those_of_an_fp16_file(agreement: Agreement, expected: bool) -> None:
    assert holds(agreement) is expected


def test_care_overflows_in_its_linear_attention_in_plain_half_too() -> None:
    model = mobilec.create_model("care_s0")
    pixels = dict(probe_images((64, 64)))
    chosen = ("probe:landscape", "probe:saturated")  # one that fits, and one that does not
    images = [torch.from_numpy(normalise(pixels[name][None], Preprocessing())) for name in chosen]
    runner = Runner(capture(model, (images[0],)), "coreml")
    measured = runner.measure([[image] for image in images])
    broken = [verdict for verdict in judge(measured) if verdict.level == BREAKS]
    assert {verdict.op for verdict in broken} <= {"matmul", "div"}
    assert broken[0].op == "matmul"
    assert broken[0].where.endswith("token_mixer")
    assert broken[0].line.startswith("care.py:")
    assert measured.half.broken
    found = keep_enough(runner, measured, lambda: [[image] for image in images])
    assert len(found.nodes) < 15
    assert holds(found.after)
    with torch.no_grad():  # nothing of ours: PyTorch's own half precision
        plain = [model.half()(image.half()) for image in images]
    assert not all(bool(logits.isfinite().all()) for logits in plain)
