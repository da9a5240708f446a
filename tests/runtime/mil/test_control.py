"""Branches, loops, lists, states, classifiers: whole small programs."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import BackendError
from mobilec.export.quiet import quiet
from mobilec.runtime.mil.interpreter import Interpreter
from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil.ops.support import Call
from mobilec.runtime.mil.ops.table import merged, op_table
from mobilec.runtime.mil.program import MilBlock, MilFunction, MilModel, MilOp, MilValue, load_package
from support.mlpackages import Builder, convert_mil, ct

mb = Builder  # coremltools' own name for it


def _run(path: Path, *values: Tensor, numerics: Numerics | None = None) -> list[Any]:
    interpreter = Interpreter(load_package(path), numerics)
    feeds = {spec.name: value for spec, value in zip(interpreter.inputs, values, strict=True)}
    return list(interpreter.run(feeds).values())


def test_branches_see_what_is_around_them(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        total = mb.reduce_sum(x=x, axes=[0], keep_dims=False)
        twice = mb.mul(x=x, y=2.0)
        return mb.cond(
            pred=mb.greater(x=total, y=0.0),
            _true_fn=lambda: mb.add(x=twice, y=mb.mul(x=x, y=x)),
            _false_fn=lambda: mb.identity(x=twice),
        )

    package = convert_mil(body, [(3,)], tmp_path / "m.mlpackage")
    x = torch.tensor([1.0, 2.0, 3.0])
    assert _run(package, x)[0].tolist() == (2 * x + x * x).tolist()
    assert _run(package, -x)[0].tolist() == (-2 * x).tolist()


def test_loops_with_branches_inside(tmp_path: Path) -> None:
    """Collatz steps: loop in which every turn takes another branch; the values carried are an integer and a float."""

    def step(number: Any, total: Any) -> Any:
        half = mb.floor_div(x=number, y=2)
        odd = mb.equal(x=mb.mod(x=number, y=2), y=1)
        number = mb.cond(
            pred=odd,
            _true_fn=lambda: mb.add(x=mb.mul(x=number, y=3), y=1),
            _false_fn=lambda: mb.identity(x=half),
        )
        return number, mb.add(x=total, y=mb.cast(x=number, dtype="fp32"))

    def body(x: Any) -> Any:
        start = mb.cast(x=mb.reduce_sum(x=x, axes=[0], keep_dims=False), dtype="int32")
        return mb.while_loop(
            _cond=lambda number, total: mb.greater(x=number, y=1),
            _body=step,
            loop_vars=(start, mb.reduce_sum(x=x, axes=[0], keep_dims=False)),
        )

    package = convert_mil(body, [(1,)], tmp_path / "m.mlpackage")
    number, total = _run(package, torch.tensor([7.0]))
    assert (number.item(), total.item()) == (
        1,
        7 + 22 + 11 + 34 + 17 + 52 + 26 + 13 + 40 + 20 + 10 + 5 + 16 + 8 + 4 + 2 + 1,
    )
    assert _run(package, torch.tensor([1.0]))[1].item() == 1.0  # no turn at all


def test_lists(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        made = mb.make_list(init_length=2, dynamic_length=True, elem_shape=(3,), dtype="fp32")
        made = mb.list_write(ls=made, index=0, value=x)
        made = mb.list_write(ls=made, index=2, value=mb.mul(x=x, y=2.0))  # one longer
        rows = mb.stack(values=(x, mb.mul(x=x, y=5.0)), axis=0)
        spread = mb.list_scatter(ls=made, indices=[3, 1], value=rows)
        return (
            mb.list_gather(ls=spread, indices=[3, 2, 1, 0]),
            mb.list_read(ls=made, index=2),
            mb.list_length(ls=spread),
            mb.list_length(ls=made),
        )

    package = convert_mil(body, [(3,)], tmp_path / "m.mlpackage")
    x = torch.tensor([1.0, 2.0, 3.0])
    gathered, read, longer, before = _run(package, x)
    np.testing.assert_array_equal(gathered, np.outer([1, 2, 5, 1], x))
    assert read.tolist() == (2 * x).tolist()
    assert (longer.item(), before.item()) == (4, 3)  # lists are values: the scatter left the first one alone


def _call(name: str, **values: Any) -> Any:
    op = MilOp(name, name, {}, (MilValue(name, "fp32", None),), (), 4)
    return op_table()[name](Call(op, Numerics(), {key: (value,) for key, value in values.items()}))


def test_elements_that_were_never_written() -> None:
    unknown = _call("make_list", init_length=torch.tensor(2), elem_shape="unknown")
    with pytest.raises(BackendError, match=r"list_read 'list_read' \(op 4\): element 1 of 2 was never written"):
        _call("list_read", ls=unknown, index=torch.tensor(1))
    with pytest.raises(BackendError, match="element 5 of 2 was never written"):
        _call("list_gather", ls=unknown, indices=torch.tensor([5]))


def test_more_classes_than_probabilities() -> None:
    with pytest.raises(BackendError, match="2 probabilities for 3 classes"):
        _call("classify", probabilities=torch.tensor([0.5, 0.5]), classes=("a", "b", "c"))
    index, row = _call("classify", probabilities=torch.tensor([[0.2, 0.4, 0.4]]), classes=(7, 8, 9))
    assert (index.item(), tuple(row.shape)) == (1, (3,))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, 3, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.5)
        self.seen.add_(x)
        return self.seen * 2


def test_states(tmp_path: Path) -> None:
    with quiet():
        ct.convert(
            torch.jit.trace(Counter().half(), (torch.zeros(1, 3, dtype=torch.float16),)),
            inputs=[ct.TensorType(name="x", shape=(1, 3), dtype=np.float16)],
            outputs=[ct.TensorType(name="y", dtype=np.float16)],
            states=[ct.StateType(wrapped_type=ct.TensorType(shape=(1, 3), dtype=np.float16), name="seen")],
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
            package_dir=str(tmp_path / "m.mlpackage"),
        )
    model = load_package(tmp_path / "m.mlpackage")
    assert [(state.name, state.shape, state.dtype) for state in model.states] == [("seen", (1, 3), "float16")]
    interpreter = Interpreter(model)
    states = interpreter.new_states()
    seen = np.zeros((1, 3), np.float16)
    for turn in range(3):
        x = torch.full((1, 3), turn + 0.1)
        seen = (seen * np.float16(0.5)).astype(np.float16) + x.half().numpy()
        np.testing.assert_array_equal(interpreter.run({"x": x}, states)["y"], (seen * 2).astype(np.float32))
    fresh = interpreter.run({"x": torch.ones(1, 3)})["y"]
    assert fresh.tolist() == [[2.0] * 3]
    np.testing.assert_array_equal(states["seen"].value, seen.astype(np.float32))


# --- the machinery ----------------------------------------------------------------------------------------------------


def test_an_op_in_two_tables() -> None:
    with pytest.raises(ValueError, match="MIL op 'relu' stands in two tables"):
        merged([{"relu": lambda call: None}, {"tanh": lambda call: None, "relu": lambda call: None}])


def _op(kind: str, name: str, position: int, *sources: str) -> MilOp:
    inputs: dict[str, tuple[Any, ...]] = dict(zip(("x", "y"), ((source,) for source in sources), strict=False))
    return MilOp(name, kind, inputs, (MilValue(name, "fp32", (4,)),), (), position)


def _model(ops: list[MilOp], *outputs: str) -> MilModel:
    block = MilBlock((MilValue("x", "fp32", (4,)),), tuple(ops), outputs)
    return MilModel(Path("made"), 8, (), (), {"main": MilFunction("main", "CoreML7", block)})


def test_values_are_let_go_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chain of any depth with a branch that comes back at its end, as many tensors live at once."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def relu(call: Call) -> Tensor:
        alive.append(sum(each() is not None for each in made))
        result = call.tensor("x") + 1
        made.append(weakref.ref(result))
        return result

    monkeypatch.setitem(op_table(), "relu", relu)

    def most_alive(depth: int) -> int:
        made.clear()
        alive.clear()
        ops = [_op("relu", "v0", 0, "x"), *(_op("relu", f"v{n}", n, f"v{n - 1}") for n in range(1, depth))]
        ops.append(_op("add", "end", depth, f"v{depth - 1}", "v0"))
        found = Interpreter(_model(ops, "end")).run({"x": torch.zeros(4)})["end"]
        assert found.tolist() == [depth + 1.0] * 4
        return max(alive)

    assert most_alive(40) == most_alive(5) == 2


def test_outputs_that_are_inputs_constants_or_used_twice() -> None:
    ops = [_op("square", "a", 0, "x"), _op("relu", "b", 1, "a")]
    found = Interpreter(_model(ops, "a", "x", "b")).run({"x": torch.tensor([1.0, -2.0, 3.0, -4.0])})
    assert {name: value.tolist() for name, value in found.items()} == {
        "a": [1.0, 4.0, 9.0, 16.0],
        "x": [1.0, -2.0, 3.0, -4.0],
        "b": [1.0, 4.0, 9.0, 16.0],
    }


def test_one_op_alone_is_rounded_as_declared() -> None:
    """Also one that moves half values only: whoever feeds it other values gets what the engine would have kept."""
    value = MilValue("y", "fp16", (4,))
    op = MilOp("y", "relu", {"x": ("x",)}, (value,), (), 0)
    block = MilBlock((MilValue("x", "fp16", (4,)),), (op,), ("y",))
    model = MilModel(Path("made"), 8, (), (), {"main": MilFunction("main", "CoreML7", block)})
    given = torch.tensor([2049.0, 0.1, -1.0, 70000.0])
    wanted = [2048.0, float(np.float16(0.1)), 0.0, np.inf]
    interpreter = Interpreter(model)
    assert interpreter.run_op(interpreter.ops[0], {"x": given})["y"].tolist() == wanted
    assert interpreter.run({"x": given})["y"].tolist() == wanted
    exact = Interpreter(model, Numerics("fp32"))
    assert exact.run_op(exact.ops[0], {"x": given})["y"].tolist() == given.relu().tolist()


def test_storage_in_half_everywhere() -> None:
    ops = [_op("square", "a", 0, "x"), _op("add", "b", 1, "a", "x")]
    x = torch.tensor([300.0, 0.1, 1e-4, 45.3])
    declared = Interpreter(_model(ops, "b")).run({"x": x})["b"]
    assert declared.tolist() == (x * x + x).tolist()  # declared fp32
    half = x.half()
    found = Interpreter(_model(ops, "b"), Numerics("fp16")).run({"x": x})["b"]
    assert found.tolist() == ((half * half) + half).float().tolist()
    assert found[0].item() == float("inf")
