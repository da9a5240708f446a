"""The interpreter's session: artefacts, pixels, class labels, flexible shapes, states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mobilec
from mobilec.errors import ArtifactError, UsageError
from mobilec.export.artifact import open_artifact
from mobilec.export.manifest import InputSpec
from mobilec.mobile.preprocessing import Preprocessing, normalise
from mobilec.runtime.load import load, load_reference
from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil_session import MilSession, open_mil
from support.artefacts import Lively, reseal
from support.mlpackages import MODEL, WEIGHTS, convert, ct
from support.zoo import relative_gap


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def picture(size: int = 32, seed: int = 0) -> np.ndarray:
    """[1, 3, size, size] of whole numbers 0..255."""
    return np.random.default_rng(seed).integers(0, 256, (1, 3, size, size)).astype(np.float32)


def _artefact(folder: Path, **options: Any) -> Path:
    network = folder / "net.py"
    network.write_text(
        "import sys\nsys.path.insert(0, " + repr(str(Path(__file__).parents[1])) + ")\n"
        "from support.artefacts import Lively as make\n"
    )
    mobilec.compile(f"{network}:make", to="coreml", out=folder / "out", input_size=32, proof=False, **options)
    return folder / "out"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _artefact(tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue first, pixels in, probabilities out."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "labels.txt").write_text("\n".join(f"digit {n}" for n in range(10)))
    return _artefact(
        folder,
        precision="fp32",
        image_input=True,
        labels=[f"digit {n}" for n in range(10)],
        preprocessing=Preprocessing(color="BGR"),
    )


def test_an_artefact_in_half_precision(half: Path) -> None:
    with load(half, threads=1, interpreter=True) as session, load_reference(half, threads=1) as reference:
        assert isinstance(session, MilSession)
        assert (session.backend, session.threads) == ("mil interpreter", 1)
        assert session.assumption == Numerics().describe()
        manifest = open_artifact(half).manifest
        assert (session.inputs, session.outputs) == (manifest.inputs, manifest.outputs)
        x = noise(1, 3, 32, 32)
        found, wanted = session.run({"x": x}), reference.run({"x": x})
        gap = relative_gap(found["output"], wanted["output"])
        assert 1e-6 < gap < 5e-3  # half precision is really there
    with load(half, threads=1, interpreter=True, numerics=Numerics("fp32")) as exact:
        assert "nothing is rounded" in exact.assumption
        assert relative_gap(exact.run({"x": x})["output"], wanted["output"]) < gap
    with load(half, threads=1, interpreter=True, numerics=Numerics(accumulate="fp16")) as worse:
        assert relative_gap(worse.run({"x": x})["output"], wanted["output"]) > gap / 2


def test_an_artefact_that_was_changed(half: Path, tmp_path: Path) -> None:
    """By one byte of its weights, or cut short, or with another program: the manifest's checksums tell."""
    for place, change in ((WEIGHTS, "flip"), (WEIGHTS, "cut"), (MODEL, "flip")):
        folder = Path(shutil.copytree(half, tmp_path / f"{place.name}-{change}"))
        file = folder / "model.mlpackage" / place
        raw = bytearray(file.read_bytes())
        if change == "cut":
            del raw[-1]
        else:
            raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        with pytest.raises(ArtifactError, match=rf"model\.mlpackage/{place}") as caught:
            load(folder, interpreter=True)
        assert "\n" not in str(caught.value)


def test_a_manifest_of_another_model(half: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half, tmp_path / "copy"))
    (spec,) = open_artifact(folder).manifest.inputs
    reseal(folder, inputs=(InputSpec("x", (1, 3, 48, 48), "float32"),))
    with pytest.raises(ArtifactError, match=r"the manifest says input x float32 \[1, 3, 48, 48\], the file has x"):
        load(folder, interpreter=True)
    reseal(folder, inputs=(spec,), labels=("a", "b"))
    with pytest.raises(ArtifactError, match="its class labels are not those of the manifest"):
        load(folder, interpreter=True)


