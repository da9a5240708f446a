"""Whether a device can run an artefact, said before anything is copied to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobilec.export.standalone import LINUX_NAMES
from mobilec.latency.devices.survey import Survey

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

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
    needed = {name: LINUX_NAMES.get(name, name) for name in options.get("instructions", ())}
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
