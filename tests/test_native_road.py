"""Native kernels of the smallest variant of every family: the same numbers as PyTorch, from threads, run after run."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import mobilec
from mobilec.mobile.zoo import FAMILIES, Variant
from mobilec.runtime.session import Session
from support.zoo import image, relative_gap

SMALLEST = [min(family.variants, key=lambda variant: variant.macs) for family in FAMILIES]
SIZE = 64
LIMIT = 1e-4  # of the largest logit
RUNS = 1000
LEAK = 3_000_000  # bytes; a row of logits kept by each run would be 4 MB


@pytest.mark.parametrize("variant", SMALLEST, ids=lambda variant: variant.name)
def test_to_native_kernels(variant: Variant, tmp_path: Path) -> None:
    module = mobilec.create_model(variant.name)
    artifact = mobilec.compile(module, to="tvm", out=tmp_path / "out", input_size=SIZE, proof=False)
    images = [image(1, SIZE, SIZE, seed=seed) for seed in range(2)]
    images.append(torch.linspace(-2, 2, SIZE).expand(1, 3, SIZE, SIZE).clone() ** 3)
    with torch.no_grad():
        wanted = [module(each).numpy() for each in images]
    assert relative_gap(wanted[0], wanted[1]) > 100 * LIMIT  # a library that ignores its input would be seen
    with mobilec.load(artifact, threads=1) as one, mobilec.load(artifact, threads=2) as two:
        for each, expected in zip(images, wanted, strict=True):
            for session in (one, two):
                assert relative_gap(session.run({"x": each.numpy()})["logits"], expected) < LIMIT
        _side_by_side([one, two], images, wanted)
        _leaks_nothing(one, images[0].numpy())


def _side_by_side(sessions: list[Session], images: list[torch.Tensor], wanted: list[np.ndarray]) -> None:
    """Each session in a thread of its own, at the same time, on other images."""
    gaps: list[float] = []

    def work(at: int) -> None:
        for turn in range(12):
            chosen = (at + turn) % len(images)
            gaps.append(relative_gap(sessions[at].run({"x": images[chosen].numpy()})["logits"], wanted[chosen]))

    workers = [threading.Thread(target=work, args=(at,)) for at in range(len(sessions))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(gaps) == 12 * len(sessions)
    assert max(gaps) < LIMIT


def _leaks_nothing(session: Session, x: np.ndarray) -> None:
    process = psutil.Process()
    for _ in range(RUNS // 10):
        session.run({"x": x})
    before = process.memory_info().rss
    for _ in range(RUNS):
        session.run({"x": x})
    assert process.memory_info().rss - before < LEAK
