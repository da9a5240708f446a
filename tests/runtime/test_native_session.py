"""Sessions over libraries of native kernels, from export to numbers; and what is refused."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable, ExportError, UsageError
from mobilec.export.artifact import open_artifact
from mobilec.export.compile import compile
from mobilec.export.kernels.cpu import missing_instructions
from mobilec.runtime.load import load
from mobilec.runtime.threads import available_threads
from mobilec.runtime.validate import validate
from support.artefacts import Lively, reseal

Y = "output"
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tvm") / "out"
    compile(Lively(), to="tvm", out=folder, input_size=32)
    return folder


@pytest.fixture
def copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / "copy"))


def expected(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Lively().double()(torch.from_numpy(x).double()).numpy()


def test_numbers_specs_and_feeds(artefact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = X.copy()
    with load(artefact) as session:
        (x,), (y,) = session.inputs, session.outputs
        assert (session.backend, session.threads) == ("native", available_threads())
        assert (x.shape, y.shape) == ((1, 3, 32, 32), (1, 10))
        first = session.run({"x": X})[Y]
        np.testing.assert_allclose(first, expected(X), atol=1e-5)
        kept = first.copy()
        first[:] = np.nan
        np.testing.assert_array_equal(session.run({"x": X})[Y], kept)
        np.testing.assert_array_equal(X, before)
        turned = X[:, ::-1].astype(">f8")
        np.testing.assert_allclose(session.run({"x": turned})[Y], expected(X[:, ::-1].copy()), atol=1e-5)
        for feeds in ({}, {"y": X}, {"x": X[:, :2]}, {"x": X.astype(np.uint8)}, {"x": np.concatenate([X, X])}):
            with pytest.raises(UsageError):
                session.run(feeds)
    with pytest.raises(BackendError, match="session is closed"):
        session.run({"x": X})
    session.close()
    assert capfd.readouterr() == ("", "")


def test_inputs_are_read_where_they_lie(artefact: Path) -> None:
    room = np.zeros(X.size + 64, np.float32)
    with load(artefact) as session:
        wanted = session.run({"x": X})[Y]
        for start in range(17):  # aligned as numbers are, and no further
            moved = room[start : start + X.size].reshape(X.shape)
            moved[:] = X
            moved.setflags(write=False)
            np.testing.assert_array_equal(session.run({"x": moved})[Y], wanted)
            np.testing.assert_array_equal(moved, X)
        odd = np.frombuffer(b"?" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(X.shape)
        np.testing.assert_array_equal(session.run({"x": odd})[Y], wanted)


def test_large_weights_are_kept_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3000)).eval()
    compile(model, to="tvm", out=tmp_path / "out", input_size=32)
    size = (tmp_path / "out" / "model.so").stat().st_size
    with torch.no_grad():
        wanted = model(torch.from_numpy(X)).numpy()
    memory = psutil.Process().memory_info
    before = memory().rss
    with ExitStack() as stack:
        sessions = [stack.enter_context(load(tmp_path / "out", threads=threads)) for threads in (1, 2, 1, 2)]
        for session in sessions:
            np.testing.assert_allclose(session.run({"input": X})[Y], wanted, atol=1e-5)
        assert size > 30e6
        assert memory().rss - before < 1.5 * size
        sessions[0].close()
        np.testing.assert_allclose(sessions[1].run({"input": X})[Y], wanted, atol=1e-5)


def test_threads_are_set_and_reported(artefact: Path) -> None:
    affinity = os.sched_getaffinity(0)
    for threads in (1, 2, 3):
        with load(artefact, threads=threads) as session:
            assert session.threads == threads
            np.testing.assert_allclose(session.run({"x": X})[Y], expected(X), atol=1e-5)
    assert os.sched_getaffinity(0) == affinity
    for wrong in (0, 2.0, True):
        with pytest.raises(UsageError, match="threads: expected a whole number"):
            load(artefact, threads=wrong)


def test_sessions_and_threads_side_by_side(artefact: Path) -> None:
    images = [np.random.default_rng(seed).standard_normal(X.shape).astype(np.float32) for seed in range(3)]
    wanted = [expected(image) for image in images]
    wrong: list[str] = []

    with load(artefact, threads=1) as shared, load(artefact, threads=2) as other:

        def work(at: int) -> None:
            for session in (shared, other) * 4:
                found = session.run({"x": images[at]})[Y]
                if not np.allclose(found, wanted[at], atol=1e-5):
                    wrong.append(session.backend)

        workers = [threading.Thread(target=work, args=(at,)) for at in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


def test_nothing_leaks(artefact: Path) -> None:
    process = psutil.Process()
    with load(artefact, threads=1) as session:
        for _ in range(50):
            session.run({"x": X})
        before = process.memory_info().rss
        for _ in range(1000):
            session.run({"x": X})
        assert process.memory_info().rss - before < 4_000_000  # a leak of one image a run would be 12 MB
    threads = process.num_threads()
    for _ in range(3):
        load(artefact, threads=2, verify=False).close()
    assert process.num_threads() <= threads


def test_kernels_are_named_and_timed(artefact: Path) -> None:
    with load(artefact, threads=1) as session:
        runs = session.kernel_times({"x": X}, 2)  # type: ignore[attr-defined]
        assert [name for name, _ in runs[0]] == [name for name, _ in runs[1]]
        assert any("conv_3x3" in name for name, _ in runs[0])
        assert all(seconds >= 0 for run in runs for _, seconds in run)


def test_tvm_is_not_needed_where_it_runs(artefact: Path) -> None:
    code = f"""
