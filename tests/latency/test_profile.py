"""The whole way: real processes, real ONNX Runtime, and a session in virtual time whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobilec.errors import ArtifactError, BackendUnavailable, UsageError
from mobilec.export.artifact import open_artifact
from mobilec.export.compile import compile
from mobilec.latency.profile import measure, profile, unique_labels
from mobilec.latency.runner import FEWEST_ROUNDS, Job
from mobilec.latency.samples import ProfileReport, Settings
from support.artefacts import Lively, image_input, logits, manifest, seal

Jobs = Callable[..., Job]
TIMEOUT_SECS = 120.0


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled") / "lively"
    return compile(Lively(), to="onnx", out=folder, input_size=32, dynamic_batch=True).path


@pytest.fixture(scope="module")
def report(artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    """The artefact against itself, called from a folder with a trap in it."""
    trap = tmp_path_factory.mktemp("trap")
    (trap / "json.py").write_text("raise SystemExit('the current folder was imported from')")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trap)
        return profile([artefact, artefact], threads=1, num_runs=30, warmup_runs=2, min_secs=0, launches=2)


def test_every_artefact_is_measured(report: ProfileReport, artefact: Path) -> None:
    assert [each.label for each in report.artifacts] == ["lively", "lively #2"]
    for each in report.artifacts:
        assert (each.path, each.model, each.backend, each.precision) == (str(artefact), "Lively", "onnx", "fp32")
        assert (each.engine, each.threads) == ("onnxruntime", 1)
        assert [(spec.name, spec.shape, spec.dtype) for spec in each.inputs] == [("x", (1, 3, 32, 32), "float32")]
        assert each.model_sha256 == open_artifact(artefact).manifest.files["model.onnx"]["sha256"]
        assert each.latency.runs == len(each.samples.latency_ms) >= 30
        assert each.latency.launches == len(each.launches) == 2
        assert each.latency.rounds >= FEWEST_ROUNDS
        assert each.latency.median_interval is not None
        assert 0 < each.latency.min_ms <= each.latency.median_ms <= each.latency.p99_ms <= each.latency.max_ms
        assert all(launch.load_ms > 0 and launch.first_run_ms > 0 for launch in each.launches)
        assert all(launch.warmup_runs >= 2 for launch in each.launches)
        assert 0 < each.baseline_rss_bytes <= each.peak_rss_bytes


def test_an_artefact_is_compared_with_itself(report: ProfileReport) -> None:
    (found,) = report.comparisons
    assert (found.baseline, found.candidate) == ("lively", "lively #2")
    assert found.interval is not None
    assert found.interval.low <= found.ratio <= found.interval.high
    assert found.rounds == report.artifacts[0].latency.rounds


def test_they_take_turns_on_one_clock(report: ProfileReport) -> None:
    first, second = (each.samples for each in report.artifacts)
    assert set(first.round) == set(second.round)
    assert min(first.start_s + second.start_s) == 0
    for samples in (first, second):
        ends = np.array(samples.start_s) + np.array(samples.latency_ms) / 1000
        assert (np.array(samples.start_s[1:]) >= ends[:-1]).all()
    merged = sorted((start, who) for who, each in enumerate((first, second)) for start in each.start_s)
    changes = sum(one[1] != other[1] for one, other in itertools.pairwise(merged))
    assert changes >= FEWEST_ROUNDS
    # The order within a round is drawn anew: neither is always the first.
    leaders = {
        first.start_s[first.round.index(number)] < second.start_s[second.round.index(number)]
        for number in set(first.round)
    }
    assert leaders == {True, False}


def test_the_op_table_adds_up(report: ProfileReport) -> None:
    for each in report.artifacts:
        assert each.ops is not None
        assert sum(row.share for row in each.ops.ops) == pytest.approx(1)
        assert sum(row.time_us for row in each.ops.ops) == pytest.approx(each.ops.sum_us)
        assert each.ops.sum_us <= each.ops.whole_us
        assert sum(row.op == "Conv" for row in each.ops.ops) == 2
        assert {row.scope for row in each.ops.ops} >= {"head"}
        assert any(row.scope.startswith("features.") for row in each.ops.ops)


def test_the_report_is_json(report: ProfileReport) -> None:
    document = json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))
    assert document["artifacts"][0]["samples"]["latency_ms"][0] > 0
    assert document["machine"]["python"]
    assert document["settings"]["threads"] == 1


def test_a_core_ml_artefact_off_macos_is_refused_before_anything_is_timed(artefact: Path, tmp_path: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("Core ML is at home here")
    folder = tmp_path / "apple"
    (folder / "model.mlpackage").mkdir(parents=True)
    (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
    (folder / "reference.pt2").write_bytes(b"")
    seal(folder, manifest([image_input()], [logits()], backend="coreml", model_file="model.mlpackage"))
    stages = set()
    with pytest.raises(BackendUnavailable, match=r"^apple: .*Core ML exists on macOS only") as caught:
        profile([artefact, folder], progress=lambda stage, done, total: stages.add(stage))
    assert stages == {"load"}
    assert "Mac" in caught.value.hint


def test_a_broken_artefact_is_refused(artefact: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(artefact, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        profile([artefact, broken])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"num_runs": 0}, "num_runs"),
        ({"num_runs": 1.5}, "num_runs"),
        ({"num_runs": True}, "num_runs"),
        ({"warmup_runs": -1}, "warmup_runs"),
        ({"launches": 0}, "launches"),
        ({"seed": -1}, "seed"),
        ({"min_secs": -0.1}, "min_secs"),
        ({"min_secs": float("nan")}, "min_secs"),
        ({"min_secs": float("inf")}, "min_secs"),
        ({"min_secs": "3"}, "min_secs"),
        ({"threads": 0}, "threads"),
        ({"timeout_secs": 0}, "timeout"),
    ],
)
def test_settings_that_mean_nothing_are_refused(artefact: Path, facts: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profile(artefact, **facts)


def test_nothing_to_profile_is_refused() -> None:
    with pytest.raises(UsageError, match="no artefact"):
        profile([])


def test_labels_are_short_where_they_can_be_and_always_unique() -> None:
    paths = [Path(text) for text in ("/a/x", "/a/y", "/b/x", "/a/y", "/a/y", "/")]
    assert unique_labels(paths) == ["/a/x", "y", "/b/x", "y #2", "y #3", "/"]


# A null device: sessions in virtual time with a known distribution.


def virtual(settings: Settings, *jobs: Job) -> ProfileReport:
    return measure(jobs, settings, per_op=False, timeout_secs=TIMEOUT_SECS)


def test_a_known_distribution_is_recovered(job: Jobs, settings: Settings) -> None:
    settings = dataclasses.replace(settings, min_secs=6.0, launches=3)
    report = virtual(settings, job("a", median_ms=4, spread=0.01), job("b", median_ms=4.08, spread=0.01))
    for each, truth in zip(report.artifacts, (4, 4.08), strict=True):
        assert each.latency.median_ms == pytest.approx(truth, rel=0.002)
        assert each.latency.iqr_ms == pytest.approx(truth * 0.01 * 1.349, rel=0.15)
        assert sum(each.samples.latency_ms) >= 6000
        interval = each.latency.median_interval
        assert interval is not None
        assert interval.high - interval.low < 0.02 * truth
    (found,) = report.comparisons
    assert found.verdict == "slower"
    assert found.ratio == pytest.approx(1.02, abs=0.002)
    assert found.launches == 3


def test_two_equal_artefacts_are_called_equal(job: Jobs, settings: Settings) -> None:
    settings = dataclasses.replace(settings, min_secs=2.0, launches=3)
    jobs = [job(name, median_ms=4, spread=0.01) for name in "abcdef"]
    report = virtual(settings, *jobs)
    assert [each.verdict for each in report.comparisons].count("no difference seen") >= 4


@pytest.mark.parametrize(("num_runs", "min_secs"), [(1, 0.0), (3, 0.0), (50, 0.0), (5, 1.0), (400, 0.1)])
def test_runs_and_time_are_both_reached(job: Jobs, settings: Settings, num_runs: int, min_secs: float) -> None:
    settings = dataclasses.replace(
        settings, num_runs=num_runs, min_secs=min_secs, launches=min(2, num_runs), warmup_runs=0
    )
    report = virtual(settings, job("quick", median_ms=1, spread=0.1), job("slow", median_ms=30, spread=0.1))
    for each in report.artifacts:
        assert each.latency.runs >= num_runs
        assert sum(each.samples.latency_ms) >= 1000 * min_secs
        assert each.latency.launches == len(each.launches) == settings.launches
        assert each.launches[0].warmup_runs == 0


def test_warming_up_lasts_as_long_as_asked(job: Jobs, settings: Settings) -> None:
    settings = dataclasses.replace(settings, warmup_runs=5, warmup_secs=0.25, launches=1)
    report = virtual(settings, job("quick", median_ms=1, spread=0.01), job("slow", median_ms=100, spread=0.01))
    quick, slow = (each.launches[0].warmup_runs for each in report.artifacts)
    assert 230 <= quick <= 270
    assert slow == 5


def test_figures_are_repeated_by_the_seed(job: Jobs, settings: Settings, tmp_path: Path) -> None:
    jobs = [job(name, median_ms=2, spread=0.05) for name in "ab"]
    reports = []
    for _ in range(2):
        for path in tmp_path.glob("*.pids"):
            path.unlink()
        reports.append(virtual(settings, *jobs))
    one, other = reports
    assert [each.samples.latency_ms for each in one.artifacts] == [each.samples.latency_ms for each in other.artifacts]
    assert one.comparisons == other.comparisons


def test_progress_is_told_and_ends_complete(job: Jobs, settings: Settings) -> None:
    told: list[tuple[str, int, int | None]] = []
    jobs = [job("a", median_ms=2, spread=0.1), job("b", median_ms=2, spread=0.1)]
    measure(jobs, settings, per_op=True, timeout_secs=TIMEOUT_SECS, progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["load", "warm up", "measure", "ops"]
    done = [step[1] for step in told if step[0] == "measure"]
    assert done == sorted(done)
    total = next(step[2] for step in told if step[0] == "measure")
    assert done[-1] == total


def test_artefacts_that_differ_in_more_than_speed_are_told(job: Jobs, settings: Settings) -> None:
    report = virtual(settings, job("a", shape=[3]), job("b", shape=[5]), job("c", shape=[3]))
    told = [warning for warning in report.warnings if "inputs" in warning]
    assert told == ["b and a take different inputs: x [1, 5] and x [1, 3]"]


def test_peak_memory_is_the_sessions_not_its_parents(job: Jobs, settings: Settings) -> None:
    ballast = np.ones(400 * 2**20, dtype=np.uint8)  # the parent is large while it starts the processes
    report = virtual(settings, job("small"), job("large", fault="memory", at=2))
    small, large = report.artifacts
    assert small.peak_rss_bytes < ballast.nbytes
    assert small.peak_rss_bytes - small.baseline_rss_bytes < 50 * 2**20
    assert 100 * 2**20 <= large.peak_rss_bytes - large.baseline_rss_bytes < 150 * 2**20
