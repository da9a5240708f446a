"""Running the command line in this process and in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mobilec.cli.group import Verbs
from mobilec.cli.main import VERBS

HOSTILE = "[red]x[/red]\x1b[31m\n\u202eevil :smile:"


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as the one JSON document it must be."""
        return json.loads(self.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture
def hostile() -> str:
    """A name that a careless terminal program would interpret."""
    return HOSTILE


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """``run("models", "--json")``: the command line in this process, piped, as wide as a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> Done:
        result = CliRunner().invoke(Verbs(VERBS), [str(argument) for argument in arguments])
        return Done(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Done]:
    """The same in a fresh process in ``tmp_path``."""

    def call(*arguments: object, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "mobilec.cli.main", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100", **environment},
            capture_output=True,
            timeout=120,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 5)).eval()
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A file with a module of somebody's own; ``{net}:make`` names it."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that the real command wrote. Do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "net.py").write_text(NET)
    words = ["export", "net.py:make", "--to", "onnx", "--input-size", "32", "-o", "tiny"]
    subprocess.run([sys.executable, "-m", "mobilec.cli.main", *words], cwd=folder, check=True, capture_output=True)
    return folder / "tiny"
