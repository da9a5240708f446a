"""What a report is made of: saved results of several commands, told apart by what stands in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilec.errors import DataError
from mobilec.export.lint_model import RuleEffect
from mobilec.export.manifest import Manifest
from mobilec.latency.regression import Regression
from mobilec.latency.samples import ProfileReport
from mobilec.latency.saved import read_as, read_document, read_profile
from mobilec.passes.lint.judge import Finding, LintReport
from mobilec.runtime.bisect import Bisection
from mobilec.runtime.stages import Stages
from mobilec.runtime.validate import Validation, Validations

HINT = "a report takes results of profile, validate, lint, export and info --json, and artefact folders"


@dataclass(frozen=True)
class FoundFixed(Finding):
    """A finding with the rule that does away with it, and why one that could have was refused; empty where none."""

    fixed_by: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Judged(LintReport):
    findings: tuple[FoundFixed, ...]  # type: ignore[assignment]


@dataclass(frozen=True)
class Linted:
    """The document of ``mobilec lint --json``."""

    subject: str
    kind: str
    target: str
    backend: str
    report: Judged
    after: Judged | None
    rules: tuple[RuleEffect, ...]
    clean: bool


@dataclass(frozen=True)
class Made:
    """An artefact: where its manifest was found, and what stands in it."""

    path: str
    manifest: Manifest


@dataclass(frozen=True)
class Results:
    """Everything that was given, by kind, each in the order given. ``sources``: the names, as given."""

    sources: tuple[str, ...]
    profiles: tuple[ProfileReport, ...] = ()
    regressions: tuple[Regression, ...] = ()
    validations: tuple[Validation, ...] = ()
    stages: tuple[Stages, ...] = ()
    bisections: tuple[Bisection, ...] = ()
    lints: tuple[Linted, ...] = ()
    made: tuple[Made, ...] = ()


def read_results(paths: Sequence[Path]) -> Results:
    """Read files and artefact folders. Raises DataError for what is neither, ArtifactError for a broken manifest."""
    found: dict[str, list[Any]] = {}
    for path in paths:
        for kind, value in _read(path):
            found.setdefault(kind, []).append(value)
    return Results(tuple(str(path) for path in paths), **{kind: tuple(values) for kind, values in found.items()})


def _read(path: Path) -> list[tuple[str, Any]]:
    from mobilec.export.manifest import MANIFEST_NAME
    from mobilec.export.manifest_io import manifest_from_json

    if path.is_dir():
        path = path / MANIFEST_NAME
        if not path.is_file():
            raise DataError(f"{path.parent} is a folder without {MANIFEST_NAME}, so it is no artefact", hint=HINT)
    where = str(path)
    document = read_document(path)
    command = document.get("command")
    if command == "profile":
        return _profile(document, where)
    if command == "validate":
        return _validate(document, where)
    if command == "lint":
        return [("lints", read_as(Linted, document, where))]
    if isinstance(document.get("artefact"), dict) and "manifest" in document["artefact"]:
        inner = document["artefact"]
        manifest = read_as(Manifest, inner["manifest"], where)
        return [("made", Made(str(inner.get("path", where)), manifest))]
    if command is None and "schema_version" in document and "passes" in document:
        manifest = manifest_from_json(path.read_bytes(), where)
        return [("made", Made(str(path.parent), manifest))]
    what = f"a result of {command!r}" if isinstance(command, str) else "something else"
    raise DataError(f"{where} cannot go into a report: it is {what}", hint=HINT)


def _profile(document: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("profiles", read_profile(document, where))]
    if not found[0][1].artifacts:
        raise DataError(f"{where} holds no artefact")
    if document.get("against") is not None:
        found.append(("regressions", read_as(Regression, document["against"], where)))
    return found


def _validate(document: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    if "artefacts" in document:
        return [("validations", each) for each in read_as(Validations, document, where).artefacts]
    if "pairs" in document:
        bisection = read_as(Bisection, document, where)
        return [("bisections", bisection), ("stages", bisection.stages)]
    if "failing" in document:
        return [("stages", read_as(Stages, document, where))]
    return [("validations", read_as(Validation, document, where))]
