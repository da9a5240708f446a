"""``mobilec ranges``, and ``mobilec export --keep-fp32``, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mobilec.mobile.images import probe_images

SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """A cliff: exp beyond half precision on bright pictures."""

    def __init__(self, gain):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2)
        self.gain = gain
        generator = torch.Generator().manual_seed(0)
        for value in self.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.3)

    def forward(self, x):
        return torch.log(1 + torch.exp(self.gain * self.stem(x))).mean((2, 3))


def cliff():
    return Net(8.0).eval()


def gentle():
    return Net(0.5).eval()


def undefined():
    net = Net(0.5).eval()
    net.stem.bias.data.fill_(float("nan"))
    return net
'''
SIZE = ("--input-size", "32")


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return str(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, pixels in probe_images((32, 32))[:3]:
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_what_breaks_is_named_with_what_helps(run: Callable, net: str) -> None:
    done = run("ranges", f"{net}:cliff", *SIZE)
    assert done.code == 0
    words = " ".join(done.stdout.split())
    assert "10 built-in pictures" in words
    assert "Built-in inputs: real images may reach further" in words
    assert "exp" in words
    assert "net.py:18" in words
    assert "--keep-fp32 exp" in words
    assert f"mobilec export {net}:cliff --to coreml --target ane --keep-fp32 auto {' '.join(map(str, SIZE))}" in words


def test_json_holds_ranges_and_remedies_and_strict_is_3(run: Callable, net: str, pictures: Path) -> None:
    done = run("ranges", f"{net}:cliff", *SIZE, "--images", str(pictures), "--json", "--strict")
    assert done.code == 3
    found = done.document
    assert found["measured_on"] == "3 images"
    assert not found["made_up"]
    first = found["verdicts"][0]
    assert (first["op"], first["level"]) == ("exp", "breaks")
    assert first["ranges"]["output"]["overflows"] > 0
    assert first["remedy"]["keep"] == "exp"
    assert found["half"]["broken"] > 0
    assert {"exp", "add", "log"} >= set(found["kept"]["nodes"]) > set()


def test_a_network_whose_outputs_are_nan_anyway(run: Callable, net: str) -> None:
    done = run("ranges", f"{net}:undefined", *SIZE, "--strict")
    assert "40 numbers of the outputs are NaN or infinite in float32 already" in done.stdout
    assert done.code == 3
    assert "hint: check weights and preprocessing" in done.stderr


def test_a_gentle_network_passes_strictly(run: Callable, net: str) -> None:
    done = run("ranges", f"{net}:gentle", *SIZE, "--strict", "--before", "--all")
    assert done.code == 0
    assert "as written" in done.stdout
    assert "are fine" in done.stdout


def test_export_keeps_what_breaks_and_ranges_of_the_artefact_agree(
    run: Callable, net: str, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    export = ("export", f"{net}:cliff", *SIZE, "--to", "coreml", "-o", str(folder), "--images", str(pictures))
    done = run(*export, "--keep-fp32", "auto", "--no-proof")
    assert done.code == 0, done.stderr
    assert "measured on 3 images" in " ".join(done.stdout.split())
    facts = json.loads((folder / "manifest.json").read_text())["options"]["keep_fp32"]
    assert {item["op"] for item in facts["kept"]} >= {"exp"}
    assert all(item["why"] for item in facts["kept"])
    assert facts["half"]["nonfinite"] > 0
    assert facts["with_kept"]["nonfinite"] == 0
    done = run("ranges", str(folder), "--images", str(pictures), "--strict")
    assert done.code == 0, done.stderr  # with what is kept, nothing breaks any more
    done = run("ranges", str(folder), "--before", "--strict")
    assert done.code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "NET:cliff", "--to", "coreml", "--keep-fp32", "soft"), "no operator after the rewrites"),
        (("export", "NET:cliff", "--to", "onnx", "--keep-fp32", "exp"), "the precision is fp32"),
        (("export", "NET:cliff", "--to", "coreml", "--keep-fp32", "auto,exp"), "auto and names"),
        (("ranges", "NET:cliff", "--images", "missing"), "missing: no such image"),
        (("ranges", "NET:cliff", "--to", "coreai"), "unknown backend"),
    ],
)
def test_what_means_nothing_is_one_line(
    run: Callable, net: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [word.replace("NET", net) for word in arguments]
    where = ["-o", str(tmp_path / "out")] if given[0] == "export" else []
    done = run(*given, *SIZE, *where)
    assert done.code in (1, 2)
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
