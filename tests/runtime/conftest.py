"""Artefacts shared by the tests of this folder; those that change one copy it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.artefacts import Lively, build, image_input, logits


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good fp32 artefact at batch 1. Do not change it."""
    return build(tmp_path_factory.mktemp("lively") / "artefact", Lively(), [image_input()], [logits()])


@pytest.fixture(scope="session")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a dynamic batch. Do not change it."""
    folder = tmp_path_factory.mktemp("dynamic") / "artefact"
    return build(folder, Lively(), [image_input(batch="batch")], [logits(batch="batch")])


@pytest.fixture
def copy(lively: Path, tmp_path: Path) -> Path:
    """A copy of ``lively`` to plant a fault in."""
    return Path(shutil.copytree(lively, tmp_path / "copy"))
