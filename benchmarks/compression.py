"""What fewer bits save and cost: the smallest model of each family, and a trained one on images it has not seen.

    python benchmarks/compression.py [--size 64] [--models PATTERN]
    python benchmarks/compression.py --digits demo-output

The first form exports with random weights and validates every file on the built-in pictures; the second takes the
checkpoint of ``examples/digits.py`` and gives accuracy. Nothing is timed. Exit code 1 where a file does not run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import mobilec
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.mobile.zoo import list_models
from mobilec.runtime.validate import Validation

WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("onnx fp32", {"to": "onnx"}),
    ("onnx int8", {"to": "onnx", "precision": "int8"}),
    ("onnx 8-bit weights", {"to": "onnx", "compress": "int8"}),
    ("coreml fp16", {"to": "coreml"}),
    ("coreml int8", {"to": "coreml", "precision": "int8"}),
    ("coreml 8-bit weights", {"to": "coreml", "compress": "int8"}),
    ("coreml palettize8", {"to": "coreml", "compress": "palettize8"}),
    ("coreml palettize6", {"to": "coreml", "compress": "palettize6"}),
    ("coreml palettize4", {"to": "coreml", "compress": "palettize4"}),
)
ZOO = (1, 4, 6, 7, 8)  # of WAYS, for the first form
IMAGES = 64  # of the training set, to calibrate on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--models", default=None, help="glob over the zoo's names; the smallest of each family without")
    parser.add_argument("--digits", type=Path, help="folder that examples/digits.py wrote")
    given = parser.parse_args()
    if given.digits:
        return digits(given.digits)
    models = list_models(given.models) if given.models else common.SMALLEST
    header = ("model", "way", "file MB", "PSNR worst dB", "same top-1", "estimated dB")
    rows = []
    for name in models:
        for way, options in (WAYS[index] for index in ZOO):
            row = export(name, way, given.size, options)
            if row[3] == "NaN":  # half precision overflows, whatever the weights are stored in
                row = export(name, f"{way}, --keep-fp32 auto", given.size, {**options, "keep_fp32": ("auto",)})
            rows.append(row)
            print(common.markdown(header, rows[-1:]).splitlines()[-1], flush=True)
    print(common.markdown(header, rows))
    return 0


def export(name: str, way: str, size: int, options: dict[str, Any]) -> tuple[str, ...]:
    """One row of the first table."""
    with tempfile.TemporaryDirectory() as scratch:
        artifact = mobilec.compile(name, out=Path(scratch) / "model", input_size=size, proof=False, **options)
        result = mobilec.validate(artifact)
    estimate = artifact.manifest.options["compression"]["estimate"]["psnr_db"]
    return (name, way, megabytes(artifact), *measured(result), f"{estimate:.1f}")


def digits(folder: Path) -> int:
    """Accuracy of the demo's checkpoint on the images held out, in every way, calibrated on images it learnt from."""
    calibration = training_images(folder)
    header = ("way", "file MB", "top-1", "same class as fp32", "PSNR worst dB", "layers left out")
    rows = []
    extra = (
        ("onnx int8, 40 dB", {"to": "onnx", "precision": "int8", "sensitivity": 40}),
        ("coreml int8, 30 dB", {"to": "coreml", "precision": "int8", "sensitivity": 30}),
        ("coreml palettize4, 30 dB", {"to": "coreml", "compress": "palettize4", "sensitivity": 30}),
    )
    for way, options in (*WAYS, *extra):
        with tempfile.TemporaryDirectory() as scratch:
            model = mobilec.create_model("shvit_s1", num_classes=10, checkpoint=folder / "digits.pt")
            compressed = "compress" in options or options.get("precision") == "int8"
            artifact = mobilec.compile(
                model,
                out=Path(scratch) / "model",
                input_size=64,
                preprocessing=Preprocessing(crop_pct=1.0),
                images=calibration if compressed else (),
                proof=False,
                **options,
            )
            result = mobilec.validate(artifact, data=folder / "held-out")
        accuracy = result.accuracy
        assert accuracy is not None
        left = len(artifact.manifest.options.get("compression", {}).get("left_out", ()))
        top1, agreement = accuracy.top1_artefact, accuracy.agreement
        assert top1.value is not None
        assert agreement.value is not None
        psnr, _ = measured(result)
        rows.append((way, megabytes(artifact), f"{top1.value:.2%}", f"{agreement.value:.2%}", psnr, left))
        print(common.markdown(header, rows[-1:]).splitlines()[-1], flush=True)
    print(common.markdown(header, rows))
    return 0


def training_images(folder: Path) -> tuple[Path, ...]:
    """Some of the digits that are not held out, as files."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import digits as example
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    train, _ = train_test_split(source.images, test_size=example.HELD_OUT, stratify=source.target, random_state=0)
    place = folder / "calibration"
    place.mkdir(exist_ok=True)
    for index, grey in enumerate(train[:IMAGES]):
        example.enlarge(grey).save(place / f"{index:03d}.png")
    return tuple(sorted(place.iterdir()))


def measured(result: Validation) -> tuple[str, str]:
    """PSNR of the worst sample, and the share of samples with the reference's top-1 class."""
    passing = result.passing
    infinite = next(gate.value for gate in result.gates if gate.name == "finite")
    level = "NaN" if infinite else "exact" if passing.psnr_db is None else f"{passing.psnr_db:.1f}"
    return level, "" if passing.top1 is None else f"{passing.top1:.0%}"


def megabytes(artifact: mobilec.Artifact) -> str:
    manifest = artifact.manifest
    total = sum(facts["bytes"] for name, facts in manifest.files.items() if name != manifest.reference_file)
    return f"{total / 1e6:.2f}"


if __name__ == "__main__":
    sys.exit(main())
