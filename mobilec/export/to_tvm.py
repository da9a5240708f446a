"""The native writer: one shared library of kernels and weights, compiled for a CPU through TVM.

TVM brings the intermediate language and LLVM; the kernels (`mobilec.export.kernels`), their order and memory, and what
runs them (`mobilec.export.native`) are ours.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mobilec.errors import ExportError
from mobilec.export.blame import conversion_error
from mobilec.export.linking import check_linker
from mobilec.export.native import EXECUTABLE, Model, write_executable, write_header, write_library
from mobilec.export.quiet import aloud, quiet
from mobilec.export.request import WriteRequest, Written

INSTALL = "pip install 'mobilec[tvm]'"
HOST = "host"


def write(request: WriteRequest) -> Written:
    """Write ``model.so``, its ``mobilec.h`` and ``kernels.json``, and ``model`` where an executable is wanted.

    Raises ExportError: TVM or what links is not installed, an operator has no kernel (it is named), a type other
    than float32. UsageError: a CPU that LLVM does not know.
    """
    check(request.cpu, request.executable)
    from mobilec.export.kernels.account import account, write_account
    from mobilec.export.kernels.breakdown import prepared
    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.lowering import lower
    from mobilec.export.kernels.program import build
    from mobilec.export.kernels.tiles import Tiles
    from mobilec.export.tuning import read_choices

    cpu = find_cpu(request.cpu or HOST)
    tiles = Tiles(cpu, read_choices(request.tuning, cpu) if request.tuning else None)
    progress = aloud(request.progress)
    progress("choosing kernels")
    with quiet() as log:
        try:
            program = prepared(request.program)
            lowered = lower(program, cpu, tiles)
            progress(f"compiling {len(lowered.kernels)} kernels")
            compiled = build(lowered.kernels, cpu)
            model = Model(compiled, lowered.calls, request.inputs, request.outputs, cpu, request.facts)
            write_account(request.folder, account(lowered.uses, program))
            write_header(request.folder)
            progress("linking")
            with tempfile.TemporaryDirectory(dir=request.scratch) as folder:
                write_library(model, request.folder / request.model_file, Path(folder))
            if request.executable:
                progress("linking the executable (the first time on a machine, zig prepares for a minute)")
                with tempfile.TemporaryDirectory(dir=request.scratch) as folder:
                    write_executable(model, request.folder / EXECUTABLE, Path(folder))
        except (ExportError, OSError, MemoryError):
            raise
        except Exception as error:  # TVM's errors have no root of their own
            raise conversion_error("TVM", request.program, error, log.text) from error
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
