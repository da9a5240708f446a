"""Results that were saved earlier, read back as the data they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from mobilec.errors import ArtifactError, DataError
from mobilec.export.manifest_io import read_plain
from mobilec.latency.samples import ProfileReport

MAX_BYTES = 1 << 30  # a million runs are some 50 MB

T = TypeVar("T")


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError for anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is too large for a saved result ({MAX_BYTES >> 30} GiB and more)")
        return parse_document(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def parse_document(text: bytes, where: str) -> dict[str, Any]:
    """As :func:`read_document`; ``where`` names the text in errors."""
    hint = "expected what --save or --json wrote"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no saved result: it is not JSON", hint=hint) from error
    if not isinstance(document, dict):
        raise DataError(f"{where} is no saved result: found a JSON {type(document).__name__}", hint=hint)
    if isinstance(document.get("error"), dict):
        told = str(document["error"].get("message", "")).splitlines() or [""]
        raise DataError(f"{where} holds an error, not a result: {told[0][:200]}", hint="run that command again")
    return document


def read_as(kind: type[T], document: Any, where: str) -> T:
    """A document as the dataclass it was made from; fields this version does not know are left out.

    Raises DataError for fields that are missing or of another type.
    """
    try:
        return read_plain(kind, document, where, "", lenient=True)
    except ArtifactError as error:
        raise DataError(error.message, hint="save the result again with this version of mobilec") from error


def read_profile(document: dict[str, Any], where: str) -> ProfileReport:
    """What ``mobilec profile --save`` wrote. Raises DataError for another command's result, and as :func:`read_as`."""
    if document.get("command") != "profile":
        found = document.get("command")
        what = f"a result of {found!r}" if isinstance(found, str) else "something else"
        raise DataError(f"{where} is no result of `mobilec profile`: it is {what}", hint="name one saved with --save")
    return read_as(ProfileReport, document, where)
