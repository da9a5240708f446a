"""The demo's last word: what was made, whether it is the same, how fast it is.

    python examples/summary.py demo-output

Reads what the commands of the demo saved: `validation.json`, `profile.json` and the manifests of both artefacts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mobilec.export.artifact import Artifact, open_artifact


def size_mb(artifact: Artifact) -> float:
    """Size of the model itself, without the reference and the manifest."""
    files = artifact.manifest.files
    return sum(entry["bytes"] for name, entry in files.items() if name != artifact.manifest.reference_file) / 1e6


def main(folder: Path) -> None:
    validation = json.loads((folder / "validation.json").read_text())
    (timed,) = json.loads((folder / "profile.json").read_text())["artifacts"]
    latency = timed["latency"]
    interval = latency["median_interval"]
    print()
    print("  A network trained on handwritten digits became two files for phones:")
    remarks = {"digits-onnx": "checked and timed here", "digits-coreml": "checked here, timed on Apple devices only"}
    for name, remark in remarks.items():
        artifact = open_artifact(folder / name)
        print(f"    {artifact.model_path}  {size_mb(artifact):.1f} MB, {artifact.manifest.precision}, {remark}")
    margin = f"{interval['confidence']:.0%} interval {interval['low']:.2f} to {interval['high']:.2f}"
    same = "Yes" if validation["passed"] else "NO"
    gaps = [f"{each['backend']} within {each['worst_relative']:.1e}" for each in validation["artefacts"]]
    print(f"  Do they compute the same?  {same}: {', '.join(gaps)} of the top score.")
    pytorch, *files = validation["standings"]
    print(f"  Are they as accurate?  Of {pytorch['images']} images they have never seen, the right class for")
    for name, line in (("PyTorch", pytorch), *((f"{line['engine']}, {line['precision']}", line) for line in files)):
        print(f"    {line['top1']['value']:7.2%}  {name}")
    print(f"  How fast is it here?  {latency['median_ms']:.2f} ms an image ({margin}), {timed['threads']} threads.")
    print()
    print("  Next, with a network of your own:  mobilec export path/to/file.py:callable --to onnx --input-size 224")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
