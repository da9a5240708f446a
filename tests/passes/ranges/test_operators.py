"""The steps of operators: without rounding they are the operator; the steps named are those a file or engine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilec.passes.capture import capture
from mobilec.passes.ranges.arithmetic import Backend, Steps
from mobilec.passes.ranges.operators import OPERATORS
from mobilec.passes.ranges.run import Runner

X = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(1)) * 3
SQUARE = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(2))
W, B = torch.rand(8) + 0.5, torch.rand(8) - 0.5
KERNEL = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(3)) / 6
MASK = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, -1e4)

CASES: dict[str, Callable[[Tensor], Any]] = {
    "group_norm": lambda x: F.group_norm(x, 4, W, B),
    "layer_norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,), W, B, 1e-6),
    "layer_norm_two_axes": lambda x: F.layer_norm(x, (6, 5)),
    "instance_norm": lambda x: F.instance_norm(x, weight=W, bias=B),
    "rms_norm": lambda x: F.rms_norm(x.permute(0, 2, 3, 1), (8,), W),
    "batch_norm": lambda x: F.batch_norm(x, B, W, W, B),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: x.logsumexp((1, 2)),
    "logsumexp_keep": lambda x: x.logsumexp(-1, keepdim=True),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "log_sigmoid": F.logsigmoid,
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "softplus_far": lambda x: F.softplus(20 * x),
    "mish": F.mish,
    "elu": lambda x: F.elu(x, 0.7),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "expm1": torch.expm1,
    "log1p": lambda x: torch.log1p(x.abs()),
    "mean": lambda x: x.mean((2, 3)),
    "mean_keep": lambda x: x.mean(1, keepdim=True),
    "mean_all": torch.mean,
    "sum": lambda x: x.sum((1, 2)),
    "sum_all": torch.sum,
    "adaptive_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_pool_3": lambda x: F.adaptive_avg_pool2d(x, 3),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool_whole": lambda x: F.avg_pool2d(x, (6, 5)),
    "avg_pool_padded": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "var": lambda x: x.var((2, 3)),
    "std": lambda x: x.std(1, correction=0),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "vector_norm_1": lambda x: torch.linalg.vector_norm(x, 1, dim=(1, 2)),
    "cumsum": lambda x: x.cumsum(1),
    "add_scaled": lambda x: torch.add(x, x, alpha=3),
    "add_number": lambda x: x + 1.5,
    "conv": lambda x: F.conv2d(x, KERNEL, B, 2, 1, groups=2),
    "conv_transpose": lambda x: F.conv_transpose2d(x, KERNEL, stride=2),
    "linear": lambda x: F.linear(x, torch.ones(3, 5)),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "bmm": lambda x: torch.bmm(x[0], x[1].transpose(1, 2)),
    "addmm": lambda x: torch.addmm(B[:6], x[0, 0], torch.ones(5, 6)),
    "einsum": lambda x: torch.einsum("bchw,bcvw->bchv", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, MASK, scale=0.3),
    "attention_bool": lambda x: F.scaled_dot_product_attention(x, x, x, MASK == 0),
    "attention_causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
}


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("backend", ["coreml", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_unrounded_steps_are_the_operator(name: str, backend: Backend) -> None:
    x = SQUARE if name.startswith("attention") else X
    runner = Runner(capture(Of(CASES[name]), (x,)), backend)
    taken = 0
    for step in runner._steps:
        if step.node.op != "call_function" or step.node.target not in OPERATORS:
            continue
        taken += 1
    assert taken or name in {"addmm"}, "the case does not reach the table"
    before = {step.node: step for step in runner._steps}
    assert before
    (exact,) = runner.run_half([x], frozenset(node.name for node in runner.calls))  # all in float32: as captured
    wanted = CASES[name](x)
    assert torch.equal(exact, wanted.half().float())
    found = _by_steps(runner, x)
    assert torch.allclose(found, wanted, atol=2e-5, rtol=2e-5)


def _by_steps(runner: Runner, x: Tensor) -> Tensor:
    """The program with its operators computed step by step, nothing rounded."""
    from mobilec.passes.listing import apply

    values: dict[Any, Any] = dict(runner._start([x]))
    for step in runner._steps:
        node = step.node
        if node.op == "output":
            return apply(runner._editor.root, step, values)[0]
        if node in values:
            continue
        if node.op == "call_function" and node.target in OPERATORS:
            values[node] = OPERATORS[node.target](Steps(runner.backend), runner._arguments(step, values))
        else:
            values[node] = apply(runner._editor.root, step, values)
    raise AssertionError("no output")


def seen(function: Callable[[Tensor], Any], x: Tensor, backend: Backend = "coreml") -> dict[str, tuple[str, float]]:
    """Step to its kind and largest magnitude, of the only operator with steps."""
    measured = Runner(capture(Of(function), (x,)), backend).measure([[x]])
    (node,) = [node for node in measured.nodes if node.hidden]
    return {step.name: (step.kind, step.range.largest) for step in node.hidden}


def test_a_norm_is_stored_step_by_step_in_core_ml_and_inside_in_onnx() -> None:
    x = 100 * X
    steps = seen(lambda x: F.group_norm(x, 2), x)
    assert steps["square"][0] == "stored"
    centre = (x.reshape(2, 2, -1) - x.reshape(2, 2, -1).mean(2, keepdim=True)).abs().max()
    assert steps["square"][1] == pytest.approx(float(centre) ** 2, rel=1e-5)
    assert seen(lambda x: F.group_norm(x, 2), x, "onnx")["square"][0] == "inside"
    assert seen(lambda x: F.layer_norm(x, (5,)), x)["square"][0] == "inside"


def test_products_tell_how_far_partial_sums_may_go() -> None:
    steps = seen(lambda x: x @ x.transpose(2, 3), X)
    assert steps["partial sums"] == ("partial sums", pytest.approx(float((X.abs() @ X.abs().transpose(2, 3)).max())))


def test_constants_are_looked_at() -> None:
    assert seen(lambda x: x / 1e-7, X)["constant"] == ("constant", pytest.approx(1e-7))
