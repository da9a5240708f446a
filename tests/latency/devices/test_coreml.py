"""Core ML's compute units and placement, against recorded answers: no Mac takes part, and nothing here proves one."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mobilec.errors import ArtifactError, BackendUnavailable, UsageError
from mobilec.latency.devices import coreml
from mobilec.latency.devices.coreml import UNITS, beside_lint, on_mac, placements, read_placement, units_of
from mobilec.latency.runner import Job
from mobilec.latency.samples import Placement


class MLCPUComputeDevice:
    pass


class MLGPUComputeDevice:
    pass


class MLNeuralEngineComputeDevice:
    pass


CPU, GPU, ENGINE = MLCPUComputeDevice(), MLGPUComputeDevice(), MLNeuralEngineComputeDevice()


@dataclass
class Named:
    name: str


@dataclass
class Usage:
    preferred_compute_device: Any
    supported_compute_devices: list[Any]


@dataclass
class Cost:
    weight: float


@dataclass
class Operation:
    operator_name: str
    outputs: list[Named]
    usage: Usage | None
    cost: Cost | None = None


@dataclass
class Plan:
    """As coremltools' MLComputePlan answers for a program of these operations."""

    operations: list[Operation] | None
    units: str = ""
    model_structure: Any = field(init=False)

    def __post_init__(self) -> None:
        program = None
        if self.operations is not None:
            block = types.SimpleNamespace(operations=self.operations)
            program = types.SimpleNamespace(functions={"main": types.SimpleNamespace(block=block)})
        self.model_structure = types.SimpleNamespace(program=program)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Operation) -> Usage | None:
        return operation.usage

    def get_estimated_cost_for_mlprogram_operation(self, operation: Operation) -> Cost | None:
        return operation.cost


RECORDED = Plan(
    [
        Operation("const", [Named("w")], None),
        Operation("ios17.conv", [Named("conv_0")], Usage(ENGINE, [CPU, GPU, ENGINE]), Cost(0.75)),
        Operation("ios17.gather", [Named("rolled")], Usage(CPU, [CPU, GPU]), Cost(0.25)),
        Operation("ios17.print", [], Usage(CPU, [CPU])),
    ]
)


def test_placement_of_every_operator_that_runs() -> None:
    assert placements(RECORDED) == (
        Placement("conv_0", "ios17.conv", "ane", ("cpu", "gpu", "ane"), 0.75),
        Placement("rolled", "ios17.gather", "cpu", ("cpu", "gpu"), 0.25),
        Placement("", "ios17.print", "cpu", ("cpu",), None),
    )


def test_what_is_no_ml_program() -> None:
    with pytest.raises(ArtifactError, match="is no ML program"):
        placements(Plan(None))


def test_reading_asks_for_the_wanted_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    class Model:
        def __init__(self, path: str, compute_units: str) -> None:
            asked.append((path, compute_units))

        def get_compiled_model_path(self) -> str:
            return "compiled"

    class MLComputePlan:
        @staticmethod
        def load_from_path(path: str, compute_units: str) -> Plan:
            asked.append((path, compute_units))
            return RECORDED

    fake = types.ModuleType("coremltools")
    fake.ComputeUnit = {name: name for name in UNITS.values()}  # type: ignore[attr-defined]
    fake.models = types.SimpleNamespace(MLModel=Model)  # type: ignore[attr-defined]
    plans = types.ModuleType("coremltools.models.compute_plan")
    plans.MLComputePlan = MLComputePlan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setitem(sys.modules, "coremltools.models", types.ModuleType("coremltools.models"))
    monkeypatch.setitem(sys.modules, "coremltools.models.compute_plan", plans)
    monkeypatch.setattr(coreml, "check_mac", lambda: None)
    found = read_placement(tmp_path, "CPU_AND_NE")
    assert found == placements(RECORDED)
    assert asked == [(str(tmp_path), "CPU_AND_NE"), ("compiled", "CPU_AND_NE")]


def test_lint_stands_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = types.SimpleNamespace(node="rolled", constraint="gather leaves the engine")
    estimate = types.SimpleNamespace(left=(finding,))
    monkeypatch.setattr("mobilec.export.lint_model.lint", lambda path, target: estimate)
    artefact: Any = types.SimpleNamespace(path="x")
    assert [each.expected for each in beside_lint(placements(RECORDED), artefact)] == [
        "",
        "gather leaves the engine",
        "",
    ]


@pytest.mark.parametrize(("address", "units"), UNITS.items())
def test_units(address: str, units: str) -> None:
    assert units_of(address) == units


def test_what_are_no_units() -> None:
    with pytest.raises(UsageError, match="'npu' are no compute units of Core ML") as caught:
        units_of("npu")
    assert caught.value.hint == "coreml:all|cpu|cpu_gpu|cpu_ne"


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_off_macos_it_is_said() -> None:
    with pytest.raises(BackendUnavailable, match="Core ML exists on macOS only"):
        on_mac("all", [], [])


def _artefact(backend: str) -> Any:
    return types.SimpleNamespace(manifest=types.SimpleNamespace(backend=backend), path=Path("x"))


def test_jobs_get_the_units_and_ask_for_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml, "check_mac", lambda: None)
    (job,) = on_mac("cpu", [_artefact("coreml")], [Job("a", "x", ("python", "worker", "root"))])
    assert job.command == ("python", "worker", "root", "CPU_ONLY")
    assert job.placement is not None


def test_other_artefacts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreml, "check_mac", lambda: None)
    with pytest.raises(BackendUnavailable, match="a is an artefact for onnx, Core ML runs its own"):
        on_mac("", [_artefact("onnx")], [Job("a", "x", ())])
