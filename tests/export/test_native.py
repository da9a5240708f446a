"""Libraries and executables with the model inside: their numbers, kernel by kernel on Arm, and what they answer."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilec.errors import BackendUnavailable
from mobilec.export.artifact import Artifact, integrity_faults, open_artifact
from mobilec.export.compile import compile
from mobilec.export.kernels.breakdown import prepared
from mobilec.export.linking import zig
from mobilec.export.native import EXECUTABLE, executable_of
from mobilec.runtime.load import load, load_reference
from support.artefacts import Lively
from support.native_cases import (
    All,
    cases,
    converse,
    numbers,
    run_executable,
    worst_errors,
    write_executable,
)
from support.tools import need

LIMIT = 1e-5  # of the largest number of an output
AARCH64 = ("cc", "-target", "aarch64-linux-gnu")
# Operators that torch.export does not give for these networks, or that are another name of one that is there.
# Names that others have the kernels of, too.
UNSEEN = {
    "bmm.default", "mm.default", "_softmax.default", "constant_pad_nd.default", "batch_norm.default",
    "max_pool2d_with_indices.default", "full_like.default", "ones_like.default", "new_ones.default",
    "new_zeros.default", "masked_fill.Tensor", "where.ScalarSelf", "isnan.default",
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[All, Path]:
    module = All(cases()).eval()
    return module, write_executable(module, numbers(), "cortex-a76", tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a small model with two inputs and two outputs."""
    qemu = need("qemu-aarch64")
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.linear(x), x.sum(1) + y

    folder = tmp_path_factory.mktemp("small")
    return [qemu, str(write_executable(Two(), [torch.zeros(3, 4), torch.zeros(3)], "aarch64", folder))]


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_every_kernel_gives_the_same_numbers_on_aarch64(everything: tuple[All, Path], threads: int) -> None:
    module, executable = everything
    command = [need("qemu-aarch64"), executable, "--threads", str(threads)]
    found = run_executable(command, numbers(), len(module.cases))
    errors = worst_errors(found, module, numbers())
    wrong = {case.name: error for case, error in zip(module.cases, errors, strict=True) if not error <= LIMIT}
    assert wrong == {}


def test_a_wrong_number_would_be_seen(everything: tuple[All, Path]) -> None:
    module, executable = everything
    found = run_executable([need("qemu-aarch64"), executable], numbers(), len(module.cases))
    changed = [each.copy() for each in found]
    for each in changed:
        each[-1] += 2e-5 * np.abs(each).max()
    assert min(worst_errors(changed, module, numbers())) > LIMIT


def test_the_cases_need_every_kernel() -> None:
    from mobilec.export.kernels import aten

    program = prepared(torch.export.export(All(cases()).eval(), tuple(numbers())))
    used = {node.target for node in program.graph.nodes if node.op == "call_function"}
    known = {*aten._kernels(), *aten._functions()}
    assert {str(target).removeprefix("aten.") for target in known - used} == UNSEEN


def test_a_cpu_that_lacks_instructions_is_told(everything: tuple[All, Path]) -> None:
    command = [need("qemu-aarch64"), "-cpu", "cortex-a57", everything[1]]
    (answer,) = converse(command, ["load"])
    assert answer["error"]["kind"] == "BackendUnavailable"
    assert answer["error"]["message"] == "this CPU has no asimddp, which the kernels use"
    assert once(command)[0] == 1


# --- what it answers ------------------------------------------------------------------------------------------------


