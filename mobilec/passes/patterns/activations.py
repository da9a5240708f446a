"""Finds activations that are written out in arithmetic around one non-linear call.

Every such form is ``outer(x, f(inner(x)))`` with polynomials inside and outside: GELU is
``0.5 x + 0.5 x erf(0.707 x)``. A form is data; the search is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.polynomials import ARITHMETIC, Polynomial, matches, polynomial, sources
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.provenance import op_name
from mobilec.passes.rule import Match, Refused

# Constants are often written with five or six digits (1.41421, 0.7979), and mean the number they abbreviate.
TOLERANCE = 1e-5
_LONGEST_TAIL = 6  # calls between the non-linear one and the end of the formula


@dataclass(frozen=True)
class Form:
    """One way to write an activation.

    Attributes:
        inner: of what the non-linear call reads, in x. outer: of the whole, in x and the call's result.
    """

    inner: Polynomial
    outer: Polynomial


def find(editor: Editor, node: Node, forms: Sequence[Form], *, tolerance: float = TOLERANCE) -> Match | Refused | None:
    """Looks for a form around a non-linear call; the match replaces the formula's last node, ``facts`` is x.

    Args:
        node: the non-linear call; what it reads is its first argument.
    """
    argument = next(iter(editor.arguments(node).values()))
    if not editor.is_tensor(argument):
        return None
    for x in sources(editor, argument):
        inner = polynomial(editor, argument, (x,))
        fitting = [form for form in forms if matches(inner, form.inner, tolerance)]
        if fitting:
            found = _follow(editor, x, node, fitting, tolerance)
            if found is not None:
                return found
    return None


def _follow(editor: Editor, x: Node, call: Node, forms: list[Form], tolerance: float) -> Match | Refused | None:
    """From the call towards the outputs, until the formula is complete."""
    node = call
    shared: Node | None = None
    for _ in range(_LONGEST_TAIL):
        if _is_whole(editor, node, x, call, forms, tolerance):
            if shared is not None:
                return Refused(f"the {op_name(shared)} inside the formula is read elsewhere too")
            return too_coarse(editor, node) or Match((node,), x)
        readers = list(node.users)
        nexts = [reader for reader in readers if reader.target in ARITHMETIC]
        if not nexts:
            return None
        if len(readers) > 1 and shared is None:
            shared = node
        node = next((reader for reader in nexts if _is_whole(editor, reader, x, call, forms, tolerance)), nexts[0])
    return None


def _is_whole(editor: Editor, end: Node, x: Node, call: Node, forms: list[Form], tolerance: float) -> bool:
    outer = polynomial(editor, end, (x, call))
    return any(matches(outer, form.outer, tolerance) for form in forms)
