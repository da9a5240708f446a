"""The digits example on a part of its data: what it writes, and that too low an accuracy is a failure."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "examples" / "digits.py"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole = module.load_digits()
    part = SimpleNamespace(images=whole.images[:100], target=whole.target[:100])
    monkeypatch.setattr(module, "load_digits", lambda: part)
    return module


@pytest.mark.parametrize(("required", "code"), [(1.01, 1), (0.0, 0)])
def test_the_example_writes_its_files_and_judges_itself(
    digits: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    required: float,
    code: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(digits, "REQUIRED_ACCURACY", required)
    monkeypatch.setattr(sys, "argv", ["digits.py", "--out", str(tmp_path / "out"), "--epochs", "1"])
    stale = tmp_path / "out" / "held-out" / "3" / "digit-0099.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    assert digits.main() == code
    shown = capsys.readouterr()
    assert "accuracy on the 25 held-out images" in shown.out
    assert ("error: below the required" in shown.err) is (code == 1)
    assert (tmp_path / "out" / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    assert len(list((tmp_path / "out" / "held-out").glob("*/*.png"))) == 25
    assert not stale.exists()
    assert (tmp_path / "out" / "digits.pt").stat().st_size > 1_000_000
