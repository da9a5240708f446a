"""Reading ``reference.pt2`` without trusting it.

``torch.export.load`` runs code from the file in more ways than its warning about pickle says (read in torch
2.13, ``torch/export/pt2_archive/_package.py`` and ``torch/_export/serde/serialize.py``):

1. weights and constants marked ``use_pickle``, opaque constants, and the pre-2.8 layouts are unpickled freely;
   sample inputs are tried with ``weights_only=True`` and, when that fails, again without it;
2. symbolic expressions go through ``sympy.sympify``, which is ``eval``;
3. an operator's name is looked up attribute by attribute from ``torch``, ``operator`` or ``math``, so that
   ``torch.os.system`` is an operator;
4. node and argument names are pasted into the Python source of the graph's ``forward``;
5. ``guards_code`` is executed when the module is built;
6. output structures (``TreeSpec``) may import any module;
7. ``data/aotinductor`` holds shared libraries that are loaded.

An artefact folder is passed from hand to hand, so none of this may happen. The file is read first and refused
unless it holds only what ``torch.export.save`` writes for a plain network: raw tensors, operators of the known
namespaces, identifiers as names, arithmetic as expressions, built-in containers. Guards are dropped: the shapes
they check are checked by ``feeds.check_feeds``.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ArtifactError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LOADING = threading.Lock()  # torch's reader keeps its state in a global

_PLAIN_RECORDS = frozenset({"archive_format", "archive_version", "byteorder", "models/model.json"})
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PAYLOAD = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")

_NAMESPACES = frozenset({"aten", "prims", "quantized_decomposed", "torchvision"})
_HIGHER_ORDER = frozenset(
    {"cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"}
)
_FILE_OPS = frozenset({"aten.from_file", "aten.save"})  # operators that touch the disk
_OPERATOR_NAMES = "abs add and_ eq floordiv ge getitem gt le lt mod mul ne neg not_ or_ pos pow sub truediv"
_OPERATORS = frozenset(_OPERATOR_NAMES.split())
_CONTAINERS = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_NAME_KEYS = frozenset({"name", "as_name"})
_PATH_KEYS = frozenset({"parameter_name", "buffer_name", "tensor_constant_name", "user_input_name"})
# Pasted between quotes into the graph's source: anything but what ends the text or escapes in it.
_PATH = re.compile(r"[^\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SYMPY_NAMES = """
    Symbol Integer Rational Float Add Mul Pow Max Min Mod Abs Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan
    LessThan StrictGreaterThan GreaterThan And Or Not Piecewise ceiling floor true false oo FloorDiv ModularIndexing
    Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv
    TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity
"""
_SYMPY = frozenset(_SYMPY_NAMES.split())
_SYNTAX = (
    *(ast.Expression, ast.keyword, ast.Load, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)


def read_program(path: Path) -> ExportedProgram:
    """The captured program in ``path``, checked before anything of it is run.

    Raises ArtifactError when the file is missing, damaged or holds what could run code.
    """
    import torch

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", hint="export the model again")
    try:
        _check_archive(path)
        with _LOADING, _quiet("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize"):
            program = torch.export.load(path)
    except ArtifactError:
        raise
    except Exception as error:  # zip, JSON, schema and torch's own errors: the file is not what was written
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ArtifactError(
            f"{path} cannot be read as a captured program: {reason}",
            hint="it is damaged, or was written by another torch version: export the model again",
            detail=str(error),
        ) from error
    program._guards_code = []  # never executed, see above
    return program


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """torch logs whole tracebacks before it raises; the error says it in one line."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _check_archive(path: Path) -> None:
    import torch
    from torch.export.pt2_archive import PT2ArchiveReader

    def refuse(what: str) -> ArtifactError:
        return ArtifactError(f"{path} is refused: {what}", hint="a captured program needs nothing of the kind")

    with zipfile.ZipFile(path) as archive:  # torch's pre-2.8 reader, its fallback, looks at these names
        names = archive.namelist()
    if len(set(names)) != len(names) or len({name.split("/")[0] for name in names}) != 1:
        raise refuse("its archive has duplicate entries or more than one root folder")
    with PT2ArchiveReader(str(path)) as reader:
        records = set(reader.get_file_names())
        for record in sorted(records):
            known = record in _PLAIN_RECORDS or record == _SAMPLES or record in _CONFIGS
            if not (known or record.startswith(".data/") or _PAYLOAD.fullmatch(record)):
                raise refuse(f"unexpected entry {record!r}")
        missing = {"models/model.json", _SAMPLES, *_CONFIGS} - records
        if missing:
            raise refuse(f"entry {min(missing)!r} is missing")
        for config in _CONFIGS:
            for name, meta in json.loads(reader.read_string(config))["config"].items():
                if meta["use_pickle"] or f"{config.rsplit('/', 1)[0]}/{meta['path_name']}" not in records:
                    raise refuse(f"tensor {name!r} is not stored as plain numbers")
        try:
            torch.load(io.BytesIO(reader.read_bytes(_SAMPLES)), weights_only=True)
        except Exception as error:
            raise refuse("its sample inputs are more than tensors (a pickle that could run code)") from error
        document = json.loads(reader.read_string("models/model.json"))
    document["guards_code"] = []
    for fault in _faults(document):
        raise refuse(fault)


