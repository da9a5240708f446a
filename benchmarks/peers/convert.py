"""Makes the file of one runtime; runs in the environment of that runtime's converter.

    python benchmarks/peers/convert.py KIND MODEL BATCH REFERENCE OUT

``reference`` is first: it writes the weights, two images with PyTorch's outputs, and the plain ONNX export into
``OUT``. All others read that folder, given as ``REFERENCE``, and write their file into ``OUT``. Where a converter
starts from a PyTorch module, it is built from this checkout with the stored weights. The last line is a JSON document;
``{"error": TEXT}`` in it says why there is no file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS, PLAIN, IMAGES, EXPECTED = "weights.pt", "plain.onnx", "images.npy", "expected.npy"
_LONGEST_REASON = 160


def _reference(model: str, batch: int, _: Path, out: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from mobilec.mobile.create import create_model
    from mobilec.mobile.zoo import find_variant
    from mobilec.passes.capture import capture
    from mobilec.passes.cost import measure

    resolution = find_variant(model)[1].resolution
    module = create_model(model).eval()
    torch.save(module.state_dict(), out / WEIGHTS)
    images = _images(batch, resolution)
    np.save(out / IMAGES, images)
    with torch.no_grad():
        np.save(out / EXPECTED, np.stack([module(torch.from_numpy(image)).numpy() for image in images]))
    example = torch.zeros(batch, 3, resolution, resolution)
    plain = torch.onnx.export(module, (example,), dynamo=True, verbose=False)
    assert plain is not None
    plain.save(str(out / PLAIN))
    opset = next(entry.version for entry in plain.model_proto.opset_import if entry.domain == "")
    return {"macs": measure(capture(module, (example,))).macs, "resolution": resolution, "opset": opset}


def _images(batch: int, resolution: int) -> Any:
    """``[2, batch, 3, resolution, resolution]``: noise, and smooth waves with a bright square, other in every image."""
    import numpy as np

    rng = np.random.default_rng(1)
    noise = rng.standard_normal((batch, 3, resolution, resolution))
    line = np.linspace(0, 1, resolution)
    slope = rng.uniform(2, 20, (2, batch, 3, 1, 1))
    smooth = np.sin(slope[0] * line[:, None] + slope[1] * line)
    smooth[..., resolution // 4 : resolution // 2, resolution // 3 : resolution // 2] += 2
    return np.stack([noise, smooth]).astype(np.float32)


def _module(model: str, reference: Path) -> tuple[Any, Any]:
    """The PyTorch module with the stored weights, and one image."""
    import numpy as np
    import torch

    from mobilec.mobile.create import create_model

    module = create_model(model, checkpoint=reference / WEIGHTS).eval()
    return module, torch.from_numpy(np.load(reference / IMAGES)[0])


def _onnx(model: str, _batch: int, reference: Path, out: Path) -> dict[str, Any]:
    return _compiled(model, reference, out, "onnx")


def _native(model: str, _batch: int, reference: Path, out: Path) -> dict[str, Any]:
    return _compiled(model, reference, out, "tvm")


def _compiled(model: str, reference: Path, out: Path, to: str) -> dict[str, Any]:
    from mobilec import compile

    module, image = _module(model, reference)
    # Proofs change nothing in the file, and its outputs are compared before it is timed.
    artifact = compile(module, to=to, out=out / "artefact", input_shapes={"x": tuple(image.shape)}, proof=False)
    return {"approximations": [record.approximation for record in artifact.manifest.passes if record.approximation]}


def _litert(model: str, _batch: int, reference: Path, out: Path) -> dict[str, Any]:
    import litert_torch

    module, image = _module(model, reference)
    litert_torch.convert(module, (image,)).export(str(out / "model.tflite"))
    return {}


def _executorch(model: str, _batch: int, reference: Path, out: Path) -> dict[str, Any]:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module, image = _module(model, reference)
    exported = torch.export.export(module, (image,))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    (out / "model.pte").write_bytes(program.buffer)
    return {}


def _mnn(model: str, _batch: int, reference: Path, out: Path) -> dict[str, Any]:
    from MNN.tools import mnnconvert

    target = out / "model.mnn"
    source = ["--modelFile", str(reference / PLAIN), "--MNNModel", str(target)]
    mnnconvert.convert(["mnnconvert", "-f", "ONNX", *source, "--bizCode", "mobilec"])
    if not target.is_file():
        raise RuntimeError("the converter ended without a file")
    return {}


KINDS: dict[str, Callable[[str, int, Path, Path], dict[str, Any]]] = {
    "reference": _reference,
    "onnx": _onnx,
    "native": _native,
    "litert": _litert,
    "executorch": _executorch,
    "mnn": _mnn,
}


def main() -> None:
    kind, model, batch, reference, out = sys.argv[1:]
    sys.path.append(str(ROOT))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # converters print a lot, in Python and below it
    begun = time.perf_counter()
    try:
        answer = KINDS[kind](model, int(batch), Path(reference), Path(out))
    except Exception as error:  # the benchmark shows it as this runtime's result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        answer = {"error": f"{type(error).__name__}: {lines[0]}"[:_LONGEST_REASON]}
        import traceback

        traceback.print_exc()
    answer["seconds"] = round(time.perf_counter() - begun, 1)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