def test_a_conversation(small: list[str]) -> None:
    x, y = np.arange(12, dtype="<f4"), np.array([1, 2, 3], "<f4")
    answers = converse(
        [*small, "--threads", "2", "--pin", "0"],
        ["load", "feed 0 48", x.tobytes(), "feed 1 12", y.tobytes(), "run 3 0", "output 1",
         "check 1 12", (x.reshape(3, 4).sum(1) + y + [0, 0.5, 0]).astype("<f4").tobytes(),
         "check 1 12", np.array([np.nan, np.inf, 41], "<f4").tobytes(),
         "state", "run 1 2000000", "state", "ops 4", "memory", "facts"],
    )  # fmt: skip
    assert all(set(answer) == {"ok"} for answer in answers)
    answered = [answer["ok"] for answer in answers]
    loaded, _, _, three, output, half, bad, before, timed, after, ops, memory, facts = answered
    assert loaded["engine"] == "native"
    assert loaded["model"] == 'a "hostile" \\ name \n'
    assert (loaded["threads"], loaded["architecture"], loaded["cpu"]) == (2, "aarch64", "aarch64")
    assert loaded["inputs"][0] == {"name": "input_0", "shape": [3, 4], "dtype": "float32"}
    assert [port["name"] for port in loaded["outputs"]] == ["output_0", "output_1"]
    assert loaded["load_ns"] > 0 < loaded["baseline_rss_bytes"]
    assert len(three["duration_ns"]) == len(three["start_ns"]) == 3
    assert three["start_ns"] == sorted(three["start_ns"])
    assert after["monotonic_ns"] - before["monotonic_ns"] >= 2_000_000
    assert before["monotonic_ns"] < timed["start_ns"][0] <= timed["start_ns"][-1] < after["monotonic_ns"]
    assert output == {"base64": "AADgQAAAwEEAACRC"}  # 7, 24, 41
    assert half == {"max_abs_error": 0.5, "largest": 41, "bad": 0}
    assert bad["bad"] == 2
    assert ops["runs"] == 2
    assert ops["whole_ns"] >= sum(row["time_ns"] for row in ops["ops"]) > 0
    assert any("linear" in row["name"] for row in ops["ops"])
    assert memory["peak_rss_bytes"] > 0
    assert facts["machine"] == "aarch64"
    assert facts["usable_cores"] == len(os.sched_getaffinity(0))
    assert after["available_memory_bytes"] > 0


def test_what_cannot_be_answered_is_one_line_each_and_ends_nothing(small: list[str]) -> None:
    answers = converse(
        small,
        ["", "dance", "run", "run 1 0 0", "run one 0", "feed 0 47", b"x" * 47, "feed 5 10000", b"y" * 10000,
         "check 0 1", b"z", "output 2", "ops 0", "memory"],
    )  # fmt: skip
    assert "ok" in answers.pop()
    messages = [answer["error"]["message"] for answer in answers]
    assert all(answer["error"]["kind"] == "BackendError" for answer in answers)
    assert messages[1] == "unknown command: dance"
    assert messages[5] == "input 0 has 48 bytes, found 47"
    assert messages[6] == "there is no input 5, the model has 2"
    assert messages[7] == "output 0 has 60 bytes, found 1"
    assert messages[8] == "there is no output 2, the model has 2"
    assert converse(small, ["feed 0 48", b"too few"]) == []


def once(command: Sequence[str | Path]) -> tuple[int, dict[str, Any]]:
    """The exit status and the one document of a run that is not a conversation."""
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=300, check=False)
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    return done.returncode, json.loads(done.stdout)


def test_once(small: list[str], tmp_path: Path) -> None:
    x, y = np.ones((3, 4), "<f4"), np.zeros(3, "<f4")
    for name, array in (("x", x), ("y", y), ("sums", x.sum(1)), ("other", x.sum(1) * 1.01), ("short", y[:2])):
        array.tofile(tmp_path / name)
    quick = [*small, "--runs", "5", "--warmup-ms", "1"]
    status, seen = once([*quick, "--per-op", "--output", "--seed", "3"])
    assert status == 0
    assert len(seen["duration_ns"]) == 5
    assert seen["first_run_ns"] > 0 < seen["warmup_runs"]
    assert {"facts", "before", "after", "peak_rss_bytes", "per_op", "base64", "load_ns"} <= seen.keys()
    files = ["--input", tmp_path / "x", "--input", tmp_path / "y", "--check", tmp_path / "first"]
    run_executable(small, [torch.ones(3, 4), torch.zeros(3)], 2)[0].tofile(tmp_path / "first")
    status, seen = once([*quick, *files, "--check", tmp_path / "sums"])
    assert (status, [check["max_abs_error"] for check in seen["checks"]]) == (0, [0, 0])
    assert once([*quick, *files, "--check", tmp_path / "other"])[0] == 3
    assert once([*quick, *files, "--check", tmp_path / "other", "--tolerance", "0.02"])[0] == 0
    for wrong, message in (
        (files[:2], "--input: the model has 2 inputs, found 1 files"),
        ([*files, "--check", tmp_path / "short"], f"{tmp_path}/short: expected exactly 12 bytes of float32"),
        ([*files, "--check", tmp_path / "absent"], "absent cannot be read: No such file or directory"),
        (["--pin", "4000"], "a thread cannot be bound to core 4000"),
    ):
        status, seen = once([*quick, *wrong])
        assert (status, message in seen["error"]["message"]) == (1, True), seen


