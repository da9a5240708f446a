"""Warm-up, outliers and drift against series whose truth is known. Everything is drawn from fixed seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from mobilec.errors import BackendError
from mobilec.latency import statistics
from mobilec.latency.profile import MeasurementCut, MeasurementStopped, measure
from mobilec.latency.runner import Job
from mobilec.latency.samples import Drift, Samples, Settings
from mobilec.latency.statistics import summarise
from mobilec.latency.steadiness import count_outliers, settled

TRIALS = 200
Jobs = Callable[..., Job]


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 50)  # intervals are not what is looked at here


def steady(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.exp(0.02 * rng.standard_normal(count))


def test_a_steady_series_is_settled() -> None:
    rng = np.random.default_rng(1)
    assert np.mean([settled(list(steady(200, rng))) for _ in range(TRIALS)]) >= 0.97


def test_a_series_that_still_becomes_faster_is_not_settled() -> None:
    rng = np.random.default_rng(2)
    fading = 1 + 0.5 * np.exp(-np.arange(200) / 100)
    assert np.mean([settled(list(fading * steady(200, rng))) for _ in range(TRIALS)]) <= 0.03


def test_a_series_that_has_stopped_becoming_faster_is_settled() -> None:
    rng = np.random.default_rng(3)
    faded = 1 + 5 * np.exp(-np.arange(400) / 10)
    assert np.mean([settled(list(faded * steady(400, rng))) for _ in range(TRIALS)]) >= 0.97


def test_slowing_down_and_too_few_runs_are_no_reason_to_go_on() -> None:
    rng = np.random.default_rng(4)
    assert settled(list(np.linspace(1, 2, 200) * steady(200, rng)))
    assert settled([3.0, 2.0, 1.0])
    assert settled([])


def test_outliers_are_counted_by_the_outer_fences() -> None:
    quiet = np.linspace(9, 11, 101)  # quartiles 9.5 and 10.5, fences 6.5 and 13.5
    assert count_outliers(quiet) == 0
    assert count_outliers(np.append(quiet, [13, 15, 100, 5])) == 3


def drift_of(latencies: np.ndarray) -> Drift | None:
    """``latencies [launches, rounds]``, one run a round."""
    launches, rounds = latencies.shape
    count = launches * rounds
    index = np.arange(count)
    columns = (index // rounds).tolist(), index.tolist(), [float(i) for i in index], latencies.ravel().tolist()
    return summarise(Samples(*map(tuple, columns))).drift


def seen(found: Drift | None) -> bool:
    return found is not None and found.seen


def persistent(launches: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Rounds that resemble their neighbours, without a trend."""
    series = np.zeros((launches, rounds))
    steps = rng.standard_normal((launches, rounds))
    for at in range(rounds):
        series[:, at] = 0.6 * series[:, at - 1] + 0.8 * steps[:, at] if at else steps[:, at]
    return np.exp(0.02 * series)


def test_noise_and_differences_between_launches_are_no_drift() -> None:
    rng = np.random.default_rng(5)
    launches = np.exp(0.05 * np.arange(5))[:, None]  # every process slower than the one before
    assert sum(seen(drift_of(launches * steady(200, rng).reshape(5, 40))) for _ in range(100)) <= 3
    assert sum(seen(drift_of(launches * persistent(5, 40, rng))) for _ in range(100)) <= 5


@pytest.mark.parametrize("change", [0.05, -0.05])
def test_drift_within_launches_is_seen_and_measured(change: float) -> None:
    rng = np.random.default_rng(6)
    slope = np.linspace(1, 1 + change, 40)
    found = [drift_of(slope * steady(200, rng).reshape(5, 40)) for _ in range(50)]
    assert all(seen(each) for each in found)
    assert np.median([each.change for each in found if each is not None]) == pytest.approx(change, abs=0.005)


def test_a_drift_too_small_to_matter_is_not_called_one() -> None:
    found = drift_of(np.tile(np.linspace(1, 1.005, 40), (5, 1)))
    assert found is not None
    assert found.p_value < 1e-6
    assert not found.seen


def test_too_few_rounds_show_no_drift() -> None:
    assert summarise(Samples((0,) * 7, tuple(range(7)), (0.0,) * 7, tuple(map(float, range(1, 8))))).drift is None


