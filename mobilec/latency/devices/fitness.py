"""Whether a device can run an artefact, said before anything is copied to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobilec.latency.devices.survey import Survey

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

# LLVM's names of instruction sets -> Linux's in /proc/cpuinfo, where they differ by more than a dot.
_KERNEL_NAMES = {
    "sse3": "pni",
    "lzcnt": "abm",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "neon": "asimd",
    "fp-armv8": "fp",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "lse": "atomics",
    "rdm": "asimdrdm",
}
_BASIS = {"aarch64": "asimd", "x86_64": "sse2"}  # what every processor of an architecture lists


def own_processor_refusal(options: Mapping[str, Any], survey: Survey) -> str:
    """Why native kernels cannot run on the device; empty if they can. ``options``: the manifest's."""
    if "executable" not in options:
        return "it holds no executable of its own; export it with --to tvm --executable, and --cpu for the device"
    here, wanted = survey.facts.architecture, str(options.get("architecture", ""))
    if wanted != here:
        narrow = " (a 32-bit system, which native kernels are not written for)" if here.startswith("armv") else ""
        return f"it is compiled for {wanted}, the device is {here or 'unknown'}{narrow}; export with --cpu for it"
    if _BASIS.get(here) not in survey.flags:
        return ""  # the kernel does not list them in the usual way: the executable looks itself when it starts
    needed = {name: _KERNEL_NAMES.get(name, name.replace(".", "_")) for name in options.get("instructions", ())}
    missing = sorted(name for name, flag in needed.items() if flag not in survey.flags)
    if missing:
        cpu = options.get("cpu_model", "another CPU")
        return f"it is compiled for {cpu}, and the device has no {', '.join(missing)}; export with --cpu for it"
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