def test_pixels_and_class_labels(classifier: Path) -> None:
    """Scale and bias are in the file: pixels in, the probabilities of the captured program out."""
    manifest = open_artifact(classifier).manifest
    (spec,) = manifest.inputs
    assert (spec.kind, spec.preprocessing["color"]) == ("image", "BGR")
    x = picture()
    settings = Preprocessing.from_dict(spec.preprocessing)
    with load(classifier, threads=1, interpreter=True) as session, load_reference(classifier, threads=1) as reference:
        found = session.run({"x": x})["probabilities"]
        normal = normalise(x.transpose(0, 2, 3, 1).astype(np.uint8), settings)
        (wanted,) = reference.run({"x": normal}).values()
        assert found.shape == (1, 10)
        np.testing.assert_allclose(found, torch.from_numpy(wanted).softmax(1), atol=2e-6)
        np.testing.assert_allclose(found.sum(), 1, atol=1e-6)
        # pixels are whole numbers within 0..255, as a picture's are
        rough = x + np.random.default_rng(1).uniform(-0.4, 0.4, x.shape).astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": rough})["probabilities"], found)
        beyond = np.where(x > 250, 300.0, x).astype(np.float32)
        clipped = session.run({"x": np.minimum(beyond, 255)})["probabilities"]
        np.testing.assert_array_equal(session.run({"x": beyond})["probabilities"], clipped)


def test_a_bare_package_of_pictures(tmp_path: Path) -> None:
    """Pixels come in RGB, whatever the package wants; class labels may be numbers."""
    packages = {}
    for color in ("RGB", "BGR"):
        packages[color] = convert(
            nn.Sequential(Lively(), nn.Softmax(1)).eval(),
            [torch.zeros(1, 3, 32, 32)],
            tmp_path / f"{color}.mlpackage",
            inputs=[
                ct.ImageType(
                    name="picture",
                    shape=(1, 3, 32, 32),
                    scale=1 / 64,
                    bias=[-1.0, -2.0, -3.0],
                    color_layout=getattr(ct.colorlayout, color),
                )
            ],
            classifier_config=ct.ClassifierConfig(list(range(10)), "digit"),
        )
    x = picture()
    scaled = torch.from_numpy(x) / 64 + torch.tensor([-1.0, -2.0, -3.0]).reshape(3, 1, 1)
    turned = torch.from_numpy(x[:, ::-1].copy()) / 64 + torch.tensor([-1.0, -2.0, -3.0]).reshape(3, 1, 1)
    for color, wanted in (("RGB", scaled), ("BGR", turned)):
        with load(packages[color], threads=1, interpreter=True) as session:
            assert isinstance(session, MilSession)
            assert session.labels == tuple(range(10))
            (spec,), (output,) = session.inputs, session.outputs
            assert (spec.kind, spec.layout, spec.dtype, spec.shape) == ("image", "NCHW", "float32", (1, 3, 32, 32))
            assert (output.name, output.shape, output.meaning) == ("digit_probs", (1, 10), "probabilities")
            found = session.run({"picture": x})["digit_probs"]
        with torch.no_grad():
            np.testing.assert_allclose(found, Lively()(wanted).softmax(1), atol=2e-6)


