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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import ExportError

if TYPE_CHECKING:
    from mobilec.export.kernels.cpu import Cpu

INSTALL_ZIG = "pip install 'mobilec[cross]'"
_FLAGS = ("-O2", "-std=gnu11", "-fvisibility=hidden")
_ZIG_FLAGS = ("-fno-sanitize=all", "-fno-stack-protector")  # what zig adds would need parts of its runtime
_LAST_WORDS = 4000  # characters of a linker's complaint that are kept


def check_linker(cpu: Cpu, *, executable: bool) -> None:
    """Raises ExportError where nothing here links for ``cpu``."""
    if executable:
        zig(f"an executable for {cpu.name} is linked by zig")
    elif not cpu.is_here:
        zig(f"a library for {cpu.name} ({cpu.architecture}) is linked by zig")
    elif _c_compiler() is None:
        zig("native kernels are linked by a C compiler, and none was found; zig would do", "install gcc or clang, or ")


@dataclass(frozen=True)
class Parts:
    """What is compiled and linked, in a folder of its own, to which names may be relative.

    Attributes:
        sources: in C and assembler. headers: folders. objects: compiled already. interface: a linker's version script
            that names what a library shows.
    """

    folder: Path
    sources: Sequence[str]
    headers: Sequence[str]
    objects: Sequence[str]
    interface: str = ""


def link_library(parts: Parts, file: Path, cpu: Cpu) -> None:
    """Write a shared library.

    One for another machine names no library that it needs, so that any C library may be around it: glibc's, Android's.
    """
    headers = [f"-I{folder}" for folder in parts.headers]
    shared = ["-shared", f"-Wl,--version-script={parts.interface}", "-s", "-o", str(file.resolve())]
    compiler = _c_compiler()
    if cpu.is_here and compiler is not None:
        inputs = [*headers, *parts.sources, *parts.objects]
        _run([compiler, *_FLAGS, "-fPIC", *shared, *inputs, "-pthread"], parts.folder, Path(compiler).name)
        return
    target = ["cc", "-target", zig_target(cpu)]
    own = ["-mno-outline-atomics"] if cpu.architecture == "aarch64" else []  # they are a compiler's own library's
    compiled = [f"{Path(source).stem}.o" for source in parts.sources]
    for source, into in zip(parts.sources, compiled, strict=True):
        run_zig([*target, *_FLAGS, *_ZIG_FLAGS, *own, *headers, "-fPIC", "-c", source, "-o", into], parts.folder)
    run_zig([*target, *shared, "-nostdlib", *compiled, *parts.objects], parts.folder)


def link_executable(parts: Parts, file: Path, cpu: Cpu) -> None:
    """Write a static program, which needs nothing where it runs."""
    command = [
        "cc",
        "-target",
        zig_target(cpu, "musl"),
        *_FLAGS,
        *_ZIG_FLAGS,
        "-static",
        "-s",
        "-o",
        str(file.resolve()),
    ]
    headers = [f"-I{folder}" for folder in parts.headers]
    run_zig([*command, *headers, *parts.sources, *parts.objects], parts.folder)


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
    _run([*zig("linking needs zig"), *arguments], scratch, "zig", {"ZIG_LOCAL_CACHE_DIR": "zig"})


def _run(command: Sequence[str], scratch: Path, name: str, more: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=scratch, env={**os.environ, **(more or {})}, capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip()
        lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["no reason given"]
        raise ExportError(f"{name} cannot link: {lines[0].strip()}", detail=said[-_LAST_WORDS:])


def _c_compiler() -> str | None:
    wanted = (os.environ.get("CC", ""), "gcc", "clang", "cc")
    return next((found for name in wanted if name and (found := shutil.which(name))), None)
