"""What each kernel of a library is for, and how much it computes and moves: for profiles, beside the library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ArtifactError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mobilec.export.kernels.program import Use

FILE = "kernels.json"


@dataclass(frozen=True)
class KernelUse:
    """One call of an inference.

    Attributes:
        kernel: its name in the library. op: PyTorch's operator that it is for. where: path of the module.
        macs: multiply-accumulates that it does for convolutions and products. bytes_moved: what it reads, weights
            included, and writes, each once.
    """

    kernel: str
    op: str
    where: str
    macs: int
    bytes_moved: int


def account(uses: Sequence[Use], program: ExportedProgram) -> tuple[KernelUse, ...]:
    """The kernels of a lowered program in the order of their calls."""
    from mobilec.passes.cost import by_op

    costs = {cost.name: cost for cost in by_op(program)}
    found = []
    for use in uses:
        own = [costs[node] for node in use.nodes if node in costs]
        last = own[-1] if own else costs.get(use.reader)  # what prepares is put down to its reader
        op = "" if last is None else "copy" if not own and last.macs else last.op
        macs = sum(cost.macs for cost in own) if use.macs is None else use.macs
        found.append(KernelUse(use.kernel, op, last.where if last else "", macs, use.bytes_moved))
    return tuple(found)


def write_account(folder: Path, uses: tuple[KernelUse, ...]) -> None:
    rows = ",\n".join(json.dumps(asdict(use)) for use in uses)
    (folder / FILE).write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def read_account(folder: Path) -> tuple[KernelUse, ...]:
    """Raises ArtifactError where the file is missing or damaged."""
    file = folder / FILE
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        uses = tuple(KernelUse(**row) for row in rows)
        kinds = {
            (type(use.kernel), type(use.op), type(use.where), type(use.macs), type(use.bytes_moved)) for use in uses
        }
    except FileNotFoundError:
        raise ArtifactError(f"{file}: no such file", hint="export the model again") from None
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged: {error}", hint="export the model again") from error
    if kinds - {(str, str, str, int, int)}:
        raise ArtifactError(f"{file} is damaged: a row holds values of other types", hint="export the model again")
    return uses
