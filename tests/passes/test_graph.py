"""Opening and closing programs: what comes out is a program in every respect."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilec.passes.capture import capture, input_specs, output_specs
from mobilec.passes.graph import Editor
from mobilec.passes.pipelines import pipeline
from mobilec.passes.provenance import module_path, source_line
from mobilec.passes.rewrite import rewrite
from support.rewriting import FLOAT64_GAP, gap, inputs, lively

_aten = torch.ops.aten


class Rich(nn.Module):
    """Everything a signature can hold: parameters shared and not, buffers kept and not, constants, nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.again = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.again.weight = self.conv.weight
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("offset", torch.ones(1, dtype=torch.float64), persistent=False)
        self.register_buffer("index", torch.tensor([2, 0, 1, 3]))

    def forward(self, x: Tensor, input: Tensor | None = None, *, factor: float = 2.0) -> dict[str, Any]:
        y = self.norm(self.conv(x)).relu_() * self.gain + self.offset + torch.tensor([0.5])
        z = self.again(x.flip(3))[:, self.index] * factor
        if input is not None:
            z = z + input
        return {"sum": y + z, "parts": [y, (z, x)]}


def rewritten(program: ExportedProgram) -> ExportedProgram:
    return rewrite(program, pipeline("cpu")).program


def saved_and_loaded(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


WAYS = {
    "as it is": lambda program: program,
    "saved and loaded": saved_and_loaded,
    "decomposed": lambda program: program.run_decompositions({}),
    "rewritten again": rewritten,
    "rewritten after loading": lambda program: rewritten(saved_and_loaded(program)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_rewritten_program_is_a_program(way: str, dynamic: bool) -> None:
    module = lively(Rich())
    x, other = inputs((2, 3, 6, 5), (2, 4, 6, 5))
    program = capture(module, (x, other), dynamic_batch=dynamic)
    final = WAYS[way](rewritten(program))
    final.validate()
    assert [spec.name for spec in input_specs(final)] == ["x", "input"]
    if dynamic:
        x, other = inputs((5, 3, 6, 5), (5, 4, 6, 5))
    with torch.no_grad():
        assert gap(module(x, other), final.module()(x, other)) < FLOAT64_GAP


def test_inputs_outputs_and_ranges_stay() -> None:
    program = capture(lively(Rich()), inputs((1, 3, 6, 5), (1, 4, 6, 5)), dynamic_batch=True)
    final = rewritten(program)
    assert input_specs(final) == input_specs(program)
    assert output_specs(final) == output_specs(program)
    assert final.range_constraints == program.range_constraints
    assert final.call_spec == program.call_spec
    assert final.example_inputs is program.example_inputs


def test_constants_are_stored_once_and_only_while_read() -> None:
    final = rewritten(capture(lively(Rich()), inputs((1, 3, 6, 5), (1, 4, 6, 5))))
    assert sorted(final.state_dict) == ["again.weight", "conv.bias_folded", "conv.weight_folded", "gain", "index"]
    assert "offset" in final.constants
    assert all(not value.requires_grad for name, value in final.state_dict.items() if "folded" in name)


def test_unread_inputs_stay() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return x.exp()

    final = rewritten(capture(Module(), inputs((2,), (3,))))
    assert [spec.name for spec in input_specs(final)] == ["x", "unused"]


def opened(module: nn.Module, *shapes: tuple[int, ...]) -> Editor:
    return Editor(capture(lively(module), inputs(*shapes)))


def test_constants_computed_from_constants_are_constants() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.g.exp().reshape(1, -1) + self.g.sum()) + torch.rand(1)

    module = Module()
    editor = opened(module, (2, 3))
    (product,) = (node for node in editor.calls() if node.target == _aten.mul.Tensor)
    x, factor = product.args
    assert editor.constant(x) is None
    assert torch.equal(editor.constant(factor), module.g.exp().reshape(1, -1) + module.g.sum())
    assert editor.constant(3.0) is None
    (random,) = (node for node in editor.calls() if node.target == _aten.rand.default)
    assert not editor.is_constant(random)


def test_new_constants_get_names_of_their_own() -> None:
    editor = opened(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (1, 3, 4, 4))
    convolution = next(editor.calls())
    numbers = iter(range(10))

    def name(wanted: str) -> str | None:
        value = torch.tensor(float(next(numbers)))
        return editor.input_spec(editor.add_constant(value, wanted, origin=convolution)).target

    assert [name("weight") for _ in range(3)] == ["0.weight_folded", "0.weight_folded_1", "0.weight_folded_2"]
    convolution.meta["nn_module_stack"] = {"a": ("", ""), "b": ("0.weight", "x")}  # a parameter cannot hold another
    assert name("g") == "0_weight.g_folded"
    convolution.meta["nn_module_stack"] = {"a": ("layers[1]@2", "x")}
    assert name("g") == "layers_1__2.g_folded"


def test_equal_constants_are_one() -> None:
    editor = opened(nn.Conv2d(3, 4, 1), (1, 3, 4, 4))
    convolution = next(editor.calls())

    def add(*values: float, dtype: torch.dtype = torch.float32) -> object:
        return editor.add_constant(torch.tensor(values, dtype=dtype), "g", origin=convolution)

    assert add(1, 2) is add(1, 2)
    assert add(1, 2) is not add(2, 1)
    assert add(1, 2) is not add(1, 2, dtype=torch.float64)
    assert add(float("nan")) is not add(float("nan"))


def test_a_program_without_parameters_can_get_some() -> None:
    editor = opened(nn.ReLU(), (2, 3))
    relu = next(editor.calls())
    with editor.graph.inserting_before(relu):
        constant = editor.add_constant(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), "g", origin=relu)
        product = editor.call(_aten.mul.Tensor, relu.args[0], constant, origin=relu)
    relu.args = (product,)
    final = saved_and_loaded(editor.close())
    (x,) = inputs((2, 3))
    assert torch.equal(final.module()(x), (x * torch.tensor([1.0, 2.0, 3.0])).relu())


def test_calls_know_their_shapes_and_leave_dynamic_axes_open() -> None:
    program = capture(nn.ReLU(), inputs((1, 3)), dynamic_batch=True)
    editor = Editor(program)
    relu = next(editor.calls())
    guards = len(editor._fake_mode.shape_env.guards)
    with editor.graph.inserting_before(relu):
        doubled = editor.call(_aten.cat.default, [relu.args[0], relu.args[0]], 0, origin=relu)
        flat = editor.call(_aten.reshape.default, doubled, [-1], origin=relu)
    symbol = editor.shape(relu)[0]
    assert isinstance(symbol, str)
    assert editor.shape(doubled) == (f"2*{symbol}", 3)
    assert editor.shape(flat) == (f"6*{symbol}",)
    assert len(editor._fake_mode.shape_env.guards) == guards


def test_arguments_by_name_with_defaults() -> None:
    editor = opened(nn.Conv2d(3, 4, 3, stride=2, bias=False), (1, 3, 8, 8))
    arguments = editor.arguments(next(editor.calls()))
    assert list(arguments) == ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    assert (arguments["bias"], list(arguments["stride"]), arguments["groups"]) == (None, [2, 2], 1)


def test_provenance() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    editor = opened(nn.Sequential(nn.Sequential(Block())), (2, 3))
    node = next(editor.calls())
    assert module_path(node) == "0.0"
    assert source_line(node).startswith("test_graph.py:")
    assert module_path(editor.user_inputs[0]) == ""
    assert source_line(editor.user_inputs[0]) == ""


def test_control_flow_operators_are_left_alone() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return torch.cond(y.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (y,))

    module = lively(Module())
    (x,) = inputs((1, 3, 4, 4))
    final = rewritten(capture(module, (x,)))
    with torch.no_grad():
        assert gap(module(x), final.module()(x)) < FLOAT64_GAP
        assert gap(module(-x), final.module()(-x)) < FLOAT64_GAP
