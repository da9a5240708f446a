"""The first wrong op, for ``mobilec validate --bisect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilec.cli import render

if TYPE_CHECKING:
    from rich.console import Console

    from mobilec.runtime.bisect import Bisection, OpFacts, Pair, WrongOp
    from mobilec.runtime.op_graphs.judge import TensorFacts

MOST_TOGETHER = 6


def show(console: Console, found: Bisection) -> None:
    """What was compared, the first wrong op with its figures, the others by name; else where rounding comes from."""
    render.heading(console, f"Op by op, on {found.sample}")
    rows = [
        (
            f"{pair.stage} against {pair.against}",
            pair.operations,
            pair.compared,
            pair.wrong_in_all or "none",
            render.small(pair.agree_within),
        )
        for pair in found.pairs
    ]
    headers = ("stages", "ops", "compared", "wrong", "others within")
    console.print(render.table(headers, rows, right=(1, 2, 3, 4)))
    if found.rule:
        console.print(render.styled(f"wrong rewrite: {found.rule}", "bold red"))
    first = found.first
    if first is not None:
        _first(console, *first)
    elif not found.rule:
        _nothing(console, found)


def _first(console: Console, pair: Pair, wrong: WrongOp) -> None:
    from mobilec.runtime.bisect import sentence

    console.print()
    console.print(render.styled(sentence(wrong), "bold red"))
    op = wrong.op
    ahead = f"{render.plural(pair.agree_before, 'op')} before it agree within {render.small(pair.agree_within)}"
    console.print(
        render.facts(
            (
                ("stage", f"{pair.stage}, against {pair.against}"),
                ("op", f"{op.position} of {op.total}; {ahead}"),
                ("reference", _reference(wrong)),
                ("judged with", _together(wrong)),
                ("largest error", _error(wrong)),
                ("allowed", f"{render.small(wrong.allowed)} of the largest value, for rounding"),
                ("arrays", wrong.arrays),
            )
        )
    )
    render.heading(console, "Its tensors, on both sides")
    rows = []
    for role, one in (*(("input", one) for one in wrong.inputs), ("output", wrong.result)):
        rows.append((role, *_figures(one.found)))
        if one.reference is not None and (role == "output" or _figures(one.reference)[2:] != _figures(one.found)[2:]):
            rows.append(("  expected", *_figures(one.reference)))
    headers = ("", "tensor", "shape", "min", "max", "mean", "std", "NaN, inf")
    console.print(render.table(headers, rows, right=(3, 4, 5, 6, 7)))
    others = pair.wrong[1:]
    if others:
        names = ", ".join(f"{other.op.kind} `{other.op.name}`" for other in others[:5])
        more = pair.wrong_in_all - 1 - len(others[:5])
        console.print(f"Also wrong by themselves: {names}{f' and {more} more' if more > 0 else ''}.")


def _reference(wrong: WrongOp) -> str:
    if wrong.reference is None:
        return ""
    theirs = wrong.reference
    return f"{theirs.kind} `{theirs.name}`, found by {wrong.matched_by}"


def _together(wrong: WrongOp) -> str:
    ahead = wrong.together[:-1]
    if not ahead:
        return ""
    more = f" and {len(ahead) - MOST_TOGETHER} more" if len(ahead) > MOST_TOGETHER else ""
    return f"{', '.join(ahead[:MOST_TOGETHER])}{more}, whose results the reference has no counterpart of"


def _error(wrong: WrongOp) -> str:
    place = f"at {list(wrong.where)}: {_number(wrong.found)}, expected {_number(wrong.expected)}"
    if wrong.error is None:
        return place
    return f"{render.small(wrong.max_abs)} ({render.small(wrong.error)} of the largest value) {place}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _figures(tensor: TensorFacts) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return render.NONE if value is None else f"{value:.4g}"

    odd = f"{tensor.nans}, {tensor.infinities}" if tensor.nans or tensor.infinities else ""
    return (
        tensor.name,
        f"{tensor.dtype} {render.shape(tensor.shape)}",
        *(number(value) for value in (tensor.min, tensor.max, tensor.mean, tensor.std)),
        odd,
    )


def _nothing(console: Console, found: Bisection) -> None:
    console.print()
    compared = sum(pair.compared for pair in found.pairs)
    if not found.pairs:
        console.print("No two neighbouring stages could be compared op by op.")
        return
    if found.stages.passed:
        console.print(f"No op is wrong: each of {compared} gives what the stage before it gives, up to rounding.")
    else:
        console.print(
            f"No op is wrong by itself ({compared} compared): what differs at the outputs is rounding that adds up, "
            "or what an engine does inside of its fused operators."
        )
    half = [pair for pair in found.pairs if pair.half and pair.rounding]
    for pair in half[-1:]:
        render.heading(console, f"Largest own errors in half precision ({pair.stage} against {pair.against})")
        rows = [
            (source.op.kind, source.op.name, _where(source.op), render.small(source.error)) for source in pair.rounding
        ]
        console.print(render.table(("op", "name", "where", "error"), rows, right=(3,)))


def _where(op: OpFacts) -> str:
    return ", ".join(part for part in (op.module, op.source) if part)
