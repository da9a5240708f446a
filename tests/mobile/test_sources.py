from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mobilec.errors import CheckpointError, MobilecError, ModelError, UsageError
from mobilec.mobile.initialise import draw_weights
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.mobile.sources import resolve_model
from support.tiny import TinyNet


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    """Files run by a test must not be found by the next one."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.split(".")[0] not in ("torch", "mobilec", "safetensors"):
            del sys.modules[name]
    sys.path[:] = path


def write(path: Path, text: str) -> Path:
    path.write_text("from torch import nn\nimport torch\n" + text)
    return path


def refused(spec: str, kind: type[MobilecError] = UsageError, **options: Any) -> MobilecError:
    with pytest.raises(kind) as caught:
        resolve_model(spec, **options)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind
    return caught.value


# ---- zoo names and other words ----------------------------------------------------------------------------------


def test_zoo_names() -> None:
    model = resolve_model("shvit_s1", num_classes=5, seed=2)
    assert model.provenance.origin == "zoo"
    assert model.provenance.weights.seed == 2
    assert model.provenance.config["num_classes"] == 5
    assert not model.training


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("shvit_s9", "did you mean shvit_s4, shvit_s3 or shvit_s2?"),
        ("SHViT_S1", "did you mean shvit_s1?"),
        ("qqqqqqqq", "`mobilec models` lists the zoo"),
        ("", "`mobilec models` lists the zoo"),
        ("net.PY:make", "`mobilec models`"),
        ("weights.pth", "--checkpoint"),
    ],
)
def test_other_words_name_the_three_forms(spec: str, hint: str) -> None:
    error = refused(spec)
    assert "expected a zoo name, path/to/file.py:callable or timm:NAME" in error.message
    assert hint in error.hint
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("shvit_s1", {"num_classes": 0}, "num_classes is 0"),
        ("shvit_s1", {"seed": -1}, "seed is -1"),
        ("shvit_s1", {"pretrained": True}, "shvit_s1 has no published weights to fetch"),
        ("net.py:make", {"pretrained": True}, "net.py:make has no published weights"),
        ("timm:resnet18", {"pretrained": True, "checkpoint": "a.pth"}, "two sources"),
        ("timm:resnet18", {"replace_head": True}, "replace_head goes with a checkpoint"),
        ("shvit_s1", {"replace_head": True}, "replace_head goes with a checkpoint"),
    ],
)
def test_options_that_contradict_each_other(spec: str, options: dict[str, Any], words: str) -> None:
    assert words in str(refused(spec, **options))


# ---- files ------------------------------------------------------------------------------------------------------

FILE = """
class Net(nn.Module):
    def __init__(self, width=4, num_classes=3):
        super().__init__()
        self.line = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.line(x)
    @classmethod
    def wide(cls):
        return cls(width=16)
def make():
    return Net(width=8)
def anything(**options):
    return Net(**options)
def demanding(depth, *, heads):
    return Net()
def per_class(num_classes):
    return Net(num_classes=num_classes)
def broken():
    return helper(1)
def helper(x):
    raise ValueError("no such thing\\nsecond line")
def leaving():
    raise SystemExit(3)
def nothing():
    return None
