"""``elu(x) + 1`` without its cancellation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.rules.lower_elu_plus_one import RULE
from support.rewriting import FLOAT64_GAP, apply, inputs


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("one", torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * 4)


FIRES: dict[str, Callable[[Tensor], Tensor]] = {
    "F.elu": lambda x: F.elu(x) + 1.0,
    "turned": lambda x: 1 + F.elu(x),
    "module": lambda x: nn.ELU()(x) + 1,
    "torch.add": lambda x: torch.add(F.elu(x), 1),
    "ones": lambda x: F.elu(x) + torch.ones_like(x),
    "method": lambda x: F.elu(x, alpha=1.0).add(1),
}


@pytest.mark.parametrize("case", FIRES)
def test_fires(case: str) -> None:
    outcome = apply(Call(FIRES[case]), inputs((2, 3, 5, 7)), RULE, "remove_dead_code")
    assert outcome.evidence[0].rewritten == 1
    assert outcome.ops == {"mul": 1, "relu": 1, "sub": 1, "exp": 1, "add": 1}
    assert outcome.gap < FLOAT64_GAP


def test_a_constant_one() -> None:
    class Stored(Call):
        def forward(self, x: Tensor) -> Tensor:
            return F.elu(x) + self.one

    assert apply(Stored(F.elu), inputs((2, 3)), RULE).rewritten == 1


def test_x_less_its_positive_part_is_its_negative_part_to_the_bit() -> None:
    bits = torch.arange(0, 2**16, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16)
    x = x[x.isfinite()]  # every one of them
    assert torch.equal(x - x.relu(), x.clamp(max=0))


def test_keeps_its_digits_in_half_precision() -> None:
    x = torch.linspace(-3, 1, 513, dtype=torch.float16)
    module = Call(FIRES["F.elu"]).half()
    after = apply(module, (x,), RULE).program.module()(x).double()
    before = module(x).double()
    y = (x * 4).double()
    exact = torch.where(y > 0, y + 1, y.exp())
    assert float(((after - exact) / exact).abs().max()) < 0.02
    assert float(((before - exact) / exact).abs().max()) > 0.5


STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "another alpha": lambda x: F.elu(x, alpha=0.5) + 1,
    "two": lambda x: F.elu(x) + 2,
    "weighted": lambda x: torch.add(F.elu(x), torch.ones_like(x), alpha=2),
    "selu": lambda x: F.selu(x) + 1,
    "stretched": lambda x: F.elu(x[:1]) + torch.ones_like(x),
}


@pytest.mark.parametrize("case", STAYS)
def test_stays(case: str) -> None:
    assert apply(Call(STAYS[case]), inputs((2, 3, 5, 7)), RULE).rewritten == 0


def test_refuses_where_elu_is_read_twice() -> None:
    def forward(x: Tensor) -> Tensor:
        y = F.elu(x)
        return (y + 1) * y

    assert apply(Call(forward), inputs((2, 3)), RULE).reasons == ["elu is read elsewhere too"]


def test_dynamic_batch() -> None:
    outcome = apply(Call(FIRES["F.elu"]), inputs((2, 3)), RULE, dynamic_batch=True, check=[inputs((5, 3))])
    assert outcome.rewritten == 1
    assert outcome.gap < FLOAT64_GAP
