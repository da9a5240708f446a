"""From a module to a captured program (``torch.export``), and what goes in and comes out of one."""

from __future__ import annotations

import inspect
import keyword
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, free_unbacked_symbols
from torch.utils import _pytree as pytree

from mobilec.errors import CaptureError, UsageError
from mobilec.passes.evidence import TensorSpec

BATCH = "batch"  # name of the dynamic axis
_TORCH = Path(torch.__file__).parent
_LONGEST_CAUSE = 200
_UNQUOTABLE = re.compile(r"[\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
# torch.export replaces nn.Module.__call__ while it traces, for every thread.
_ONE_AT_A_TIME = threading.Lock()


def capture(module: nn.Module, example_inputs: tuple[Tensor, ...], *, dynamic_batch: bool = False) -> ExportedProgram:
    """Captures a module at inference: eval mode, no gradients. The module is left as it was found.

    Args:
        example_inputs: the positional arguments of ``forward``.
        dynamic_batch: leave axis 0 of every input open. An example batch of one is doubled for the trace, because a
            size of one would be taken for a constant.

    Raises:
        CaptureError: the module cannot be traced; names the submodule and source line where that is known.
        UsageError: what was given is no module, or no tuple of inputs.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"capture needs a torch.nn.Module, not a {type(module).__name__}")
    if not isinstance(example_inputs, tuple):
        raise UsageError(f"example inputs must be a tuple, not a {type(example_inputs).__name__}")
    shapes = None
    if dynamic_batch:
        example_inputs = tuple(_doubled(value) for value in example_inputs)
        shapes = _dynamic_shapes(module, example_inputs)
    modes = [(part, part.training) for part in module.modules()]
    with _ONE_AT_A_TIME:
        try:
            module.eval()
            with torch.no_grad():
                program = torch.export.export(module, example_inputs, dynamic_shapes=shapes, strict=False)
        except (Exception, SystemExit) as error:
            raise _explained(module, example_inputs, error) from error
        finally:
            for part, training in modes:
                part.training = training
    results = [spec.arg for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    if not any(isinstance(result, TensorArgument) for result in results):
        raise CaptureError(f"{type(module).__name__}.forward returns no tensor", hint="return what it computes")
    unknown = next((node for node in program.graph.nodes if _has_unknown_size(node.meta.get("val"))), None)
    if unknown is not None:
        raise CaptureError(
            f"cannot capture {type(module).__name__}: the size of what {unknown.target} gives depends on the values of "
            f"a tensor{_inside(unknown)}",
            hint="keep sizes fixed (torch.where, topk), or leave that part outside forward",
        )
    _rename_tensors(program)
    return _without_own_types(program)


def _inside(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return f" in '{stack[-1][0]}'" if stack and stack[-1][0] else ""


def _rename_tensors(program: ExportedProgram) -> None:
    """Other names for tensors that torch's generated code trips over: ``heads.class.bias`` is ``heads.class_.bias``.

    The module paths of nodes stay as the user wrote them.
    """
    stores = (program.state_dict, program.constants)
    taken = {name for store in stores for name in store}
    renamed: dict[str, str] = {}
    for name in sorted(taken):
        parts = [_UNQUOTABLE.sub("_", part) for part in name.split(".")]
        wanted = ".".join(f"{part}_" if keyword.iskeyword(part) else part for part in parts)
        if wanted != name:
            renamed[name] = _unused(wanted, taken)
    if not renamed:
        return
    signature = program.graph_signature
    for spec in (*signature.input_specs, *signature.output_specs):
        if spec.target is not None:
            spec.target = renamed.get(spec.target, spec.target)
    for store in stores:
        for name in [name for name in store if name in renamed]:
            store[renamed[name]] = store.pop(name)


def _has_unknown_size(value: Any) -> bool:
    """Whether a tensor, or one in a tuple, has an axis that only the values of an input decide."""
    if isinstance(value, (tuple, list)):
        return any(map(_has_unknown_size, value))
    return isinstance(value, Tensor) and any(free_unbacked_symbols(size) for size in value.shape)


def _doubled(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1 else value


def _without_own_types(program: ExportedProgram) -> ExportedProgram:
    """The program with named tuples in its outputs turned into dicts of their fields, torch's own into plain tuples.

    A stored program must run where the user's classes are unknown. Leaves and their order stay.
    """
    signature = program.module_call_graph[0].signature
    structure = program.call_spec.out_spec
    if signature is not None and structure is not None:
        leaves: list[Any] = list(range(structure.num_leaves))
        signature.out_spec = pytree.tree_structure(_plain(pytree.tree_unflatten(leaves, structure)))
    return program


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple):  # torch.return_types.max and the like are tuples too
        return tuple(_plain(item) for item in value)
    if type(value) is list:
        return [_plain(item) for item in value]
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _plain(item)) for key, item in value.items())
    return value


def _dynamic_shapes(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    batches = {value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()}
    if len(batches) > 1:
        raise CaptureError(
            f"a dynamic batch needs the same axis 0 in every input, found sizes {sorted(batches)}",
            hint="give example inputs of one batch size",
        )
    batch = Dim(BATCH, min=1)
    flat = tuple({0: batch} if isinstance(value, Tensor) and value.dim() else None for value in inputs)
    parameters = inspect.signature(module.forward).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    for position, parameter in enumerate(named):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:  # forward(*xs): what is left is one argument, a tuple
            return (*flat[:position], flat[position:])
    return flat


# --- what went wrong ------------------------------------------------------------------------------------------------


def _explained(module: nn.Module, inputs: tuple[Any, ...], error: BaseException) -> CaptureError:
    name = type(module).__name__
    text = str(error)
    cause, hint = _cause(error)
    place = _place(module, error.__traceback__)
    if not isinstance(error, GuardOnDataDependentSymNode) and not hint:
        own = _own_failure(module, inputs)
        if own is not None:
            cause, place = _first_line(own), _place(module, own.__traceback__) or place
            found = ", ".join(_described(value) for value in inputs)
            hint = f"forward itself fails on {found}, outside any export: is that an input it takes?{_other_types(own)}"
    where = f" (in {place})" if place else ""
    return CaptureError(f"cannot capture {name}: {cause}{where}", hint=hint, detail=text)


def _cause(error: BaseException) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, GuardOnDataDependentSymNode):
        expression = text.split("expression ", 1)[-1].split(" (unhinted")[0]
        return (
            f"its control flow or a size depends on the values of a tensor ({expression})",
            "use torch.where or torch.cond, or take the decision outside forward",
        )
    if "Constraints violated" in text:
        fixed = next((line.strip() for line in text.splitlines() if line.strip().startswith(f"{BATCH} = ")), "")
        found = f", which fixes it to {fixed.removeprefix(f'{BATCH} = ')}" if fixed else ""
        return (
            f"the batch size cannot be left open with this forward{found}",
            "write reshape(x.shape[0], ...) instead of a number, or export without a dynamic batch",
        )
    if "not a known type" in text and "output" in text:
        found = text.split("Found ", 1)[-1].split(" in output")[0]
        return f"forward returns {found}", "return tensors, or tuples, lists and dicts of tensors"
    return _first_line(error), ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines and not isinstance(error, SystemExit) else " ".join([type(error).__name__, *lines[:1]])
    return line if len(line) <= _LONGEST_CAUSE else line[: _LONGEST_CAUSE - 3] + "..."


def _own_failure(module: nn.Module, inputs: tuple[Any, ...]) -> BaseException | None:
    """What ``forward`` raises when simply called, if it does: then the fault is not the tracer's."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(*inputs)
    except (Exception, SystemExit) as error:
        return error
    return None


def _other_types(error: BaseException) -> str:
    """A word for those whose forward takes indices or flags: examples are float32 unless told otherwise."""
    asks = re.search(r"\b(Long|Int|Bool|int64|int32|scalar types?|tensors used as indices)\b", str(error))
    return " A type stands behind the sizes: --input-shape NAME:DIMS:int64" if asks else ""


def _place(module: nn.Module, traceback: TracebackType | None) -> str:
    """``'blocks.3.gate', model.py:41``: innermost submodule, and innermost source line outside torch."""
    paths = {id(part): path for path, part in module.named_modules()}
    path, line = "", ""
    while traceback is not None:
        frame = traceback.tb_frame
        code = frame.f_code
        file = Path(code.co_filename)
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in paths:
            path = paths[id(owner)]
        if file.is_absolute() and _TORCH not in file.parents and file != Path(__file__):
            line = f"{file.name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return ", ".join(part for part in (f"'{path}'" if path else "", line) if part)


def _described(value: Any) -> str:
    return f"{_dtype_name(value.dtype)} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


# --- what goes in and comes out -------------------------------------------------------------------------------------


def input_specs(program: ExportedProgram) -> tuple[TensorSpec, ...]:
    """The tensors that a user gives, in order, called by forward's argument names.

    Nested arguments are called as torch.export calls them (``state_hidden``). An open axis is named ``batch`` where
    it is axis 0 of the inputs, otherwise by its symbol.
    """
    names = _dynamic_names(program)
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    given = [spec.arg for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    called = _argument_names(program, len(given))
    return tuple(
        _spec(_identifier(name or arg.name), placeholders[arg.name].meta["val"], names)
        for name, arg in zip(called, given, strict=True)
        if isinstance(arg, TensorArgument)
    )


def output_specs(program: ExportedProgram, names: Sequence[str] = ()) -> tuple[TensorSpec, ...]:
    """The tensors that a user gets, in order.

    Args:
        names: one for each; by default ``output``, ``output_0`` ... for a sequence, the keys of a dict, and
            ``key_0`` where they nest. By default they are identifiers, and none is the name of an input.

    Raises:
        UsageError: the number of names is not the number of tensors.
    """
    symbols = _dynamic_names(program)
    results = [spec.arg for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    defaults = _output_names(program, len(results), taken=[spec.name for spec in input_specs(program)])
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    tensors = [
        (name, values[arg.name]) for name, arg in zip(defaults, results, strict=True) if isinstance(arg, TensorArgument)
    ]
    if names and len(names) != len(tensors):
        raise UsageError(f"{len(names)} output names given ({', '.join(names)}), the model has {len(tensors)} outputs")
    called = list(names) or [name for name, _ in tensors]
    return tuple(_spec(name, value, symbols) for name, (_, value) in zip(called, tensors, strict=True))


def _spec(name: str, value: Tensor, symbols: dict[str, str]) -> TensorSpec:
    return TensorSpec(name, tuple(_axis(size, symbols) for size in value.shape), _dtype_name(value.dtype))


def _axis(size: Any, symbols: dict[str, str]) -> int | str:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return str(expression.subs({symbol: symbols.get(str(symbol), str(symbol)) for symbol in expression.free_symbols}))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dynamic_names(program: ExportedProgram) -> dict[str, str]:
    """Names of symbols: ``batch`` for the one on axis 0 of the inputs, if it is one."""
    given = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    leading: set[str] = set()
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in given and isinstance(value, Tensor) and value.dim() and not isinstance(value.shape[0], int):
            leading.add(str(value.shape[0].node.expr))
    return dict.fromkeys(leading, BATCH) if len(leading) == 1 else {}


def _argument_names(program: ExportedProgram, count: int) -> list[str]:
    """Forward's argument names, one an input tensor; empty strings where the arguments nest."""
    signature = program.module_call_graph[0].signature
    names = list(signature.forward_arg_names or []) if signature is not None else []
    return names if len(names) == count else [""] * count


def _output_names(program: ExportedProgram, count: int, taken: Iterable[str]) -> list[str]:
    used = set(taken)
    structure = program.call_spec.out_spec
    if structure is None:
        return [_unused(f"output_{index}", used) for index in range(count)]
    tree = pytree.tree_unflatten(list(range(count)), structure)
    names = []
    for path, _ in pytree.tree_flatten_with_path(tree)[0]:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        if not path or not isinstance(path[0], (pytree.MappingKey, pytree.GetAttrKey)):
            parts = ["output", *parts]
        names.append(_unused(_identifier("_".join(parts)), used))
    return names


def _identifier(name: str) -> str:
    """Letters, digits and underscores, all that Core ML takes: ``feat/0`` is ``feat_0``, ``0`` is ``output_0``."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return word if re.match(r"[A-Za-z_]", word) else f"output_{word}"


def _unused(stem: str, used: set[str]) -> str:
    """``stem``, or the first of ``stem_2``, ``stem_3`` ... that is not in ``used``; it is from here on."""
    name, repeat = stem, 1
    while name in used:
        repeat += 1
        name = f"{stem}_{repeat}"
    used.add(name)
    return name
