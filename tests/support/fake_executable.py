"""A program that speaks as the static executables do, and goes wrong where a test wants. Pushed in their place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mobilec.export.artifact import Artifact, describe_files
from mobilec.export.kernels.account import KernelUse, write_account
from mobilec.export.manifest import MANIFEST_NAME, InputSpec, Manifest, OutputSpec
from mobilec.export.manifest_io import manifest_to_json

PROGRAM = """#!{python}
import base64, json, os, signal, sys, time

FACTS = {facts!r}
runs = 0


def answer(**ok):
    print(json.dumps({{"ok": ok}}), flush=True)


def fail():
    fault = FACTS["fault"]
    if fault == "hang":
        time.sleep(3600)
    if fault == "nonsense":
        print("Segmentation fault; rm -rf / \\x1b[31m", flush=True)
        return
    if fault == "exit":
        print("no luck", file=sys.stderr)
        sys.exit(5)
    os.kill(os.getpid(), signal.Signals[fault])


for line in sys.stdin.buffer:
    words = line.decode().split()
    if words[0] == "load":
        if FACTS.get("at") == "load":
            fail()
        specs = [{{"name": "x", "shape": [1, 2], "dtype": "float32"}}], [{{"name": "y", "shape": [1, 2], "dtype": "float32"}}]
        answer(engine="native", threads=1, load_ns=1000, baseline_rss_bytes=1 << 20, inputs=specs[0], outputs=specs[1])
    elif words[0] == "feed":
        fed = sys.stdin.buffer.read(int(words[2]))
        answer()
    elif words[0] == "run":
        runs += 1
        if FACTS.get("at") == runs:
            fail()
        now = time.monotonic_ns()
        count = max(int(words[1]), int(words[2]) // 1000000)
        answer(start_ns=[now + 1000 * i for i in range(count)], duration_ns=[1000000 + 1000 * (i % 7) for i in range(count)])
    elif words[0] == "output":
        answer(base64=base64.b64encode(fed).decode())
    elif words[0] == "memory":
        answer(peak_rss_bytes=2 << 20)
    elif words[0] == "ops":
        answer(runs=int(words[1]), whole_ns=1000, ops=[{{"name": name, "time_ns": ns}} for name, ns in FACTS.get("kernels", [["a", 600], ["b", 200]])])
    else:
        print(json.dumps({{"error": {{"kind": "BackendError", "message": "unknown", "hint": "", "detail": ""}}}}), flush=True)
"""  # noqa: E501


def fake_artefact(folder: Path, architecture: str = "x86_64", name: str = "fake", **facts: Any) -> Artifact:
    """An artefact of native kernels whose executable is such a program. ``facts``: ``fault``, and ``at`` which run."""
    folder = folder / name
    folder.mkdir(parents=True)
    (folder / "model").write_text(PROGRAM.format(python=sys.executable, facts=facts))
    (folder / "model").chmod(0o755)
    (folder / "model.so").write_bytes(b"")
    (folder / "reference.pt2").write_bytes(b"")
    write_account(folder, (KernelUse("a", "conv2d", "stem", 100, 80), KernelUse("b", "add", "", 0, 16)))
    options = {"executable": {"file": "model"}, "architecture": architecture, "cpu_model": "x", "instructions": []}
    manifest = Manifest(
        schema_version=1,
        mobilec_version="0",
        created="2025-01-01T00:00:00Z",
        model="fake",
        origin="module",
        weights={},
        config={},
        backend="tvm",
        model_file="model.so",
        reference_file="reference.pt2",
        precision="fp32",
        target="cpu",
        inputs=(InputSpec("x", (1, 2), "float32"),),
        outputs=(OutputSpec("y", (1, 2), "float32"),),
        labels=None,
        options=options,
        proof=True,
        passes=(),
        tools={},
        files=describe_files(folder),
    )
    (folder / MANIFEST_NAME).write_text(manifest_to_json(manifest))
    return Artifact(folder, manifest)
