"""The sections on time: latency, comparisons, operators, long runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mobilec.cli import render
from mobilec.cli.html import charts, plots
from mobilec.cli.html.cells import bounds, device_of, interval_text, number, part, range_text, runtime_of, word
from mobilec.cli.html.page import Block, Figure, Heading, Note, Section, Table, Tone
from mobilec.cli.html.results import Results
from mobilec.latency.samples import ArtifactProfile, Comparison, OpTable, ProfileReport

MOST_ROWS = 40  # in a chart; tables have all
TOP_OPS = 12
TOP_KINDS = 8
SERIES = 6  # colours there are
LOOKS: dict[str, Tone] = {"faster": "good", "slower": "bad"}
GATES: dict[str, Tone] = {"held": "good", "regressed": "bad"}
COURSES: dict[str, Tone] = {"held its speed": "good", "slowed down": "bad"}


@dataclass(frozen=True)
class Timed:
    """One artefact on one device. ``name``: unique in the report. ``series``: the colour of its engine."""

    name: str
    device: str
    series: int
    item: ArtifactProfile
    report: ProfileReport


def timed(results: Results) -> tuple[Timed, ...]:
    """All timed artefacts, the fastest first."""
    pairs = [(report, item) for report in results.profiles for item in report.artifacts]
    labels = Counter(item.label for _, item in pairs)
    engines = list(dict.fromkeys(item.engine for _, item in pairs))
    seen: Counter[str] = Counter()
    found = []
    for report, item in pairs:
        device = device_of(report, item)
        name = item.label if labels[item.label] == 1 else f"{item.label} on {device}"
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name} ({seen[name]})"
        found.append(Timed(name, device, engines.index(item.engine) % SERIES, item, report))
    return tuple(sorted(found, key=lambda each: each.item.latency.median_ms))


def latency(rows: Sequence[Timed]) -> Section | None:
    if not rows:
        return None
    devices = {each.device for each in rows}
    shown = rows[:MOST_ROWS]
    spreads = tuple(
        charts.Spread(
            name=each.item.label,
            beside=", ".join((runtime_of(each.item), *((each.device,) if len(devices) > 1 else ()))),
            median=each.item.latency.median_ms,
            low=each.item.latency.median_interval.low if each.item.latency.median_interval else None,
            high=each.item.latency.median_interval.high if each.item.latency.median_interval else None,
            p95=each.item.latency.p95_ms,
            runs=each.item.samples.latency_ms,
            series=each.series,
        )
        for each in shown
    )
    told = "; ".join(f"{each.name} {render.ms(each.item.latency.median_ms)}" for each in shown)
    engines = dict.fromkeys((f"s{each.series}", each.item.engine) for each in rows)
    blocks: list[Block] = [
        Figure(
            "Latency of each artefact",
            f"Medians with intervals, the fastest first: {told}.",
            partial(charts.spreads, spreads),
            legend=tuple(engines) if len(engines) > 1 else (),
        )
    ]
    if len(rows) > len(shown):
        blocks.append(Note(f"The chart has the {len(shown)} fastest; the table has all {len(rows)}."))
    blocks.append(_latency_table(rows))
    for each in rows[:MOST_ROWS]:
        samples = each.item.samples
        median = render.ms(each.item.latency.median_ms)
        blocks.append(
            Figure(
                f"Every timed run of {each.name}",
                f"{len(samples.latency_ms)} runs in {each.item.latency.launches} processes, around {median}.",
                partial(plots.runs_in_order, samples.latency_ms, samples.launch),
                folded=f"Every run of {each.name}",
            )
        )
    lead = (
        "Dot: median. Bar: its interval. Hill: how all runs are spread. Mark: the 95th percentile. Each artefact ran "
        "in fresh processes of its own, after a warm-up, taking turns with those it was timed with."
    )
    return Section("latency", "Latency", lead, tuple(blocks))


def _latency_table(rows: Sequence[Timed]) -> Table:
    headers = (
        *("artefact", "device", "runtime", "precision", "median, ms", "interval, ms", "p90", "p95", "p99", "IQR"),
        *("runs", "outliers", "drift", "first run, ms", "loading, ms", "peak memory"),
    )
    cells = []
    several = len({each.device for each in rows}) > 1
    for each in rows:
        item, stats = each.item, each.item.latency
        drift = stats.drift
        drifting = number(None)
        if drift is not None:
            drifting = number(drift.change, f"{100 * drift.change:+.1f} %", tone="warn" if drift.seen else "")
        interval = stats.median_interval
        cells.append(
            (
                word(item.label if several else each.name),
                word(each.device),
                word(runtime_of(item)),
                word(item.precision),
                number(stats.median_ms),
                word(range_text(interval).removesuffix(" ms") or "too few runs"),
                *(number(value) for value in (stats.p90_ms, stats.p95_ms, stats.p99_ms, stats.iqr_ms)),
                number(stats.runs),
                number(stats.outliers),
                drifting,
                number(item.first_run_ms),
                number(item.load_ms),
                number(item.peak_rss_bytes, render.size(item.peak_rss_bytes)),
            )
        )
    caption = "Latency, spread and memory of every artefact"
    rarely = {6, 8, 9, 11, 14}  # p90, p99, IQR, outliers, loading: in the CSV file
    spare = frozenset(rarely | (set() if several else {1}))
    return Table("latency", caption, headers, tuple(cells), frozenset(range(4, 16)), spare=spare)


def comparisons(results: Results) -> Section | None:
    side_by_side = [each for report in results.profiles for each in report.comparisons]
    blocks: list[Block] = []
    if side_by_side:
        blocks += _compared(side_by_side, "comparisons", "Timed side by side, in the same rounds")
    for regression in results.regressions:
        found = [row.comparison for row in regression.rows if row.comparison not in side_by_side]
        if found:
            blocks.append(Heading(f"Against {regression.baseline}"))
            blocks += _compared(found, "against", "Measured at different times")
        for row in regression.rows:
            blocks += [Note(f"differs: {difference}", "warn") for difference in row.differences]
            if row.outcome is not None and regression.max_regression is not None:
                limit = f"limit {100 * regression.max_regression:g} %"
                text = f"{row.comparison.candidate}: {row.outcome} ({limit})"
                blocks.append(Note(text, GATES.get(row.outcome, "warn")))
    if not blocks:
        return None
    lead = (
        "Time as a multiple of the baseline's: left of the middle line is faster. A verdict is given only when the "
        "whole interval lies on one side of it."
    )
    return Section("comparisons", "Faster or slower", lead, tuple(blocks), "Comparison")


def _compared(found: Sequence[Comparison], name: str, caption: str) -> list[Block]:
    rows = tuple(
        charts.Ratio(
            name=each.candidate,
            beside=f"against {each.baseline}",
            ratio=each.ratio,
            low=each.interval.low if each.interval else None,
            high=each.interval.high if each.interval else None,
            look=LOOKS.get(each.verdict, "even"),
        )
        for each in found[:MOST_ROWS]
    )
    told = "; ".join(f"{each.candidate} {each.verdict}, {each.ratio:.3f} times {each.baseline}" for each in found)
    cells = tuple(
        (
            word(each.candidate),
            word(each.baseline),
            number(each.ratio, f"{each.ratio:.3f}"),
            bounds(each.interval),
            word(each.verdict, tone=LOOKS.get(each.verdict, "")),
            number(each.rounds),
            number(each.launches),
            word(each.note),
        )
        for each in found
    )
    headers = ("artefact", "baseline", "time ratio", "95 % interval", "verdict", "rounds", "processes", "note")
    looks = (("good", "faster"), ("even", "no difference seen"), ("bad", "slower"))
    return [
        Figure(f"Time ratios: {caption.lower()}", told, partial(charts.ratios, rows), legend=looks),
        Table(name, caption, headers, cells, frozenset({2, 3, 5, 6})),
    ]


def operators(rows: Sequence[Timed]) -> Section | None:
    blocks: list[Block] = []
    for each in rows:
        if each.item.ops is None:
            if each.item.ops_note:
                blocks += [Heading(each.name), Note(f"No times of single operators: {each.item.ops_note}", "dim")]
            continue
        blocks += [Heading(each.name), *_operators(each, each.item.ops), *_roofline(each, each.item.ops)]
    if not any(isinstance(block, Figure) for block in blocks):
        return None
    lead = (
        "Each operator timed by itself, which slows small ones down: it tells which one weighs how much, not how long "
        "an inference takes."
    )
    return Section("operators", "Where the time goes", lead, tuple(blocks), "Operators")


def _operators(each: Timed, table: OpTable) -> list[Block]:
    by_time = sorted(table.ops, key=lambda op: -op.time_us)
    counts = Counter(op.op for op in table.ops)
    kinds = {kind: sum(op.share for op in table.ops if op.op == kind) for kind in counts}
    order = sorted(kinds, key=lambda kind: -kinds[kind])
    grouped = tuple(
        charts.Bar(
            name=kind,
            beside=f"{counts[kind]} of them" if counts[kind] > 1 else "",
            value=kinds[kind],
            text=render.percent(kinds[kind]),
        )
        for kind in order[:TOP_KINDS]
    )
    slowest = tuple(
        charts.Bar(op.scope or op.name, op.op, op.share, f"{render.digits(op.time_us)} µs") for op in by_time[:TOP_OPS]
    )
    covered = sum(op.share for op in by_time[:TOP_OPS])
    place = {id(op): index + 1 for index, op in enumerate(table.ops)}
    cells = tuple(
        (
            number(place[id(op)], str(place[id(op)])),
            word(op.op),
            word(op.scope or op.name, code=True),
            number(op.time_us),
            part(op.share),
            word(op.name),
        )
        for op in by_time
    )
    named = tuple((word(each.name), *row) for row in cells)
    total = len(table.ops)
    return [
        Figure(
            f"Time by kind of operator, {each.name}",
            "; ".join(f"{bar.name} {bar.text}" for bar in grouped),
            partial(charts.bars, grouped, whole=1.0),
            caption="By kind of operator",
        ),
        Figure(
            f"The slowest operators of {each.name}",
            f"The {len(slowest)} slowest of {total} take {render.percent(covered, 0)} of the time.",
            partial(charts.bars, slowest),
            caption=f"The {len(slowest)} slowest of {total}, together {render.percent(covered, 0)} of the time",
        ),
        Table(
            "operators",
            f"All operators of {each.name}, the slowest first",
            ("artefact", "place", "operator", "where", "µs", "share", "node"),
            named,
            frozenset({1, 4, 5}),
            folded=f"All {total} operators of {each.name}",
            spare=frozenset({0, 6}),
        ),
    ]


def _roofline(each: Timed, table: OpTable) -> list[Block]:
    """Kernels against what the machine reached; nothing where that was not measured."""
    if table.ceiling is None:
        return []
    roof = plots.Roof(2e-9 * table.ceiling.macs_per_s, 1e-9 * table.ceiling.bytes_per_s)
    works = tuple(
        plots.Work(op.scope or op.name, 2 * op.macs / op.bytes_moved, 2e-3 * op.macs / op.time_us, op.share)
        for op in table.ops
        if op.macs and op.bytes_moved and op.time_us > 0
    )
    bounds = sum(op.bound_us or 0.0 for op in table.ops)
    won = sorted(table.ops, key=lambda op: (op.bound_us or 0.0) - op.time_us)
    cells = tuple(
        (
            word(each.name),
            word(op.op),
            word(op.scope or op.name, code=True),
            number(op.time_us),
            number(op.bound_us),
            word(op.bound),
            number(op.time_us - (op.bound_us or 0.0)),
            number(op.macs, render.count(op.macs)),
            number(op.bytes_moved, render.size(op.bytes_moved)),
        )
        for op in won
    )
    distance = f"{table.sum_us / bounds:.2f} times their bounds" if bounds else "without a bound"
    reached = (
        f"{render.digits(roof.gflops)} GFLOP/s in a product of matrices, {render.digits(roof.gbps)} GB/s in copies"
    )
    threads = render.plural(table.ceiling.threads, "thread")
    told = f"All kernels together take {distance}. The roof is what this machine reached with {threads}: {reached}."
    headers = ("artefact", "operator", "where", "µs", "bound, µs", "by", "to be won, µs", "MACs", "moves")
    blocks: list[Block] = [Note(told)]
    if works:
        blocks.append(
            Figure(
                f"Roofline of {each.name}",
                f"{told} A kernel is a circle as large as its share of the time; without arithmetic it is not shown.",
                partial(plots.roofline, works, roof),
                caption="Each kernel against the machine; a circle is as large as its share of the time",
            )
        )
    title = f"Kernels of {each.name} by what could be won"
    blocks.append(
        Table("roofline", title, headers, cells, frozenset({3, 4, 6, 7, 8}), folded=title, spare=frozenset({0}))
    )
    return blocks


def sustained(rows: Sequence[Timed]) -> Section | None:
    blocks: list[Block] = []
    for each in rows:
        curve = each.item.sustained
        if curve is None or not curve.windows:
            continue
        warm = any(window.temperature_c is not None for window in curve.windows)
        moments = tuple(
            plots.Moment(
                window.start_s / 60,
                window.median_ms,
                window.p95_ms,
                window.temperature_c if warm else window.cpu_mhz,
            )
            for window in curve.windows
        )
        told = str(curve.verdict)
        if curve.ratio is not None:
            told += (
                f": the last fifth took {curve.ratio:.3f} times as long as the first ({interval_text(curve.interval)})"
            )
        cells = tuple(
            (
                word(each.name),
                number(window.start_s),
                number(window.runs),
                number(window.median_ms),
                number(window.p95_ms),
                number(window.cpu_mhz),
                number(window.temperature_c),
            )
            for window in curve.windows
        )
        blocks += [
            Heading(each.name),
            Note(f"{told[:1].upper()}{told[1:]}.", COURSES.get(curve.verdict, "warn")),
            Figure(
                f"Latency of {each.name} without a pause",
                f"{told}; median with the 95th percentile above it, over {curve.secs / 60:g} minutes.",
                partial(plots.course, moments, other="°C" if warm else "MHz"),
            ),
            Table(
                "sustained",
                f"Latency of {each.name} over time",
                ("artefact", "from, s", "runs", "median, ms", "p95, ms", "MHz", "°C"),
                cells,
                frozenset(range(1, 7)),
                folded="The curve as a table",
                spare=frozenset({0}),
            ),
        ]
    if not blocks:
        return None
    lead = "Runs without a pause, in one process: does the machine throttle when it gets warm?"
    return Section("sustained", "Sustained load", lead, tuple(blocks), "Sustained")