def _faults(value: Any, key: str = "") -> Iterator[str]:
    """What in a program's JSON could run code, one phrase each."""
    if isinstance(value, dict):
        for inner, item in value.items():
            if inner == "metadata" and isinstance(item, dict) and all(isinstance(text, str) for text in item.values()):
                continue  # stack traces and module paths: kept as text, never run
            yield from _faults(item, inner)
        return
    if isinstance(value, list):
        if key == "forward_arg_names":
            yield from (f"argument name {name!r} is no identifier" for name in value if not name.isidentifier())
        for item in value:
            yield from _faults(item, key)
        return
    if not isinstance(value, str):
        return
    if key in ("target", "as_operator") and not _known_target(value):
        yield f"operator {value!r} is not of a known namespace"
    elif key == "expr_str" and not _is_arithmetic(value):
        yield f"symbolic expression {value[:60]!r} is more than arithmetic"
    elif key in _NAME_KEYS and value and not _is_identifier(value):
        yield f"name {value[:60]!r} is no identifier"
    elif key in _PATH_KEYS and not _PATH.fullmatch(value):
        yield f"tensor name {value[:60]!r} has quotes or control characters"
    elif key in ("in_spec", "out_spec") and value:
        yield from _tree_faults(value, is_input=key == "in_spec")


def _is_identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def _known_target(target: str) -> bool:
    parts = target.split(".")
    if any(not part.isidentifier() or part.startswith("__") for part in parts):
        return False
    match parts:
        case ["_operator", name]:
            return name in _OPERATORS
        case ["math", _]:
            return True
        case ["torch", name]:
            return name.startswith("sym_")
        case ["torch", "ops", "higher_order", name]:
            return name in _HIGHER_ORDER
        case ["torch", "ops", namespace, name, _]:
            return namespace in _NAMESPACES and f"{namespace}.{name}" not in _FILE_OPS
    return False


def _is_arithmetic(text: str) -> bool:
    """Whether an expression is calls of sympy's arithmetic on symbols and numbers, and nothing else."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if "__" in node.id or (id(node) in called and node.id not in _SYMPY):
                return False
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name):
                return False
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not _is_identifier(node.value):
                return False
        elif not isinstance(node, _SYNTAX):
            return False
    return True


def _tree_faults(text: str, *, is_input: bool) -> Iterator[str]:
    """Faults of a serialised container structure: ``[protocol, {type, context, children_spec}]``."""
    try:
        _, root = json.loads(text)
        stack = [root]
        while stack:
            node = stack.pop()
            if node["type"] is not None and node["type"] not in _CONTAINERS:
                yield f"container {node['type']!r} is none of the built-in ones"
            if isinstance(node["context"], str) and "__enum__" in node["context"]:
                yield "a container's keys name a module to import"
            stack += node["children_spec"]
        if is_input and len(root["children_spec"]) == 2:
            keys = json.loads(root["children_spec"][1]["context"] or "[]")  # names of keyword arguments
            yield from (f"argument name {name!r} is no identifier" for name in keys if not name.isidentifier())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"a container structure is malformed ({type(error).__name__})"