class Grey(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_grey_pictures(tmp_path: Path) -> None:
    path = convert(
        Grey().eval(),
        [torch.zeros(1, 1, 8, 8)],
        tmp_path / "m.mlpackage",
        inputs=[ct.ImageType(name="x", shape=(1, 1, 8, 8), scale=0.5, bias=1.0, color_layout=ct.colorlayout.GRAYSCALE)],
    )
    with load(path, threads=1, interpreter=True) as session:
        x = picture(8)[:, :1]
        (found,) = session.run({"x": x}).values()
        np.testing.assert_allclose(found, x.mean((2, 3)) / 2 + 1, rtol=1e-6)


class Flexible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


def test_ranges_of_shapes(tmp_path: Path) -> None:
    shape = (ct.RangeDim(1, 4), 3, ct.RangeDim(8, 20), ct.RangeDim(8, 40))
    path = convert(
        (module := Flexible().eval()),
        [torch.zeros(2, 3, 10, 10)],
        tmp_path / "m.mlpackage",
        front_end="trace",
        inputs=[ct.TensorType(name="x", shape=shape)],
        outputs=["y"],
    )
    with load(path, threads=1, interpreter=True) as session:
        assert session.inputs[0].shape == ("x_0", 3, "x_2", "x_3")
        assert session.outputs[0].shape == ("y_0", 4)
        for size in ((1, 3, 8, 8), (4, 3, 20, 33)):
            x = noise(*size)
            with torch.no_grad():
                np.testing.assert_allclose(session.run({"x": x})["y"], module(torch.from_numpy(x)), atol=1e-5)
        with pytest.raises(UsageError, match="input 'x' has 5 at axis 0: the package takes 1 to 4"):
            session.run({"x": noise(5, 3, 8, 8)})
        with pytest.raises(UsageError, match="has 7 at axis 3: the package takes 8 to 40"):
            session.run({"x": noise(1, 3, 8, 7)})


def test_enumerated_shapes(tmp_path: Path) -> None:
    shapes = ct.EnumeratedShapes(shapes=[(1, 3, 8, 8), (1, 3, 12, 16)], default=(1, 3, 12, 16))
    path = convert(
        Flexible().eval(),
        [torch.zeros(1, 3, 12, 16)],
        tmp_path / "m.mlpackage",
        front_end="trace",
        inputs=[ct.TensorType(name="x", shape=shapes)],
    )
    with load(path, threads=1, interpreter=True) as session:
        for size in ((1, 3, 8, 8), (1, 3, 12, 16)):
            session.run({"x": noise(*size)})
        with pytest.raises(
            UsageError, match=r"has shape \[1, 3, 8, 16\]: the package takes \[1, 3, 12, 16\], \[1, 3, 8"
        ):
            session.run({"x": noise(1, 3, 8, 16)})


class Mixed(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[index.long()], (x * 2).argmax(0), x > 0


def test_types_of_inputs_and_outputs(tmp_path: Path) -> None:
    path = convert(
        Mixed().eval(),
        [torch.zeros(5, 3), torch.zeros(2, dtype=torch.int32)],
        tmp_path / "m.mlpackage",
        front_end="trace",
        half=True,
        inputs=[
            ct.TensorType(name="x", shape=(5, 3), dtype=np.float16),
            ct.TensorType(name="index", shape=(2,), dtype=np.int32),
        ],
        outputs=["rows", "best", "positive"],
    )
    x, index = noise(5, 3).astype(np.float16), np.array([4, 0], np.int32)
    with load(path, threads=1, interpreter=True) as session:
        assert [spec.dtype for spec in session.inputs] == ["float16", "int32"]
        found = session.run({"x": x, "index": index})
        for spec in session.outputs:
            assert found[spec.name].dtype == spec.dtype
        np.testing.assert_array_equal(found["rows"], x[[4, 0]])
        np.testing.assert_array_equal(found["best"], x.argmax(0))
        np.testing.assert_array_equal(found["positive"], x > 0)
        with pytest.raises(UsageError, match="overflow to infinity in float16"):
            session.run({"x": np.full((5, 3), 1e5, np.float32), "index": index})


def test_an_optional_input_has_a_default(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    path = convert(
        Sum().eval(),
        [torch.zeros(3), torch.zeros(3)],
        tmp_path / "m.mlpackage",
        front_end="trace",
        inputs=[
            ct.TensorType(name="x", shape=(3,)),
            ct.TensorType(name="y", shape=(3,), default_value=np.full(3, 0.25, np.float32)),
        ],
    )
    with load(path, threads=1, interpreter=True) as session:
        x, y = noise(3), noise(3, seed=1)
        assert next(iter(session.run({"x": x}).values())).tolist() == (x + np.float32(0.25)).tolist()
        assert next(iter(session.run({"x": x, "y": y}).values())).tolist() == (x + y).tolist()


def test_pixels_with_channels_last(tmp_path: Path) -> None:
    """A manifest may state that its image has channels last; the package has them first."""
    path = convert(Lively(), [torch.zeros(1, 3, 32, 32)], tmp_path / "m.mlpackage", outputs=["logits"])
    x = noise(1, 3, 32, 32)
    spec = InputSpec("x", (1, 32, 32, 3), "float32", layout="NHWC")
    (named,) = open_mil(path).outputs
    session = open_mil(path, inputs=[spec], outputs=[named], threads=1)
    found = session.run({"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1))})["logits"]
    np.testing.assert_array_equal(found, open_mil(path, threads=1).run({"x": x})["logits"])


def test_a_state_lives_as_long_as_its_session(tmp_path: Path) -> None:
    class Total(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1, 3, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x)
            return self.seen * 1

    path = convert(
        Total().half().eval(),
        [torch.zeros(1, 3, dtype=torch.float16)],
        tmp_path / "m.mlpackage",
        front_end="trace",
        half=True,
        inputs=[ct.TensorType(name="x", shape=(1, 3), dtype=np.float16)],
        states=[ct.StateType(wrapped_type=ct.TensorType(shape=(1, 3), dtype=np.float16), name="seen")],
        target="iOS18",
    )
    one = {"x": np.ones((1, 3), np.float16)}
    for _ in range(2):  # a new session starts anew
        with load(path, threads=1, interpreter=True) as session:
            assert [spec.name for spec in session.inputs] == ["x"]
            assert [next(iter(session.run(one).values()))[0, 0] for _ in range(3)] == [1, 2, 3]


def test_labels_are_noted_in_the_package(classifier: Path) -> None:
    with load(classifier / "model.mlpackage", threads=1, interpreter=True) as session:
        assert isinstance(session, MilSession)
        assert session.labels == tuple(json.loads(json.dumps([f"digit {n}" for n in range(10)])))
