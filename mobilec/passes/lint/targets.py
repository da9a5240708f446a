"""Facts about targets: which operators a device takes, and within which limits.

The facts themselves are data, ``facts/<target>_<vocabulary>.json``, each limit with its source. A *vocabulary* is a set
of operator names a target is asked in: ``onnx`` (an ONNX file and an execution provider of ONNX Runtime) or ``mil`` (a
Core ML file). Importing this loads nothing heavy.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from mobilec.errors import UsageError, did_you_mean

_SUFFIX = ".json"


@dataclass(frozen=True)
class Limit:
    """Something a target asks of an operator.

    Attributes:
        check: name of the predicate in ``mobilec.passes.lint.limits`` that decides it.
        what: the constraint in a sentence, without a full stop.
        source: where it is written.
        parameters: what the predicate needs beside the operator.
        leaves: whether the operator leaves the accelerator over it; else it stays, but slower or with a doubt.
        certain: False where the sources disagree or say "may".
    """

    check: str
    what: str
    source: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    leaves: bool = True
    certain: bool = True


@dataclass(frozen=True)
class Vocabulary:
    """What a target takes of one vocabulary.

    Attributes:
        target: ``ane``, ``nnapi`` ... name: ``onnx`` or ``mil``.
        summary: who judges, in a line.
        everything: every operator is taken (a CPU); then there are no limits either.
        ops: limits of each operator taken, by its name; ``domain:name`` outside ONNX's own domain.
        general: limits of all operators.
        doubtful: operators that one source names and another does not: counted as leaving, and why.
        shares_memory: what is not taken runs on the same CPU, so that pieces cost nothing.
        layout: order of axes the device works in. precision: number formats it computes in, its best first.
        notes: what else is known, each with its source in brackets.
        source: of the list of operators.
    """

    target: str
    name: str
    summary: str
    everything: bool
    ops: Mapping[str, tuple[Limit, ...]]
    general: tuple[Limit, ...]
    doubtful: Mapping[str, Limit]
    shares_memory: bool
    layout: str
    precision: tuple[str, ...]
    notes: tuple[str, ...]
    source: str

    @property
    def max_rank(self) -> int:
        """Largest number of axes a tensor may have; 0 where there is no such limit."""
        return self._rank(leaves=True)

    @property
    def advised_rank(self) -> int:
        """Largest number of axes a tensor should have; 0 where no fewer are better."""
        return self._rank(leaves=False)

    @property
    def static_shapes(self) -> bool:
        """Whether sizes must be known."""
        return any(limit.check == "static_shapes" for limit in self.general)

    def _rank(self, leaves: bool) -> int:
        ranks = (limit for limit in self.general if limit.check == "max_rank" and limit.leaves == leaves)
        return next((limit.parameters["rank"] for limit in ranks), 0)


def vocabularies() -> tuple[tuple[str, str], ...]:
    """Pairs of target and vocabulary that facts are kept of."""
    folder = resources.files("mobilec.passes.lint") / "facts"
    names = (entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX))
    pairs = (name.rpartition("_") for name in names)
    return tuple(sorted((target, vocabulary) for target, _, vocabulary in pairs))


@functools.cache
def facts(target: str, vocabulary: str) -> Vocabulary:
    """Facts about a target in a vocabulary; UsageError where none are kept."""
    known = vocabularies()
    if (target, vocabulary) not in known:
        targets = sorted({name for name, _ in known})
        if target == "native":
            raise UsageError(
                "nothing to judge for native: its kernels run all operators on the CPU, and none can leave that",
                hint=f"`mobilec export --to tvm` names an operator without a kernel; to judge are {', '.join(targets)}",
            )
        if target not in targets:
            hint = did_you_mean(target, targets, f"there are {', '.join(targets)}")
            raise UsageError(f"no target is called {target!r}", hint=hint)
        offered = " and ".join(name for owner, name in known if owner == target)
        raise UsageError(f"target {target} is not known in {vocabulary!r} operators", hint=f"it is in {offered}")
    file = resources.files("mobilec.passes.lint") / "facts" / f"{target}_{vocabulary}{_SUFFIX}"
    return _vocabulary(json.loads(file.read_text(encoding="utf-8")))


def _vocabulary(data: dict[str, Any]) -> Vocabulary:
    sources: dict[str, str] = data["sources"]

    def source(keys: str) -> str:
        return "; ".join(sources[key] for key in keys.split("+"))

    def limit(entry: dict[str, Any]) -> Limit:
        own = {"check", "what", "source", "leaves", "certain"}
        return Limit(
            check=entry["check"],
            what=entry["what"],
            source=source(entry["source"]),
            parameters={key: value for key, value in entry.items() if key not in own},
            leaves=entry.get("leaves", True),
            certain=entry.get("certain", True),
        )

    return Vocabulary(
        target=data["target"],
        name=data["vocabulary"],
        summary=data["summary"],
        everything=data.get("everything", False),
        ops={op: tuple(map(limit, limits)) for op, limits in data.get("ops", {}).items()},
        general=tuple(map(limit, data.get("general", ()))),
        doubtful={
            op: Limit("doubtful", entry["what"], source(entry["source"]), certain=False)
            for op, entry in data.get("doubtful", {}).items()
        },
        shares_memory=data.get("shares_memory", False),
        layout=data.get("layout", ""),
        precision=tuple(data.get("precision", ())),
        notes=tuple(f"{note['what']} ({source(note['source'])})" for note in data.get("notes", ())),
        source=source(data["source"]),
    )
