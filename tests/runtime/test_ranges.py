"""What `ranges` foretells and `--keep-fp32` cures, against the file itself run by the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mobilec
from mobilec.errors import UsageError
from mobilec.export.calibration import calibration
from mobilec.passes.ranges.judge import BREAKS, FINE


class Net(nn.Module):
    """A layer, what is under test, and a layer: ``[1, 3, 24, 24]`` to ``[1, 4, 24, 24]``."""

    def __init__(self, gain: float, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.gain, self.middle = gain, middle
        generator = torch.Generator().manual_seed(11)
        for value in self.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.gain * self.first(x)))


CASES = {
    "norm": (500.0, lambda x: F.group_norm(x, 2), "group_norm"),
    "cliff": (4.0, lambda x: torch.log(1 + torch.exp(x)), "exp"),
    "product": (60.0, lambda x: (x @ x.transpose(2, 3)) @ x * 1e-6, "matmul"),
}
PLAIN = {"only_rules": ("remove_no_ops",), "input_shapes": {"x": (1, 3, 24, 24)}}  # as written: rules would help


@pytest.mark.parametrize("name", CASES)
def test_the_file_breaks_as_foretold_and_holds_with_what_is_kept(name: str, tmp_path: Path) -> None:
    gain, middle, op = CASES[name]
    model = Net(gain, middle)
    report = mobilec.ranges(model, to="coreml", **PLAIN)
    first = report.verdicts[0]
    assert (first.level, first.op) == (BREAKS, op)
    assert not report.holds
    half = mobilec.compile(model, to="coreml", out=tmp_path / "half", proof=False, **PLAIN)
    kept = mobilec.compile(model, to="coreml", out=tmp_path / "kept", proof=False, keep_fp32="auto", **PLAIN)
    assert agreement(model, half) < 20
    assert agreement(model, kept) > 40
    assert set(report.kept.nodes) == {entry["node"] for entry in kept.manifest.options["keep_fp32"]["kept"]}
    again = mobilec.ranges(kept.path)  # knows what is kept
    assert again.holds
    assert all(verdict.level != BREAKS for verdict in again.verdicts)


def agreement(model: nn.Module, artifact: mobilec.Artifact) -> float:
    """PSNR in dB of the worst built-in picture, 0 where anything is NaN or infinite."""
    worst = np.inf
    with mobilec.load(artifact) as session, torch.no_grad():
        for feeds in list(calibration(artifact.manifest.inputs))[:4]:
            wanted = model(torch.from_numpy(feeds.tensors["x"])).numpy()
            (found,) = session.run(feeds.tensors).values()
            if not np.isfinite(found).all():
                return 0.0
            error = float(np.sqrt(np.square(wanted - found).mean()))
            worst = min(worst, 20 * np.log10(np.abs(wanted).max() / max(error, 1e-30)))
    return float(worst)


def test_a_rule_that_helps_is_named_and_does(tmp_path: Path) -> None:
    gain, middle, op = CASES["norm"]
    model = Net(gain, middle)
    written = mobilec.ranges(model, to="coreml", **PLAIN)
    remedy = written.remedies[written.verdicts[0].node]
    assert (written.verdicts[0].op, remedy.rule) == (op, "lower_group_norm_guarded")
    assert not remedy.in_pipeline or written.rewritten
    shipped = mobilec.ranges(model, to="coreml", input_shapes=PLAIN["input_shapes"])
    assert shipped.holds
    assert all(verdict.level != BREAKS for verdict in shipped.verdicts)
    with pytest.raises(mobilec.errors.CheckFailed, match="operators break in half precision, group_norm"):
        written.raise_if_breaks()
    shipped.raise_if_breaks()


def test_a_well_behaved_model_needs_nothing(tmp_path: Path) -> None:
    model = Net(1.0, F.gelu)
    report = mobilec.ranges(model, to="onnx", **PLAIN)
    assert report.holds
    assert {verdict.level for verdict in report.verdicts} == {FINE}
    artifact = mobilec.compile(model, to="onnx", precision="fp16", out=tmp_path / "a", keep_fp32="auto", **PLAIN)
    assert artifact.manifest.options["keep_fp32"]["kept"] == []
    assert any("nothing needs to be kept" in note for note in artifact.manifest.options["notes"])


def test_options_of_models_are_refused_for_artefacts(tmp_path: Path) -> None:
    artifact = mobilec.compile(Net(1.0, F.relu), to="onnx", out=tmp_path / "a", proof=False, **PLAIN)
    with pytest.raises(UsageError, match="num_classes is for models"):
        mobilec.ranges(artifact.path, num_classes=3)
    assert mobilec.ranges(artifact.path).backend == "onnx"