def test_a_machine_without_noise_does_not_drift() -> None:
    assert drift_of(np.ones((3, 20))) == Drift(0.0, 1.0, seen=False)


# Through the measuring processes, in virtual time.


def test_warming_up_goes_on_while_runs_become_faster_and_the_median_is_that_of_the_rest(
    job: Jobs, settings: Settings
) -> None:
    settings = dataclasses.replace(
        settings, warmup_runs=10, warmup_secs=0.1, warmup_limit_secs=5.0, min_secs=1.0, launches=1
    )
    jobs = [job("slow at first", median_ms=2, spread=0.01, slow_start=[1.0, 200]), job("steady", median_ms=2, spread=0)]
    report = measure(jobs, settings, per_op=False, timeout_secs=60)
    first, second = (each.launches[0] for each in report.artifacts)
    assert second.warmup_runs < 70
    assert 400 < first.warmup_runs < 2500
    assert first.settled
    assert second.settled
    assert report.artifacts[0].latency.median_ms == pytest.approx(2, rel=0.05)


def test_a_warm_up_that_does_not_end_is_cut_short_and_told(job: Jobs, settings: Settings) -> None:
    settings = dataclasses.replace(settings, warmup_runs=10, warmup_secs=0.1, warmup_limit_secs=0.3, launches=2)
    report = measure(
        [job("slow", median_ms=0.1, spread=0.01, slow_start=[9.0, 500])], settings, per_op=False, timeout_secs=60
    )
    assert [each.settled for each in report.artifacts[0].launches] == [False, False]
    assert any("still became faster at the end of its warm-up in 2 of 2 launches" in each for each in report.warnings)


@pytest.mark.parametrize(
    ("growth_per_s", "verdict", "ratio"), [(0.0, "held its speed", 1.0), (0.1, "slowed down", 1.57)]
)
def test_a_sustained_run_shows_whether_the_machine_throttles(
    job: Jobs, settings: Settings, growth_per_s: float, verdict: str, ratio: float
) -> None:
    settings = dataclasses.replace(settings, sustained_secs=6.0, launches=1)
    report = measure(
        [job("a", median_ms=4, spread=0.01, growth_per_s=growth_per_s)], settings, per_op=False, timeout_secs=60
    )
    found = report.artifacts[0].sustained
    assert found is not None
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(ratio, abs=0.15 if growth_per_s else 0.01)
    assert 45 <= len(found.windows) <= 70
    starts = [each.start_s for each in found.windows]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert 5 < starts[-1] < 7
    assert sum(each.runs * each.median_ms for each in found.windows) == pytest.approx(6000, rel=0.1)


def test_a_sustained_run_of_few_runs_gives_no_verdict(job: Jobs, settings: Settings) -> None:
    settings = dataclasses.replace(settings, num_runs=2, warmup_runs=1, sustained_secs=3.0, launches=1)
    report = measure([job("a", median_ms=500, spread=0.01)], settings, per_op=False, timeout_secs=60)
    found = report.artifacts[0].sustained
    assert found is not None
    assert (found.verdict, found.ratio, found.interval) == ("too short to tell", None, None)
    assert 5 <= len(found.windows) <= 8


@pytest.mark.parametrize("cut", [MeasurementCut, MeasurementStopped])
def test_a_sustained_run_that_ends_early_keeps_its_windows(job: Jobs, settings: Settings, cut: type) -> None:
    settings = dataclasses.replace(settings, sustained_secs=6.0, launches=1)

    def told(stage: str, done: int, total: int | None) -> None:
        if stage == "sustained" and done == 20:
            raise BackendError("gone") if cut is MeasurementCut else KeyboardInterrupt

    with pytest.raises(cut) as caught:
        measure([job("a", median_ms=4, spread=0.01)], settings, per_op=False, timeout_secs=60, progress=told)
    report = caught.value.report
    assert report.cut == ("gone" if cut is MeasurementCut else "interrupted")
    assert report.warnings[0] == f"cut short: {report.cut}"
    found = report.artifacts[0].sustained
    assert found is not None
    assert len(found.windows) == 20
    assert report.artifacts[0].latency.runs >= settings.num_runs
