"""``--keep-fp32``: operators that an fp16 file computes in float32, named by the user or found by measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilec.errors import UsageError
from mobilec.export.calibration import Calibration

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from mobilec.passes.ranges.run import Agreement

AUTO = "auto"
BACKENDS = ("onnx", "coreml")  # whose converters can leave single operators in float32
_MARK = "mobilec.keep_fp32"


@dataclass(frozen=True)
class KeptOps:
    """What stays in float32.

    Attributes:
        nodes: names in the rewritten program. options: for the manifest, why each is kept among it.
        notes: sentences a user should read.
    """

    nodes: frozenset[str] = frozenset()
    options: tuple[tuple[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def check_keep_fp32(names: Sequence[str] | str, *, backend: str, precision: str) -> tuple[str, ...]:
    """The names asked for, ``("auto",)`` among them. Raises UsageError where they cannot mean anything."""
    given = tuple(name.strip() for item in ([names] if isinstance(names, str) else names) for name in item.split(","))
    if not given:
        return ()
    if not all(given):
        raise UsageError("keep_fp32 holds an empty name", hint="name operators, modules or nodes, or auto")
    if AUTO in given and len(given) > 1:
        raise UsageError("keep_fp32 is auto and names operators too", hint="give one of them")
    if backend not in BACKENDS:
        raise UsageError(f"keep_fp32 is for {' and '.join(BACKENDS)} files, not for {backend}")
    if precision != "fp16":
        raise UsageError(f"keep_fp32 is for exports in fp16, and the precision is {precision}")
    return given


def keep_fp32(
    program: ExportedProgram,
    names: Sequence[str],
    *,
    backend: str,
    calibration: Callable[[], Calibration],
    tell: Callable[[str], None] = lambda stage: None,
) -> KeptOps:
    """Finds the operators of a rewritten program.

    Args:
        names: as ``check_keep_fp32`` gives them. calibration: inputs to measure on, asked for with ``auto`` alone.

    Raises UsageError for a name that no operator has; with ``auto`` DataError where no image can be read, ExportError
    where nothing but float32 throughout would do.
    """
    if not names:
        return KeptOps()
    if tuple(names) == (AUTO,):
        return _measured(program, backend, calibration(), tell)
    from mobilec.passes.selection import select

    chosen = select(_operators(program), names, what="operator after the rewrites")
    nodes = {node.name: "named" for node in chosen}
    return KeptOps(frozenset(nodes), (("keep_fp32", {"asked": list(names), "kept": _entries(program, nodes)}),))


def _measured(program: ExportedProgram, backend: str, calibration: Calibration, tell: Callable[[str], None]) -> KeptOps:
    from mobilec.passes.ranges.keep import keep_enough
    from mobilec.passes.ranges.run import Runner

    runner = Runner(program, backend)  # type: ignore[arg-type]
    total = calibration.total
    measured = runner.measure(inputs_of(calibration), lambda done: tell(f"measuring activations ({done} of {total})"))
    tell("choosing what to keep in float32")
    eight_bits = _stores_8_bit_activations(program)
    kept = keep_enough(runner, measured, lambda: inputs_of(calibration), eight_bits=eight_bits)
    facts = {
        "asked": [AUTO],
        "kept": _entries(program, dict(kept.nodes)),
        "measured_on": calibration.source,
        "made_up": calibration.made_up,
        "half": _figures(kept.before),
        "with_kept": _figures(kept.after),
    }
    notes = []
    if kept.nodes:
        aim = "are as near as 8 bits allow" if eight_bits else "agree"
        notes.append(
            f"{len(kept.nodes)} operators are kept in float32 so that the outputs {aim} in half precision"
            f" ({_words(kept.before)} before, {_words(kept.after)} with them; simulated on {calibration.source})"
        )
    else:
        notes.append(f"nothing needs to be kept in float32: {_words(kept.before)}, simulated on {calibration.source}")
    return KeptOps(frozenset(kept.nodes), (("keep_fp32", facts),), tuple(notes))


def _stores_8_bit_activations(program: ExportedProgram) -> bool:
    return any(str(node.target).startswith("quantized_decomposed.quantize_per_tensor") for node in program.graph.nodes)


def inputs_of(calibration: Calibration, unreadable: list[str] | None = None) -> Iterator[list[Any]]:
    """The batches as lists of tensors in the program's order; those without a readable image are left out.

    Args:
        unreadable: filled with messages on images that could not be read.
    """
    import torch

    for feeds in calibration:
        if unreadable is not None:
            unreadable += feeds.unreadable
        if feeds.names:
            yield [torch.from_numpy(feeds.tensors[spec.name]) for spec in calibration.inputs]


def _operators(program: ExportedProgram) -> list[Node]:
    """Calls that give real numbers."""
    import torch

    found = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        tensors = value if isinstance(value, (list, tuple)) else [value]
        if node.op == "call_function" and any(
            isinstance(item, torch.Tensor) and item.dtype.is_floating_point for item in tensors
        ):
            found.append(node)
    return found


def _entries(program: ExportedProgram, reasons: dict[str, str]) -> list[dict[str, str]]:
    from mobilec.passes.provenance import module_path, op_name

    return [
        {"node": node.name, "op": op_name(node), "where": module_path(node), "why": reasons[node.name]}
        for node in program.graph.nodes
        if node.name in reasons
    ]


def _figures(agreement: Agreement) -> dict[str, Any]:
    finite = abs(agreement.psnr_db) != float("inf")
    return {
        "psnr_db": agreement.psnr_db if finite else None,
        "cosine": agreement.cosine,
        "nonfinite": agreement.broken,
    }


def _words(agreement: Agreement) -> str:
    if agreement.broken:
        return f"{agreement.broken} numbers NaN or infinite"
    return f"{agreement.psnr_db:.1f} dB"


# --- for the writers --------------------------------------------------------------------------------------------------


def mark(program: ExportedProgram, names: Iterable[str]) -> None:
    """Marks the nodes that stay in float32, in a way that decompositions carry on to what they become."""
    wanted = set(names)
    for node in program.graph.nodes:
        if node.name in wanted:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), _MARK: node.name}


def marked(node: Node) -> str:
    """The name that ``mark`` knew a node, or what it has become, by; empty for others."""
    return (node.meta.get("custom") or {}).get(_MARK, "")


def numbered(program: ExportedProgram) -> dict[int, str]:
    """Gives marked nodes a number that coremltools hands on to what it makes of them; by number, the marked name."""
    names = {}
    for number, node in enumerate(program.graph.nodes, start=1):
        name = marked(node)
        if name:
            node.meta["debug_handle"] = number
            names[number] = name
    return names


def core_ml_precision(names: dict[int, str], seen: set[str]) -> Any:
    """Half precision but for the operators that stem from ``names`` (of ``numbered``), which are added to ``seen``."""
    import coremltools as ct
    from coremltools.converters.mil.mil.scope import ScopeSource

    if not names:
        return ct.precision.FLOAT16

    def in_half(op: Any) -> bool:
        kept = [names[number] for number in op.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE, ()) if number in names]
        seen.update(kept)
        return not kept

    return ct.transform.FP16ComputePrecision(op_selector=in_half)


def unmerged(names: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    """A note on operators that the converter merged into others, which decide instead."""
    lost = sorted(set(names) - set(found))
    if not lost:
        return ()
    listed = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
    return (f"kept in float32, but merged into neighbours by the converter or gone: {listed}",)
