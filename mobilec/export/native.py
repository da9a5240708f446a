"""A model as native code: a shared library, or a static executable with the model inside.

Both are made of kernels as TVM compiled them, the weights, a table of calls (``mobilec.export.kernels.calls``) and a
small program in C (``mobilec/export/runner``) that runs the table with threads of its own. Neither needs anything of
ours, or TVM, where it runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import BackendUnavailable, ExportError
from mobilec.export.linking import Parts, link_executable, link_library
from mobilec.passes.evidence import TensorSpec

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.export.kernels.calls import Calls
    from mobilec.export.kernels.cpu import Cpu

EXECUTABLE = "model"
HEADER = "mobilec.h"  # the library's interface in C
_RUNNER = Path(__file__).resolve().parent / "runner"
_SPARE = 64  # bytes behind the weights, so that the last ones end no page
_COMMON = ("model.c", "memory.c", "pool.c", "instructions.c")
_LIBRARY = ("library.c",)
_PROGRAM = ("main.c", "facts.c", "json.c")
# What Linux calls instruction sets, where LLVM calls them otherwise.
LINUX_NAMES = {
    "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "lzcnt": "abm", "bmi": "bmi1", "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16", "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq", "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "neon": "asimd", "fp-armv8": "fp",
    "dotprod": "asimddp", "fullfp16": "asimdhp", "lse": "atomics", "rdm": "asimdrdm",
}  # fmt: skip


def executable_of(artifact: Artifact) -> Path:
    """The executable in an artefact. Raises BackendUnavailable, with what would bring one, where there is none."""
    options = artifact.manifest.options
    if not isinstance(options.get("executable"), dict) or EXECUTABLE not in artifact.manifest.files:
        raise BackendUnavailable(
            f"{artifact.path} holds no executable",
            hint=f"export again with --to tvm --executable --cpu {options.get('cpu', 'NAME')}",
        )
    return artifact.path / EXECUTABLE


@dataclass(frozen=True)
class Model:
    """What is made into native code.

    Attributes:
        compiled: the kernels, as ``mobilec.export.kernels.program.build`` leaves them.
        facts: kept inside an executable.
    """

    compiled: Any
    calls: Calls
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    cpu: Cpu
    facts: Mapping[str, Any]


def write_library(model: Model, file: Path, scratch: Path) -> None:
    """Write a shared library with the interface of ``runner/mobilec.h``.

    Args:
        scratch: an empty folder.

    Raises ExportError where what links is not installed, or cannot.
    """
    # Nothing else is shown: a process may have loaded other libraries with the same names.
    (scratch / "interface.map").write_text("{ global: mobilec_*; local: *; };\n", encoding="ascii")
    link_library(_parts(model, _LIBRARY, scratch), file, model.cpu)


def write_header(folder: Path) -> None:
    shutil.copyfile(_RUNNER / HEADER, folder / HEADER)


def write_executable(model: Model, file: Path, scratch: Path) -> None:
    """Write a static executable. ``scratch``: an empty folder.

    Raises ExportError where zig is not installed or cannot link.
    """
    # Not for the kernels' CPU: the program itself must start on any, to say what is missing.
    link_executable(_parts(model, _PROGRAM, scratch), file, model.cpu)


def _parts(model: Model, own: Sequence[str], folder: Path) -> Parts:
    model.compiled.write_to_file(str(folder / "kernels.o"))
    (folder / "weights.bin").write_bytes(model.calls.weights + bytes(_SPARE))
    (folder / "weights.S").write_text(_WEIGHTS, encoding="ascii")
    (folder / "plan.c").write_text(plan_source(model), encoding="ascii")
    sources = [*(str(_RUNNER / name) for name in (*_COMMON, *own)), "plan.c", "weights.S"]
    return Parts(folder, sources, [str(_RUNNER), *_headers(), "."], ["kernels.o"], "interface.map")


def _headers() -> list[str]:
    from tvm_ffi import libinfo

    return sorted({libinfo.find_include_path(), libinfo.find_dlpack_include_path()})


_WEIGHTS = """\
    .section .rodata.weights, "a", %progbits
    .global weights
    .balign 4096
weights:
    .incbin "weights.bin"
    .section .note.GNU-stack, "", %progbits
"""


def plan_source(model: Model) -> str:
    """The tables of one model in C."""
    calls, cpu = model.calls, model.cpu
    facts = {**model.facts, "cpu": cpu.name, "cpu_model": cpu.model, "architecture": cpu.architecture}
    instructions = [LINUX_NAMES.get(name, name) for name in cpu.features]
    inputs = zip(model.inputs, calls.inputs, strict=True)
    outputs = zip(model.outputs, calls.outputs, strict=True)
    kernels = sorted({call.kernel for call in calls.calls})
    declared = "\n".join(f"int {_symbol(name)}(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);" for name in kernels)
    regions = [
        f"{{{'IN_WEIGHTS' if region.constant else 'IN_ARENA'}, {region.offset}u, {region.elements}}}"
        for region in calls.regions
    ]
    rows: list[str] = []
    arguments: list[str] = []
    for call in calls.calls:
        rows.append(f"{{{quoted(call.kernel)}, {_symbol(call.kernel)}, {len(arguments)}, {len(call.arguments)}}}")
        arguments += [str(region) for region in call.arguments]
    members = json.dumps(facts)[1:-1]
    parts = [
        '#include "runner.h"\n',
        declared,
        _table("Region", "regions", regions),
        _table("Call", "calls", rows),
        _table("uint32_t", "arguments", arguments),
        _table("Port", "inputs", [f"{{{quoted(_port(spec))}, {at}}}" for spec, at in inputs]),
        _table("Port", "outputs", [f"{{{quoted(_port(spec))}, {at}}}" for spec, at in outputs]),
        _table("char *const", "instructions", [*map(quoted, instructions), "NULL"]),
        f"const Model model = {{{quoted(members)}, regions, calls, arguments, inputs, outputs, {len(regions)}, "
        f"{len(rows)}, {len(calls.inputs)}, {len(calls.outputs)}, {calls.arena_bytes}u, "
        f"{len(calls.weights)}u, instructions}};\n",
    ]
    return "\n".join(parts)


def _symbol(kernel: str) -> str:
    if not (kernel.isascii() and kernel.isidentifier()):
        raise ExportError(f"the kernel {kernel!r} has a name that C cannot have")
    return f"__tvm_ffi_{kernel}"


def _port(spec: TensorSpec) -> str:
    return json.dumps({"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype})


def _table(kind: str, name: str, rows: Sequence[str]) -> str:
    body = "".join(f"    {row},\n" for row in rows)
    return f"static const {kind} {name}[] = {{\n{body}}};\n"


def quoted(text: str) -> str:
    """A C string of these bytes, whatever they are."""
    plain = "".join(chr(b) if chr(b).isalnum() and b < 128 else f"\\{b:03o}" for b in text.encode())
    return f'"{plain}"'