@pytest.mark.parametrize(
    "arguments",
    [
        "--threads 0",
        "--threads",
        "--threads 1x",
        "--runs -1",
        "--pin 0,,1",
        "--pin x",
        "--seed 1e3",
        "--dance",
        "model",
    ],
)
def test_options_that_mean_nothing(small: list[str], arguments: str) -> None:
    status, seen = once([*small, *arguments.split()])
    assert status == 2
    assert seen["error"]["kind"] == "UsageError"
    assert arguments.split()[0] in seen["error"]["message"]


# --- in an artefact -------------------------------------------------------------------------------------------------


def test_an_artefact_for_another_machine(tmp_path: Path) -> None:
    artefact = compile(Lively(), to="tvm", out=tmp_path / "a", input_size=32, cpu="cortex-a55", executable=True)
    options = artefact.manifest.options
    assert (options["architecture"], options["cpu"], options["executable"]) == (
        "aarch64", "cortex-a55", {"file": EXECUTABLE},
    )  # fmt: skip
    assert executable_of(artefact).read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
    with pytest.raises(BackendUnavailable, match=r"compiled for cortex-a55 \(aarch64\), this machine is"):
        load(artefact)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with load_reference(artefact) as reference:
        wanted = reference.run({"x": x})["output"]
    (found,) = run_executable([need("qemu-aarch64"), executable_of(artefact)], [torch.from_numpy(x)], 1)
    np.testing.assert_allclose(found, wanted.ravel(), atol=1e-5)
    loader = Path(need("/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1"))
    emulator = [need("qemu-aarch64"), "-L", str(loader.parent.parent)]
    found = call_library(emulator, artefact, x, tmp_path, [*zig("it calls the library"), *AARCH64])
    np.testing.assert_allclose(found, wanted.ravel(), atol=1e-5)

    executable_of(artefact).write_bytes(b"something else")
    assert any(EXECUTABLE in fault for fault in integrity_faults(artefact))


def call_library(run: Sequence[str], artefact: Artifact, x: np.ndarray, folder: Path, compiler: Sequence[str]) -> Any:
    """What a program in C gets from the library of an artefact."""
    source = Path(__file__).parents[1] / "support/call_library.c"
    program = folder / "call_library"
    subprocess.run(
        [*compiler, "-std=gnu11", f"-I{artefact.path}", source, "-o", program, "-ldl"], check=True, cwd=folder
    )
    done = subprocess.run(
        [*run, str(program), str(artefact.model_path), "2"], input=x.tobytes(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return np.frombuffer(done.stdout, "<f4")


def test_a_library_is_called_from_c_and_needs_only_a_c_library(tmp_path: Path) -> None:
    artefact = compile(Lively(), to="tvm", out=tmp_path / "a", input_size=32)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    with load(artefact, threads=1) as session:
        wanted = session.run({"x": x})["output"]
    np.testing.assert_array_equal(call_library([], artefact, x, tmp_path, ["gcc"]), wanted.ravel())
    listed = subprocess.run(["objdump", "-p", artefact.model_path], capture_output=True, text=True, check=True).stdout
    needed = [line.split()[1] for line in listed.splitlines() if "NEEDED" in line]
    assert [name for name in needed if not name.startswith(("libc.", "libpthread.", "ld-linux"))] == []


def test_threads_share_out_loops_completely(tmp_path: Path) -> None:
    from mobilec.export.native import _RUNNER, _headers

    sources = [Path(__file__).parents[1] / "support/share_loops.c", _RUNNER / "pool.c"]
    folders = [f"-I{folder}" for folder in (_RUNNER, *_headers())]
    command = ["gcc", "-std=gnu11", "-O2", *folders, *sources, "-o", "share", "-pthread"]
    subprocess.run(command, check=True, cwd=tmp_path)
    done = subprocess.run([tmp_path / "share"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_artefact_without_one(tmp_path: Path) -> None:
    compile(Lively(), to="tvm", out=tmp_path / "a", input_size=32)
    with pytest.raises(BackendUnavailable, match="holds no executable") as caught:
        executable_of(open_artifact(tmp_path / "a"))
    assert "--executable" in caught.value.hint
