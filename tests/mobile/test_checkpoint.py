from __future__ import annotations

import argparse
import collections
import datetime
import hashlib
import os
import pathlib
import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mobilec.errors import CheckpointError, UsageError
from mobilec.mobile.checkpoint import load_checkpoint, read_state_dict
from support.tiny import TinyNet

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return numbers(TinyNet())


def numbers(model: nn.Module, start: float = 1.0) -> State:
    """A state dict in which every tensor differs from every other."""
    return {
        name: (torch.arange(value.numel(), dtype=torch.float32).reshape(value.shape) / 64 + start + index).to(
            value.dtype
        )
        for index, (name, value) in enumerate(model.state_dict().items())
    }


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_loaded(model: nn.Module, state: State) -> None:
    own = model.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=0)


def refused(path: Path, model: nn.Module | None = None, **options: Any) -> CheckpointError:
    """The error, which must be one line naming the file, and must have left the model alone."""
    model = model or TinyNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1
    assert_loaded(model, before)
    return caught.value


# ---- what loads -------------------------------------------------------------------------------------------------


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "bare": lambda s: s,
    "ordered": lambda s: collections.OrderedDict(s),
    "model": lambda s: {"model": s},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best_acc1": torch.tensor(75.0)},
    "net": lambda s: {"net": s, "net_E": None, "iter": 5},
    "ema": lambda s: {"ema": s},
    "model_ema": lambda s: {"model_ema": s},
    "state_dict_ema": lambda s: {"state_dict_ema": s},
    "net_E": lambda s: {"net": None, "net_E": s},
    "nested": lambda s: {"checkpoint": {"state_dict": s}},
    "nested ema": lambda s: {"model": None, "ema": {"module": s}},
    "flat with metadata": lambda s: {**s, "epoch": 7, "arch": "tiny"},
    "module.": lambda s: prefixed(s, "module."),
    "_orig_mod.": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "model.": lambda s: {"state_dict": prefixed(s, "model.")},
    "both prefixes": lambda s: {"state_dict": prefixed(s, "module._orig_mod.")},
    "profiled": lambda s: {**s, "total_ops": torch.zeros(1), "bn.total_params": torch.zeros(1)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_wrapper_opens(tmp_path: Path, state: State, wrap: Any, zipped: bool) -> None:
    path = saved(tmp_path / "a.pth", wrap(state), _use_new_zipfile_serialization=zipped)
    model = TinyNet()
    weights = load_checkpoint(model, path)
    assert_loaded(model, state)
    assert weights.source == "checkpoint"
    assert weights.path == str(path)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.random_tensors == ()
    assert weights.seed is None


def test_plain_weights_win_over_their_moving_average(tmp_path: Path, state: State) -> None:
    average = numbers(TinyNet(), start=100.0)
    pairs = (("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "ema"), ("net", "net_E"))
    for plain, ema in pairs:
        model = TinyNet()
        load_checkpoint(model, saved(tmp_path / "a.pth", {ema: average, plain: state}))
        assert_loaded(model, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_training_scripts_leave_beside_the_weights_does_no_harm(
    tmp_path: Path, state: State, zipped: bool
) -> None:
    net = TinyNet()
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3, 16, 16)).sum().backward()
    optimiser.step()
    content = {
        "model": state,
        "optimizer": optimiser.state_dict(),
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.PosixPath("/x"), inner=argparse.Namespace(when=datetime.date.today())
        ),
        "best": np.float64(75.5),
        "count": np.int64(3),
        "history": np.arange(5.0),
        "took": datetime.timedelta(hours=3),
        "at": datetime.datetime.now(),
        "rng": torch.get_rng_state(),
        "seen": {1, 2},
    }
    model = TinyNet()
    load_checkpoint(model, saved(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped))
    assert_loaded(model, state)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a"])
def test_safetensors_are_known_by_content(tmp_path: Path, state: State, name: str) -> None:
    save_file(state, tmp_path / name)
    model = TinyNet()
    load_checkpoint(model, tmp_path / name)
    assert_loaded(model, state)


def test_a_torch_file_called_safetensors_loads(tmp_path: Path, state: State) -> None:
    model = TinyNet()
    load_checkpoint(model, saved(tmp_path / "a.safetensors", state))
    assert_loaded(model, state)


def test_home_is_expanded(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path / "a.pth", state)
    assert load_checkpoint(TinyNet(), "~/a.pth").path == "~/a.pth"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_become_the_model_s(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    model = TinyNet()
    load_checkpoint(model, saved(tmp_path / "a.pth", cast))
    assert_loaded(model, {name: value.to(state[name].dtype) for name, value in cast.items()})
    assert all(value.dtype == state[name].dtype for name, value in model.state_dict().items())


def test_old_files_without_batch_counters_load(tmp_path: Path, state: State) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    model = TinyNet()
    load_checkpoint(model, saved(tmp_path / "a.pth", old))
    assert_loaded(model, old)


def test_a_prefix_that_belongs_to_the_model_stays(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(3, 2)

    state = numbers(Wrapper())
    assert all(name.startswith("model.") for name in state)
    for content in (state, prefixed(state, "module."), {"model": state}):
        model = Wrapper()
        load_checkpoint(model, saved(tmp_path / "a.pth", content))
        assert_loaded(model, state)


def test_features_only_ignores_the_head_of_the_file(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path / "a.pth", state)
    model = TinyNet(features_only=True)
    load_checkpoint(model, path)
    assert_loaded(model, {name: value for name, value in state.items() if not name.startswith(TinyNet.HEAD_PREFIXES)})
    stranger = saved(tmp_path / "b.pth", {**state, "neck.weight": torch.ones(1)})
    assert "1 tensor unexpected (neck.weight)" in str(refused(stranger, TinyNet(features_only=True)))


def test_only_tensors_are_handed_out(tmp_path: Path, state: State) -> None:
    got = read_state_dict(saved(tmp_path / "a.pth", {"state_dict": {**prefixed(state, "module."), "epoch": 3}}))
    assert list(got) == ["module." + name for name in state]


# ---- the head ---------------------------------------------------------------------------------------------------


def test_another_class_count_names_both_ways_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", numbers(TinyNet(num_classes=7)))
    error = refused(path, TinyNet(num_classes=10))
    assert "has 7 classes, the model 10" in error.message
    assert "file [7, 8], model [10, 8]" in error.message
    assert "--num-classes 7 (num_classes=7)" in error.hint
    assert "--replace-head (replace_head=True)" in error.hint


@pytest.mark.parametrize("file_classes", [7, 10])
def test_replace_head_draws_the_classifier_and_says_so(tmp_path: Path, file_classes: int) -> None:
    state = numbers(TinyNet(num_classes=file_classes))
    path = saved(tmp_path / "a.pth", state)
    model, twin, other = TinyNet(), TinyNet(), TinyNet()
    weights = load_checkpoint(model, path, replace_head=True, seed=3)
    assert weights.random_tensors == ("head.weight", "head.bias")
    assert weights.seed == 3
    assert "RANDOM" in weights.summary
    assert_loaded(model, {name: value for name, value in state.items() if not name.startswith("head.")})
    assert model.head.weight.std() > 0.1
    assert model.head.weight.abs().max() < 5  # the file's numbers are larger
    load_checkpoint(twin, path, replace_head=True, seed=3)
    load_checkpoint(other, path, replace_head=True, seed=4)
    assert torch.equal(model.head.weight, twin.head.weight)
    assert not torch.equal(model.head.weight, other.head.weight)


def test_replace_head_loads_a_backbone_saved_without_classifier(tmp_path: Path, state: State) -> None:
    backbone = {name: value for name, value in state.items() if not name.startswith("head.")}
    path = saved(tmp_path / "a.pth", backbone)
    assert "2 tensors missing (head.weight, head.bias)" in str(refused(path))
    assert load_checkpoint(TinyNet(), path, replace_head=True).random_tensors == ("head.weight", "head.bias")


def test_replace_head_needs_a_known_classifier(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", numbers(nn.Linear(3, 2)))
    with pytest.raises(UsageError, match="Linear has no classifier") as caught:
        load_checkpoint(nn.Linear(3, 2), path, replace_head=True)
    assert caught.value.exit_code == 2


# ---- what does not fit ------------------------------------------------------------------------------------------


def test_differences_are_counted_and_listed(tmp_path: Path, state: State) -> None:
    broken = dict(state)
    for name in ("stem.weight", "stem.bias", "bn.weight", "bn.bias"):
        broken["x." + name] = broken.pop(name)
    broken["gamma"] = torch.zeros(8)
    text = str(refused(saved(tmp_path / "a.pth", broken)))
    assert "does not fit TinyNet" in text
    assert "4 tensors missing (stem.weight, stem.bias, bn.weight, ...)" in text
    assert "4 tensors unexpected (x.stem.weight, x.stem.bias, x.bn.weight, ...)" in text
    assert "1 misshapen (gamma: file [8], model [8, 1, 1])" in text


@pytest.mark.parametrize("name", ["gamma", "bn.running_mean", "mix.weight", "head.bias"])
def test_one_missing_tensor_is_enough(tmp_path: Path, state: State, name: str) -> None:
    del state[name]
    assert f"1 tensor missing ({name})" in str(refused(saved(tmp_path / "a.pth", state)))


def test_one_more_tensor_is_enough(tmp_path: Path, state: State) -> None:
    state["bn.num_batches"] = torch.tensor(1)
    assert "1 tensor unexpected (bn.num_batches)" in str(refused(saved(tmp_path / "a.pth", state)))


def test_names_from_a_file_cannot_write_on_the_terminal(tmp_path: Path, state: State) -> None:
    state["\x1b[31mred\nline" + "x" * 500] = torch.ones(1)
    text = str(refused(saved(tmp_path / "a.pth", state)))
    assert "(?[31mred?linexxx" in text
    assert len(text) < 500
    text = str(refused(saved(tmp_path / "b.pth", {"\x1b[31m\n": 1})))
    assert text.count("?[31m?") == 1


def test_an_equal_count_of_numbers_is_not_an_equal_shape(tmp_path: Path, state: State) -> None:
    state["mix.weight"] = state["mix.weight"].reshape(8, 9)
    assert "mix.weight: file [8, 9], model [8, 1, 3, 3]" in str(refused(saved(tmp_path / "a.pth", state)))


def test_modules_of_strangers_load_strictly(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU())
    state = numbers(net)
    load_checkpoint(net, saved(tmp_path / "a.pth", state))
    assert_loaded(net, state)
    text = str(refused(saved(tmp_path / "b.pth", numbers(nn.Linear(2, 2))), net))
    assert "3 tensors missing (0.weight, 0.bias, 1.weight)" in text
    assert "2 tensors unexpected (weight, bias)" in text


def test_suggestions_become_the_hint(tmp_path: Path, state: State) -> None:
    del state["gamma"]
    path = saved(tmp_path / "a.pth", prefixed(state, "module."))
    seen: list[list[str]] = []

    def suggest(tensors: Any) -> str:
        seen.append(list(tensors))
        return "it fits another_one"

    assert refused(path, suggest=suggest).hint == "it fits another_one"
    assert seen == [list(state)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["mix.weight", "bn.running_var"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, state: State, name: str, value: float) -> None:
    state[name].view(-1)[3] = value
    error = refused(saved(tmp_path / "a.pth", state))
    assert f"tensor {name} holds values that are not finite" in str(error)


def test_numbers_too_large_for_the_model_s_dtype_are_refused(tmp_path: Path, state: State) -> None:
    state["stem.bias"] = torch.full((8,), 1e300, dtype=torch.float64)
    assert "too large for float32" in str(refused(saved(tmp_path / "a.pth", state)))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(8, dtype=torch.int8), "tensor stem.bias is int8, the model's is float32"),
        (torch.ones(8, dtype=torch.bool), "tensor stem.bias is bool"),
        (torch.ones(8, dtype=torch.complex64), "tensor stem.bias is complex64"),
        (torch.ones(8).to_sparse(), "tensor stem.bias is sparse"),
        (torch.ones(8, device="meta"), "tensor stem.bias is .* without data"),
    ],
    ids=["int8", "bool", "complex", "sparse", "meta"],
)
def test_numbers_of_another_kind_are_refused(tmp_path: Path, state: State, value: Tensor, words: str) -> None:
    state["stem.bias"] = value
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(TinyNet(), saved(tmp_path / "a.pth", state))


# ---- what is no checkpoint --------------------------------------------------------------------------------------

FOREIGN = {
    "photo.pth": (b"\xff\xd8\xff\xe0" + bytes(600), "is a JPEG image"),
    "shot.pth": (b"\x89PNG\r\n\x1a\n" + bytes(600), "is a PNG image"),
    "page.pth": (b"\n<!DOCTYPE html><html>404 Not Found</html>", "is a web page.*download probably failed"),
    "xml.pth": (b"<?xml version='1.0'?><Error/>", "is a web page"),
    "pointer.pth": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "git-lfs pointer.*git lfs pull",
    ),
    "packed.pth": (b"\x1f\x8b\x08" + bytes(600), "is a gzip archive"),
    "old.pth": (b"a" * 257 + b"ustar" + bytes(300), "is a tar archive"),
    "hdf.bin": (b"\x89HDF\r\n" + bytes(60), "is an HDF5 file"),
    "text.pt": (b"hello, these are weights", "no weights file of a known format"),
    "bits.pt": (bytes(range(256)) * 4, "no weights file of a known format"),
    "empty.pth": (b"", "is empty"),
    "one.pth": (b"\x80", "no weights file of a known format"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    content, words = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)
    with pytest.raises(CheckpointError, match=words):
        read_state_dict(tmp_path / name)


def test_missing_files_folders_and_devices(tmp_path: Path) -> None:
    assert "no such weights file" in str(refused(tmp_path / "absent.pth"))
    assert "is a folder" in str(refused(tmp_path))
    assert "is no regular file" in str(refused(Path("/dev/null")))


def test_unreadable_files(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pth", state)

    def denied(self: Path, *_args: object, **_options: object) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read: Permission denied" in str(refused(path))


def test_archives_that_are_not_torch_s(tmp_path: Path, state: State) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    assert "zip archive without PyTorch weights" in str(refused(tmp_path / "a.npz"))
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "is a TorchScript program" in str(refused(tmp_path / "script.pt"))
    saved(tmp_path / "whole.pth", state)
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "again.pth", "w") as again:
        for entry in whole.infolist():
            again.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    assert "packed again" in str(refused(tmp_path / "again.pth"))


@pytest.mark.parametrize("content", [[1, 2], "text", 3, {}, {"optimizer": {"state": {}}}, {"model": {}}, torch.ones(3)])
def test_files_without_named_tensors(tmp_path: Path, content: Any) -> None:
    assert "holds no named tensors" in str(refused(saved(tmp_path / "a.pth", content)))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, state: State, kind: str) -> None:
    path = tmp_path / "a.pth"
    if kind == "safetensors":
        save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for size in (60, len(whole) // 4, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated or damaged" in str(refused(path)), size


def test_one_flipped_bit_in_a_zip_is_seen(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path / "a.pth", state)
    content = bytearray(path.read_bytes())
    needle = state["stem.weight"].numpy().tobytes()
    content[content.index(needle) + 17] ^= 0x10
    path.write_bytes(content)
    assert re.search(r"the checksum of a/data/\d+ differs", str(refused(path)))


def test_files_saved_without_checksums_load(tmp_path: Path, state: State) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pth", state)
    finally:
        torch.serialization.set_crc32_options(True)
    model = TinyNet()
    load_checkpoint(model, path)
    assert_loaded(model, state)


def test_damage_anywhere_ends_in_one_line(tmp_path: Path, state: State) -> None:
    """Random bytes overwritten: every file either loads or is refused in our own words."""
    dice = random.Random(1)
    outcomes: collections.Counter[str] = collections.Counter()
    for kind in ("zip", "legacy"):
        path = saved(tmp_path / "a.pth", state, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            for _ in range(dice.randint(1, 4)):
                content[dice.randrange(min(len(content), 3000))] = dice.randrange(256)
            path.write_bytes(content)
            try:
                load_checkpoint(TinyNet(), path)
                outcomes["loaded"] += 1
            except CheckpointError as error:
                outcomes["two lines" if "\n" in str(error) else "refused"] += 1
    assert outcomes["refused"] > 60
    assert not outcomes["two lines"]


# ---- what is hostile --------------------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled by an unguarded reader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class Evaluated(Hostile):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({str(self.marker)!r})",)


def test_the_hostile_payload_works_where_nobody_guards(tmp_path: Path) -> None:
    for index, kind in enumerate((Hostile, Evaluated)):
        marker = tmp_path / str(index)
        pickle.loads(pickle.dumps(kind(marker)))  # noqa: S301 -- our own bytes, to prove the test below can fail
        assert marker.exists()


@pytest.mark.parametrize("kind", [Hostile, Evaluated])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_hostile_files_are_refused_and_do_not_run(tmp_path: Path, state: State, kind: type[Hostile], form: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    content = {"model": state, "args": argparse.Namespace(x=kind(marker))}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"args": kind(marker)}, protocol=int(form[-1])))
    else:
        saved(path, content, _use_new_zipfile_serialization=form == "zip")
    error = refused(path)
    assert not marker.exists()
    if form != "pickle 4":  # torch's reader gives up on protocol 4 before it sees the name
        assert "refused: it wants to build or call" in error.message
        assert ("mkdir" if kind is Hostile else "eval") in error.message


def test_stand_ins_cannot_be_used_to_reach_the_real_thing(tmp_path: Path, state: State) -> None:
    """A harmless type with a hostile argument is still refused, and a whole pickled module too."""
    marker = tmp_path / "ran"
    path = saved(tmp_path / "a.pth", {"model": state, "when": [Hostile(marker)]})
    refused(path)
    assert not marker.exists()
    error = refused(saved(tmp_path / "b.pth", nn.Linear(2, 2)))
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "save model.state_dict() alone" in error.hint


def test_the_allow_list_is_not_left_open(tmp_path: Path, state: State) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_state_dict(saved(tmp_path / "a.pth", {"model": state, "args": argparse.Namespace()}))
    refused(saved(tmp_path / "b.pth", {"model": state, "args": Hostile(tmp_path / "ran")}))
    assert set(torch.serialization.get_safe_globals()) == before
