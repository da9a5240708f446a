"""Core ML itself, on a Mac: which compute units may run, and where each operator is placed.

Not verified on hardware: the tests run it against recorded answers.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import ArtifactError, BackendUnavailable, UsageError
from mobilec.latency.machine import read_facts, read_state
from mobilec.latency.runner import Job
from mobilec.latency.samples import MachineFacts, MachineState, Placement

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.latency.channel import Channel

# address -> Core ML's own name of the compute units (coremltools.ComputeUnit)
UNITS = {"": "ALL", "all": "ALL", "cpu": "CPU_ONLY", "cpu_gpu": "CPU_AND_GPU", "cpu_ne": "CPU_AND_NE"}
# classes of coremltools.models.compute_device -> what lint and reports call them
_DEVICES = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "ane",
}


class Mac:
    """See ``place.Place``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def facts(self) -> MachineFacts:
        return read_facts()

    def state(self) -> MachineState:
        return read_state()


def check_mac() -> None:
    """Raises BackendUnavailable off macOS."""
    if sys.platform != "darwin":
        raise BackendUnavailable(
            f"Core ML exists on macOS only, this is {sys.platform}",
            hint="copy the artefact to a Mac and run the same command there; `mobilec lint` estimates placement here",
        )


def units_of(address: str) -> str:
    """Core ML's name of what stands behind ``coreml:``. Raises UsageError."""
    if address not in UNITS:
        raise UsageError(
            f"{address!r} are no compute units of Core ML", hint=f"coreml:{'|'.join(name for name in UNITS if name)}"
        )
    return UNITS[address]


def on_mac(address: str, artifacts: Sequence[Artifact], jobs: Sequence[Job]) -> list[Job]:
    """The jobs, for Core ML on this Mac with the compute units that ``address`` names. Raises BackendUnavailable."""
    units = units_of(address)
    check_mac()
    for artifact, job in zip(artifacts, jobs, strict=True):
        if artifact.manifest.backend != "coreml":
            raise BackendUnavailable(
                f"{job.label} is an artefact for {artifact.manifest.backend}, Core ML runs its own",
                hint="export it with --to coreml",
            )
    return [
        dataclasses.replace(job, command=(*job.command, units), placement=partial(_ask_placement, artifact, units))
        for artifact, job in zip(artifacts, jobs, strict=True)
    ]


def _ask_placement(artifact: Artifact, units: str, channel: Channel) -> tuple[Placement, ...]:
    """Read by the measuring process, and put beside what `lint` expects of the Neural Engine."""
    request = {"do": "placement", "path": str(artifact.path), "units": units}
    told = channel.ask(request, stage="while its placement was read")
    found = [Placement(**{**each, "supported": tuple(each["supported"])}) for each in told]
    return beside_lint(found, artifact)


def beside_lint(found: Sequence[Placement], artifact: Artifact) -> tuple[Placement, ...]:
    """``found`` with `lint`'s reason where it expects an operator to leave the Neural Engine."""
    from mobilec.export.lint_model import lint

    expected = {finding.node: finding.constraint for finding in lint(artifact.path, target="ane").left}
    return tuple(dataclasses.replace(each, expected=expected.get(each.name, "")) for each in found)


def read_placement(package: Path, units: str) -> tuple[Placement, ...]:
    """Where Core ML plans to run every operator of a package. Raises BackendUnavailable, ArtifactError."""
    check_mac()
    import coremltools
    from coremltools.models.compute_plan import MLComputePlan

    model = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit[units])
    plan = MLComputePlan.load_from_path(
        path=model.get_compiled_model_path(), compute_units=coremltools.ComputeUnit[units]
    )
    return placements(plan)


def placements(plan: Any) -> tuple[Placement, ...]:
    """A compute plan's answer for every operator of the main function, constants left out.

    Raises ArtifactError where the package is no ML program.
    """
    program = plan.model_structure.program
    if program is None:
        raise ArtifactError("the package is no ML program, so Core ML tells no placement", hint="export it again")
    found = []
    for operation in program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:  # constants are not run
            continue
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        found.append(
            Placement(
                name=operation.outputs[0].name if operation.outputs else "",
                op=operation.operator_name,
                device=_device(usage.preferred_compute_device),
                supported=tuple(_device(each) for each in usage.supported_compute_devices),
                cost=None if cost is None else float(cost.weight),
            )
        )
    return tuple(found)


def _device(device: Any) -> str:
    name = type(device).__name__
    return _DEVICES.get(name, name)
