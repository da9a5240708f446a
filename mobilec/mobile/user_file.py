"""Running somebody's Python file to get a module out of it, with every failure told in one line."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mobilec.errors import ModelError, UsageError, did_you_mean
from mobilec.mobile.python_file import execute, existing_file, runs_from, user_error


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
    file = existing_file(path)
    if not name:
        raise UsageError(f"{file}: which callable? expected {path}:callable", hint=_offer(_defined(file), ""))
    with runs_from(file.resolve().parent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = _find(execute(file), file, name)
        if isinstance(target, nn.Module):
            if num_classes is not None:
                raise UsageError(f"{file}:{name} is a ready module, num_classes cannot be set")
            return target
        arguments = _arguments(file, name, target, num_classes)
        try:
            result = target(**arguments)
        except (Exception, SystemExit) as error:
            raise user_error(file, name, error) from error
    if not isinstance(result, nn.Module):
        raise ModelError(f"{file}:{name} returned {type(result).__name__}, expected a torch.nn.Module")
    return result


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


def _defined(file: Path) -> list[str]:
    """Names of the functions and classes at the top of the file, without running it; none if it does not parse."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, OSError):
        return []
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _offer(defined: list[str], name: str) -> str:
    return did_you_mean(name, defined, f"it defines {', '.join(defined[:6])}" if defined else "")
