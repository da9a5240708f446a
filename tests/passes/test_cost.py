"""Costs agree with torch.utils.flop_counter, and with what can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mobilec.passes.capture import capture
from mobilec.passes.cost import by_op, measure
from support.rewriting import inputs


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs: Tensor) -> Tensor:
        return self.function(*xs)


def einsum(equation: str) -> nn.Module:
    return Function(lambda *xs: torch.einsum(equation, *xs))


CASES: dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2, padding=1), ((2, 6, 9, 7),)),
    "grouped conv2d": (nn.Conv2d(6, 9, (5, 1), groups=3, dilation=2), ((2, 6, 19, 7),)),
    "padding='same'": (nn.Conv2d(6, 8, 3, padding="same"), ((2, 6, 9, 7),)),
    "conv1d": (nn.Conv1d(6, 8, 3), ((2, 6, 9),)),
    "conv3d": (nn.Conv3d(2, 3, 3), ((1, 2, 5, 6, 7),)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, output_padding=1), ((2, 6, 5, 7),)),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 3, stride=2), ((2, 6, 5),)),
    "linear": (nn.Linear(6, 8), ((2, 6),)),
    "linear on tokens": (nn.Linear(6, 8, bias=False), ((2, 5, 6),)),
    "matmul": (Function(torch.matmul), ((2, 3, 5, 6), (2, 3, 6, 4))),
    "matmul, broadcast": (Function(torch.matmul), ((2, 3, 5, 6), (6, 4))),
    "mm": (Function(torch.mm), ((5, 6), (6, 4))),
    "bmm": (Function(torch.bmm), ((3, 5, 6), (3, 6, 4))),
    "addmm": (Function(torch.addmm), ((5, 4), (5, 6), (6, 4))),
    "baddbmm": (Function(torch.baddbmm), ((3, 5, 4), (3, 5, 6), (3, 6, 4))),
    "attention": (Function(F.scaled_dot_product_attention), ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6))),
    "einsum product": (einsum("bhid,bhjd->bhij"), ((2, 3, 5, 8), (2, 3, 7, 8))),
    "einsum with an ellipsis": (einsum("...ij,jk->...ik"), ((2, 3, 5, 8), (8, 4))),
    "einsum without an arrow": (einsum("ij,jk"), ((5, 8), (8, 4))),
    "einsum that sums one operand": (einsum("bij,kj->ik"), ((3, 5, 8), (4, 8))),
    "einsum of three": (einsum("ij,jk,kl->il"), ((5, 8), (8, 4), (4, 3))),
    "einsum without a sum": (einsum("i,j->ij"), ((5,), (8,))),
    "elementwise": (Function(lambda x: x.exp() * 2), ((5, 8),)),
}


@pytest.mark.parametrize("case", CASES)
def test_macs_are_those_of_the_flop_counter(case: str) -> None:
    module, shapes = CASES[case]
    module = module.double().eval()
    example = inputs(*shapes)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*example)
    program = capture(module, example)
    assert measure(program).macs * 2 == counter.get_total_flops()
    assert sum(cost.macs for cost in by_op(program)) == measure(program).macs


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.unread = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norm(self.conv(x)).chunk(2, 1)
        return first + second + self.conv(x)[:, :2]


def test_counts_by_hand() -> None:
    program = capture(Small().eval(), (torch.randn(1, 3, 6, 5),))
    cost = measure(program)
    rows = by_op(program)
    assert [row.op for row in rows] == ["conv2d", "batch_norm", "chunk", "add", "conv2d", "slice", "add"]
    assert cost.ops == 7
    assert cost.macs == 2 * 30 * 4 * 27
    assert cost.parameters == (4 * 27 + 4) + 4 * 4  # the weight that two convolutions share counts once
    assert cost.activation_bytes == 4 * 30 * (4 + 4 + 4 + 2 + 4 + 2 + 2)
    assert rows[0].where == "conv"
    assert rows[1].where == "norm"
    assert (rows[0].parameters, rows[1].parameters) == (112, 16)
    assert rows[0].output_shape == (1, 4, 6, 5)


def test_a_dynamic_axis_counts_at_its_example_size() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(40, 3)).eval()
    fixed = capture(module, (torch.randn(2, 3, 6, 5),))
    open_batch = capture(module, (torch.randn(1, 3, 6, 5),), dynamic_batch=True)
    assert measure(open_batch) == measure(fixed)


def test_bookkeeping_is_no_work() -> None:
    program = capture(
        Function(lambda x: x.reshape(x.shape[0], -1).to(torch.float32)), inputs((2, 3)), dynamic_batch=True
    )
    assert {row.op for row in by_op(program)} <= {"reshape", "to"}
