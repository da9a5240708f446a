"""The house rules that a machine can check: import directions, file sizes, light imports, versions."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mobilec"

# What each room may import besides itself and `errors`; the data's way is the same line read backwards.
ALLOWED = {
    "mobile": set(),
    "passes": set(),
    "export": {"passes", "mobile"},
    "runtime": {"export", "passes", "mobile"},
    "latency": {"runtime", "export", "passes", "mobile"},
    "cli": {"latency", "runtime", "export", "passes", "mobile"},
}


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _wrong_directions(room: str, source: str) -> set[str]:
    rooms = {name.split(".")[1] for name in _imported(ast.parse(source)) if re.match(r"mobilec\.\w+", name)}
    return (rooms & ALLOWED.keys()) - ALLOWED[room] - {room}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    assert not _wrong_directions(room, path.read_text()), f"{room} must import only {sorted(ALLOWED[room])}"


def test_the_direction_check_sees_a_wrong_import() -> None:
    assert _wrong_directions("passes", "from mobilec.mobile.zoo import list_models") == {"mobile"}
    assert _wrong_directions("mobile", "def f():\n    import mobilec.export.compile") == {"export"}
    assert _wrong_directions("runtime", "from mobilec.latency import profile") == {"latency"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_keep_to_one_job(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_importing_mobilec_loads_nothing_heavy() -> None:
    code = (
        "import sys, mobilec; mobilec.list_models();"
        "heavy = 'torch numpy onnx onnxruntime coremltools PIL scipy'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_tested_set_is_what_is_installed() -> None:
    pins = dict(
        line.split("==") for line in (PACKAGE / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    installed = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    differing = {
        name: (installed[name], pin)
        for name, pin in pins.items()
        if name in installed and installed[name].split("+")[0] != pin
    }
    assert not differing, "installed versions differ from mobilec/constraints.txt"
