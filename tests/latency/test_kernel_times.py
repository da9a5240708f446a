"""Kernels of a library by time and bound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilec.errors import ArtifactError, UsageError
from mobilec.export.kernels.account import FILE, KernelUse, read_account, write_account
from mobilec.latency.kernel_times import aggregate, bounded
from mobilec.runtime.ceiling import Ceiling, measure_ceiling

USES = (
    KernelUse("conv", "conv2d", "stem", macs=8_000_000, bytes_moved=1_000_000),
    KernelUse("add", "add", "", macs=0, bytes_moved=2_000_000),
    KernelUse("conv", "conv2d", "head", macs=4_000_000, bytes_moved=80_000),
)


def run(*times_us: float) -> list[tuple[str, float]]:
    return [(use.kernel, time / 1e6) for use, time in zip(USES, times_us, strict=True)]


def test_rows_are_calls_and_interruptions_of_one_do_not_move_it() -> None:
    table = aggregate([run(100, 10, 50), run(100, 9000, 50), run(104, 14, 50)], USES, Path("x"))
    assert [row.time_us for row in table.ops] == pytest.approx([100, 14, 50])
    assert [(row.name, row.op, row.scope) for row in table.ops] == [
        ("conv", "conv2d", "stem"),
        ("add", "add", ""),
        ("conv", "conv2d", "head"),
    ]
    assert table.sum_us == pytest.approx(164)
    assert table.whole_us == pytest.approx(168)
    assert sum(row.share for row in table.ops) == pytest.approx(1)
    assert table.runs == 3


def test_bounds_by_hand() -> None:
    table = bounded(aggregate([run(100, 10, 50)], USES, Path("x")), Ceiling(1e11, 1e11, 2))
    # 8 M multiply-accumulates at 100 G/s take 80 us, 1 MB at 100 GB/s takes 10 us
    assert [row.bound_us for row in table.ops] == pytest.approx([80, 20, 40])
    assert [row.bound for row in table.ops] == ["compute", "memory", "compute"]
    assert table.ceiling == Ceiling(1e11, 1e11, 2)


def test_a_list_of_other_kernels_is_refused() -> None:
    with pytest.raises(ArtifactError, match="lists other kernels than its library calls"):
        aggregate([run(1, 1, 1)], USES[:2], Path("x"))
    with pytest.raises(ArtifactError, match="lists other kernels"):
        aggregate([run(1, 1, 1)], USES[::-1][:1] + USES[:2], Path("x"))


def test_the_account_comes_back_and_damage_is_told(tmp_path: Path) -> None:
    write_account(tmp_path, USES)
    assert read_account(tmp_path) == USES
    rows = json.loads((tmp_path / FILE).read_text())
    for damaged in ("[", json.dumps(rows[0]), json.dumps([{**rows[0], "macs": "many"}]), json.dumps([{"kernel": "x"}])):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(ArtifactError, match="is damaged"):
            read_account(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        read_account(tmp_path)


def test_what_a_machine_reaches_is_a_rate() -> None:
    found = measure_ceiling(1)
    assert 1e8 < found.macs_per_s < 1e13  # from an emulator to more than any core does
    assert 1e7 < found.bytes_per_s < 1e13
    assert found.threads == 1


def test_a_whole_profile(tmp_path: Path) -> None:
    from torch import nn

    from mobilec.export.compile import compile
    from mobilec.latency.profile import profile

    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 1, bias=False)).eval()
    native = compile(model, to="tvm", out=tmp_path / "native", input_size=16)
    settings = {"num_runs": 2, "min_secs": 0.0, "launches": 1, "warmup_runs": 0, "threads": 1}
    ops = profile(native, roofline=True, **settings).artifacts[0].ops  # type: ignore[arg-type]
    assert ops is not None
    assert ops.ceiling is not None
    macs = {row.scope: row.macs for row in ops.ops if row.macs}
    assert macs == {"0": 16 * 16 * 8 * 27, "2": 16 * 16 * 32}
    moved = {row.scope: row.bytes_moved for row in ops.ops if row.macs}
    assert moved["2"] == 4 * (16 * 16 * (8 + 4) + 32)
    assert all(row.time_us > 0 and row.bound in ("compute", "memory") for row in ops.ops)
    plain = compile(model, to="onnx", out=tmp_path / "onnx", input_size=16)
    with pytest.raises(UsageError, match="a roofline is of native kernels"):
        profile([native, plain], roofline=True, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leave --device out"):
        profile(native, roofline=True, device="ssh:nobody@nowhere")
    with pytest.raises(UsageError, match="which was left out"):
        profile(native, roofline=True, per_op=False)
