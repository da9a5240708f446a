"""Running somebody's Python file to get a module out of it, with every failure told in one line."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mobilec.errors import ModelError, UsageError, did_you_mean
from mobilec.mobile.text import first_line, printable


def call_from_file(path: str, name: str, *, num_classes: int | None, seed: int) -> nn.Module:
    """The module called ``name`` in the Python file ``path``, or what the callable of that name returns.

    The file is executed, so it must be trusted. Its folder is importable from then on (first in line while the file
    and the callable run, last afterwards, so that its modules hide no others). What it prints goes to standard error.
    Random numbers start from ``seed`` and leave the global random state alone.

    Args:
        name: a function or class that needs no arguments, or an ``nn.Module`` instance; dots reach into classes.
        num_classes: passed on where it is not None and the callable takes ``num_classes``.

    Raises UsageError for a missing file or name and for arguments that do not fit, ModelError where the file's
    own code raises (naming its line) or what comes back is no ``nn.Module``.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{file}: {'is no file' if file.exists() else 'no such file'}")
    if not name:
        raise UsageError(f"{file}: which callable? expected {path}:callable", hint=_offer(_defined(file), ""))
    with _runs_from(file.resolve().parent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = _find(_execute(file), file, name)
        if isinstance(target, nn.Module):
            if num_classes is not None:
                raise UsageError(f"{file}:{name} is a ready module, num_classes cannot be set")
            return target
        arguments = _arguments(file, name, target, num_classes)
        try:
            result = target(**arguments)
        except (Exception, SystemExit) as error:
            raise _user_error(file, name, error) from error
    if not isinstance(result, nn.Module):
        raise ModelError(f"{file}:{name} returned a {type(result).__name__}, expected a torch.nn.Module")
    return result


@contextlib.contextmanager
def _runs_from(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def _execute(file: Path) -> ModuleType:
    """Run the file as the module that its siblings would import; under another name where that is taken."""
    resolved = str(file.resolve())
    taken = sys.modules.get(file.stem)
    free = taken is None or getattr(taken, "__file__", None) == resolved
    free = free and file.stem not in sys.stdlib_module_names
    name = file.stem if free else f"_mobilec_{file.stem}"
    loader = SourceFileLoader(name, resolved)
    spec = importlib.util.spec_from_file_location(name, resolved, loader=loader)
    assert spec is not None  # a loader was given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled afresh: bytecode kept beside the file can be stale within a second of an edit.
        exec(loader.source_to_code(loader.get_data(resolved), resolved), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise _user_error(file, "", error) from error
    return module


def _find(module: ModuleType, file: Path, name: str) -> Any:
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            raise UsageError(f"{file} has no {name!r}", hint=_offer(_defined(file), name))
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(
            f"{file}:{name} is a {type(target).__name__}, expected a function, a class or a torch.nn.Module"
        )
    return target


def _arguments(file: Path, name: str, target: Any, num_classes: int | None) -> dict[str, Any]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError) as error:
        raise UsageError(f"{file}:{name} cannot be called without arguments as far as can be told: {error}") from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    takes_classes = takes_any or ("num_classes" in parameters and parameters["num_classes"].kind in named)
    if num_classes is not None and not takes_classes:
        raise UsageError(f"{file}:{name} takes no num_classes, so it cannot be set", hint="leave it out")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in variadic and parameter.name not in arguments
    ]
    if needed:
        missing = "give num_classes" if needed == ["num_classes"] else "wrap it in a function that needs none"
        raise UsageError(f"{file}:{name} needs {', '.join(needed)}, expected no required arguments", hint=missing)
    return arguments


def _user_error(file: Path, name: str, error: BaseException) -> ModelError:
    """One line with the deepest place in the user's folder, the traceback as detail."""
    folder = file.resolve().parent
    where = f"{file}"
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{_short(Path(error.filename), file)}:{error.lineno}"
    else:
        places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        theirs = [(at, line) for at, line in places if at.is_relative_to(folder) and "site-packages" not in at.parts]
        if theirs:
            where = f"{_short(theirs[-1][0], file)}:{theirs[-1][1]}"
    kind = type(error).__name__
    reason = printable(error.msg) if isinstance(error, SyntaxError) else first_line(error)
    text = kind if reason == kind else f"{kind}: {reason}"
    detail = "".join(traceback.format_exception(error))
    doing = f"{name}() raised" if name else "importing it raised"
    return ModelError(f"{where}: {doing} {text}", detail=detail)


def _short(path: Path, file: Path) -> Path:
    """``path`` as the user would write it: beside ``file`` as that was given."""
    return file.parent / path.resolve().relative_to(file.resolve().parent) if path.is_absolute() else path


def _defined(file: Path) -> list[str]:
    """Names of the functions and classes at the top of the file, without running it; none if it does not parse."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, OSError):
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _offer(defined: list[str], name: str) -> str:
    return did_you_mean(name, defined, f"it defines {', '.join(defined[:6])}" if defined else "")
