"""What cannot run on a device is said before anything is copied."""

from __future__ import annotations

from typing import Any

import pytest

from mobilec.export.kernels.cpu import find_cpu
from mobilec.export.native import LINUX_NAMES
from mobilec.latency.devices.fitness import fitting_cpu, onnx_refusal, own_processor_refusal
from mobilec.latency.devices.survey import Survey
from mobilec.latency.samples import MachineFacts

V2 = "pni ssse3 sse4_1 sse4_2 popcnt"
V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = "avx512f avx512bw avx512cd avx512dq avx512vl"


def survey(
    architecture: str = "aarch64", flags: str = "fp asimd asimddp atomics", python: str = "", **packages: str
) -> Survey:
    facts = MachineFacts("", architecture, None, 4, (), None, (), None, "", (), python, {})
    return Survey(facts, frozenset(flags.split()), packages)


def options(architecture: str = "aarch64", *instructions: str, **more: Any) -> dict[str, Any]:
    return {
        "executable": {"file": "model"},
        "architecture": architecture,
        "cpu_model": "cortex-a76",
        "instructions": list(instructions),
        **more,
    }


def test_kernels_for_the_very_processor() -> None:
    assert own_processor_refusal(options("aarch64", "neon", "fp-armv8", "dotprod", "lse"), survey()) == ""


@pytest.mark.parametrize(
    ("wanted", "there", "told"),
    [
        (
            options("x86_64"),
            survey(),
            "it is compiled for x86_64, the device is aarch64; "
            "repeat its export with --to tvm --executable --cpu aarch64",
        ),
        (
            options(),
            survey("x86_64", f"sse2 {V2} {V3}"),
            "it is compiled for aarch64, the device is x86_64; "
            "repeat its export with --to tvm --executable --cpu x86-64-v3",
        ),
        (
            options(),
            survey("armv8l"),
            "the device is armv8l (a 32-bit system); native kernels are written for aarch64 and x86_64",
        ),
        (
            options(),
            survey("riscv64"),
            "the device is riscv64; native kernels are written for aarch64 and x86_64",
        ),
        (
            options(),
            survey(""),
            "the device is of an unknown architecture; native kernels are written for aarch64 and x86_64",
        ),
        (
            options("aarch64", "sve", "neon", "bf16"),
            survey(),
            "it is compiled for cortex-a76, and the device has no bf16, sve; "
            "repeat its export with --to tvm --executable --cpu aarch64",
        ),
        (
            options("x86_64", "avx512vnni", "sse4.1", "avx2"),
            survey("x86_64", "sse2 sse4_1 avx2"),
            "it is compiled for cortex-a76, and the device has no avx512vnni; "
            "repeat its export with --to tvm --executable --cpu x86-64",
        ),
        (
            {"architecture": "aarch64"},
            survey(),
            "it holds no executable of its own; repeat its export with --to tvm --executable --cpu aarch64",
        ),
    ],
)
def test_kernels_that_do_not_fit(wanted: dict[str, Any], there: Survey, told: str) -> None:
    assert own_processor_refusal(wanted, there) == told


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("sse2", "x86-64"),
        (f"sse2 {V2}", "x86-64-v2"),
        (f"sse2 {V3}", "x86-64"),
        (f"sse2 {V2} {V3} avx512f", "x86-64-v3"),
        (f"sse2 {V2} {V3} {V4}", "x86-64-v4"),
    ],
)
def test_the_cpu_that_is_offered_fits(flags: str, name: str) -> None:
    """LLVM knows it, and it needs no instruction that the device lacks."""
    assert fitting_cpu("x86_64", flags.split()) == name
    needed = {LINUX_NAMES.get(each, each) for each in find_cpu(name).features}
    assert needed <= set(flags.split())


def test_a_kernel_that_lists_nothing_is_left_to_the_executable() -> None:
    assert own_processor_refusal(options("aarch64", "sve"), survey(flags="")) == ""


class _Artefact:
    def __init__(self, **options: Any) -> None:
        self.manifest = type("M", (), {"options": options})


@pytest.mark.parametrize(
    ("there", "external", "told"),
    [
        (survey(), False, "it has no python3; export native kernels instead"),
        (survey(python="3.11.2"), False, "its python3 has no numpy and no onnxruntime; on the device: pip install"),
        (survey(python="3.11.2", numpy="2"), False, "its python3 has no onnxruntime;"),
        (survey(python="3.11.2", numpy="2", onnxruntime="1"), True, "its weights lie in a second file"),
        (survey(python="3.11.2", numpy="2", onnxruntime="1"), False, ""),
    ],
)
def test_onnx_models(there: Survey, external: bool, told: str) -> None:
    found = onnx_refusal(_Artefact(external_data=external), there)  # type: ignore[arg-type]
    assert found.startswith(told) if told else found == ""
