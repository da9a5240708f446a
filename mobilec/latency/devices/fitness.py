"""Whether a device can run an artefact, said before anything is copied to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mobilec.export.native import LINUX_NAMES
from mobilec.latency.devices.survey import Survey

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

_BASIS = {"aarch64": "asimd", "x86_64": "sse2"}  # what every processor of an architecture lists
_LEVELS = {  # of x86-64 (its psABI): each needs the instructions of those before, too; in LLVM's names
    "x86-64-v2": "sse3 ssse3 sse4.1 sse4.2 popcnt",
    "x86-64-v3": "avx avx2 bmi bmi2 f16c fma lzcnt movbe",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}


def fitting_cpu(architecture: str, flags: Collection[str]) -> str:
    """The ``--cpu`` whose kernels use most of what a processor has; empty where there are none for its architecture.

    ``flags``: its instruction sets, in Linux's names.
    """
    if architecture not in _BASIS:
        return ""
    if architecture != "x86_64":
        return architecture
    found = "x86-64"
    for level, instructions in _LEVELS.items():
        if not {LINUX_NAMES.get(name, name) for name in instructions.split()} <= set(flags):
            break
        found = level
    return found


def own_processor_refusal(options: Mapping[str, Any], survey: Survey) -> str:
    """Why native kernels cannot run on the device; empty if they can. ``options``: the manifest's."""
    here, wanted = survey.facts.architecture, str(options.get("architecture", ""))
    cpu = fitting_cpu(here, survey.flags)
    if not cpu:
        narrow = " (a 32-bit system)" if here.startswith("armv") else ""
        there = f"native kernels are written for {' and '.join(_BASIS)}"
        return f"the device is {here or 'of an unknown architecture'}{narrow}; {there}"
    again = f"repeat its export with --to tvm --executable --cpu {cpu}"
    if "executable" not in options:
        return f"it holds no executable of its own; {again}"
    if wanted != here:
        return f"it is compiled for {wanted}, the device is {here}; {again}"
    if _BASIS.get(here) not in survey.flags:
        return ""  # the kernel does not list them in the usual way: the executable looks itself when it starts
    needed = {name: LINUX_NAMES.get(name, name) for name in options.get("instructions", ())}
    missing = sorted(name for name, flag in needed.items() if flag not in survey.flags)
    if missing:
        meant = options.get("cpu_model", "another CPU")
        return f"it is compiled for {meant}, and the device has no {', '.join(missing)}; {again}"
    return ""


def onnx_refusal(artifact: Artifact, survey: Survey) -> str:
    """Why the device cannot run an ONNX artefact; empty if it can."""
    if not survey.facts.python:
        return "it has no python3; export native kernels instead (--to tvm --executable), which need nothing there"
    missing = [name for name in ("numpy", "onnxruntime") if name not in survey.packages]
    if missing:
        return f"its python3 has no {' and no '.join(missing)}; on the device: pip install {' '.join(missing)}"
    if artifact.manifest.options.get("external_data"):
        return (
            "its weights lie in a second file, which is not copied; models of more than 2 GB run on this machine only"
        )
    return ""
