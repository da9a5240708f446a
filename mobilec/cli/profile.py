"""``mobilec profile``: how fast artefacts run on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobilec.cli.documents import check_writable, write_document
from mobilec.cli.group import Verb, described
from mobilec.cli.keeping import (
    Percent,
    earlier_results,
    history_option,
    judged,
    keeper,
    kept,
    ratio_range,
    ready,
    show_regression,
    verdict,
)
from mobilec.cli.options import COUNT, FOLDER, Cores, Number, common
from mobilec.cli.output import State, emit, noise_to_stderr, plain, stdout_console
from mobilec.cli.progress import stages

if TYPE_CHECKING:
    from rich.console import Console

    from mobilec.latency.samples import ArtifactProfile, Interval, OpTable, ProfileReport
    from mobilec.runtime.ceiling import Ceiling

TOP_OPS = 10
TOP_KERNELS = 20
STAGES = {
    "load": "loading",
    "warm up": "warming up",
    "measure": "timing runs",
    "ops": "timing single operations",
    "sustained": "running without a pause",
}


@described(
    sections={
        "Where": ("device", "pin"),
        "Measuring": (
            "threads",
            "num_runs",
            "warmup_runs",
            "min_secs",
            "launches",
            "timeout_secs",
            "sustained",
            "per_op",
            "roofline",
        ),
        "Against earlier runs": ("against", "max_regression", "history", "no_history"),
        "Result": ("save",),
    },
    examples=(
        "mobilec profile shvit_s1-onnx",
        "mobilec profile shvit_s1-onnx care_s0-onnx       side by side, in turns",
        "mobilec profile shvit_s1-onnx --threads 1 --save one-thread.json",
        "mobilec profile shvit_s1-onnx --against last --max-regression 5%",
        "mobilec profile shvit_s1-a76 --device adb:SERIAL        `mobilec devices` lists what there is",
        "mobilec profile shvit_s1-a76 --device ssh:me@board --pin 4,5",
    ),
)
@click.command("profile", cls=Verb, short_help="Time artefacts here or on a device, and compare them.")
@click.argument("artefacts", metavar="ARTEFACT...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="DEVICE",
    help="local, ssh:USER@HOST[:PORT], adb:SERIAL, rpc:HOST:PORT/KEY or coreml[:UNITS].",
)
@click.option("--pin", type=Cores(), default=(), metavar="CORES", help="Keep to these cores of a device: 4,5 or 4-7.")
@click.option("--threads", type=COUNT, metavar="N", help="Threads of the engine.  [default: all cores]")
@click.option("--num-runs", type=COUNT, default=50, show_default=True, metavar="N", help="At least so many timed runs.")
@click.option(
    "--warmup-runs", type=Number(int, 0), default=10, show_default=True, metavar="N", help="Untimed runs before."
)
@click.option(
    "--min-secs",
    type=Number(float, 0),
    default=3.0,
    show_default=True,
    metavar="S",
    help="Go on until the timed runs took so long.",
)
@click.option(
    "--launches",
    type=COUNT,
    default=5,
    show_default=True,
    metavar="N",
    help="Fresh processes for each artefact, which share the runs; two processes of one model differ by about 1 %.",
)
@click.option(
    "--timeout-secs",
    type=Number(float, 0),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Give up on a process that is silent for so long.",
)
@click.option(
    "--sustained",
    type=Number(float, 0),
    default=0.0,
    metavar="MIN",
    help="Then run each for so many minutes without a pause: does it throttle?",
)
@click.option(
    "--against",
    metavar="BASELINE",
    help="Compare with this: an artefact (timed in turns), a saved result, the ID of a history entry, or `last`.",
)
@click.option(
    "--max-regression",
    type=Percent(),
    help="Exit code 3 if slower by more, beyond chance, than --against (without it, than the first artefact).",
)
@history_option
@click.option("--no-history", is_flag=True, help="Do not keep this run.")
@click.option("--no-ops", "per_op", flag_value=False, default=True, help="Leave the per-operation table out.")
@click.option("--roofline", is_flag=True, help="Native kernels against what this machine reaches: what could be won.")
@click.option("--save", type=FOLDER, metavar="FILE.json", help="Also write the result, every run included, to a file.")
@common
@click.pass_obj
def command(
    state: State,
    artefacts: tuple[Path, ...],
    device: str,
    pin: tuple[int, ...],
    threads: int | None,
    num_runs: int,
    warmup_runs: int,
    min_secs: float,
    launches: int,
    timeout_secs: float,
    sustained: float,
    against: str | None,
    max_regression: float | None,
    history: Path | None,
    no_history: bool,
    per_op: bool,
    roofline: bool,
    save: Path | None,
) -> None:
    """Time artefacts, here or on a device: latency with its spread and a 95 % interval, memory, the slowest operations.

    Each artefact runs in processes of its own. Several take turns, so that all meet the same machine, and are compared
    with the first. --json and --save keep every single run, and so does the history (`mobilec history`).
    """
    if save is not None:
        check_writable(save)
    if max_regression is not None and against is None and len(artefacts) < 2:
        raise click.UsageError("--max-regression needs a baseline: give --against, or two artefacts")
    keep = ready(keeper(history, no_history))
    earlier = earlier_results(against, artefacts, device, keep)
    if against is not None and earlier is None:
        artefacts = (Path(against), *artefacts)
    with stages(state, "opening", calm=True) as progress, noise_to_stderr():
        from mobilec.latency.profile import MeasurementCut, MeasurementStopped, profile

        cut: MeasurementCut | MeasurementStopped | None = None
        try:
            report = profile(
                artefacts,
                device=device,
                pin=pin,
                threads=threads,
                num_runs=num_runs,
                warmup_runs=warmup_runs,
                min_secs=min_secs,
                launches=launches,
                per_op=per_op,
                roofline=roofline,
                sustained_mins=sustained,
                timeout_secs=timeout_secs,
                progress=lambda stage, done, total: progress(STAGES.get(stage, stage), done, total),
            )
        except (MeasurementCut, MeasurementStopped) as error:  # what was timed is shown and kept, the error stands
            report, cut = error.report, error
    result = asdict(report)
    found = judged(report, earlier, against, max_regression) if cut is None else None
    if found is not None:
        result["against"] = asdict(found)
    try:
        if state.json:
            emit(state, result)
        else:
            show(report)
            if found is not None:
                show_regression(stdout_console(), found)
    finally:  # nobody need be looking any more: a terminal that was closed stops a measurement too
        if save is not None:
            write_document(save, state, result)
        kept(keep, report)
    if save is not None and not state.json:
        click.echo(f"\nSaved with every single run to {plain(save)}")
    if cut is not None:
        raise cut
    if found is not None:
        found.raise_if_failed()


def show(report: ProfileReport) -> None:
    """The tables of a whole result."""
    from mobilec.cli import render
    from mobilec.cli.places import show_placement, show_where

    console = stdout_console()
    rows = [
        (
            item.label,
            render.ms(item.latency.median_ms),
            _range(item.latency.median_interval, render.ms),
            render.ms(item.latency.p90_ms),
            render.ms(item.latency.p95_ms),
            render.ms(item.latency.iqr_ms),
        )
        for item in report.artifacts
    ]
    headers = ("artefact", "median", "95 % interval", "p90", "p95", "IQR")
    console.print(render.table(headers, rows, right=range(1, 6)))
    console.print()
    memory = [
        (
            item.label,
            item.latency.runs,
            render.ms(item.first_run_ms),
            render.ms(item.load_ms),
            render.size(item.peak_rss_bytes),
            render.size(_model_memory(item)),
        )
        for item in report.artifacts
    ]
    names = ("artefact", "timed runs", "first run", "loading", "peak memory", "due to model")
    console.print(render.table(names, memory, right=range(1, 6)))
    engines = {(item.engine, item.threads) for item in report.artifacts}
    for item in report.artifacts if len(engines) > 1 else report.artifacts[:1]:
        threads = f" with {render.plural(item.threads, 'thread')}" if item.threads else ""
        subject = f"{item.label} ran" if len(engines) > 1 else "Run"
        console.print(render.plain(f"{subject} by {item.engine}{threads}."))
        if item.engine == "coreai-portable":
            from mobilec.runtime.coreai_session import CAVEAT

            console.print(render.styled(f"warning: {CAVEAT}", "yellow"))
    for item in report.artifacts:
        if item.weights.get("source") == "random":
            console.print(
                render.styled(f"{item.label} has RANDOM weights; that changes accuracy, not speed.", "yellow")
            )
    show_where(console, report)
    _comparisons(console, report)
    _sustained(console, report)
    for item in report.artifacts:
        _operations(console, item)
        show_placement(console, item)
    _machine(console, report)


def _range(interval: Interval | None, text: Any) -> str:
    return f"{text(interval.low)} to {text(interval.high)}" if interval else "too few runs"


def _model_memory(item: ArtifactProfile) -> int | None:
    if item.peak_rss_bytes is None or item.baseline_rss_bytes is None:
        return None
    return max(item.peak_rss_bytes - item.baseline_rss_bytes, 0)


def _comparisons(console: Console, report: ProfileReport) -> None:
    from mobilec.cli import render

    if not report.comparisons:
        return
    render.heading(console, f"Against {report.comparisons[0].baseline}")
    rows = [
        (
            item.candidate,
            f"{item.ratio:.3f}",
            ratio_range(item.interval),
            verdict(item.verdict),
            item.note,
        )
        for item in report.comparisons
    ]
    headers = ("artefact", "time ratio", "95 % interval", "verdict", "")
    console.print(render.table(headers, rows, right=(1, 2)))
    console.print(render.styled("A ratio below 1 is faster; both were timed in the same rounds.", "dim"))


def _sustained(console: Console, report: ProfileReport) -> None:
    from mobilec.cli import render

    rows = []
    for item in report.artifacts:
        if item.sustained is not None:
            curve = item.sustained
            slowest = max(curve.windows, key=lambda window: window.median_ms)
            ratio = "" if curve.ratio is None else f"{curve.ratio:.3f}"
            worst = f"{render.ms(slowest.median_ms)} after {_span(slowest.start_s)}"
            first = render.ms(curve.windows[0].median_ms)
            last = curve.windows[-1]
            lasted = _span(last.start_s + last.runs * last.median_ms / 1000)
            rows.append((item.label, lasted, first, worst, ratio, ratio_range(curve.interval), curve.verdict))
    if rows:
        render.heading(console, "Without a pause")
        headers = ("artefact", "lasted", "at first", "at the slowest", "end to beginning", "95 % interval", "verdict")
        console.print(render.table(headers, rows, right=range(1, 6)))


def _span(secs: float) -> str:
    return f"{secs:.0f} s" if secs < 60 else f"{secs / 60:.1f} min"


def _operations(console: Console, item: ArtifactProfile) -> None:
    from mobilec.cli import render

    if item.ops is None:
        if item.ops_note:
            console.print(f"\nNo per-operation times for {render.plain(item.label)}: {render.plain(item.ops_note)}")
        return
    if item.ops.ceiling is not None:
        _roofline(console, item.label, item.ops, item.ops.ceiling)
        return
    slowest = sorted(item.ops.ops, key=lambda op: op.time_us, reverse=True)[:TOP_OPS]
    shown = sum(op.share for op in slowest)
    title = f"Slowest operations of {item.label}"
    rest = len(item.ops.ops) - len(slowest)
    if rest:
        title += f" ({render.percent(shown, 0)} of the time; {rest} more)"
    render.heading(console, title)
    rows = [(render.digits(op.time_us), render.percent(op.share), op.op, op.scope or op.name) for op in slowest]
    console.print(render.table(("µs", "share", "operation", "where"), rows, right=(0, 1)))


def _roofline(console: Console, label: str, table: OpTable, ceiling: Ceiling) -> None:
    """Kernels by what could be won: their time above the bound."""
    from mobilec.cli import render

    bounds = [op.bound_us or 0.0 for op in table.ops]
    won = sorted(zip(table.ops, bounds, strict=True), key=lambda pair: pair[1] - pair[0].time_us)
    render.heading(console, f"Kernels of {label} by what could be won")
    rows = [
        (
            render.digits(op.time_us),
            render.digits(bound),
            op.bound,
            f"{op.time_us / bound:.1f}x" if bound else "",
            render.count(op.macs or 0),
            render.size(op.bytes_moved or 0),
            op.name,
            op.scope,
        )
        for op, bound in won[:TOP_KERNELS]
    ]
    headers = ("µs", "bound", "by", "distance", "MACs", "moves", "kernel", "where")
    console.print(render.table(headers, rows, right=(0, 1, 3, 4, 5)))
    rest = won[TOP_KERNELS:]
    others = f"; {len(rest)} more take {render.digits(sum(op.time_us for op, _ in rest))} µs" if rest else ""
    console.print(
        render.plain(
            f"All {len(won)} kernels: {render.digits(table.sum_us)} µs, {table.sum_us / sum(bounds):.2f}x of their "
            f"bounds ({render.digits(sum(bounds))} µs){others}."
        )
    )
    threads = render.plural(ceiling.threads, "thread")
    reached = f"{render.digits(2e-9 * ceiling.macs_per_s)} GFLOP/s in a product of matrices"
    copied = f"{render.digits(1e-9 * ceiling.bytes_per_s)} GB/s in copies of 1 MB"
    console.print(render.styled(f"Bounds: this machine reached {reached} and {copied} with {threads}.", "dim"))


def _machine(console: Console, report: ProfileReport) -> None:
    from mobilec.cli import render
    from mobilec.cli.places import show_boards

    if report.boards:
        show_boards(console, report)
    facts = report.machine
    cores = f"{len(facts.usable_cores)} of {facts.logical_cores} logical cores usable" if facts.usable_cores else ""
    render.heading(console, "Machine")
    console.print(
        render.facts(
            (
                ("CPU", f"{facts.cpu}, {facts.architecture}"),
                ("cores", cores),
                ("memory", render.size(facts.memory_bytes)),
                ("system", f"{facts.os}{''.join(', ' + hint for hint in facts.virtualised)}"),
                ("software", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
            )
        )
    )
    for warning in report.warnings:
        console.print(render.styled(f"warning: {warning}", "yellow"))
