"""The native writer: one shared library of kernels and weights, compiled for a CPU through TVM.

TVM brings the graph's memory plan, its virtual machine and LLVM; the kernels are ours (`mobilec.export.kernels`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mobilec.errors import ExportError
from mobilec.export.blame import conversion_error
from mobilec.export.outputs import tensors_only
from mobilec.export.quiet import quiet
from mobilec.export.request import WriteRequest, Written

INSTALL = "pip install 'mobilec[tvm]'"
HOST = "host"


def write(request: WriteRequest) -> Written:
    """Write ``model.so``.

    Raises ExportError: TVM or a C compiler is not installed, an operator has no kernel (it is named), a type other
    than float32. UsageError: a CPU that LLVM does not know.
    """
    check(request.cpu)
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.lowering import lower
    from mobilec.export.kernels.program import build

    cpu = find_cpu(request.cpu or HOST)
    program = tensors_only(request.program)
    request.progress("choosing kernels")
    with quiet() as log:
        try:
            module = lower(program, cpu, [spec.name for spec in request.inputs])
            request.progress(f"compiling {len(module.functions) - 1} kernels")
            executable = build(module, cpu)
            request.progress("linking")
            _link(executable, request.folder / request.model_file, request.scratch)
        except (ExportError, OSError, MemoryError):
            raise
        except Exception as error:  # TVM's errors have no root of their own
            raise conversion_error("TVM", program, error, log.text) from error
    options: dict[str, Any] = {
        "cpu": cpu.name,
        "cpu_model": cpu.model,
        "architecture": cpu.triple.split("-")[0],
        "instructions": list(cpu.features),
    }
    return Written(options)


def check(cpu: str | None) -> None:
    """Raises ExportError where this machine cannot compile, UsageError for a CPU that LLVM does not know."""
    from importlib.util import find_spec

    if find_spec("tvm") is None:
        raise ExportError("native kernels need the package apache-tvm, which is not installed", hint=INSTALL)
    if _linker() is None:
        raise ExportError(
            "native kernels are linked by a C compiler, and none was found",
            hint="install gcc or clang, or name one in the environment variable CXX",
        )
    from mobilec.export.kernels.cpu import find_cpu

    find_cpu(cpu or HOST)


def _linker() -> str | None:
    from tvm.support import cc

    found = cc.get_cc()
    return found if found and shutil.which(found) else None


def _link(executable: Any, file: Path, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        executable.export_library(str(file), workspace_dir=folder)
