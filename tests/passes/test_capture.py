"""Capture: any module, left as it was found; failures in one line with their place; specs of inputs and outputs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import CaptureError, UsageError
from mobilec.passes.capture import capture, input_specs, output_specs
from mobilec.passes.evidence import TensorSpec
from support.rewriting import gap, inputs


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def test_captures_inference_whatever_the_mode_and_restores_it() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    module.train()
    module[1][0].eval()
    modes = [part.training for part in module.modules()]
    mean = module[1][0].running_mean.clone()
    (x,) = (torch.randn(2, 3, 4, 4),)
    program = capture(module, (x,))
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(module[1][0].running_mean, mean)
    with torch.no_grad():
        assert gap(module.eval()(x), program.module()(x)) == 0


def test_the_mode_is_restored_after_a_failure_too() -> None:
    module = nn.Sequential(nn.Linear(3, 4)).train()
    with pytest.raises(CaptureError):
        capture(module, (torch.randn(2, 7),))
    assert module.training
    assert module[0].training
    assert torch.is_grad_enabled()


def test_gradients_are_not_recorded_and_settings_stay() -> None:
    module = nn.Linear(3, 4)
    program = capture(module, (torch.randn(2, 3),))
    assert torch.is_grad_enabled()
    assert module.weight.requires_grad
    assert not any(node.op == "call_module" for node in program.graph.nodes)


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.ReLU(), inner)

    def forward(self, x: Tensor) -> Any:
        return self.blocks(x)


@dataclasses.dataclass
class Custom:
    value: Tensor


class Pair(NamedTuple):
    high: Tensor
    low: Tensor


def leave(code: int) -> Any:
    raise SystemExit(code)


FAILURES: dict[str, tuple[nn.Module, str]] = {
    "control flow on values": (
        Outer(Chooses()),
        r"^cannot capture Outer: its control flow or a size depends on the values of a tensor .* "
        r"\(in 'blocks.1', test_capture.py:\d+\); use torch.where",
    ),
    "size from values": (
        Function(lambda x: torch.ones(int(x.sum()))),
        r"^cannot capture Function: its control flow or a size depends .*test_capture.py:\d+",
    ),
    "wrong size": (
        Outer(nn.Linear(3, 4)),
        r"^cannot capture Outer: mat1 and mat2 shapes cannot be multiplied .* \(in 'blocks.1', test_capture.py:\d+\); "
        r"forward itself fails on float32 \[2, 6\], outside any export: is that an input it takes\?$",
    ),
    "numpy": (Function(lambda x: torch.from_numpy(x.numpy() * 2)), r"^cannot capture Function: .*numpy.*:\d+\)"),
    "unknown output": (
        Function(lambda x: Custom(x)),
        r"^cannot capture Function: forward returns <class .*Custom'>; return tensors, or tuples, lists and dicts",
    ),
    "no output": (Function(lambda x: None), r"^Function.forward returns no tensor"),
    "numbers alone": (Function(lambda x: {"classes": 3, "name": "net"}), r"^Function.forward returns no tensor"),
    "output size from values": (
        Outer(Function(lambda x: x[x > 0])),
        r"^cannot capture Outer: the size of what aten.index.Tensor gives depends on the values of a tensor "
        r"in 'blocks.1'; keep sizes fixed",
    ),
    "indices": (
        Outer(nn.Embedding(5, 4)),
        r"forward itself fails on float32 \[2, 6\], outside any export: .*--input-shape NAME:DIMS:int64",
    ),
    "leaves Python": (Function(lambda x: leave(7)), r"^cannot capture Function: SystemExit 7 \(in test_capture"),
    "its own error": (
        Function(lambda x: {}["weights"]),
        r"^cannot capture Function: 'weights' \(in test_capture.py:\d+\); forward itself fails",
    ),
}


FOUND_AFTERWARDS = ("no output", "numbers alone", "output size from values")  # torch had nothing to say


@pytest.mark.parametrize("case", FAILURES)
def test_failures_say_what_and_where_in_one_line(case: str) -> None:
    module, message = FAILURES[case]
    with pytest.raises(CaptureError, match=message) as error:
        capture(module, (torch.randn(2, 6),))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert error.value.detail or case in FOUND_AFTERWARDS


def test_misuse() -> None:
    with pytest.raises(UsageError, match=r"needs a torch.nn.Module, not a function"):
        capture(lambda x: x, (torch.ones(1),))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be a tuple, not a Tensor"):
        capture(nn.ReLU(), torch.ones(1))  # type: ignore[arg-type]


def test_ctrl_c_passes_through_and_restores() -> None:
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    module = Interrupted().train()
    with pytest.raises(KeyboardInterrupt):
        capture(module, (torch.ones(1),))
    assert module.training


# --- dynamic batch ---------------------------------------------------------------------------------------------------


class Several(nn.Module):
    def forward(self, x: Tensor, *others: Tensor) -> list[Tensor]:
        return [x.flatten(1), *(x.mean((1, 2), keepdim=True) + other for other in others)]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_batch_runs(batch: int) -> None:
    program = capture(Several(), inputs((batch, 3, 4), (batch, 2, 2), (batch, 1, 5)), dynamic_batch=True)
    for size in (1, 2, 7):
        values = inputs((size, 3, 4), (size, 2, 2), (size, 1, 5))
        assert gap(Several()(*values), program.module()(*values)) == 0


def test_scalars_have_no_batch() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            return x * factor

    program = capture(Module(), (torch.ones(1, 3), torch.tensor(2.0)), dynamic_batch=True)
    assert torch.equal(program.module()(torch.ones(4, 3), torch.tensor(3.0)), torch.full((4, 3), 3.0))


def test_a_fixed_batch_is_reported() -> None:
    with pytest.raises(CaptureError, match=r"batch size cannot be left open with this forward, which fixes it to 2;"):
        capture(Function(lambda x: x.reshape(2, -1)), (torch.ones(1, 2, 3),), dynamic_batch=True)


def test_inputs_of_different_batch_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"same axis 0 in every input, found sizes \[2, 3\]"):
        capture(Several(), inputs((2, 3, 4), (3, 2, 2)), dynamic_batch=True)


# --- specs -----------------------------------------------------------------------------------------------------------


def test_input_specs_are_called_like_the_arguments() -> None:
    class Module(nn.Module):
        def forward(self, input: Tensor, mask: Tensor | None = None, *, factor: float = 2.0) -> Tensor:
            return input * factor if mask is None else input.where(mask, torch.zeros(()))

    program = capture(Module(), (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)))
    assert input_specs(program) == (TensorSpec("input", (2, 3), "float32"), TensorSpec("mask", (2, 3), "bool"))
    assert input_specs(capture(Module(), (torch.ones(2, 3),))) == (TensorSpec("input", (2, 3), "float32"),)


def test_open_axes_are_called_batch() -> None:
    program = capture(Function(lambda x: (x.exp(), x.flatten(0, 1))), (torch.ones(1, 3, 4),), dynamic_batch=True)
    assert input_specs(program)[0].shape == ("batch", 3, 4)
    assert [spec.shape for spec in output_specs(program)] == [("batch", 3, 4), ("3*batch", 4)]


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "tensor": (lambda x: x + 1, ["output"]),
    "tuple": (lambda x: (x + 1, x + 2), ["output_0", "output_1"]),
    "list of one": (lambda x: [x + 1], ["output_0"]),
    "dict": (lambda x: {"logits": x + 1, "features": x + 2}, ["logits", "features"]),
    "nested": (
        lambda x: {"a": [x + 1, x + 2], "b": {"c": x + 3}, "d": (x + 4,)},
        ["a_0", "a_1", "b_c", "d_0"],
    ),
    "tuple of dicts": (lambda x: ({"a": x + 1}, x + 2), ["output_0_a", "output_1"]),
    "none and numbers": (lambda x: (x + 1, None, 3, x + 2), ["output_0", "output_3"]),
    "the same twice": (lambda x: (x, x), ["output_0", "output_1"]),
    "named tuple": (lambda x: Pair(x + 1, x + 2), ["high", "low"]),
    "named tuple inside": (lambda x: {"a": [Pair(x + 1, x + 2)]}, ["a_0_high", "a_0_low"]),
    "torch's own tuple": (lambda x: x.max(1), ["output_0", "output_1"]),
    "keys that are no identifiers": (lambda x: {"0": x + 1, "p/3": x + 2}, ["output_0", "p_3"]),
    "the name of an input": (lambda x: {"x": x + 1, "y": x + 2}, ["x_2", "y"]),
    "names that collide": (lambda x: {"a_0": x + 1, "a": [x + 2]}, ["a_0", "a_0_2"]),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_output_names(case: str) -> None:
    function, names = OUTPUTS[case]
    program = capture(Function(function), (torch.ones(2, 3),))
    assert [spec.name for spec in output_specs(program)] == names
    given = [f"mine_{index}" for index in range(len(names))]
    assert [spec.name for spec in output_specs(program, given)] == given


def test_named_tuples_are_stored_without_their_class() -> None:
    program = capture(Function(lambda x: Pair(x + 1, x + 2)), (torch.ones(2, 3),))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    found = torch.export.load(stored).module()(torch.ones(2, 3))
    assert torch.equal(found["high"], torch.full((2, 3), 2.0))
    assert torch.equal(found["low"], torch.full((2, 3), 3.0))


@pytest.mark.parametrize("name", ["class", "lambda", 'a"b', "a'b", "a\\", "with space", "größe", "self"])
def test_any_name_of_a_submodule_runs_again(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({name: nn.Linear(3, 4), f"{name}_": nn.Linear(3, 4)})
            self.heads[name].register_buffer("import", torch.rand(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return sum(head(x) for head in self.heads.values()) * self.heads[name].get_buffer("import")

    module, x = Named().eval(), torch.ones(2, 3)
    program = capture(module, (x,))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    with torch.no_grad():
        assert gap(module(x), program.module()(x)) == 0
        assert gap(module(x), torch.export.load(stored).module()(x)) == 0


def test_output_names_must_be_as_many() -> None:
    program = capture(Function(lambda x: (x + 1, x + 2)), (torch.ones(2, 3),))
    with pytest.raises(UsageError, match=r"1 output names given \(logits\), the model has 2 outputs"):
        output_specs(program, ["logits"])


def test_output_types() -> None:
    program = capture(Function(lambda x: (x.half(), x > 0, x.argmax(), x.bfloat16())), (torch.ones(2, 3),))
    assert [spec.dtype for spec in output_specs(program)] == ["float16", "bool", "int64", "bfloat16"]
    assert [spec.shape for spec in output_specs(program)] == [(2, 3), (2, 3), (), (2, 3)]


def test_argument_names_become_identifiers_everywhere() -> None:
    class Umlaut(nn.Module):
        def forward(self, größe: Tensor) -> Tensor:
            return größe + 1

    assert [spec.name for spec in input_specs(capture(Umlaut(), (torch.ones(1),)))] == ["gr__e"]
