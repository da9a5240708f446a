"""Latency under load without a pause: the curve, and whether it rises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilec.latency.samples import Samples, Sustained, Window
from mobilec.latency.statistics import MIN_ROUNDS, compare

WINDOWS = 60  # about so many points has the curve
ENDS = 5  # the first and the last fifth are compared
_SLOWER = 1.01  # less is no throttling that anybody would notice
_HELD = 1.05  # the interval must end below this before anybody may say that nothing throttles

Verdict = Literal["held its speed", "slowed down", "too noisy to tell", "too short to tell"]


@dataclass(frozen=True)
class Stretch:
    """Runs without a pause, and the machine right after them; durations in milliseconds."""

    start_s: float
    durations_ms: tuple[float, ...]
    cpu_mhz: float | None
    temperature_c: float | None


def window(stretch: Stretch) -> Window:
    median, p95 = np.quantile(stretch.durations_ms, [0.5, 0.95])
    return Window(
        stretch.start_s,
        len(stretch.durations_ms),
        float(median),
        float(p95),
        stretch.cpu_mhz,
        stretch.temperature_c,
    )


def curve(windows: Sequence[Window], secs: float, *, seed: int = 0) -> Sustained:
    """The windows with a verdict: the last fifth against the first."""
    ends = len(windows) // ENDS
    if ends < MIN_ROUNDS:
        return Sustained(secs, tuple(windows), None, None, "too short to tell")
    found = compare(_samples(windows[:ends]), _samples(windows[-ends:]), seed=seed)
    assert found.interval is not None
    verdict: Verdict = "held its speed" if found.interval.high <= _HELD else "too noisy to tell"
    if found.verdict == "slower" and found.ratio >= _SLOWER:
        verdict = "slowed down"
    return Sustained(secs, tuple(windows), found.ratio, found.interval, verdict)


def _samples(windows: Sequence[Window]) -> Samples:
    """Each window's median as a round of one run."""
    count = len(windows)
    return Samples(
        launch=(0,) * count,
        round=tuple(range(count)),
        start_s=tuple(window.start_s for window in windows),
        latency_ms=tuple(window.median_ms for window in windows),
    )