import sys
sys.modules["tvm"] = sys.modules["tvm_ffi"] = None  # importing them fails
import numpy as np
from mobilec.runtime.load import load
with load({str(artefact)!r}, threads=2) as session:
    print(session.run({{"x": np.ones((1, 3, 32, 32), np.float32)}})["output"].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), expected(np.ones_like(X)), atol=1e-5)


def test_zig_links_where_there_is_no_c_compiler(
    artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilec.export.linking._c_compiler", lambda: None)
    compile(Lively(), to="tvm", out=tmp_path / "out", input_size=32)
    with load(artefact, threads=2) as one, load(tmp_path / "out", threads=2) as other:
        np.testing.assert_array_equal(one.run({"x": X})[Y], other.run({"x": X})[Y])


def test_a_session_that_nobody_closes_ends_with_its_last_reference(artefact: Path) -> None:
    process = psutil.Process()
    load(artefact, threads=1)  # libraries that load with the first one
    before = process.num_threads()
    session = load(artefact, threads=4)
    assert process.num_threads() == before + 3
    del session
    gc.collect()
    assert process.num_threads() == before


def test_a_forked_process_may_use_and_close_it(artefact: Path) -> None:
    with load(artefact, threads=3) as session:
        wanted = session.run({"x": X})[Y]
        child = os.fork()
        if not child:
            same = np.array_equal(session.run({"x": X})[Y], wanted)
            session.close()
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(session.run({"x": X})[Y], wanted)


def test_more_threads_than_parts_or_cores(artefact: Path) -> None:
    for threads in (7, 100):
        with load(artefact, threads=threads) as session:
            for _ in range(3):
                np.testing.assert_allclose(session.run({"x": X})[Y], expected(X), atol=1e-5)
    with pytest.raises(UsageError, match="at most 256"):
        load(artefact, threads=300)


def test_it_is_validated_and_a_changed_model_fails(artefact: Path, tmp_path: Path) -> None:
    assert validate(artefact).passed
    other = Lively()
    with torch.no_grad():
        other.head.weight[3] *= 1.02
    compile(other, to="tvm", out=tmp_path / "other", input_size=32)
    shutil.copytree(artefact, tmp_path / "mixed")
    shutil.copy(tmp_path / "other/model.so", tmp_path / "mixed/model.so")
    with pytest.raises(ArtifactError, match=r"model\.so"):
        load(tmp_path / "mixed")
    reseal(tmp_path / "mixed")
    assert not validate(tmp_path / "mixed").passed


def test_the_manifest_says_what_it_was_compiled_for(artefact: Path) -> None:
    options = open_artifact(artefact).manifest.options
    assert options["cpu"] == "host"
    assert options["instructions"] == sorted(options["instructions"])


def test_another_machine_is_told_at_load(copy: Path, tmp_path: Path) -> None:
    reseal(copy, options=dict(open_artifact(copy).manifest.options) | {"architecture": "aarch64"})
    newer = missing_instructions(["amx-int8", "avx512fp16", "avx512vnni"])[0]
    compile(Lively(), to="tvm", out=tmp_path / "newer", input_size=32, cpu=f"x86-64+{newer}")
    for path, message in (
        (copy, r"compiled for .* \(aarch64\), this machine is x86_64"),
        (tmp_path / "newer", f"this machine has no {newer.replace('-', '_')}"),
    ):
        with pytest.raises(BackendUnavailable, match=message) as caught:
            load(path)
        assert "--cpu" in caught.value.hint


def test_a_manifest_of_another_model_is_told(copy: Path) -> None:
    (x,) = open_artifact(copy).manifest.inputs
    reseal(copy, inputs=(replace(x, shape=(1, 3, 64, 64)),))
    with pytest.raises(ArtifactError, match=r"inputs of \[3072\] float32 numbers, the manifest of \[12288\]"):
        load(copy)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing"])
def test_broken_libraries_are_one_line(copy: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = copy / "model.so"
    raw = path.read_bytes()
    path.write_bytes({"truncated": raw[: len(raw) // 2], "empty": b"", "text": b"hello\n" * 50}.get(damage, raw))
    if damage == "missing":
        path.unlink()
    else:
        reseal(copy)
    with pytest.raises(ArtifactError, match=r"model\.so") as caught:
        load(copy, threads=1, verify=damage != "missing")
    assert "\n" not in str(caught.value)
    output = capfd.readouterr()
    assert output.out + output.err == ""


def test_a_library_of_something_else(copy: Path) -> None:
    import ctypes.util

    name = ctypes.util.find_library("m")
    assert name is not None
    library = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "libm" in line
    )
    shutil.copy(library, copy / "model.so")
    reseal(copy)
    with pytest.raises(ArtifactError, match="is no library of native kernels"):
        load(copy)


def test_choices_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown CPU 'pentium9' for x86_64"):
        compile(Lively(), to="tvm", out=tmp_path / "a", input_size=32, cpu="pentium9")
    with pytest.raises(UsageError, match="a CPU is not for ONNX"):
        compile(Lively(), to="onnx", out=tmp_path / "a", input_size=32, cpu="host")
    with pytest.raises(UsageError, match="a dynamic batch is not for native kernels"):
        compile(Lively(), to="tvm", out=tmp_path / "a", input_size=32, dynamic_batch=True)
    with pytest.raises(UsageError, match="an executable is not for ONNX"):
        compile(Lively(), to="onnx", out=tmp_path / "a", input_size=32, executable=True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ziglang" else True)
    for choice, message in (
        ({}, "linked by a C compiler, and none was found"),
        ({"cpu": "cortex-a76"}, r"a library for cortex-a76 \(aarch64\) is linked by zig: the package ziglang is not"),
        ({"executable": True}, "an executable for host is linked by zig: the package ziglang is not installed"),
    ):
        with pytest.raises(ExportError, match=message) as caught:
            compile(Lively(), to="tvm", out=tmp_path / "a", input_size=32, **choice)  # type: ignore[arg-type]
        assert "mobilec[cross]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
