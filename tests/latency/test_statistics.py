"""Statistics against distributions whose truth is known. Everything is drawn from fixed seeds."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from mobilec.errors import UsageError
from mobilec.latency import statistics
from mobilec.latency.samples import Samples
from mobilec.latency.statistics import compare, compare_apart, summarise

TRIALS = 200
NOISE = ("lognormal", "skewed", "by round", "outliers")


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 500)  # the trials average over its noise


def columns(latencies: np.ndarray, launches: int = 1) -> Samples:
    """``[rounds, runs a round]`` as samples, the rounds shared out among the launches in order."""
    rounds, runs = latencies.shape
    index = np.repeat(np.arange(rounds), runs)
    return Samples(
        launch=tuple((index * launches // rounds).tolist()),
        round=tuple(index.tolist()),
        start_s=tuple(float(i) for i in range(rounds * runs)),
        latency_ms=tuple(latencies.ravel().tolist()),
    )


def noise(kind: str, rounds: int, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Factors ``[rounds, runs]`` with median 1."""
    normal = rng.standard_normal((rounds, runs))
    match kind:
        case "lognormal":
            return np.exp(0.015 * normal)
        case "skewed":
            factors = 1 + 0.03 * rng.standard_exponential((rounds, runs))
            return factors / (1 + 0.03 * math.log(2))
        case "by round":
            return np.exp(0.01 * normal + 0.015 * rng.standard_normal((rounds, 1)))
        case "outliers":  # one run in ten takes up to thousands of times as long, half of the rest is below 1/2 / 0.9
            spoilt = rng.random((rounds, runs)) < 0.1
            centre = math.exp(0.015 * 0.13971)  # the 5/9 quantile of a standard normal is 0.13971
            return np.exp(0.015 * normal) / centre * np.where(spoilt, 3 + rng.pareto(1, (rounds, runs)), 1)
    raise ValueError(kind)


