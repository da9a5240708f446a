"""Extra memory of validating several artefacts of one model at once.

    python benchmarks/parity_memory.py [--model shvit_s1] [--images 500] [--size 224] [--folder DIR]

Exports the model to ONNX and Core ML (into DIR, where they are kept and found again), draws images, and validates both
artefacts against their reference over all of them: PyTorch, ONNX Runtime and the Core ML interpreter in one process.
That process is fresh. Its memory is read from the kernel at three points:

    imports     after everything that validating imports, before any file is opened
    sessions    after all three sessions are loaded and have run on the built-in pictures
    validated   after the pass over the images

Extra memory is the peak at the end minus what was resident after the imports: sessions, weights and everything that
the pass needed count. Exits 3 when it exceeds the limit.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

from common import machine, markdown, run_self

LIMIT_MIB = 600
CLASSES = 10


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _measure(data: str, artefacts: list[str], threads: int) -> None:
    import coremltools  # noqa: F401  its protobuf classes
    import numpy as np
    import onnxruntime  # noqa: F401
    import torch
    import torch.export
    from PIL import Image  # noqa: F401

    import mobilec.runtime.mil_session
    import mobilec.runtime.program_session  # noqa: F401
    from mobilec.runtime.validate import validate_all

    torch.ones(8, 8).matmul(torch.ones(8, 8))
    np.ones(8).astype(np.float16)
    facts = {"imports": resident_mib()}

    def progress(done: int, total: int) -> None:
        facts.setdefault("sessions", peak_mib())

    found = validate_all(artefacts, data=data, threads=threads, progress=progress)
    facts["validated"] = peak_mib()
    facts["images"] = found.standings[0].images
    facts["passed"] = float(found.passed)
    print(json.dumps(facts))


def _export(model: str, to: str, folder: Path, size: int) -> Path:
    from mobilec import compile

    out = folder / f"{model}-{to}-{size}"
    if not out.exists():
        compile(model, to=to, out=out, input_size=size, num_classes=CLASSES, proof=False)
    return out


def _draw(folder: Path, count: int) -> Path:
    """``count`` different JPEG files of 320 x 256, one folder a class."""
    import numpy as np
    from PIL import Image

    from mobilec.mobile.images import probe_images

    probes = [pixels for _, pixels in probe_images((256, 320))]
    random = np.random.default_rng(0)
    for index in range(count):
        path = folder / str(index % CLASSES) / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = random.uniform(0.5, 1.0, 3)
        pixels = np.roll(probes[index % len(probes)], int(random.integers(0, 256)), axis=index % 2) * shade
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shvit_s1")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps the artefacts")
    parser.add_argument("--measure", nargs="+", metavar="PATH", help="one measurement, printed as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        data, *artefacts = arguments.measure
        _measure(data, artefacts, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        artefacts = [str(_export(arguments.model, to, folder, arguments.size)) for to in ("onnx", "coreml")]
        data = _draw(Path(scratch) / "data", arguments.images)
        found = run_self(__file__, "--threads", str(arguments.threads), "--measure", str(data), *artefacts)
    extra = found["validated"] - found["imports"]
    rows = [
        ("after the imports", f"{found['imports']:.0f}"),
        ("peak with three sessions that have run", f"{found['sessions']:.0f}"),
        (f"peak after {found['images']} images", f"{found['validated']:.0f}"),
        ("extra", f"{extra:.0f}"),
    ]
    print(f"{machine()}\n\n{markdown((arguments.model, 'MiB'), rows)}")
    if extra > LIMIT_MIB or found["images"] != arguments.images:
        print(f"\nFAILED: {extra:.0f} MiB over {found['images']} images, at most {LIMIT_MIB} over {arguments.images}")
        sys.exit(3)


if __name__ == "__main__":
    main()
