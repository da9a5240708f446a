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


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a Core ML package without a manifest, its batch from 1 to 8. Do not change it."""
    import coremltools as ct
    import torch

    from support.mlpackages import convert

    return convert(
        Lively(),
        [torch.zeros(2, 3, 32, 32)],
        tmp_path_factory.mktemp("package") / "lively.mlpackage",
        front_end="trace",
        inputs=[ct.TensorType(name="x", shape=(ct.RangeDim(1, 8), 3, 32, 32))],
        outputs=["logits"],
    )
