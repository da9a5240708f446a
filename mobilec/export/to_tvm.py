"""The native writer: one shared library of kernels and weights, compiled for a CPU through TVM.

TVM brings the graph's memory plan, its virtual machine and LLVM; the kernels are ours (`mobilec.export.kernels`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mobilec.errors import ExportError
from mobilec.export.blame import conversion_error
from mobilec.export.linking import check_linker, link_library
from mobilec.export.outputs import tensors_only
from mobilec.export.quiet import quiet
from mobilec.export.request import WriteRequest, Written
from mobilec.export.standalone import EXECUTABLE, write_executable

INSTALL = "pip install 'mobilec[tvm]'"
HOST = "host"


def write(request: WriteRequest) -> Written:
    """Write ``model.so`` and ``kernels.json``, and ``model`` where an executable is wanted.

    Raises ExportError: TVM or what links is not installed, an operator has no kernel (it is named), a type other
    than float32. UsageError: a CPU that LLVM does not know.
    """
    check(request.cpu, request.executable)
    from mobilec.export.kernels.account import account, write_account
    from mobilec.export.kernels.calls import list_calls
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.lowering import lower
    from mobilec.export.kernels.program import build
    from mobilec.export.kernels.tiles import Tiles
    from mobilec.export.tuning import read_choices

    cpu = find_cpu(request.cpu or HOST)
    program = tensors_only(request.program)
    tiles = Tiles(cpu, read_choices(request.tuning, cpu) if request.tuning else None)
    request.progress("choosing kernels")
    with quiet() as log:
        try:
            module = lower(program, cpu, [spec.name for spec in request.inputs], tiles)
            request.progress(f"compiling {len(module.functions) - 1} kernels")
            executable = build(module, cpu)
            write_account(request.folder, account(module, program))
            request.progress("linking")
            with tempfile.TemporaryDirectory(dir=request.scratch) as folder:
                link_library(executable, request.folder / request.model_file, cpu, Path(folder))
            if request.executable:
                request.progress("linking the executable (the first time on a machine, zig prepares for a minute)")
                with tempfile.TemporaryDirectory(dir=request.scratch) as folder:
                    write_executable(executable, list_calls(module), request, cpu, Path(folder))
        except (ExportError, OSError, MemoryError):
            raise
        except Exception as error:  # TVM's errors have no root of their own
            raise conversion_error("TVM", program, error, log.text) from error
    options: dict[str, Any] = {
        "cpu": cpu.name,
        "cpu_model": cpu.model,
        "architecture": cpu.architecture,
        "instructions": list(cpu.features),
    }
    if request.executable:
        options["executable"] = {"file": EXECUTABLE}
    notes: tuple[str, ...] = ()
    if request.tuning:
        options["tuning"] = {"record": request.tuning.name, "kernels": tiles.taken}
        if not tiles.taken:
            notes = (f"{request.tuning.name} holds nothing for these kernels, this CPU and this version.",)
    return Written(options, notes)


def check(cpu: str | None, executable: bool) -> None:
    """Raises ExportError where this machine cannot compile, UsageError for a CPU that LLVM does not know."""
    from importlib.util import find_spec

    if find_spec("tvm") is None:
        raise ExportError("native kernels need the package apache-tvm, which is not installed", hint=INSTALL)
    from mobilec.export.kernels.cpu import find_cpu

    check_linker(find_cpu(cpu or HOST), executable=executable)
