"""reference.pt2 comes from strangers: nothing in it may run before it has been checked."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilec.errors import ArtifactError
from mobilec.runtime.program_file import read_program
from mobilec.runtime.program_session import open_program

JSON = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.shape[0]
        return self.linear(x).reshape(batch // 1, 3)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "reference.pt2"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=shapes), path)
    return path


class Bomb:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def rewrite(source: Path, target: Path, edits: dict[str, bytes | Callable[[bytes], bytes]], root: str = "") -> Path:
    """A copy of the archive with entries (below its root folder) replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].split("/")[0]
        left = dict(edits)
        for info in old.infolist():
            name = info.filename.split("/", 1)[1]
            data = old.read(info)
            edit = left.pop(name, data)
            new.writestr(info.filename, edit(data) if callable(edit) else edit)
        for name, edit in left.items():
            assert isinstance(edit, bytes)
            new.writestr(f"{root or top}/{name}" if root != "/" else name, edit)
    return target


def in_json(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return edit


def node(document: Any, index: int = -1) -> Any:
    return document["graph_module"]["graph"]["nodes"][index]


def symbolic(document: Any, text: str) -> None:
    """Put ``text`` where the symbol of the batch axis stands."""
    replaced = json.dumps(document).replace("Symbol('s", "Symbol('t")
    document.clear()
    document.update(json.loads(replaced))
    stack: list[Any] = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = text
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def test_a_good_program_is_read_and_runs(good: Path) -> None:
    with open_program(read_program(good), threads=1) as session:
        for batch in (1, 2, 7):
            assert session.run({"x": np.ones((batch, 4), np.float32)})["output"].shape == (batch, 3)


def test_the_rewriting_of_these_tests_changes_nothing_by_itself(good: Path, tmp_path: Path) -> None:
    read_program(rewrite(good, tmp_path / "same.pt2", {JSON: in_json(lambda document: None)}))


HOSTILE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "function as operator": ("not of a known namespace", lambda d: node(d).update(target="torch.os.system")),
    "library loader": ("not of a known namespace", lambda d: node(d).update(target="torch.ops.load_library")),
    "dunder": ("not of a known namespace", lambda d: node(d).update(target="torch.ops.aten.__class__.mro")),
    "method caller": ("not of a known namespace", lambda d: node(d).update(target="_operator.methodcaller")),
    "file operator": ("not of a known namespace", lambda d: node(d).update(target="torch.ops.aten.from_file.default")),
    "code as node name": ("is no identifier", lambda d: node(d).update(name="x=print(1)")),
    "code as input name": (
        "is no identifier",
        lambda d: d["graph_module"]["graph"]["inputs"][-1]["as_tensor"].update(name="x=print(1)"),
    ),
    "quote in parameter name": (
        "has quotes or control characters",
        lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name='a"]+b["'),
    ),
    "backslash in parameter name": (
        "has quotes or control characters",
        lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name="a\\"),
    ),
    "line end in parameter name": (
        "has quotes or control characters",
        lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(parameter_name="a\nb"),
    ),
    "code as expression": ("more than arithmetic", lambda d: symbolic(d, "__import__('os').getpid()")),
    "attribute in expression": ("more than arithmetic", lambda d: symbolic(d, "Symbol('s0').func")),
    "lambda in expression": ("more than arithmetic", lambda d: symbolic(d, "(lambda: 1)()")),
    "hidden under metadata": (
        "more than arithmetic",
        lambda d: d["graph_module"]["graph"]["sym_int_values"].update(
            metadata={"as_expr": {"expr_str": "exit()", "hint": None}}
        ),
    ),
    "module in a container": (
        "none of the built-in ones",
        lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
            out_spec=json.dumps(
                [
                    1,
                    {
                        "type": "collections.defaultdict",
                        "context": {
                            "default_factory_module": "this",
                            "default_factory_name": "s",
                            "dict_context": [],
                        },
                        "children_spec": [],
                    },
                ]
            )
        ),
    ),
    "enumeration in a container": (
        "name a module to import",
        lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
            out_spec=json.dumps(
                [
                    1,
                    {
                        "type": "builtins.dict",
                        "context": json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}]),
                        "children_spec": [{"type": None, "context": None, "children_spec": []}],
                    },
                ]
            )
        ),
    ),
    "code as keyword": (
        "is no identifier",
        lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec=json.dumps(
                [
                    1,
                    {
                        "type": "builtins.tuple",
                        "context": "null",
                        "children_spec": [
                            {"type": "builtins.tuple", "context": "null", "children_spec": []},
                            {
                                "type": "builtins.dict",
                                "context": '["x=print(1)"]',
                                "children_spec": [{"type": None, "context": None, "children_spec": []}],
                            },
                        ],
                    },
                ]
            )
        ),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    message, change = HOSTILE[name]
    path = rewrite(good, tmp_path / "hostile.pt2", {JSON: in_json(change)})
    with pytest.raises(ArtifactError, match=f"is refused: .*{message}") as caught:
        read_program(path)
    assert "\n" not in str(caught.value)


