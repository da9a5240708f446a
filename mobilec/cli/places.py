"""What a result says of where it was taken: outputs checked, boards of a pool, Core ML's placement."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mobilec.cli import render

if TYPE_CHECKING:
    from rich.console import Console

    from mobilec.latency.samples import ArtifactProfile, Checked, ProfileReport

_SHOWN = 12  # operators away from the Neural Engine


def show_where(console: Console, report: ProfileReport) -> None:
    """The device, whether it computes what it should, and which board of a pool had what."""
    if report.device == "local":
        return
    console.print(render.plain(f"On {report.device}."))
    for item in report.artifacts:
        if item.checked is not None:
            board = f" on {item.board}" if item.board else ""
            console.print(
                render.plain(f"{item.label}{board}: outputs right before times counted ({_told(item.checked)}).")
            )
    if len(report.boards) > 1:
        console.print("Boards of a pool differ, so artefacts are not compared with each other.")


def _told(checked: Checked) -> str:
    level = "" if checked.psnr_db is None else f", {checked.psnr_db:.0f} dB"
    samples = render.plural(checked.samples, "sample")
    return f"{samples} against {checked.against}: at most {render.small(checked.max_abs)} off{level}"


def show_placement(console: Console, item: ArtifactProfile) -> None:
    """Where Core ML plans to run operators, beside what `lint` expects of the Neural Engine."""
    if not item.placement:
        return
    devices = Counter(each.device for each in item.placement)
    share = {device: sum(each.cost or 0.0 for each in item.placement if each.device == device) for device in devices}
    render.heading(console, f"Where Core ML runs {item.label}")
    rows = [(name, count, render.percent(share[name])) for name, count in devices.most_common()]
    console.print(render.table(("compute unit", "operators", "estimated share"), rows, right=(1, 2)))
    surprises = [each for each in item.placement if (each.device != "ane") != bool(each.expected)]
    if surprises:
        console.print()
        told = [
            (each.op, each.name, each.device, each.expected or "expected on the Neural Engine")
            for each in surprises[:_SHOWN]
        ]
        console.print(render.table(("operator", "where", "runs on", "lint's estimate"), told))
        if len(surprises) > _SHOWN:
            console.print(f"and {len(surprises) - _SHOWN} more (--json has all)")


def show_boards(console: Console, report: ProfileReport) -> None:
    """One line for each board of a pool."""
    render.heading(console, "Boards")
    rows = [
        (
            board.name,
            f"{board.machine.cpu}, {board.machine.architecture}",
            board.machine.os,
            ", ".join(item.label for item in report.artifacts if item.board == board.name),
        )
        for board in report.boards
    ]
    console.print(render.table(("board", "CPU", "system", "timed"), rows))
