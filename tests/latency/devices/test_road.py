"""The whole way to devices: real exports, real transports, real programs, outputs compared before times count."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from latency.devices.conftest import Board, Phone

import support
from mobilec.errors import BackendUnavailable, CheckFailed
from mobilec.export.compile import compile
from mobilec.export.kernels.account import read_account
from mobilec.latency.profile import profile
from mobilec.latency.samples import ArtifactProfile
from support.adbd import write_tools
from support.artefacts import Lively, build, image_input, logits
from support.tools import need

QUICK: dict[str, Any] = {"threads": 1, "num_runs": 6, "warmup_runs": 1, "min_secs": 0, "launches": 1}
HERE = {"x86_64": "x86-64-v2", "aarch64": "cortex-a53"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Artefacts of one network: ``onnx``, or native kernels for a CPU; each is written once."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def make(what: str) -> Path:
        if what not in done:
            options: dict[str, Any] = (
                {"to": "onnx"} if what == "onnx" else {"to": "tvm", "cpu": what, "executable": True}
            )
            done[what] = compile(Lively(), out=folder / what, input_size=32, **options).path
        return done[what]

    return make


def is_right(item: ArtifactProfile, engine: str) -> None:
    assert item.engine == engine
    assert item.latency.runs >= 6
    assert item.checked is not None
    assert item.checked.samples == 4
    assert item.checked.max_abs < 1e-4
    assert item.peak_rss_bytes > 0


@pytest.mark.skipif(platform.machine() not in HERE, reason="neither x86-64 nor AArch64")
def test_native_kernels_and_onnx_on_a_board(board: Board, export: Callable[[str], Path]) -> None:
    kernels = export(HERE[platform.machine()])
    report = profile([kernels, export("onnx")], device=board.device, **QUICK)
    native, onnx = report.artifacts
    is_right(native, "native")
    is_right(onnx, "onnxruntime")
    assert native.ops is not None
    used = read_account(kernels)
    assert [(op.name, op.op, op.scope, op.macs, op.bytes_moved) for op in native.ops.ops] == [
        (use.kernel, use.op, use.where, use.macs, use.bytes_moved) for use in used
    ]
    assert {"conv2d", "linear"} <= {op.op for op in native.ops.ops}
    assert all(op.time_us > 0 for op in native.ops.ops)
    assert sum(op.share for op in native.ops.ops) == pytest.approx(1)
    assert report.comparisons[0].candidate == "onnx"
    assert board.left == []


def test_native_kernels_on_a_phone(phone: Phone, export: Callable[[str], Path]) -> None:
    """AArch64, in an emulator: its times mean nothing, its numbers everything."""
    report = profile([export("cortex-a76")], device=phone.device, pin=(0,), **QUICK)
    is_right(report.artifacts[0], "native")
    assert report.machine.architecture == "aarch64"
    assert phone.left == []


def test_native_kernels_on_a_board_of_another_kind(board: Board, tools: Path, export: Callable[[str], Path]) -> None:
    """AArch64 over ssh: what is copied becomes a script that calls the emulator when it is made executable."""
    emulator = need("qemu-aarch64")
    root = Path(support.__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = [{str(root)!r}]; from pathlib import Path; from support.adbd import emulate; "
        f"emulate(Path(sys.argv[1]), {{'aarch64': [{emulator!r}]}})"
    )
    write_tools(
        tools,
        uname="case $1 in -m) echo aarch64;; -s) echo Linux;; *) echo 6.6.31-rpi;; esac",
        chmod=f'/bin/chmod "$@" && case $2 in */model) {sys.executable} -c "{code}" "$2" && /bin/chmod "$@";; esac',
    )
    report = profile([export("cortex-a76")], device=board.device, **QUICK)
    is_right(report.artifacts[0], "native")
    assert report.machine.architecture == "aarch64"
    assert board.left == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the board is this machine")
def test_another_processor_is_refused_before_anything_is_copied(
    board: Board, phone: Phone, export: Callable[[str], Path]
) -> None:
    with pytest.raises(BackendUnavailable, match=r"compiled for aarch64, the device is x86_64; .* --cpu x86-64"):
        profile([export("onnx"), export("cortex-a76")], device=board.device, **QUICK)
    with pytest.raises(BackendUnavailable, match="no Python runs there"):
        profile([export("onnx")], device=phone.device, **QUICK)
    assert phone.daemon.device.pushed == []
    assert board.left == phone.left == []


def test_a_core_that_is_not_there(phone: Phone, export: Callable[[str], Path]) -> None:
    from mobilec.errors import UsageError

    with pytest.raises(UsageError, match="has no core 999 to pin to; there are 0"):
        profile([export("cortex-a76")], device=phone.device, pin=(0, 999), **QUICK)


def test_a_device_that_computes_something_else_is_not_timed(board: Board, tmp_path: Path) -> None:
    spec = [image_input()], [logits()]
    wrong = build(tmp_path / "wrong", Lively(seed=1), *spec, reference=Lively(seed=0))
    stages = []
    with pytest.raises(CheckFailed, match=r"wrong: ssh:.* computes something else than the captured") as caught:
        profile([wrong], device=board.device, progress=lambda stage, *_: stages.append(stage), **QUICK)
    assert "nothing was timed" in caught.value.hint
    assert "measure" not in stages
    assert board.left == []
