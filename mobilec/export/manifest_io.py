"""The manifest as JSON, and back, strictly: what is read has every field with the type the dataclass declares."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from mobilec.errors import ArtifactError
from mobilec.export.manifest import SCHEMA_VERSION, Manifest

_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")  # how mobilec's documents write what JSON has no number for


def manifest_to_json(manifest: Manifest) -> str:
    """Indented JSON in field order, UTF-8 text, newline at the end. Raises ValueError for NaN or infinity."""
    return json.dumps(asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def manifest_from_json(text: str | bytes, where: str) -> Manifest:
    """Read a manifest; ``where`` names the file in errors.

    Raises ArtifactError for broken JSON, a schema this version does not know, missing, unknown or mistyped fields,
    and file names that point outside the folder.
    """
    try:
        data = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise ArtifactError(f"{where}: nested too deeply for a manifest") from error
    except ValueError as error:
        raise ArtifactError(f"{where}: broken JSON ({error})", hint="export the model again") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{where}: found a JSON {type(data).__name__}, expected an object")
    version = data.get("schema_version")
    if type(version) is not int:
        raise ArtifactError(f"{where}: field schema_version is {version!r}, expected a whole number")
    if version != SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "unknown"
        raise ArtifactError(
            f"{where}: schema version {version} is {age}, this mobilec reads version {SCHEMA_VERSION}",
            hint="update mobilec" if version > SCHEMA_VERSION else "export the model again",
        )
    manifest = read_plain(Manifest, data, where, "")
    _check_files(manifest, where)
    return manifest


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def read_plain(kind: Any, value: Any, where: str, path: str, *, lenient: bool = False) -> Any:
    """``value`` from JSON as ``kind`` (dataclass, tuple, dict, union, literal, scalar); ``path`` locates it in errors.

    ``lenient``: as results are read that another version of mobilec wrote. Unknown fields are left out, and the strings
    NaN, Infinity and -Infinity are numbers.

    Raises ArtifactError for fields that are missing, unknown or of another type.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where, path, lenient)
    if origin is tuple:
        if not isinstance(value, list):
            _wrong(where, path, value, "a list")
        item_kind = get_args(kind)[0]
        return tuple(
            read_plain(item_kind, item, where, f"{path}[{index}]", lenient=lenient) for index, item in enumerate(value)
        )
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            _wrong(where, path, value, "an object")
        item_kind = get_args(kind)[1]
        return {
            key: read_plain(item_kind, item, where, f"{path}[{key!r}]", lenient=lenient) for key, item in value.items()
        }
    if origin is Literal:
        if value not in get_args(kind):
            _wrong(where, path, value, " or ".join(map(repr, get_args(kind))))
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        options = [option for option in get_args(kind) if option is not type(None)]
        if len(options) == 1:
            return read_plain(options[0], value, where, path, lenient=lenient)
        if type(value) not in options:
            _wrong(where, path, value, " or ".join(option.__name__ for option in options))
        return value
    if kind is float and (type(value) is int or (lenient and value in _NO_NUMBERS)):
        return float(value)
    if type(value) is not kind:
        _wrong(where, path, value, kind.__name__)
    return value


def _read_dataclass(kind: Any, value: Any, where: str, path: str, lenient: bool) -> Any:
    if not isinstance(value, dict):
        _wrong(where, path, value, "an object")
    known = {entry.name: entry for entry in fields(kind)}
    prefix = f"{path}." if path else ""
    for name, entry in known.items():
        if name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise ArtifactError(f"{where}: field {prefix}{name} is missing", hint="export the model again")
    unknown = sorted(value.keys() - known.keys())
    if unknown and not lenient:
        raise ArtifactError(f"{where}: unknown field {prefix}{unknown[0]}", hint="export the model again")
    hints = _hints(kind)
    return kind(
        **{
            name: read_plain(hints[name], value[name], where, f"{prefix}{name}", lenient=lenient)
            for name in known
            if name in value
        }
    )


def _wrong(where: str, path: str, value: Any, expected: str) -> NoReturn:
    found = type(value).__name__ if isinstance(value, dict | list) else repr(value)[:60]
    raise ArtifactError(f"{where}: field {path} is {found}, expected {expected}", hint="export the model again")


def _check_files(manifest: Manifest, where: str) -> None:
    """Every file stays inside the folder and has a size and a SHA-256."""
    for name in (*manifest.files, manifest.model_file, manifest.reference_file):
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise ArtifactError(f"{where}: file name {name!r} points outside the folder")
    for name, facts in manifest.files.items():
        digest, size = facts.get("sha256"), facts.get("bytes")
        if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise ArtifactError(f"{where}: field files[{name!r}].sha256 is {digest!r}, expected 64 hex digits")
        if type(size) is not int or size < 0:
            raise ArtifactError(f"{where}: field files[{name!r}].bytes is {size!r}, expected a size")
    listed = [PurePosixPath(name) for name in manifest.files]
    for role, name in (("model_file", manifest.model_file), ("reference_file", manifest.reference_file)):
        # A Core ML model is a folder: its files are listed one by one.
        if not any(path == PurePosixPath(name) or PurePosixPath(name) in path.parents for path in listed):
            raise ArtifactError(f"{where}: {role} {name!r} is not among the files")
