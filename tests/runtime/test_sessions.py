"""One contract for every session backend, over the opener table and the two PyTorch ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilec.errors import ArtifactError, BackendError, BackendUnavailable, UsageError
from mobilec.export.artifact import open_artifact
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.load import OPENERS, load, load_reference
from mobilec.runtime.program_session import open_program
from mobilec.runtime.session import Session
from mobilec.runtime.threads import available_threads
from mobilec.runtime.torch_session import open_module, torch_threads
from support.artefacts import Lively, build, image_input, logits, reseal

Open = Callable[..., Session]
BATCH = TensorSpec("x", ("batch", 3, 32, 32), "float32")


@pytest.fixture(params=["onnxruntime", "reference", "torch", "mil interpreter"])
def opener(request: pytest.FixtureRequest, dynamic: Path) -> Open:
    """Opens a session over the lively model with a dynamic batch: ``opener(threads=...)``."""
    package = request.getfixturevalue("package") if request.param == "mil interpreter" else Path()

    def open_it(threads: int | None = None) -> Session:
        if request.param == "onnxruntime":
            return load(dynamic, threads=threads)
        if request.param == "mil interpreter":
            return load(package, threads=threads, interpreter=True)
        if request.param == "reference":
            return load_reference(dynamic, threads=threads)
        return open_module(Lively(), [BATCH], output_names=["logits"], threads=threads)

    return open_it


def pixels(batch: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Lively().double()(torch.from_numpy(x).double()).numpy()


def test_every_backend_of_the_table_is_under_contract() -> None:
    assert set(OPENERS) == {"onnx", "coreml", "coreai", "tvm"}  # coreml itself: below; others: test_*_session


def test_specs_and_numbers(opener: Open) -> None:
    with opener() as session:
        assert session.backend in ("onnxruntime", "reference", "torch", "mil interpreter")
        (x,), (y,) = session.inputs, session.outputs
        assert (x.name, x.dtype, x.shape[1:], type(x.shape[0])) == ("x", "float32", (3, 32, 32), str)
        assert (y.name, y.dtype, y.shape[1:], type(y.shape[0])) == ("logits", "float32", (10,), str)
        for batch in (1, 2, 5):
            found = session.run({"x": pixels(batch)})
            assert list(found) == ["logits"]
            np.testing.assert_allclose(found["logits"], expected(pixels(batch)), atol=1e-5)


def test_outputs_are_fresh_and_inputs_untouched(opener: Open) -> None:
    with opener() as session:
        x = pixels()
        first = session.run({"x": x})["logits"]
        kept = first.copy()
        first[:] = np.nan
        second = session.run({"x": x})["logits"]
        np.testing.assert_array_equal(second, kept)
        assert second.flags.writeable
        np.testing.assert_array_equal(x, pixels())
        x.flags.writeable = False
        session.run({"x": x})


def test_feeds_are_checked(opener: Open) -> None:
    with opener() as session:
        for feeds in ({}, {"y": pixels()}, {"x": pixels(), "y": pixels()}, {"x": pixels()[:, :2]}):
            with pytest.raises(UsageError, match="x float32"):
                session.run(feeds)
        with pytest.raises(UsageError, match="uint8"):
            session.run({"x": np.zeros((1, 3, 32, 32), np.uint8)})
        odd = pixels()[:, ::-1].astype(">f8")
        np.testing.assert_allclose(session.run({"x": odd})["logits"], expected(pixels()[:, ::-1].copy()), atol=1e-5)


def test_closed_session_says_so(opener: Open) -> None:
    session = opener()
    with session:
        session.run({"x": pixels()})
    session.close()
    with pytest.raises(BackendError, match="session is closed"):
        session.run({"x": pixels()})


def test_threads_are_set_and_reported(opener: Open) -> None:
    before = torch.get_num_threads()
    with opener() as session:
        assert session.threads == available_threads()
    with opener(threads=1) as session:
        session.run({"x": pixels()})
        assert session.threads == 1
    assert torch.get_num_threads() == before
    for wrong in (0, -1, 2.0, True, 10**6):
        with pytest.raises(UsageError, match="threads: expected a whole number"):
            opener(threads=wrong)


def test_threads_may_share_a_session(opener: Open) -> None:
    wanted = {seed: expected(pixels(seed=seed)) for seed in range(4)}
    wrong: list[int] = []
    with opener(threads=1) as session:

        def work(seed: int) -> None:
            for _ in range(5):
                found = session.run({"x": pixels(seed=seed)})["logits"]
                if not np.allclose(found, wanted[seed], atol=1e-5):
                    wrong.append(seed)

        _together([lambda seed=seed: work(seed) for seed in wanted])
    assert wrong == []


def test_sessions_with_different_threads_side_by_side(opener: Open) -> None:
    before = torch.get_num_threads()
    failures: list[str] = []
    x, wanted = pixels(), expected(pixels())

    def work(threads: int) -> None:
        with opener(threads=threads) as session:
            for _ in range(5):
                if not np.allclose(session.run({"x": x})["logits"], wanted, atol=1e-5):
                    failures.append(f"{threads} threads")

    _together([lambda: work(1), lambda: work(2)])
    assert failures == []
    assert torch.get_num_threads() == before


def _together(jobs: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_torch_thread_count_is_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        _ = 1 // (torch.get_num_threads() - before - 1)
    assert torch.get_num_threads() == before


def test_load_takes_an_opened_artefact(lively: Path) -> None:
    with load(open_artifact(lively), threads=1) as session:
        assert session.inputs[0].shape == (1, 3, 32, 32)


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": a + b, "same": a}

    program = torch.export.export(Two(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    with open_program(program, input_names=["left", "right"], output_names=["p", "q"], threads=1) as session:
        left, right = np.full((2, 3), 1.0, np.float32), np.full((2, 3), 2.0, np.float32)
        found = session.run({"right": right, "left": left})
        assert found["p"].tolist() == [[3.0] * 3] * 2
        assert found["q"].tolist() == left.tolist()
        found["q"][:] = 9  # an output that is an input must not be the caller's memory
        assert left.max() == 1.0
    with pytest.raises(ArtifactError, match="3 names for the 2 inputs"):
        open_program(program, input_names=["a", "b", "c"])


def test_keyword_nested_and_constant_arguments() -> None:
    class Nested(torch.nn.Module):
        def forward(self, pair: tuple[torch.Tensor, torch.Tensor], flag: bool = True, *, scale: torch.Tensor):  # type: ignore[no-untyped-def]
            first, second = pair
            return (first - second) * scale if flag else first, None

    pair = (torch.ones(2), torch.zeros(2))
    program = torch.export.export(Nested(), (pair, True), {"scale": torch.ones(2)})
    with open_program(program, threads=1) as session:
        names = [spec.name for spec in session.inputs]
        assert len(names) == 3
        assert len(session.outputs) == 1
        values = dict(zip(names, (np.full(2, v, np.float32) for v in (5.0, 3.0, 10.0)), strict=True))
        assert session.run(values)["output"].tolist() == [20.0, 20.0]


def test_module_working_in_place_cannot_reach_the_caller() -> None:
    class InPlace(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(0)

    x = np.ones((1, 2), np.float32)
    with open_module(InPlace().eval(), [TensorSpec("x", (1, 2), "float32")], threads=1) as session:
        assert session.run({"x": x})["output"].tolist() == [[0.0, 0.0]]
    assert x.tolist() == [[1.0, 1.0]]


def test_module_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="training mode"):
        open_module(Lively().train(), [BATCH])


def test_an_exception_inside_the_model_is_one_line() -> None:
    class Raises(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.abs().sum() > 0:
                raise ValueError("first line\nsecond line")
            return x

    spec = TensorSpec("x", (1,), "float32")
    with (
        open_module(Raises().eval(), [spec], threads=1) as session,
        pytest.raises(BackendError, match="first line") as caught,
    ):
        session.run({"x": np.ones(1, np.float32)})
    assert "\n" not in str(caught.value)
    assert "second line" in caught.value.detail


def test_core_ml_itself_is_refused_off_macos(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(BackendUnavailable, match="Core ML exists on macOS only") as caught:
        load(package, interpreter=False)
    assert "`mobilec validate` checks its numbers here" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_coreml_session_over_a_stand_in_engine() -> None:
    from mobilec.runtime.coreml_session import CoreMLSession

    seen = {}

    def predict(values: dict) -> dict:
        seen.update(values)
        return {"logits": np.ones((1, 2), np.float64), "classLabel": "cat"}

    spec = image_input(4, kind="image")
    session = CoreMLSession(predict, inputs=[spec], outputs=[logits(2)])
    found = session.run({"x": np.full((1, 3, 4, 4), 200.0, np.float32)})
    assert found["logits"].dtype == np.float32
    assert list(found) == ["logits"]
    assert (seen["x"].size, seen["x"].mode, seen["x"].getpixel((0, 0))) == ((4, 4), "RGB", (200, 200, 200))
    assert session.threads is None
    colour = np.zeros((1, 3, 4, 4), np.float32)
    colour[:, 0] = 250.0  # blue first
    bgr = image_input(4, kind="image", preprocessing=Preprocessing(color="BGR").to_dict())
    CoreMLSession(predict, inputs=[bgr], outputs=[logits(2)]).run({"x": colour})
    assert seen["x"].getpixel((0, 0)) == (0, 0, 250)
    named = CoreMLSession(
        lambda values: {"logits": {"dog": 0.25, "cat": 0.75}}, inputs=[spec], outputs=[logits(2)], labels=["cat", "dog"]
    )
    assert named.run({"x": np.zeros((1, 3, 4, 4), np.float32)})["logits"].tolist() == [[0.75, 0.25]]
    other = CoreMLSession(
        lambda values: {"logits": {"dog": 0.25, "cow": 0.75}}, inputs=[spec], outputs=[logits(2)], labels=["cat", "dog"]
    )
    with pytest.raises(BackendError, match="differ in the label 'cat'"):
        other.run({"x": np.zeros((1, 3, 4, 4), np.float32)})
    wrong = CoreMLSession(lambda values: {"other": np.ones(2)}, inputs=[spec], outputs=[logits(2)])
    with pytest.raises(BackendError, match="no output 'logits', the package gives other"):
        wrong.run({"x": np.zeros((1, 3, 4, 4), np.float32)})
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": np.zeros((1, 3, 4, 4), np.float32)})


@pytest.mark.parametrize("name", ["model.onnx", "reference.pt2"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing"])
def test_broken_files_are_one_line(copy: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = copy / name
    raw = path.read_bytes()
    path.write_bytes({"truncated": raw[: len(raw) // 2], "empty": b"", "text": b"hello\n" * 50}.get(damage, raw))
    opener = load if name == "model.onnx" else load_reference
    if damage == "missing":
        path.unlink()
    else:
        reseal(copy)
    with pytest.raises(ArtifactError, match=name) as caught:
        opener(copy, threads=1, verify=damage != "missing")
    assert "\n" not in str(caught.value)
    output = capfd.readouterr()
    assert output.out + output.err == ""


def test_an_edited_file_is_refused_unless_told(copy: Path) -> None:
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + b"\x00")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        load(copy)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        load(open_artifact(copy, verify=False))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"inputs": (image_input(48),)}, r"the manifest says input x float32 \[1, 3, 48, 48\], the file has x float32"),
        ({"outputs": (logits(11),)}, r"the manifest says output logits float32 \[1, 11\]"),
        ({"outputs": ()}, r"the file has outputs that the manifest does not name \(logits\)"),
    ],
)
def test_a_manifest_that_does_not_fit_the_model(copy: Path, facts: dict, message: str) -> None:
    reseal(copy, **facts)
    with pytest.raises(ArtifactError, match=message):
        load(copy)


def test_a_backend_without_a_session(copy: Path) -> None:
    reseal(copy, backend="abacus")
    with pytest.raises(UsageError, match="no session for backend 'abacus', known are onnx, coreml"):
        load(copy)


def test_fixed_axes_stay_fixed_beside_a_dynamic_batch(dynamic: Path) -> None:
    with load(dynamic, threads=1) as session, pytest.raises(UsageError, match="32 at axis 2, found 16"):
        session.run({"x": np.zeros((2, 3, 16, 16), np.float32)})


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime itself must not follow a weight file that lies outside the artefact."""
    import onnx
    from onnx import TensorProto

    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    folder = build(tmp_path / "artefact", Lively(), [image_input()], [logits()])
    model = onnx.load(folder / "model.onnx")
    head = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
    head.ClearField("raw_data")
    head.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "16")):
        entry = head.external_data.add()
        entry.key, entry.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load(folder)
