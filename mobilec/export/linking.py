"""From object files to a library or a program: a C compiler for this machine, zig for every other.

Zig (the package ziglang) brings compilers, linkers and C libraries of all architectures, so that nothing of the target
system has to be here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ExportError

if TYPE_CHECKING:
    from mobilec.export.kernels.cpu import Cpu

INSTALL_ZIG = "pip install 'mobilec[cross]'"
_LAST_WORDS = 4000  # characters of a linker's complaint that are kept


def check_linker(cpu: Cpu, *, executable: bool) -> None:
    """Raises ExportError where nothing here links for ``cpu``."""
    if executable:
        zig(f"an executable for {cpu.name} is linked by zig")
    elif not cpu.is_here:
        zig(f"a library for {cpu.name} ({cpu.architecture}) is linked by zig")
    elif _c_compiler() is None:
        zig("native kernels are linked by a C compiler, and none was found; zig would do", "install gcc or clang, or ")


def link_library(executable: Any, file: Path, cpu: Cpu, scratch: Path) -> None:
    """Write a TVM executable as a shared library. ``scratch``: an empty folder."""
    if cpu.is_here and _c_compiler() is not None:
        executable.export_library(str(file), workspace_dir=str(scratch))
        return

    def link(target: str, objects: Sequence[str], **_: Any) -> None:
        # The objects ask for nothing but what the runtime that loads them has: no library is named.
        places = [str(Path(each).resolve()) for each in (target, *objects)]
        run_zig(["cc", "-target", zig_target(cpu), "-shared", "-nostdlib", "-o", *places], scratch)

    executable.export_library(str(file), fcompile=link, workspace_dir=str(scratch))


def zig_target(cpu: Cpu, environment: str = "gnu") -> str:
    return f"{cpu.architecture}-linux-{environment}"


def zig(why: str, otherwise: str = "") -> list[str]:
    """The command line of zig. Raises ExportError saying ``why`` it is needed where it is not installed."""
    from importlib.util import find_spec

    if find_spec("ziglang") is None:
        raise ExportError(f"{why}: the package ziglang is not installed", hint=f"{otherwise}{INSTALL_ZIG}")
    return [sys.executable, "-m", "ziglang"]


def run_zig(arguments: Sequence[str], scratch: Path) -> None:
    """Run zig in ``scratch``, so that paths are absolute or relative to that.

    What it keeps for next time, C libraries above all, lies where the user keeps such things; zig looks for it by where
    zig itself lies, seen from where it runs, which must therefore never be a folder around it.

    Raises ExportError with zig's first complaint.
    """
    environment: Mapping[str, str] = {**os.environ, "ZIG_LOCAL_CACHE_DIR": "zig"}
    command = [*zig("linking needs zig"), *arguments]
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = done.stderr.strip()
        lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["no reason given"]
        raise ExportError(f"zig cannot link: {lines[0].strip()}", detail=said[-_LAST_WORDS:])


def _c_compiler() -> str | None:
    from tvm.support import cc

    found = cc.get_cc()
    return found if found and shutil.which(found) else None