def process_effect(launches: int, rounds: int, rng: np.random.Generator, spread: float) -> np.ndarray:
    """A factor for each launch, ``[rounds, 1]``."""
    return np.exp(spread * rng.standard_normal(launches))[np.arange(rounds) * launches // rounds][:, None]


@pytest.mark.parametrize("kind", NOISE)
def test_the_medians_interval_holds_the_truth_as_often_as_it_says(kind: str) -> None:
    rng = np.random.default_rng(1)
    found = [summarise(columns(10 * noise(kind, 40, 3, rng))).median_interval for _ in range(TRIALS)]
    assert 0.91 <= np.mean([interval.low <= 10 <= interval.high for interval in found]) <= 0.99
    # Not bought with width: within twice what the samples' spread makes inevitable.
    inevitable = 2 * 1.96 * np.std([np.median(10 * noise(kind, 40, 3, rng)) for _ in range(TRIALS)])
    assert np.mean([interval.high - interval.low for interval in found]) < 2 * inevitable


def test_a_lower_confidence_holds_the_truth_less_often() -> None:
    rng = np.random.default_rng(2)
    found = [
        summarise(columns(10 * noise("lognormal", 40, 3, rng)), confidence=0.5).median_interval for _ in range(TRIALS)
    ]
    assert 0.4 <= np.mean([interval.low <= 10 <= interval.high for interval in found]) <= 0.62


@pytest.mark.parametrize(("told", "least", "most"), [(True, 0.91, 1.0), (False, 0.0, 0.87)])
def test_differences_between_processes_are_in_the_interval_only_if_launches_are_told(
    told: bool, least: float, most: float
) -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(TRIALS):
        latencies = 10 * noise("lognormal", 40, 3, rng) * process_effect(5, 40, rng, 0.02)
        interval = summarise(columns(latencies, launches=5 if told else 1)).median_interval
        assert interval is not None
        hits += interval.low <= 10 <= interval.high
    assert least <= hits / TRIALS <= most


@pytest.mark.parametrize("spread", [0.0, 0.01])
@pytest.mark.parametrize("kind", NOISE)
def test_equal_distributions_are_called_equal(kind: str, spread: float) -> None:
    rng = np.random.default_rng(4)
    verdicts = [
        compare(
            columns(10 * noise(kind, 40, 3, rng) * process_effect(5, 40, rng, spread), launches=5),
            columns(10 * noise(kind, 40, 3, rng) * process_effect(5, 40, rng, spread), launches=5),
        ).verdict
        for _ in range(TRIALS)
    ]
    assert verdicts.count("no difference seen") >= 0.92 * TRIALS


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize(("factor", "verdict"), [(1.02, "slower"), (0.98, "faster")])
def test_two_per_cent_are_seen(kind: str, factor: float, verdict: str) -> None:
    rng = np.random.default_rng(5)
    found = [
        compare(
            columns(10 * noise(kind, 200, 3, rng) * process_effect(5, 200, rng, 0.002), launches=5),
            columns(10 * noise(kind, 200, 3, rng) * process_effect(5, 200, rng, 0.002) * factor, launches=5),
        )
        for _ in range(50)
    ]
    assert sum(each.verdict == verdict for each in found) >= 47
    assert np.median([each.ratio for each in found]) == pytest.approx(factor, abs=0.001)


def test_two_per_cent_are_not_claimed_from_few_noisy_rounds() -> None:
    rng = np.random.default_rng(6)
    pairs = [(10 * noise("by round", 10, 1, rng), 10.2 * noise("by round", 10, 1, rng)) for _ in range(50)]
    verdicts = [compare(columns(a, launches=2), columns(b, launches=2)).verdict for a, b in pairs]
    assert verdicts.count("no difference seen") > 25


def test_a_ratio_is_covered_by_its_interval() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(TRIALS):
        a, b = (10 * noise("skewed", 30, 2, rng) * process_effect(5, 30, rng, 0.01) for _ in range(2))
        interval = compare(columns(a, launches=5), columns(1.3 * b, launches=5)).interval
        assert interval is not None
        hits += interval.low <= 1.3 <= interval.high
    assert hits >= 0.92 * TRIALS


@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_spoilt_rounds_on_one_side_do_not_turn_the_verdict(side: str) -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        a, b = noise("lognormal", 50, 2, rng) * 10, noise("lognormal", 50, 2, rng) * 9.5
        spoilt = a if side == "baseline" else b
        spoilt[rng.choice(50, 5, replace=False)] *= rng.uniform(5, 500, (5, 1))
        found = compare(columns(a), columns(b))
        assert found.verdict == "faster"
        assert found.ratio == pytest.approx(0.95, abs=0.015)


def test_drift_of_the_machine_cancels() -> None:
    rng = np.random.default_rng(9)
    clock = np.linspace(1, 2, 60)[:, None]  # everything takes twice as long in the end
    a, b = 10 * clock * noise("lognormal", 60, 2, rng), 10.2 * clock * noise("lognormal", 60, 2, rng)
    found = compare(columns(a, launches=5), columns(b, launches=5))
    assert found.verdict == "slower"
    assert found.ratio == pytest.approx(1.02, abs=0.008)
    # The same numbers in an order that hides who met which machine: nothing can be seen.
    assert compare(columns(a, launches=5), columns(rng.permutation(b), launches=5)).verdict == "no difference seen"


def test_a_busy_machine_widens_the_interval_and_leaves_the_ratio() -> None:
    rng = np.random.default_rng(14)
    quiet = [noise("lognormal", 50, 11, rng) * 10 for _ in range(2)]
    # Two runs in five take six times as long: in many rounds that is the majority.
    busy = [each * np.where(rng.random(each.shape) < 0.4, 6, 1) for each in quiet]
    assert (np.median(busy[0], axis=1) > 20).sum() > 5
    before, after = (compare(columns(a, launches=5), columns(b, launches=5)) for a, b in (quiet, busy))
    assert after.ratio == pytest.approx(1, abs=0.02)
    assert after.verdict == "no difference seen"
    assert before.interval is not None
    assert after.interval is not None
    assert after.interval.high - after.interval.low > 1.5 * (before.interval.high - before.interval.low)


def autoregressive(rounds: int, rng: np.random.Generator) -> np.ndarray:
    steps = rng.standard_normal(rounds)
    values = [steps[0]]
    for step in steps[1:]:
        values.append(0.8 * values[-1] + 0.6 * step)
    return np.exp(0.02 * np.array(values))[:, None]


def test_rounds_that_resemble_their_neighbours_are_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    series = [10 * autoregressive(150, rng) for _ in range(TRIALS)]

    def coverage() -> float:
        found = [summarise(columns(each)).median_interval for each in series]
        return float(np.mean([interval.low <= 10 <= interval.high for interval in found]))

    assert coverage() >= 0.85
    monkeypatch.setattr(statistics, "_block_length", lambda values, sizes: 1)
    assert coverage() < 0.7


def test_block_length_is_one_without_autocorrelation_and_leaves_six_blocks() -> None:
    rng = np.random.default_rng(11)
    assert statistics._block_length(np.ones(50), [50]) == 1
    lengths = [statistics._block_length(rng.standard_normal(100), [50, 50]) for _ in range(100)]
    assert lengths.count(1) >= 90
    assert 1 < statistics._block_length(np.cumsum(rng.standard_normal(100)), [100]) <= 16
    assert statistics._block_length(np.cumsum(rng.standard_normal(13)), [13]) <= 2
    # A jump from one launch to the next is no resemblance of neighbours.
    assert statistics._block_length(rng.standard_normal(100) + np.repeat([0, 50], 50), [50, 50]) == 1


def test_the_summary_of_known_numbers() -> None:
    found = summarise(columns(np.arange(1.0, 102.0).reshape(101, 1)))
    assert (found.runs, found.rounds, found.launches) == (101, 101, 1)
    assert (found.median_ms, found.mean_ms, found.min_ms, found.max_ms) == (51, 51, 1, 101)
    assert (found.p90_ms, found.p95_ms, found.p99_ms) == (91, 96, 100)
    assert (found.iqr_ms, found.mad_ms) == (50, 25)
    assert found.median_interval is not None
    assert found.median_interval.low <= 51 <= found.median_interval.high


def test_rounds_of_different_length_count_by_their_runs() -> None:
    samples = Samples((0,) * 9, (0, 0, 0, 1, 2, 3, 4, 5, 6), tuple(map(float, range(9))), (1.0,) * 3 + (2.0,) * 6)
    found = summarise(samples)
    assert (found.rounds, found.median_ms) == (7, 2)
    assert found.median_interval is not None
    assert (found.median_interval.low, found.median_interval.high) == (1, 2)


def test_a_machine_without_noise_has_an_interval_without_width() -> None:
    same = columns(np.full((20, 2), 3.0), launches=4)
    interval = summarise(same).median_interval
    assert interval is not None
    assert interval.low == pytest.approx(3)
    assert interval.high == pytest.approx(3)
    assert compare(same, same).verdict == "no difference seen"
    assert compare(same, columns(np.full((20, 2), 3.1), launches=4)).verdict == "slower"


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_too_few_rounds_give_no_interval_and_no_verdict(rounds: int) -> None:
    fast, slow = columns(np.full((rounds, 1), 1.0)), columns(np.full((rounds, 1), 9.0))
    assert summarise(fast).median_interval is None
    found = compare(fast, slow)
    assert (found.ratio, found.interval, found.verdict) == (pytest.approx(9), None, "no difference seen")
    assert "too few" in found.note


def test_a_single_launch_is_told() -> None:
    a = columns(np.full((8, 1), 1.0))
    assert "one process each" in compare(a, a).note
    b = columns(np.full((8, 1), 1.0), launches=2)
    assert compare(b, b).note == ""


# Measured at different times.


@pytest.mark.parametrize("spread", [0.0, 0.01])
@pytest.mark.parametrize("kind", NOISE)
def test_apart_equal_distributions_are_called_equal(kind: str, spread: float) -> None:
    rng = np.random.default_rng(21)
    verdicts = [
        compare_apart(
            columns(10 * noise(kind, 40, 3, rng) * process_effect(5, 40, rng, spread), launches=5),
            columns(10 * noise(kind, 50, 3, rng) * process_effect(5, 50, rng, spread), launches=5),
        ).verdict
        for _ in range(TRIALS)
    ]
    assert verdicts.count("no difference seen") >= 0.92 * TRIALS


@pytest.mark.parametrize(("factor", "verdict"), [(1.02, "slower"), (0.98, "faster")])
def test_apart_two_per_cent_are_seen(factor: float, verdict: str) -> None:
    rng = np.random.default_rng(22)
    found = [
        compare_apart(
            columns(10 * noise("lognormal", 200, 3, rng) * process_effect(5, 200, rng, 0.002), launches=5),
            columns(10 * noise("lognormal", 150, 3, rng) * process_effect(5, 150, rng, 0.002) * factor, launches=5),
        )
        for _ in range(50)
    ]
    assert sum(each.verdict == verdict for each in found) >= 47
    assert np.median([each.ratio for each in found]) == pytest.approx(factor, abs=0.001)


def test_apart_drift_does_not_cancel_and_few_rounds_say_nothing() -> None:
    rng = np.random.default_rng(23)
    clock = np.linspace(1, 2, 60)[:, None]
    a, b = 10 * clock * noise("lognormal", 60, 2, rng), 10.2 * clock * noise("lognormal", 60, 2, rng)
    assert compare(columns(a, launches=5), columns(b, launches=5)).verdict == "slower"
    assert compare_apart(columns(a, launches=5), columns(b, launches=5)).verdict == "no difference seen"
    few = columns(np.full((5, 1), 1.0)), columns(np.full((50, 1), 9.0))
    assert (compare_apart(*few).interval, compare_apart(*few).verdict) == (None, "no difference seen")
    steady = columns(np.full((20, 1), 3.0), launches=4), columns(np.full((30, 1), 3.3), launches=3)
    assert compare_apart(*steady).verdict == "slower"
    assert "different times" in compare_apart(*steady).note


def test_only_common_rounds_are_compared() -> None:
    a = Samples((0,) * 8, tuple(range(8)), (0.0,) * 8, (1.0,) * 8)
    b = Samples((0,) * 8, tuple(range(2, 10)), (0.0,) * 8, (2.0,) * 8)
    assert compare(a, b).rounds == 6
    apart = dataclasses.replace(b, round=tuple(range(20, 28)))
    with pytest.raises(UsageError, match="have no round in common"):
        compare(a, apart)


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(12)
    samples = columns(10 * noise("skewed", 30, 2, rng))
    assert summarise(samples, seed=1) == summarise(samples, seed=1)
    assert summarise(samples, seed=1) != summarise(samples, seed=2)


def test_resampling_in_pieces_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(13)
    a, b = (columns(10 * noise("skewed", 30, 2, rng), launches=3) for _ in range(2))
    whole = compare(a, b).interval, summarise(a).median_interval
    monkeypatch.setattr(statistics, "_CHUNK", 60 * 7)
    pieces = compare(a, b).interval, summarise(a).median_interval
    for one, other in zip(whole, pieces, strict=True):
        assert one is not None
        assert other is not None
        assert (other.low, other.high) == (pytest.approx(one.low, rel=5e-3), pytest.approx(one.high, rel=5e-3))


@pytest.mark.parametrize(
    ("launch", "rounds", "latency", "message"),
    [
        ((), (), (), "no timed runs"),
        ((0,), (0, 1), (1.0, 2.0), "differ in length"),
        ((0, 0), (0, 1), (1.0, 0.0), "positive"),
        ((0, 0), (0, 1), (1.0, math.nan), "positive"),
        ((0, 0), (0, 1), (1.0, math.inf), "positive"),
        ((0, 0), (1, 0), (1.0, 1.0), "upwards"),
        ((1, 0), (0, 1), (1.0, 1.0), "upwards"),
        ((0, 1), (3, 3), (1.0, 1.0), "span"),
    ],
)
def test_columns_that_cannot_be_are_refused(
    launch: tuple[int, ...], rounds: tuple[int, ...], latency: tuple[float, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        summarise(Samples(launch, rounds, (0.0,) * len(latency), latency))


def test_results_are_plain_data() -> None:
    samples = columns(np.full((8, 1), 1.5), launches=2)
    for result in (summarise(samples), compare(samples, samples), samples):
        assert json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))
