"""Help, lists and wrong usage answer without loading anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mobilec.cli.main import VERBS

HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "onnxsim", "coremltools", "PIL", "scipy", "psutil", "timm", "tvm"}
PROBE = """
import json, sys
from mobilec.cli.failures import run
from mobilec.cli.main import top
code = run(sys.argv[1:], top)
print("\\n" + json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def _loaded(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, set(names)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["models"], 0),
        (["models", "--json"], 0),
        (["doctor"], 0),
        (["nonsense"], 2),
        (["export", "shvit_s1"], 2),
        *(([verb, "--help"], 0) for verb in VERBS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_loaded(arguments: list[str], code: int) -> None:
    found, names = _loaded(*arguments)
    assert found == code
    assert not names & HEAVY


def test_the_probe_sees_heavy_imports() -> None:
    code = PROBE.replace("import json, sys", "import json, sys, numpy")
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout.splitlines()[-1])[1]) & HEAVY


def test_help_does_not_even_load_rich() -> None:
    assert "rich" not in _loaded("--help")[1]


def test_the_entry_point_imports_only_the_standard_library() -> None:
    """So that a Ctrl-C at any later moment meets the handlers."""
    code = (
        "import json, sys; before = set(sys.modules); import mobilec.cli.main, mobilec.cli.signals;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=_root(), check=True)
    tops = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert tops <= {"mobilec", *sys.stdlib_module_names}


def _root() -> Path:
    return Path(__file__).resolve().parent.parent.parent
