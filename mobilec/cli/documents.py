"""JSON documents as files: checked before the work, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilec import __version__
from mobilec.cli.output import State, jsonable
from mobilec.errors import MobilecError, UsageError
from mobilec.export.whole_file import write_whole


def check_writable(path: Path) -> None:
    """Refuse a place that cannot take the file, before minutes of work are spent. Raises UsageError."""
    parent = path.parent
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected a file to write", hint="name a file, for example result.json")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file", hint="with --json the result goes to standard output")
    if not parent.is_dir():
        raise UsageError(f"{parent} is no folder, so {path.name} cannot be written there", hint="make the folder first")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"no permission to write in {parent}", hint="name another place")


def write_document(path: Path, state: State, document: Mapping[str, Any]) -> None:
    """Write the document as ``--json`` would print it. Raises MobilecError; an old file is then untouched."""
    text = json.dumps(jsonable({"mobilec": __version__, "command": state.command, **document}), allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole. Raises MobilecError; an old one is then untouched."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise MobilecError(
            f"{path} cannot be written: {error.strerror}", hint="the result itself is shown above"
        ) from error
