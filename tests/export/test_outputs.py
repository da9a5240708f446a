"""What a file can hold: tensors alone, and no state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import ExportError
from mobilec.export.outputs import check_deterministic, check_stateless, tensors_only
from mobilec.passes.capture import capture, output_specs

X = torch.ones(2, 3)


class Counts(nn.Module):
    """A buffer that forward may write to, through a view as well."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "whole":
            self.count.add_(1)
        elif self.kind == "view":
            self.count[1:].mul_(2)
        elif self.kind == "copy":
            return x + self.count.clone().add_(1)
        return x + self.count


@pytest.mark.parametrize("kind", ["whole", "view"])
def test_a_forward_that_writes_to_a_buffer_is_refused(kind: str) -> None:
    with pytest.raises(ExportError, match=r"forward writes to 'count', and a model file keeps nothing between runs"):
        check_stateless(capture(Counts(kind), (X,)))


@pytest.mark.parametrize("kind", ["read", "copy"])
def test_a_forward_that_reads_one_is_not(kind: str) -> None:
    check_stateless(capture(Counts(kind), (X,)))


def test_batch_norm_at_inference_has_no_state() -> None:
    check_stateless(capture(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(inplace=True)).train(), (X,)))


class Returns(nn.Module):
    def __init__(self, *extra: Any) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Any:
        return {"a": x + 1, "extra": self.extra, "b": x + 2}


def test_what_is_no_tensor_goes_and_the_rest_stays() -> None:
    program = capture(Returns(None, 3, "text"), (X,))
    before = program.graph_module.code
    found = tensors_only(program)
    assert [spec.shape for spec in output_specs(found)] == [(2, 3), (2, 3)]
    first, last = found.module()(X)
    assert torch.equal(first, X + 1)
    assert torch.equal(last, X + 2)
    assert program.graph_module.code == before
    assert len(program.graph_signature.output_specs) == 5


def test_tensors_alone_are_left_as_they_are() -> None:
    program = capture(Returns(), (X,))
    assert tensors_only(program) is program


class _Draws(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "forgotten flag":
                return nn.functional.dropout(x, 0.5)
            case "noise":
                return x + torch.randn_like(x)
            case "attention":
                return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
            case "heeds eval":
                return nn.functional.rrelu(nn.functional.dropout(x, 0.5, self.training))
            case _:
                torch.rand(3)  # read by nobody
                return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("how", ["forgotten flag", "noise", "attention"])
def test_random_numbers_at_inference_are_refused(how: str) -> None:
    with pytest.raises(ExportError, match=r"forward draws random numbers \(aten\."):
        check_deterministic(capture(_Draws(how), (torch.ones(1, 2, 4, 4),)))


@pytest.mark.parametrize("how", ["heeds eval", "unused"])
def test_randomness_that_is_switched_off_is_none(how: str) -> None:
    check_deterministic(capture(_Draws(how), (torch.ones(1, 2, 4, 4),)))
