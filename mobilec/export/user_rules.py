"""Rules that a user brings in a file of his own, checked before any of them runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ModelError, RewriteError, UsageError

if TYPE_CHECKING:
    from mobilec.passes.rule import Rule


@dataclass(frozen=True)
class RuleFile:
    """A file of rules. ``file``: its name without its folder; ``sha256``: of what was run; ``rules``: in order."""

    file: str
    sha256: str
    rules: tuple[Rule, ...]


def load_rule_files(paths: Sequence[str | Path], known: Iterable[str] = ()) -> tuple[RuleFile, ...]:
    """The rules of each Python file: its ``RULE``, or its ``RULES``.

    The files are executed, so they must be trusted.

    Args:
        known: names that are taken.

    Raises UsageError for a missing file, one that holds no rule, a rule that cannot serve and a name that is taken;
    RewriteError where the file's own code raises (naming its line).
    """
    taken = dict.fromkeys(known, "mobilec itself")
    files = []
    for path in paths:
        found = _load(path)
        for rule in found.rules:
            if rule.name in taken:
                raise UsageError(
                    f"{path}: the name {rule.name!r} is taken by a rule of {taken[rule.name]}",
                    hint="give yours another name",
                )
            taken[rule.name] = found.file
        files.append(found)
    return tuple(files)


def _load(path: str | Path) -> RuleFile:
    from mobilec.mobile.python_file import execute, existing_file, runs_from
    from mobilec.passes.rule import Rule

    file = existing_file(path)
    try:
        with runs_from(file.resolve().parent):
            module = execute(file)
    except ModelError as error:
        raise RewriteError(error.message, hint="a rule file is Python", detail=error.detail) from error
    found = {name: getattr(module, name) for name in ("RULE", "RULES") if hasattr(module, name)}
    if len(found) != 1:
        what = "both RULE and RULES" if found else "neither RULE nor RULES"
        raise UsageError(f"{file}: it defines {what}", hint="write RULE = Rule(...), or RULES = (Rule(...), ...)")
    ((name, value),) = found.items()
    rules = (value,) if name == "RULE" else value
    if not isinstance(rules, tuple | list) or not rules or not all(isinstance(rule, Rule) for rule in rules):
        expected = "a mobilec.passes.rule.Rule" if name == "RULE" else "a tuple of them, one at least"
        raise UsageError(f"{file}: {name} is {_kind(value)}, expected {expected}")
    for rule in rules:
        fault = _fault(rule)
        if fault:
            raise UsageError(f"{file}: rule {rule.name!r}: {fault}")
    return RuleFile(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), tuple(rules))


def _kind(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing'}"
    return f"a {type(value).__name__}"


def _fault(rule: Rule) -> str:
    """Why the rule cannot serve, empty if it can: what a type checker would say, and the runner not as clearly."""
    from torch._ops import OpOverload

    if not isinstance(rule.name, str) or not rule.name.isidentifier():
        return "a name is one word of letters, digits and underscores"
    if not isinstance(rule.summary, str) or not rule.summary.strip() or "\n" in rule.summary:
        return "the summary must be one line of text"
    if not isinstance(rule.anchors, tuple):
        return f"anchors is {_kind(rule.anchors)}, expected a tuple of operators"
    for anchor in rule.anchors:
        if not isinstance(anchor, OpOverload):
            return f"anchor {anchor} is no operator, expected one such as torch.ops.aten.mul.Tensor"
    for name in ("match", "rewrite"):
        if not callable(getattr(rule, name)):
            return f"{name} is {_kind(getattr(rule, name))}, expected a function"
    for name in ("budget", "algebra_budget", "output_budget"):
        number = getattr(rule, name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            return f"{name} is {number!r}, expected a finite number of at least 0"
    return "" if isinstance(rule.approximation, str) else "approximation must be a text, empty for an exact rule"