ready = Net(width=2)
number = 3
"""


@pytest.mark.parametrize(("name", "width"), [("Net", 4), ("make", 8), ("Net.wide", 16), ("ready", 2), ("anything", 4)])
def test_functions_classes_methods_and_instances(tmp_path: Path, name: str, width: int) -> None:
    path = write(tmp_path / "net.py", FILE)
    model = resolve_model(f"{path}:{name}")
    assert model.line.in_features == width
    assert not model.training
    provenance = model.provenance
    assert provenance.model == f"{path}:{name}"
    assert provenance.origin == "file"
    assert provenance.weights.source == "given"
    assert provenance.resolution is None
    assert provenance.output_names == ()


def test_random_numbers_in_a_file_repeat_and_stay_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", FILE)
    state = torch.get_rng_state()
    first, second, other = (resolve_model(f"{path}:make", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.line.weight, second.line.weight)
    assert not torch.equal(first.line.weight, other.line.weight)


@pytest.mark.parametrize("name", ["Net", "anything", "per_class"])
def test_num_classes_reaches_callables_that_take_it(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "net.py", FILE)
    assert resolve_model(f"{path}:{name}", num_classes=7).line.out_features == 7


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", FILE)
    assert "make takes no num_classes" in str(refused(f"{path}:make", num_classes=7))
    assert "ready is a ready module" in str(refused(f"{path}:ready", num_classes=7))
    assert "needs depth, heads, expected no required arguments; wrap it" in str(refused(f"{path}:demanding"))
    assert "needs num_classes, expected no required arguments; give num_classes" in str(refused(f"{path}:per_class"))


def test_names_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", FILE)
    assert "has no 'mak'; did you mean make?" in str(refused(f"{path}:mak"))
    assert "has no 'Net.narrow'" in str(refused(f"{path}:Net.narrow"))
    assert "it defines Net, make, anything" in str(refused(f"{path}:qqqq"))
    assert f"which callable? expected {path}:callable; it defines Net" in str(refused(str(path)))
    assert "which callable?" in str(refused(f"{path}:"))
    assert "number is a int, expected a function, a class or a torch.nn.Module" in str(refused(f"{path}:number"))
    assert "no such file" in str(refused(f"{tmp_path}/absent.py:make"))
    (tmp_path / "folder.py").mkdir()
    assert "is no file" in str(refused(f"{tmp_path}/folder.py:make"))


def line_of(path: Path, words: str) -> int:
    return next(index for index, line in enumerate(path.read_text().splitlines(), 1) if words in line)


def test_failures_in_the_file_name_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", FILE)
    error = refused(f"{path}:broken", ModelError)
    assert error.message == f"{path}:{line_of(path, 'no such thing')}: broken() raised ValueError: no such thing"
    assert "Traceback" in error.detail
    assert "second line" in error.detail
    assert "leaving() raised SystemExit: 3" in str(refused(f"{path}:leaving", ModelError))
    assert "nothing returned NoneType, expected a torch.nn.Module" in str(refused(f"{path}:nothing", ModelError))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1 / 0\n", "importing it raised ZeroDivisionError: division by zero"),
        ("import a_module_nobody_has\n", "importing it raised ModuleNotFoundError: No module named"),
        ("def f(:\n", "importing it raised SyntaxError"),
        ("raise SystemExit\n", "importing it raised SystemExit"),
        ("assert False\n", "importing it raised AssertionError"),
    ],
)
def test_failures_while_importing_name_the_line(
    tmp_path: Path, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "net", raising=False)  # of another test's model file
    path = write(tmp_path / "net.py", text)
    error = refused(f"{path}:make", ModelError)
    assert error.message.startswith(f"{path}:3: {words}")
    assert "Traceback" in error.detail or "SyntaxError" in error.detail
    assert "net" not in sys.modules


def test_failures_in_a_sibling_name_the_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sibling_of_net.py", "\nx = undefined_name\n")
    write(tmp_path / "net.py", "import sibling_of_net\n")
    monkeypatch.chdir(tmp_path)
    error = refused("net.py:make", ModelError)
    assert error.message.startswith("sibling_of_net.py:4: importing it raised NameError")


def test_siblings_are_importable_during_and_after(tmp_path: Path) -> None:
    (tmp_path / "width_of_net.py").write_text("WIDTH = 11\n")
    (tmp_path / "late_for_net.py").write_text("SCALE = 2.0\n")
    path = write(
        tmp_path / "net.py",
        "from width_of_net import WIDTH\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(WIDTH, 2)\n"
        "    def forward(self, x):\n"
        "        from late_for_net import SCALE\n"
        "        return super().forward(x) * SCALE\n",
    )
    model = resolve_model(f"{path}:Net")
    assert model(torch.ones(1, 11)).shape == (1, 2)
    assert sys.path[0] != str(tmp_path), "the folder must not hide other packages once the file has run"


def test_a_file_called_like_a_package_does_not_replace_it(tmp_path: Path) -> None:
    for name in ("json", "torch"):
        path = write(tmp_path / f"{name}.py", "def make():\n    return nn.Linear(1, 1)\n")
        assert isinstance(resolve_model(f"{path}:make"), nn.Linear)
    assert importlib.import_module("json").loads("[1]") == [1]
    assert sys.modules["torch"] is torch


def test_an_edited_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for width in (3, 5):  # same size, same second
        path = write(tmp_path / "net.py", f"def make():\n    return nn.Linear({width}, 1)\n")
        assert resolve_model(f"{path}:make").in_features == width
    assert not (tmp_path / "__pycache__").exists()


def test_what_a_file_prints_stays_off_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "net.py", "print('hello')\ndef make():\n    print('again')\n    return nn.Linear(1, 1)\n")
    resolve_model(f"{path}:make")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "hello\nagain\n"


def test_checkpoints_load_strictly_into_a_file_s_module(tmp_path: Path) -> None:
    path = write(tmp_path / "net.py", FILE)
    weights = tmp_path / "w.pth"
    state = {"line.weight": torch.ones(3, 8), "line.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, weights)
    model = resolve_model(f"{path}:make", checkpoint=weights)
    assert torch.equal(model.line.weight, state["line.weight"])
    assert model.provenance.weights.source == "checkpoint"
    assert "misshapen (line.weight" in str(refused(f"{path}:Net", CheckpointError, checkpoint=weights))
    assert "has no classifier" in str(refused(f"{path}:make", checkpoint=weights, replace_head=True))


def test_a_zoo_model_from_a_file_stays_honest_about_its_weights(tmp_path: Path) -> None:
    path = write(
        tmp_path / "net.py", "import mobilec\ndef make():\n    return mobilec.create_model('shvit_s1', num_classes=4)\n"
    )
    provenance = resolve_model(f"{path}:make").provenance
    assert provenance.origin == "file"
    assert provenance.model == f"{path}:make"
    assert provenance.weights.source == "random"
    assert provenance.resolution == (224, 224)
    assert provenance.output_names == ("logits",)


# ---- timm -------------------------------------------------------------------------------------------------------


class FakeNet(TinyNet):
    """What a timm model carries. The bias tells pretrained weights from others."""

    HEAD_PREFIXES = ()
    CLASSIFIER_PREFIXES = ()

    def __init__(self, num_classes: int, pretrained: bool) -> None:
        super().__init__(num_classes=num_classes)
        self.num_classes = num_classes
        self.pretrained_cfg = {"num_classes": 10, "classifier": "head", "tag": "in1k"}
        if pretrained:
            nn.init.constant_(self.stem.bias, 42.0)


CONFIG = {
    "input_size": (3, 48, 40),
    "interpolation": "bilinear",
    "mean": (0.5, 0.4, 0.3),
    "std": (0.1, 0.2, 0.3),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the package; the returned data config may be changed by a test."""
    config = dict(CONFIG)
    timm, data = types.ModuleType("timm"), types.ModuleType("timm.data")

    def create_model(name: str, pretrained: bool = False, num_classes: int = 10) -> nn.Module:
        if name.endswith(".bogus"):
            raise RuntimeError("Invalid pretrained tag (bogus)\nmore")
        return FakeNet(num_classes, pretrained)

    timm.__version__ = "9.9"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tinynet_a", "tinynet_b"]  # type: ignore[attr-defined]
    timm.is_model = lambda name: name.partition(".")[0] in ("tinynet_a", "tinynet_b")  # type: ignore[attr-defined]
    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.data = data  # type: ignore[attr-defined]
    data.resolve_model_data_config = lambda model: config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return config


