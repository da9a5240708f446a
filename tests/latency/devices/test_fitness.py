"""What cannot run on a device is said before anything is copied."""

from __future__ import annotations

from typing import Any

import pytest

from mobilec.latency.devices.fitness import onnx_refusal, own_processor_refusal
from mobilec.latency.devices.survey import Survey
from mobilec.latency.samples import MachineFacts


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
        (options("x86_64"), survey(), "compiled for x86_64, the device is aarch64; export with --cpu"),
        (options(), survey("armv8l"), "a 32-bit system, which native kernels are not written for"),
        (options(), survey(""), "the device is unknown"),
        (
            options("aarch64", "sve", "neon", "bf16"),
            survey(),
            "compiled for cortex-a76, and the device has no bf16, sve",
        ),
        (
            options("x86_64", "avx512vnni", "sse4.1", "avx2"),
            survey("x86_64", "sse2 sse4_1 avx2"),
            "the device has no avx512vnni;",
        ),
        ({"architecture": "aarch64"}, survey(), "holds no executable of its own; export it with --to tvm --executable"),
    ],
)
def test_kernels_that_do_not_fit(wanted: dict[str, Any], there: Survey, told: str) -> None:
    assert told in own_processor_refusal(wanted, there)


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