def test_sample_inputs_that_are_a_pickle(good: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save((Bomb(marker),), buffer)
    path = rewrite(good, tmp_path / "bomb.pt2", {SAMPLES: buffer.getvalue()})
    with pytest.raises(ArtifactError, match="sample inputs are more than tensors"):
        read_program(path)
    assert not marker.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)  # what would have happened
    assert marker.exists()


def test_weights_and_constants_that_are_pickles(good: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    def pickled(document: Any) -> None:
        next(iter(document["config"].values()))["use_pickle"] = True

    path = rewrite(
        good, tmp_path / "a.pt2", {WEIGHTS: in_json(pickled), "data/weights/weight_0": pickle.dumps(Bomb(marker))}
    )
    with pytest.raises(ArtifactError, match="not stored as plain numbers"):
        read_program(path)
    for entry in ("data/weights/model.pt", "data/constants/opaque_obj_0", "data/aotinductor/model/a.so", "extra/x"):
        path = rewrite(good, tmp_path / "b.pt2", {entry: pickle.dumps(Bomb(marker))})
        with pytest.raises(ArtifactError, match="unexpected entry"):
            read_program(path)
    assert not marker.exists()


def test_the_old_layout_beside_the_new_one(good: Path, tmp_path: Path) -> None:
    """torch falls back to entries at the archive's top when the new layout fails to load."""
    path = rewrite(good, tmp_path / "old.pt2", {"serialized_state_dict.pt": b"x"}, root="/")
    with pytest.raises(ArtifactError, match="more than one root folder"):
        read_program(path)


def test_guards_are_never_run(good: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')"
    path = rewrite(good, tmp_path / "guards.pt2", {JSON: in_json(lambda d: d.update(guards_code=[code]))})
    with open_program(read_program(path), threads=1) as session:
        session.run({"x": np.ones((2, 4), np.float32)})
    assert not marker.exists()


def test_what_strangers_models_contain_is_read(tmp_path: Path) -> None:
    """Control flow, no-grad regions, keyword inputs, arithmetic on sizes, dictionaries: none of it is hostile."""

    class Stranger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(10, 4)
            self.register_buffer("offsets", torch.arange(3.0), persistent=False)

        def forward(self, ids: torch.Tensor, *, mask: torch.Tensor) -> dict[str, Any]:
            with torch.no_grad():
                rows = self.table(ids)
            _, width = ids.shape
            flat = rows.reshape(-1, width * 4)[:, : (width * 4) // 2]
            chosen = torch.cond(mask.sum() > 0, lambda a: a + 1, lambda a: a - 1, (flat,))
            return {"chosen": chosen, "pair": (flat[:, :3] + self.offsets, None)}

    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        Stranger().eval(),
        (torch.zeros(2, 6, dtype=torch.long),),
        {"mask": torch.ones(2, 6)},
        dynamic_shapes={"ids": sizes, "mask": sizes},
    )
    torch.export.save(program, tmp_path / "stranger.pt2")
    with open_program(read_program(tmp_path / "stranger.pt2"), threads=1) as session:
        found = session.run({"ids": np.ones((3, 4), np.int64), "mask": np.ones((3, 4), np.float32)})
        assert [value.shape for value in found.values()] == [(3, 8), (3, 3)]


def test_names_of_strangers_are_read(tmp_path: Path) -> None:
    """Spaces in module names and letters beyond ASCII are no code."""

    class Stranger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleDict({"with space": torch.nn.Linear(4, 3), "größe/2": torch.nn.Linear(4, 3)})

        def forward(self, größe: torch.Tensor) -> torch.Tensor:
            return self.parts["with space"](größe) + self.parts["größe/2"](größe)

    module = Stranger().eval()
    torch.export.save(torch.export.export(module, (torch.ones(2, 4),)), tmp_path / "stranger.pt2")
    with open_program(read_program(tmp_path / "stranger.pt2"), threads=1) as session:
        (found,) = session.run({session.inputs[0].name: np.ones((2, 4), np.float32)}).values()
    np.testing.assert_allclose(found, module(torch.ones(2, 4)).detach().numpy(), rtol=1e-6)