@pytest.mark.usefixtures("fake_timm")
def test_timm_models_are_drawn_and_described() -> None:
    state = torch.get_rng_state()
    model = resolve_model("timm:tinynet_a", num_classes=6, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    provenance = model.provenance
    assert provenance.model == "timm:tinynet_a"
    assert provenance.origin == "timm"
    assert (provenance.weights.source, provenance.weights.seed) == ("random", 3)
    assert provenance.resolution == (48, 40)
    assert provenance.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "RGB", 0.875, "bilinear")
    assert provenance.config == {"timm": "9.9", "tag": None, "num_classes": 6, "crop_mode": "center"}
    assert provenance.output_names == ("logits",)
    assert not model.training
    assert model(torch.zeros(1, 3, 48, 40)).shape == (1, 6)
    assert model.gamma.min() > 0.3  # 1e-6 as constructed
    twin = FakeNet(6, pretrained=False)
    draw_weights(twin, seed=3, resolution=(48, 40))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in twin.state_dict().items())


@pytest.mark.usefixtures("fake_timm")
def test_timm_pretrained_weights_stay_as_fetched() -> None:
    model = resolve_model("timm:tinynet_a", pretrained=True)
    assert model.stem.bias.unique().tolist() == [42.0]
    assert model.provenance.weights.source == "pretrained"
    assert model.provenance.weights.random_tensors == ()
    assert model.provenance.config["tag"] == "in1k"
    error = refused("timm:tinynet_a", pretrained=True, num_classes=6)
    assert "is pretrained for 10 classes, not 6; --num-classes 10" in str(error)
    assert "--replace-head" in error.hint
    replaced = resolve_model("timm:tinynet_a", pretrained=True, num_classes=6, replace_head=True, seed=8)
    assert replaced.stem.bias.unique().tolist() == [42.0]
    assert replaced.provenance.weights.random_tensors == ("head.weight", "head.bias")
    assert replaced.provenance.weights.seed == 8
    assert "RANDOM" in replaced.provenance.weights.summary


