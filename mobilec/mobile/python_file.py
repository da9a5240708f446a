"""Running somebody's Python file as a module, with every failure told in one line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from mobilec.errors import ModelError, UsageError
from mobilec.mobile.text import first_line, printable


def existing_file(path: str | Path) -> Path:
    """``path`` with the home folder filled in. Raises UsageError where no file is there."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{file}: {'is no file' if file.exists() else 'no such file'}")
    return file


@contextlib.contextmanager
def runs_from(folder: Path) -> Iterator[None]:
    """The folder is importable meanwhile, first in line (afterwards last), and what is printed goes to stderr."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def execute(file: Path) -> ModuleType:
    """Run the file as the module that its siblings would import; under another name where that is taken.

    Whoever calls this has decided that the file may be trusted. Raises ModelError where its code raises.
    """
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
        raise user_error(file, "", error) from error
    return module


def user_error(file: Path, name: str, error: BaseException) -> ModelError:
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
