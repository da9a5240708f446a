"""Result files of several commands, made up, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mobilec.export.manifest import InputSpec, Manifest, OutputSpec
from mobilec.export.manifest_io import manifest_to_json
from mobilec.latency.samples import ArtifactProfile, Checked, Placement, ProfileReport, Window
from mobilec.latency.saved import read_as, read_document
from mobilec.latency.sustained import curve
from mobilec.passes.evidence import Cost, PassEvidence, Refusal
from mobilec.passes.lint.judge import Finding, LintReport, Partition
from mobilec.runtime.accuracy import Accuracy
from mobilec.runtime.bisect import Bisection, OpFacts, Pair, WrongOp
from mobilec.runtime.ceiling import Ceiling
from mobilec.runtime.gates import Gate
from mobilec.runtime.metrics import Metrics, Rate
from mobilec.runtime.op_graphs.judge import TensorFacts, TensorPair
from mobilec.runtime.parity import OutputSummary
from mobilec.runtime.stages import StageGap, StageRow, Stages
from mobilec.runtime.validate import Passing, Validation, Validations
from support.results import artefact, op_table, report


def save(path: Path, command: str, document: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps({"mobilec": "0.1.0", "command": command, **document}))
    return path


def profile(path: Path, found: ProfileReport) -> Path:
    return save(path, "profile", asdict(found))


def full(
    label: str, median_ms: float, *, ops: Sequence[str] = ("one", "two", "three"), seed: int = 0
) -> ArtifactProfile:
    """An artefact with operators and a sustained run that becomes slower."""
    windows = [
        Window(2.0 * i, 100, median_ms * (1 + i / 100), median_ms * 1.4, 3000.0, 60.0 + i / 4) for i in range(60)
    ]
    item = artefact(label, median_ms, seed=seed)
    return replace(item, ops=op_table(ops), sustained=curve(windows, 120.0))


def with_roofline(item: ArtifactProfile) -> ArtifactProfile:
    """The first operator moves only; the others compute ever more for each byte."""
    assert item.ops is not None
    ops = tuple(
        replace(op, macs=index * 10_000, bytes_moved=4000, bound_us=0.5, bound="compute" if index else "memory")
        for index, op in enumerate(item.ops.ops)
    )
    return replace(item, ops=replace(item.ops, ops=ops, ceiling=Ceiling(2e11, 4e10, 2)))


def rate(count: int, total: int = 200) -> Rate:
    share = count / total
    return Rate(count, total, share, max(share - 0.03, 0), min(share + 0.03, 1))


METRICS = Metrics(
    elements=1000, exact=False, max_abs=1e-5, mean_abs=1e-6, p50_abs=1e-6, p99_abs=9e-6, max_relative=0.1, peak=20.0,
    peak_relative=5e-7, psnr_db=118.0, snr_db=100.0, cosine=1.0, kl=None, nonfinite_reference=0, nonfinite_artefact=0,
)  # fmt: skip


def validation(name: str, *, passed: bool = True, top1: int | None = 180) -> Validation:
    """Of the artefact that ``artefact(name, ...)`` times."""
    gates = (
        Gate("integrity", 0.0, "<=", 0.0, True, True, ""),
        Gate("atol", 1e-5 if passed else 3.0, "<=", 1e-4, passed, True, "detail"),
    )
    accuracy = None
    if top1 is not None:
        accuracy = Accuracy(
            data="/data/held-out", mapping="folders", classes=10, images=200, unreadable=0, unreadable_files=(),
            ignored=0, repeated=0, repeated_rows=(), empty_classes=(), top1_reference=rate(181),
            top1_artefact=rate(top1), top5_reference=rate(195), top5_artefact=rate(195), agreement=rate(199), flips=(),
        )  # fmt: skip
    output = OutputSummary(
        name="logits", meaning="logits", samples=10, metrics=METRICS, passing_atol=1e-5, worst_sample="probe:noise",
        top1=rate(10, 10), top5=rate(10, 10), flips=0, unexplained_flips=0, spread_reference=1.0, spread_artefact=1.0,
    )  # fmt: skip
    return Validation(
        artefact=f"/models/{name}", bare=False, reference="the captured PyTorch program", judged="", model="net",
        weights="checkpoint net.pt", backend="onnx", precision="fp32", engine="onnxruntime", threads=2, assumption="",
        approximations=(), notes=(), gates=gates, passing=Passing(1e-5, 1e-4, 118.0, 1.0, 1.0), worst_relative=5e-7,
        outputs=(output,), samples="images", rows=(), accuracy=accuracy, faults=(), unreadable=(),
        warnings=("compared on built-in images only",), passed=passed,
    )  # fmt: skip


def validations(path: Path, *found: Validation) -> Path:
    whole = Validations(tuple(found), (), all(each.passed for each in found))
    return save(path, "validate", asdict(found[0] if len(found) == 1 else whole))


def stages(path: Path, name: str, *, failing: str | None = None) -> Path:
    def gap(against: str, relative: float, failed: tuple[str, ...] = ()) -> StageGap:
        exact = relative == 0
        return StageGap(against, relative, relative, None if exact else 100.0, 1.0, exact, 0, "probe:noise", failed)

    rows = [StageRow("torch", f"{name} itself", "", None, None, None)]
    for stage, against, relative in (
        ("captured", "torch", 0.0),
        ("rewritten", "captured", 3e-6),
        ("file", "rewritten", 2e-2 if failing == "file" else 1e-7),
    ):
        failed = ("atol",) if stage == failing else ()
        rows.append(StageRow(stage, f"{stage} {name}", "", gap(against, relative, failed), None, not failed))
    rows.append(StageRow("runtime", "the running file", "no such runtime here", None, None, None))
    found = Stages(f"/models/{name}", name, "onnx", "fp32", tuple(rows), failing, 10, (), (), failing is None)
    return save(path, "validate", asdict(found))


def bisection(path: Path, name: str) -> Path:
    """One whose first wrong operator is ``name``."""
    op = OpFacts(name, "Conv", f"blocks.0.{name}", "net.py:3", 4, 30)
    tensor = TensorPair(TensorFacts(name, (1, 2), "float32", 0.0, 1.0, 0.5, 0.1, 0, 0), None)
    wrong = WrongOp(
        op, op, name, "value", 1.3, 1e-6, 2.0, (0, 1), 3.0, 1.0, (f"pads of {name}",), (), (tensor,), tensor
    )
    pair = Pair("file", "rewritten", 30, 30, 3, 1e-7, (wrong,), 1, (), False, 1000)
    held = read_as(Stages, read_document(stages(path, name, failing="file")), str(path))
    return save(path, "validate", asdict(Bisection(held, "probe:noise", (pair,), "", True, False)))


def lint(path: Path, subject: str, *, left_after: bool = False) -> Path:
    def finding(number: int, leaves: bool = True) -> dict[str, Any]:
        found = Finding(
            f"node{number}", "Erf", "erf", f"blocks.{number}", "net.py:7", "no Erf on this target", "its list", "",
            "use tanh", True, leaves,
        )  # fmt: skip
        return asdict(found)

    def judged(ops: int, leaving: int) -> dict[str, Any]:
        pieces = tuple(Partition((ops - leaving) // (leaving + 1), 10, "a", "b") for _ in range(leaving + 1))
        found = LintReport(
            subject, "nnapi", "onnx", ops, ops - leaving, 100, 100, pieces, (), "no", "no", "an estimate"
        )
        return asdict(found) | {"findings": [finding(number) for number in range(leaving)]}

    before = judged(30, 4)
    for each in before["findings"]:
        each["fixed_by"] = "approximate_gelu"
    after = judged(26, 1 if left_after else 0)
    for each in after["findings"]:
        each |= {"fix": "approximate_gelu", "refused": "its input is an integer"}
    rules = [{"rule": "approximate_gelu", "rewritten": 4, "fixed": 4, "approximation": "tanh"}]
    document = {
        "subject": subject, "kind": "model", "target": "nnapi", "backend": "onnx", "report": before, "after": after,
        "rules": rules, "pipeline": ["approximate_gelu"], "left": int(left_after), "clean": not left_after,
    }  # fmt: skip
    return save(path, "lint", document)


def manifest(name: str) -> Manifest:
    cost = [Cost(30, 1000, 100, 4000), Cost(24, 1000, 90, 3000), Cost(26, 900, 90, 3000)]
    refusal = Refusal("node9", f"blocks.9.{name}", f"its input comes from {name}")
    return Manifest(
        schema_version=1, mobilec_version="0.1.0", created="2026-11-26T10:00:00Z", model=name, origin="zoo",
        weights={"source": "checkpoint", "path": "net.pt"}, config={"num_classes": 10}, backend="onnx",
        model_file="model.onnx", reference_file="reference.pt2", precision="fp32", target="cpu",
        inputs=(InputSpec("x", (1, 3, 64, 48), "float32", "NCHW", "tensor", {"mean": [0, 0, 0]}),),
        outputs=(OutputSpec("logits", (1, 10), "float32", "logits"),), labels=None, options={}, proof=True,
        passes=(
            PassEvidence("fold_batch_norm", 6, (refusal,), 1e-7, 1e-5, 0, cost[0], cost[1]),
            PassEvidence("lower_something", 1, (), 0.0, 0.0, 0, cost[1], cost[2], f"what {name} says"),
            PassEvidence("finds_nothing", 0, (), None, 0.0, 0, cost[2], cost[2]),
        ),
        tools={"torch": "2.13.0"},
        files={file: {"sha256": "0" * 64, "bytes": 7} for file in ("model.onnx", "reference.pt2")},
    )  # fmt: skip


def folder(path: Path, name: str) -> Path:
    """An artefact folder as far as a report looks into it."""
    path.mkdir()
    (path / "manifest.json").write_text(manifest_to_json(manifest(name)))
    return path


def everything(where: Path, name: str, *, ops: Sequence[str] = ("one", "two", "three")) -> list[Path]:
    """One file of each kind; ``name`` stands wherever a stranger's name may stand."""
    fast, slow = (
        with_roofline(full(f"{name} fast", 2.0, ops=ops)),
        full(f"{name} slow", 3.0, ops=[f"{each}'" for each in ops], seed=1),
    )
    slow = replace(
        slow, checked=Checked(name, 3, 1e-6, 110.0), placement=(Placement(name, "conv", "ane", ("cpu",), 0.5),)
    )
    found = report(fast, slow, warnings=(f"load average 9 while {name} ran",), device=f"ssh:{name}")
    return [
        profile(where / "profile.json", found),
        validations(where / "validate.json", validation(fast.label), validation(slow.label, top1=185)),
        stages(where / "stages.json", name),
        bisection(where / "bisection.json", name),
        lint(where / "lint.json", name, left_after=True),
        folder(where / "made", name),
    ]