@pytest.mark.usefixtures("fake_timm")
def test_timm_checkpoints_know_their_classifier(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": TinyNet(num_classes=10).state_dict()}, path)
    assert resolve_model("timm:tinynet_a", checkpoint=path).provenance.weights.source == "checkpoint"
    assert "has 10 classes, the model 6" in str(
        refused("timm:tinynet_a", CheckpointError, checkpoint=path, num_classes=6)
    )
    model = resolve_model("timm:tinynet_a", checkpoint=path, num_classes=6, replace_head=True)
    assert model.provenance.weights.random_tensors == ("head.weight", "head.bias")


@pytest.mark.usefixtures("fake_timm")
def test_timm_names_and_failures() -> None:
    error = refused("timm:tinynet_c")
    assert "timm 9.9 has no model 'tinynet_c'; did you mean tinynet_b or tinynet_a?" in str(error)
    assert refused("timm:qqqq").hint == ""
    assert "timm cannot build it: Invalid pretrained tag (bogus)" in str(refused("timm:tinynet_a.bogus", ModelError))


def test_timm_settings_that_cannot_be_imitated(fake_timm: dict[str, Any]) -> None:
    fake_timm["interpolation"] = "lanczos"
    assert "resizes images by 'lanczos', mobilec knows bicubic" in str(refused("timm:tinynet_a", ModelError))
    fake_timm.update(interpolation="bicubic", mean=(0.5,), std=(0.5,))
    assert "takes 1 channels" in str(refused("timm:tinynet_a", ModelError))


def test_without_timm_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "timm.data", raising=False)
    error = refused("timm:resnet18", ModelError)
    assert error.hint == "pip install 'mobilec[timm]'"


def test_a_timm_that_does_not_import_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for code, words in (
        ("raise RuntimeError('operator torchvision::nms does not exist')", "operator torchvision::nms does not exist"),
        ("import a_module_nobody_has", "No module named 'a_module_nobody_has'"),
    ):
        (tmp_path / "timm" / "__init__.py").write_text(code + f"  # {words}")
        importlib.invalidate_caches()
        error = refused("timm:resnet18", ModelError)
        assert f"timm cannot be imported: {words}" in str(error)
        assert error.hint == ""
