"""A program run node by node on inputs that are streamed: in float32, and as a file in half precision would.

Beside every node's float32 result stands what half precision makes of the same inputs: *stored*, each tensor of the
file rounded and an operator's insides in float32, sums too; and *worst*, the insides rounded as well and subnormal
numbers flushed to zero, as the most frugal hardware does. Each node starts from float32 inputs rounded once, so that a
loss is counted where it arises. Only tensors still needed are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from mobilec.errors import UsageError
from mobilec.passes.aliasing import written_by
from mobilec.passes.decibels import psnr_db
from mobilec.passes.graph import Editor
from mobilec.passes.listing import Step, apply, apply_on_copies, argument_nodes, constants_for_run, write_down
from mobilec.passes.provenance import module_path, op_name, source_line
from mobilec.passes.ranges import half
from mobilec.passes.ranges.arithmetic import Backend, Steps
from mobilec.passes.ranges.half import Range, RangeCounter
from mobilec.passes.ranges.operators import OPERATORS

# Whose numbers are tensors in the file, rounded as weights are; those of others are attributes.
_WITH_CONSTANTS = {
    *("add", "sub", "rsub", "mul", "div", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"),
}
Inputs = Sequence[Any]  # tensors in the order of the program's user inputs


@dataclass(frozen=True)
class Hidden:
    """A step inside an operator. ``kind``: ``stored``, ``inside``, ``partial sums`` or ``constant``."""

    name: str
    kind: str
    range: Range


@dataclass(frozen=True)
class Loss:
    """What half precision makes of one operator, against float32.

    Attributes:
        snr_db: energy of the result over that of the error; infinite where nothing is lost.
        broken: entries that are NaN or infinite and were not.
    """

    snr_db: float
    broken: int


@dataclass(frozen=True)
class NodeRanges:
    """One operator over all inputs.

    Attributes:
        name: of the node. op: short operator name. where: PyTorch module path. line: of the source.
        output: of its result. hidden: its steps.
        lost: name of a sum to the share of the increments that would change nothing, if it is kept in half precision.
        stored / worst: see the module; ``worst`` is None where no step is hidden and it is the same.
        inputs_break: whether the operator breaks although computed in float32, from inputs rounded to half.
        broken_in_program: entries that are NaN or infinite where the whole program runs in half precision: what is
            stored of a small number may be larger than it was (converters clamp constants), and a break not happen.
        moves: whether it only hands numbers on, so that what it loses was lost before.
    """

    name: str
    op: str
    where: str
    line: str
    output: Range
    hidden: tuple[Hidden, ...]
    lost: Mapping[str, float]
    stored: Loss
    worst: Loss | None
    inputs_break: bool
    broken_in_program: int
    moves: bool


@dataclass(frozen=True)
class Agreement:
    """Outputs in half precision against float32, the worst sample of any output.

    Attributes:
        psnr_db: by the sample's largest magnitude. cosine: of the angle. broken: NaN or infinite entries that were not.
        undefined: entries that are NaN or infinite in float32, and so compared with nothing.
    """

    psnr_db: float
    cosine: float
    broken: int
    undefined: int = 0


@dataclass(frozen=True)
class Measured:
    """Attributes: ``nodes`` in graph order; ``batches`` run; ``outputs`` in float32, batch by batch;
    ``half``: of the whole program in half precision."""

    nodes: tuple[NodeRanges, ...]
    batches: int
    outputs: tuple[tuple[Any, ...], ...]
    half: Agreement


class Runner:
    """A program written down, with its constants in float32 and in half."""

    def __init__(self, program: ExportedProgram, backend: Backend) -> None:
        self.backend = backend
        self._editor = Editor(program)
        self._steps = write_down(self._editor.graph)
        self._constants = self._editor.values()
        self._halves: dict[Node, Any] = {}
        last: dict[Node, int] = {}
        for index, step in enumerate(self._steps):
            for node in (step.node, *argument_nodes(step)):
                last[node] = index
        self._drops: list[list[Node]] = [[] for _ in self._steps]
        for node, index in last.items():
            self._drops[index].append(node)

    @property
    def calls(self) -> tuple[Node, ...]:
        """The operators, in graph order."""
        return tuple(step.node for step in self._steps if step.node.op == "call_function")

    # --- float32, with what half would make of each node --------------------------------------------------------------

    def measure(self, feeds: Iterable[Inputs], progress: Callable[[int], None] | None = None) -> Measured:
        """Raises UsageError where the program does not run on the inputs, or there are none."""
        gauges: dict[Node, _Gauge] = {}
        agreement = _AgreementCounter()
        outputs: list[tuple[Any, ...]] = []
        count = 0
        for given in feeds:
            exact = self._measure_one(given, gauges)
            broken: dict[Node, int] = {}
            agreement.see(exact, self.run_half(given, frozenset(), broken))
            for node, gauge in gauges.items():
                gauge.broken_in_program += broken.get(node, 0)
            outputs.append(exact)
            count += 1
            if progress is not None:
                progress(count)
        if not count:
            raise UsageError("no inputs were given to measure activations on")
        nodes = tuple(gauge.record(node) for node, gauge in gauges.items())
        return Measured(nodes, count, tuple(outputs), agreement.result())

    def _measure_one(self, given: Inputs, gauges: dict[Node, _Gauge]) -> tuple[Any, ...]:
        outputs: tuple[Any, ...] = ()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            values: dict[Node, Any] = {}
            start = self._start(given)
            for step, drop in zip(self._steps, self._drops, strict=True):
                node = step.node
                if node in start:
                    values[node] = start[node]
                elif node.op == "output":
                    outputs = tuple(tree_leaves(apply(self._editor.root, step, values)))
                else:
                    before = self._copies(step, values)
                    values[node] = self._applied(step, values)
                    if self._is_measured(node, values[node]):
                        self._gauge(step, before, values[node], gauges)
                for dead in drop:
                    values.pop(dead, None)
        return outputs

    def _start(self, given: Inputs) -> dict[Node, Any]:
        everything = self._editor.user_inputs
        inputs = [node for node in everything if self._editor.is_tensor(node)]
        # what forward was given as a number or None at capture has no other value
        others = {
            node: getattr(self._editor.input_spec(node).arg, "value", None) for node in everything if node not in inputs
        }
        if len(given) != len(inputs):
            raise UsageError(f"{len(given)} inputs were given to a program of {len(inputs)}")
        fresh = {
            node: value.clone() if isinstance(value, Tensor) else value
            for node, value in zip(inputs, given, strict=True)
        }
        return constants_for_run(self._steps, self._constants) | others | fresh

    def _copies(self, step: Step, values: Mapping[Node, Any]) -> Mapping[Node, Any]:
        """The arguments, kept from a step that writes to them."""
        if not written_by(step.node):
            return values
        return {node: _map(values[node], torch.clone) for node in argument_nodes(step)}

    def _applied(self, step: Step, values: Mapping[Node, Any]) -> Any:
        try:
            return apply(self._editor.root, step, values)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            cause = str(error).strip().split("\n")[0]
            where = module_path(step.node) or "the model itself"
            raise UsageError(
                f"the program does not run on these inputs, at {op_name(step.node)} ({step.node.name}) in {where}: "
                f"{cause}"
            ) from error

    def _is_measured(self, node: Node, value: Any) -> bool:
        """Operators that give float32; what depends on constants alone is a constant."""
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        return (
            node.op == "call_function"
            and isinstance(node.target, OpOverload)
            and isinstance(first, Tensor)
            and first.dtype == torch.float32
            and not self._editor.is_constant(node)
        )

    def _gauge(self, step: Step, values: Mapping[Node, Any], result: Any, gauges: dict[Node, _Gauge]) -> None:
        node = step.node
        gauge = gauges.setdefault(node, _Gauge())
        gauge.output.see(_flat(result))
        if node.target in _MOVES:
            return  # rounding its input is rounding its result: nothing of its own is lost
        if node.target in OPERATORS:
            look = Steps(self.backend, seen=gauge.hidden, kinds=gauge.kinds, lost=gauge.lost)
            OPERATORS[node.target](look, self._arguments(step, values))
        self._see_constants(step, gauge)
        read = self._read_halves(step, values)
        with_steps = Steps(self.backend, round_stored=True)
        gauge.stored.see(result, self._in_half(step, read, with_steps))
        if node.target in OPERATORS or gauge.hidden:
            frugal = Steps(self.backend, round_stored=True, round_inside=True, flush=True)
            flushed = {node: _map(value, lambda v: half.rounded(v, flush=True)) for node, value in read.items()}
            gauge.worst.see(result, self._in_half(step, flushed, frugal))
            gauge.has_worst = True
        if gauge.stored.broken:
            exact = _map(apply_on_copies(self._editor.root, step, read), lambda v: v)
            check = _LossCounter()
            check.see(result, exact)
            gauge.inputs_break |= check.broken > 0

    def _read_halves(self, step: Step, values: Mapping[Node, Any]) -> dict[Node, Any]:
        return {
            node: self._half_constant(node, values[node]) if self._is_fixed(node) else _map(values[node], half.rounded)
            for node in argument_nodes(step)
        }

    def _is_fixed(self, node: Node) -> bool:
        return self._editor.is_constant(node) or self._editor.is_stored(node)

    def _half_constant(self, node: Node, value: Any) -> Any:
        if node not in self._halves:
            self._halves[node] = _map(value, half.stored)
        return self._halves[node]

    def _arguments(self, step: Step, values: Mapping[Node, Any]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        target = step.node.target
        assert isinstance(target, OpOverload)
        for position, argument in enumerate(target._schema.arguments):
            if position < len(step.args):
                named[argument.name] = step.args[position]
            else:
                named[argument.name] = step.kwargs.get(argument.name, argument.default_value)
        return map_arg(named, lambda node: values[node])

    def _see_constants(self, step: Step, gauge: _Gauge) -> None:
        if op_name(step.node) in _WITH_CONSTANTS:
            for number in step.args:
                if isinstance(number, float) and number:
                    gauge.kinds["constant"] = "constant"
                    gauge.hidden.setdefault("constant", RangeCounter()).see(torch.tensor([number]))

    def _in_half(self, step: Step, values: Mapping[Node, Any], steps: Steps) -> Any:
        """The step's result as half-precision numbers, from arguments that are such already."""
        if op_name(step.node) in _WITH_CONSTANTS:
            numbers = tuple(
                half.constant(value, flush=steps.flush) if isinstance(value, float) else value for value in step.args
            )
            step = Step(step.node, numbers, step.kwargs)
        if step.node.target in OPERATORS:
            result = OPERATORS[step.node.target](steps, self._arguments(step, values))
        else:
            result = apply_on_copies(self._editor.root, step, values)
        return _map(result, lambda value: half.rounded(value, flush=steps.flush))

    # --- the whole program in half ------------------------------------------------------------------------------------

    def run_half(self, given: Inputs, kept: frozenset[str], broken: dict[Node, int] | None = None) -> tuple[Any, ...]:
        """The outputs in half precision but for the nodes ``kept``, which compute in float32 and hand float32 on to
        each other. Operators' insides are in float32 (sums too).

        Args:
            broken: filled with the NaN and infinite entries of each node that has any.
        """
        outputs: tuple[Any, ...] = ()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            values: dict[Node, Any] = {}
            start = self._start(given)
            exact = set(start)  # nodes whose values are not rounded
            for step, drop in zip(self._steps, self._drops, strict=True):
                node = step.node
                if node in start:
                    values[node] = start[node]
                elif node.op == "output":
                    read = {source: _map(values[source], half.rounded) for source in argument_nodes(step)}
                    outputs = tuple(tree_leaves(apply(self._editor.root, step, read)))
                elif node.name in kept or self._editor.is_constant(node) or node.op != "call_function":
                    values[node] = apply(self._editor.root, step, values)
                    exact.add(node)
                else:
                    read = {source: self._read(source, values[source], exact) for source in argument_nodes(step)}
                    if written_by(node):  # the tensor itself must be written to
                        values[node] = apply(self._editor.root, step, values)
                    else:
                        values[node] = self._in_half(step, read, Steps(self.backend, round_stored=True))
                    if broken is not None:
                        broken[node] = _nonfinite(values[node])
                for dead in drop:
                    values.pop(dead, None)
        return outputs

    def _read(self, node: Node, value: Any, exact: set[Node]) -> Any:
        if node not in exact:
            return value
        return self._half_constant(node, value) if self._is_fixed(node) else _map(value, half.rounded)

    def agreement(self, feeds: Iterable[Inputs], outputs: Sequence[tuple[Any, ...]], kept: frozenset[str]) -> Agreement:
        """Of the program with some nodes kept in float32, against ``outputs`` of ``measure`` on the same feeds."""
        counter = _AgreementCounter()
        for given, exact in zip(feeds, outputs, strict=True):
            counter.see(exact, self.run_half(given, kept))
        return counter.result()

    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Name of each node to the names of the operators that read it."""
        return {
            step.node.name: tuple(user.name for user in step.node.users if user.op == "call_function")
            for step in self._steps
        }

    def sources(self) -> Mapping[str, tuple[str, ...]]:
        """Name of each operator to the names of the operators whose results it reads."""
        return {
            step.node.name: tuple(node.name for node in argument_nodes(step) if node.op == "call_function")
            for step in self._steps
        }


# --- counters ---------------------------------------------------------------------------------------------------------


@dataclass
class _LossCounter:
    signal: float = 0.0
    error: float = 0.0
    broken: int = 0

    def see(self, exact: Any, found: Any) -> None:
        for before, after in zip(tree_leaves(exact), tree_leaves(found), strict=True):
            if not isinstance(before, Tensor) or not before.dtype.is_floating_point or before.shape != after.shape:
                continue
            error = after - before
            total = float(error.square().sum(dtype=torch.float64))
            if not math.isfinite(total):
                fine = before.isfinite()
                self.broken += int((fine & ~after.isfinite()).sum())
                fine = fine & after.isfinite()
                before, error = before[fine], error[fine]
                total = float(error.square().sum(dtype=torch.float64))
            self.error += total
            self.signal += float(before.square().sum(dtype=torch.float64))

    def result(self) -> Loss:
        return Loss(_decibels(self.signal, self.error), self.broken)


@dataclass
class _Gauge:
    output: RangeCounter = field(default_factory=RangeCounter)
    hidden: dict[str, RangeCounter] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    stored: _LossCounter = field(default_factory=_LossCounter)
    worst: _LossCounter = field(default_factory=_LossCounter)
    has_worst: bool = False
    inputs_break: bool = False
    broken_in_program: int = 0

    def record(self, node: Node) -> NodeRanges:
        return NodeRanges(
            name=node.name,
            op=op_name(node),
            where=module_path(node),
            line=source_line(node),
            output=self.output.range(),
            hidden=tuple(Hidden(name, self.kinds[name], seen.range()) for name, seen in self.hidden.items()),
            lost=dict(self.lost),
            stored=self.stored.result(),
            worst=self.worst.result() if self.has_worst else None,
            inputs_break=self.inputs_break,
            broken_in_program=self.broken_in_program,
            moves=node.target in _MOVES,
        )


class _AgreementCounter:
    def __init__(self) -> None:
        self._psnr, self._cosine, self._broken, self._undefined = math.inf, 1.0, 0, 0

    def see(self, exact: Sequence[Any], found: Sequence[Any]) -> None:
        for before, after in zip(exact, found, strict=True):
            if not isinstance(before, Tensor) or not before.numel():
                continue
            for one, other in zip(_samples(before.double()), _samples(after.double()), strict=True):
                self._see_sample(one, other)

    def _see_sample(self, before: Tensor, after: Tensor) -> None:
        fine = before.isfinite()
        self._broken += int((fine & ~after.isfinite()).sum())
        self._undefined += int((~fine).sum())
        fine = fine & after.isfinite()
        before, after = before[fine], after[fine]
        if not before.numel():
            return
        self._psnr = min(self._psnr, psnr_db(before.numpy(), after.numpy()))
        lengths = float(before.norm() * after.norm())
        if lengths:
            self._cosine = min(self._cosine, float(before @ after) / lengths)
        elif not torch.equal(before, after):
            self._cosine = min(self._cosine, 0.0)

    def result(self) -> Agreement:
        return Agreement(self._psnr, self._cosine, self._broken, self._undefined)


def _samples(value: Tensor) -> Iterator[Tensor]:
    yield from value.reshape(value.shape[0], -1) if value.dim() > 1 else [value.reshape(-1)]


def _decibels(signal: float, error: float) -> float:
    if error == 0.0:
        return math.inf
    return 10 * math.log10(signal / error) if signal else -math.inf


def _nonfinite(value: Any) -> int:
    return sum(
        int((~leaf.isfinite()).sum())
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.dtype == torch.float32
    )


def _flat(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    tensors = [item.reshape(-1) for item in value if isinstance(item, Tensor) and item.dtype == torch.float32]
    return torch.cat(tensors) if tensors else torch.empty(0)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Real tensors changed, in tuples and lists too; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change) for item in value)
    return change(value) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


_aten = torch.ops.aten
_MOVES: frozenset[Any] = frozenset(
    {
        *(_aten.view.default, _aten.reshape.default, _aten.permute.default, _aten.transpose.int, _aten.slice.Tensor),
        *(
            _aten.cat.default,
            _aten.split.Tensor,
            _aten.split_with_sizes.default,
            _aten.chunk.default,
            _aten.roll.default,
        ),
        *(_aten.select.int, _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default, _aten.unsqueeze.default),
        *(_aten.flatten.using_ints, _aten.expand.default, _aten.contiguous.default, _aten.clone.default),
        *(_aten.pixel_shuffle.default, _aten.pixel_unshuffle.default, _aten.repeat.default, _aten.stack.default),
        *(_aten.relu.default, _aten.neg.default, _aten.abs.default, _aten.maximum.default, _aten.minimum.default),
        *(_aten.max_pool2d.default, _aten.amax.default, _aten.amin.default, _aten.dropout.default),
    }
)
