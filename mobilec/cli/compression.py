"""What an export in fewer bits saved, left out and cost, shown from the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mobilec.cli import render

if TYPE_CHECKING:
    from rich.console import Console

    from mobilec.export.manifest import Manifest

COMPRESSION = "compression"  # the manifest's option
SHOWN = 12  # rows of a table without --explain


def compression(console: Console, manifest: Manifest, *, explain: bool = False) -> None:
    """Nothing for an export at full size. ``explain`` lists every layer."""
    facts = manifest.options.get(COMPRESSION)
    if not facts:
        return
    render.heading(console, f"Compressed to {facts['scheme']}")
    before, after = facts["weight_bytes_before"], facts["weight_bytes"]
    console.print(
        render.facts(
            (
                ("weights", f"{render.size(before)} -> {render.size(after)} ({after / before:.0%})"),
                ("layers", f"{facts['compressed']} of {facts['layers']}{_left_out(facts['left_out'])}"),
                ("measured on", facts["calibration"] + _unread(facts["unreadable"])),
                ("estimated cost", _cost(facts["estimate"])),
            )
        )
    )
    _sensitivity(console, facts, explain)
    if facts["left_out"] and (explain or not facts["sensitivity"]):
        rows = [(item["name"], item["kind"], _where(item), item["why"]) for item in facts["left_out"]]
        _table(console, "Left as they are", ("layer", "kind", "where", "why"), rows, explain)
    console.print("The cost is that of the rewritten program in PyTorch; `mobilec validate` measures the file itself.")


def _unread(unreadable: list[str]) -> str:
    return f", {len(unreadable)} of them unreadable" if unreadable else ""


def _left_out(left: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for item in left:
        counts[item["why"]] = counts.get(item["why"], 0) + 1
    return f"; left out: {', '.join(f'{count} {why}' for why, count in counts.items())}" if counts else ""


def _cost(estimate: dict[str, Any]) -> str:
    level = "no error at all" if estimate["psnr_db"] is None else f"{estimate['psnr_db']:.1f} dB in the worst sample"
    mean = f", {estimate['mean_psnr_db']:.1f} dB on average" if estimate["mean_psnr_db"] is not None else ""
    total = estimate["classified"]
    same = f", the same top-1 class in {estimate['same_top1']} of {total}" if total else ""
    return f"{level}{mean}{same}"


def _sensitivity(console: Console, facts: dict[str, Any], explain: bool) -> None:
    """Each layer compressed alone, the most sensitive first."""
    if not facts["sensitivity"]:
        return
    left = {item["name"] for item in facts["left_out"]}
    ordered = sorted(
        facts["sensitivity"], key=lambda item: float("inf") if item["psnr_db"] is None else item["psnr_db"]
    )
    rows = [
        (
            render.NONE if item["psnr_db"] is None else f"{item['psnr_db']:.1f}",
            item["name"],
            item["kind"],
            _where(item),
            "left out" if item["name"] in left else "compressed",
        )
        for item in ordered
    ]
    headers = ("alone, dB", "layer", "kind", "where", f"for {facts['limit']}")
    _table(console, "Sensitivity", headers, rows, explain, right=(0,))


def _table(
    console: Console,
    title: str,
    headers: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    explain: bool,
    right: tuple[int, ...] = (),
) -> None:
    shown = rows if explain else rows[:SHOWN]
    render.heading(console, title)
    console.print(render.table(headers, shown, right=right))
    if len(rows) > len(shown):
        console.print(f"and {render.plural(len(rows) - len(shown), 'layer')} more; --json lists them all")


def _where(item: dict[str, Any]) -> str:
    return f"{item['where']} ({item['line']})" if item["where"] and item["line"] else item["where"] or item["line"]
