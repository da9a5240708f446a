"""What a writer is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.export.manifest import InputSpec, OutputSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mobilec.export.compress.palettes import Palette


@dataclass(frozen=True)
class WriteRequest:
    """One rewritten program to be written as a model file.

    Attributes:
        program: inputs and outputs in the order of the specs; parameters in float32.
        folder: the artefact folder in the making. model_file: the file (or package) to write in it.
        scratch: for temporary files; on the same file system.
        inputs / outputs: names, shapes and meanings the file must have. A dynamic axis is called ``batch``.
        precision: one of the writer's. deployment_target: as the user named it, or None for the writer's default.
        labels: class names for backends that store them, or None.
        description: one line for people. facts: what else the file should say of itself.
        progress: told what is being done, in a few words.
        palettes: weights that are tables of few values, by their bytes in the type that is stored.
        keep_fp32: names of nodes of the program that an fp16 file computes in float32.
        cpu: what native kernels are compiled for, as the user named it; None for this machine.
        executable: write a static executable too. tuning: record of measured tiles to use, or None.
        simplify: let the backend's own simplifier run; without, the file is what its converter gave (for a comparison).
    """

    program: ExportedProgram
    folder: Path
    model_file: str
    scratch: Path
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    precision: str
    deployment_target: str | None
    labels: tuple[str, ...] | None
    description: str
    facts: dict[str, str]
    progress: Callable[[str], None]
    simplify: bool = True
    cpu: str | None = None
    executable: bool = False
    tuning: Path | None = None
    keep_fp32: frozenset[str] = frozenset()
    palettes: Mapping[bytes, Palette] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What a writer chose by itself.

    Attributes:
        options: for the manifest's ``options`` (opset, deployment target, simplifier ...); plain data.
        notes: sentences a user should read; empty when there is nothing to say.
    """

    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
