"""The comparison with other runtimes (`benchmarks/native_vs_peers.py`): what is wrong is never the fastest peer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from peers import convert, files, tables
from peers.measure import Probe, Result, Turns, measure
from peers.runtimes import HERE, WAYS, Way

LOGITS = 10


@dataclass(frozen=True)
class Folder:
    """Stands for a store: files that lie in one folder."""

    environments: Path

    def tell(self, text: str) -> None:
        del text

    def file_of(self, way: Way, model: str) -> Path:
        if way.file == "none":
            raise files.CannotMake("cannot be converted: RuntimeError: no such operator")
        return self.environments / way.file

    def entry(self, kind: str, environment: object, model: str) -> files.Entry:
        return files.Entry(self.environments, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in ONNX, the same with one other weight, and a file that is none."""
    home = tmp_path_factory.mktemp("peers")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, LOGITS)).eval()
    images = convert._images(1, 32)
    np.save(home / convert.IMAGES, images)
    with torch.no_grad():
        np.save(home / convert.EXPECTED, np.stack([module(torch.from_numpy(image)).numpy() for image in images]))
        for name, change in (("right", 0.0), ("wrong", 3.0)):
            module[3].weight[4, 100] += change
            program = torch.onnx.export(module, (torch.zeros(1, 3, 32, 32),), dynamo=True, verbose=False)
            assert program is not None
            program.save(str(home / f"{name}.onnx"))
    (home / "broken.onnx").write_text("nothing")
    return home


def test_what_is_wrong_or_broken_says_so(folder: Path) -> None:
    ways = [
        Way(name, name, "onnxruntime", HERE, "", file)
        for name, file in (("a", "right.onnx"), ("b", "wrong.onnx"), ("c", "broken.onnx"), ("d", "none"))
    ]
    turns = Turns(threads=1, rounds=2, settle_secs=0.0, min_secs=0.01, seed=0)
    results, probe = measure("net", ways, Folder(folder), turns, lambda text: None)  # type: ignore[arg-type]
    right, wrong, broken, missing = results
    assert right.right
    assert right.gap is not None
    assert right.gap < 1e-6
    assert len(right.medians_ms) == len(wrong.medians_ms) == len(probe.medians_ms) == 2
    assert sum(right.busy_threads[1:]) < right.busy_threads[0]  # one thread computes, however little of its time
    assert probe.gflops > 1
    assert "of the largest logit off" in wrong.problem
    assert "broken.onnx" in broken.problem
    assert "\n" not in broken.problem
    assert "no such operator" in missing.problem
    assert broken.medians_ms == missing.medians_ms == []


def _run(**problems: str) -> tables.Run:
    times = {"native": 2.0, "onnxruntime": 5.0, "litert": 1.0, "openvino-ours": 1.6, "mnn": 4.0}
    results = []
    for way, time in times.items():
        problem = problems.get(way, "")
        medians = [] if problem == "fails" else [time, time * 1.1]
        results.append(Result(way, "1.0", 0.0, medians, busy_threads=[1.0], problem=problem))
    return tables.Run("net", 1, 1, 100_000_000, results, Probe(100_000_000, [1.0, 1.1]))


def test_the_fastest_peer_is_right_and_runs_the_plain_export() -> None:
    run = _run(litert="wrong: 0.1 of the largest logit off", mnn="fails")
    assert run.fastest_peer is not None
    assert run.fastest_peer.way == "onnxruntime"
    header, ((_, ours, *cells),) = tables.rows_of([run])
    assert ours == "2.10"
    assert cells[:4] == ["5.25 (2.50x)", "1.05 wrong (0.50x)", "1.68 (0.80x)", "fails"]
    assert header[-3:] == ["ahead of it", "bound ms", "of bound"]
    assert cells[-3:] == ["2.50x (2.50 to 2.50)", "1.05", "50%"]
    notes = tables.notes_of([run])
    assert "net, LiteRT: wrong: 0.1 of the largest logit off" in notes
    assert "net, MNN: fails" in notes


def test_threads_beyond_what_was_asked_for_are_told() -> None:
    run = _run()
    assert not any("more threads" in note for note in tables.notes_of([run]))
    run.results[1].busy_threads = [1.0, 0.9]
    assert any("ONNX Runtime: more threads compute than 1" in note for note in tables.notes_of([run]))


def test_every_way_has_a_worker_and_a_conversion() -> None:
    from peers.worker import RUNTIMES

    for way in WAYS.values():
        assert way.runtime in RUNTIMES
        assert way.kind in convert.KINDS
