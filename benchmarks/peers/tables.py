"""Results as tables: for the terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from common import markdown
from peers.measure import OUR_AGREEMENT, Probe, Result
from peers.runtimes import OURS, WAYS
from ratios import log_ratios, ratio_text


@dataclass(frozen=True)
class Run:
    """One model with one number of threads; ``results`` in the order of columns, ``macs`` of one run."""

    model: str
    threads: int
    batch: int
    macs: int
    results: list[Result]
    probe: Probe

    @property
    def ours(self) -> Result:
        return next(result for result in self.results if result.way == OURS)

    @property
    def fastest_peer(self) -> Result | None:
        """Of those that run the plain export and answer right: the one that we are least ahead of, round by round."""
        peers = [result for result in self.results if WAYS[result.way].plain and result.right]
        if not self.ours.right:
            return min(peers, key=lambda result: result.median_ms, default=None)
        ours = self.ours.medians_ms
        return min(peers, key=lambda result: float(np.median(log_ratios(result.medians_ms, ours))), default=None)

    @property
    def bound_ms(self) -> float:
        return 2 * self.macs / self.probe.gflops / 1e6


def _cell(run: Run, result: Result) -> str:
    if not result.medians_ms:
        return "fails"
    times = f"{result.median_ms:.2f}" + ("" if result.right else " wrong")
    if result.way == OURS or not run.ours.medians_ms:
        return times
    ratio = np.exp(np.median(log_ratios(result.medians_ms, run.ours.medians_ms)))
    return f"{times} ({ratio:.2f}x)"


def _ahead(runs: Iterable[Run], way: str | None = None) -> np.ndarray | None:
    """``[models, rounds]`` logarithms of the peer's time by ours; the fastest peer's where ``way`` is None.

    None where a run lacks one of the two.
    """
    logs = []
    for run in runs:
        peer = run.fastest_peer if way is None else next((r for r in run.results if r.way == way and r.right), None)
        if peer is None or not run.ours.right:
            return None
        logs.append(log_ratios(peer.medians_ms, run.ours.medians_ms))
    return np.stack(logs)


def rows_of(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table: runs with the same number of threads."""
    ways = [result.way for result in runs[0].results]
    header = [
        "model",
        *(f"{WAYS[way].label} ms" for way in ways),
        "fastest peer",
        "ahead of it",
        "bound ms",
        "of bound",
    ]
    rows = []
    for run in runs:
        fastest, logs = run.fastest_peer, _ahead([run])
        rows.append(
            [
                run.model,
                *(_cell(run, result) for result in run.results),
                WAYS[fastest.way].label if fastest else "none",
                ratio_text(logs) if logs is not None else "",
                f"{run.bound_ms:.2f}",
                f"{run.bound_ms / run.ours.median_ms:.0%}" if run.ours.right else "",
            ]
        )
    if len(runs) > 1:
        means = [_ahead(runs, way) if way != OURS else None for way in ways]
        together = _ahead(runs)
        cells = [f"{np.exp(np.median(logs, axis=1).mean()):.2f}x" if logs is not None else "" for logs in means]
        rows.append(["geometric mean", *cells, "", ratio_text(together) if together is not None else "", "", ""])
    return header, rows


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What the figures leave out: problems, other numbers of busy threads than asked for, loose outputs, versions."""
    notes = [f"{run.model}, {WAYS[r.way].label}: {r.problem}" for run in runs for r in run.results if r.problem]
    for run in runs:
        for result in run.results:
            busy = result.busy_threads
            if len(busy) > run.threads and sum(busy[run.threads :]) > 0.05:
                notes.append(f"{run.model}, {WAYS[result.way].label}: more threads compute than {run.threads}, {busy}")
            if result.right and result.gap is not None and result.gap > OUR_AGREEMENT:
                notes.append(f"{run.model}, {WAYS[result.way].label}: {result.gap:.1e} of the largest logit off")
    notes.append("versions: " + ", ".join(sorted({r.version for run in runs for r in run.results if r.version})))
    speeds = [run.probe.gflops for run in runs]
    notes.append(f"probe: {min(speeds):.0f} to {max(speeds):.0f} GFLOP/s")
    return notes


def _by_threads(runs: Sequence[Run]) -> list[list[Run]]:
    return [[run for run in runs if run.threads == threads] for threads in dict.fromkeys(run.threads for run in runs)]


def _title(runs: Sequence[Run]) -> str:
    return f"{runs[0].threads} threads" if runs[0].threads > 1 else "1 thread"


def show(console: Console, runs: Sequence[Run], settings: str) -> None:
    console.print(settings, highlight=False)
    for group in _by_threads(runs):
        header, rows = rows_of(group)
        table = Table(title=_title(group), title_justify="left")
        for at, name in enumerate(header):
            table.add_column(name, justify="left" if at == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for note in notes_of(group):
            console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


def markdown_report(runs: Sequence[Run], settings: str) -> str:
    parts = [settings]
    for group in _by_threads(runs):
        header, rows = rows_of(group)
        parts += [f"**{_title(group)}**", markdown(header, rows), "\n".join(f"- {note}" for note in notes_of(group))]
    return "\n\n".join(parts) + "\n"
