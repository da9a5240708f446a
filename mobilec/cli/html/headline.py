"""The top of the page: what was measured, the answers in sentences, and the main figures."""

from __future__ import annotations

from collections.abc import Sequence

from mobilec.cli import render
from mobilec.cli.html.cells import interval_text, range_text, runtime_of, short_name
from mobilec.cli.html.page import Tile, Tone, Verdict
from mobilec.cli.html.results import Linted, Results
from mobilec.cli.html.speed import COURSES, GATES, Timed
from mobilec.latency.samples import Comparison

MOST = 4  # of each kind of sentence; the sections have the rest


def title(results: Results, rows: Sequence[Timed]) -> str:
    """The models, and where they ran."""
    models = _models(results)
    name = ", ".join(models[:3]) if len(models) <= 3 else f"{len(models)} models"
    devices = list(dict.fromkeys(each.device for each in rows))
    where = f" on {devices[0]}" if len(devices) == 1 else f" on {len(devices)} devices" if devices else ""
    return f"{name or 'Results'}{where}"


def subtitle(results: Results, rows: Sequence[Timed]) -> str:
    """What is in the report, in a line."""
    parts = []
    if rows:
        runs = f"{sum(each.item.latency.runs for each in rows):,}".replace(",", " ")
        engines = ", ".join(dict.fromkeys(each.item.engine for each in rows[:MOST]))
        parts.append(f"{render.plural(len(rows), 'artefact')} timed in {runs} runs by {engines}")
    if results.validations:
        parts.append(f"{len(results.validations)} validated")
    if results.lints:
        parts.append(f"judged for {', '.join(dict.fromkeys(each.target for each in results.lints))}")
    return "; ".join(parts)


def verdicts(results: Results, rows: Sequence[Timed]) -> tuple[Verdict, ...]:
    """The answers, the most important first."""
    found: list[Verdict] = []
    for each in rows[:1] if len(rows) > 3 else rows:
        stats = each.item.latency
        spread = f" (95 % interval {range_text(stats.median_interval)})" if stats.median_interval else ""
        fastest = "the fastest, " if len(rows) > 3 else ""
        found.append(Verdict(f"{each.name}: {fastest}{render.ms(stats.median_ms)}{spread}, {runtime_of(each.item)}."))
    compared = [each for report in results.profiles for each in report.comparisons]
    found += [_comparison(each) for each in compared[:MOST]]
    for regression in results.regressions:
        for row in regression.rows:
            if row.outcome is not None and regression.max_regression is not None:
                limit = f"{100 * regression.max_regression:g} %"
                text = f"{row.comparison.candidate} against {row.comparison.baseline}: {row.outcome}, limit {limit}."
                found.append(Verdict(text, GATES.get(row.outcome, "warn")))
    found += _parity(results)
    for stages in results.stages:
        name = short_name(stages.artefact)
        if stages.failing is None:
            ran = sum(row.before is not None for row in stages.rows)
            found.append(Verdict(f"{name}: all {ran} stages agree with the one before.", "good"))
        else:
            found.append(Verdict(f"{name}: the first stage that differs is {stages.failing}.", "bad"))
    found += [_lint(each) for each in results.lints[:MOST]]
    found += _sustained(rows)
    warnings = {warning for report in results.profiles for warning in report.warnings}
    if warnings:
        text = "1 warning makes" if len(warnings) == 1 else f"{len(warnings)} warnings make"
        found.append(Verdict(f"{text} the timings less trustworthy; see the end.", "warn"))
    return tuple(found)


def tiles(results: Results, rows: Sequence[Timed]) -> tuple[Tile, ...]:
    """Up to four figures."""
    found: list[Tile] = []
    if rows:
        best = rows[0]
        stats = best.item.latency
        detail = best.name + (f", {range_text(stats.median_interval)}" if stats.median_interval else "")
        found.append(Tile("Median latency" if len(rows) == 1 else "Fastest median", render.ms(stats.median_ms), detail))
    faster = _faster(results)
    if faster:
        times, winner, other = max(faster)
        found.append(Tile("Speed-up", f"{times:.2f}×", f"{winner} against {other}", "good"))
    scored = [each for each in results.validations if each.accuracy is not None]
    rates = [(each, each.accuracy.top1_artefact.value) for each in scored if each.accuracy is not None]
    known = [(each, value) for each, value in rates if value is not None]
    if known:
        top, value = max(known, key=lambda pair: pair[1])
        assert top.accuracy is not None
        found.append(Tile("Top-1", render.percent(value), f"{short_name(top.artefact)}, {top.accuracy.images} images"))
    if results.validations:
        passed = sum(each.passed for each in results.validations)
        total = len(results.validations)
        tone: Tone = "good" if passed == total else "bad"
        found.append(Tile("Parity", f"{passed} of {total}", "pass every gate against PyTorch", tone))
    for linted in results.lints[:1]:
        report = linted.after or linted.report
        share = report.supported / report.ops if report.ops else 1.0
        detail = f"on {linted.target}, in {render.plural(len(report.partitions), 'piece')}"
        tone = "good" if report.supported == report.ops else "warn"
        found.append(Tile("Operators inside", render.percent(share, 0), detail, tone))
    return tuple(found[:4])


def _models(results: Results) -> list[str]:
    names = [item.model or item.label for report in results.profiles for item in report.artifacts]
    names += [each.model for each in results.validations]
    names += [each.manifest.model for each in results.made]
    names += [each.model for each in results.stages]
    if not names:
        names = [short_name(each.subject) for each in results.lints]
    return list(dict.fromkeys(name for name in names if name))


def _comparison(each: Comparison) -> Verdict:
    spread = f", {interval_text(each.interval)}" if each.interval else ""
    if each.verdict != "no difference seen":  # which of the two is the better news, only the reader knows
        return Verdict(
            f"{each.candidate} is {each.verdict} than {each.baseline}: {each.ratio:.3f} times its time{spread}."
        )
    return Verdict(f"No difference seen between {each.candidate} and {each.baseline} (ratio {each.ratio:.3f}{spread}).")


def _faster(results: Results) -> list[tuple[float, str, str]]:
    """How many times as fast one artefact is as another of the same model, where that is certain, and their labels."""
    found = []
    for report in results.profiles:
        models = {item.label: item.model for item in report.artifacts}
        for each in report.comparisons:
            if each.verdict != "no difference seen" and models.get(each.candidate) == models.get(each.baseline):
                pair = (1 / each.ratio, each.candidate, each.baseline)
                found.append(pair if each.verdict == "faster" else (each.ratio, each.baseline, each.candidate))
    return found


def _sustained(rows: Sequence[Timed]) -> list[Verdict]:
    curves = [(each, each.item.sustained) for each in rows if each.item.sustained is not None]
    if len(curves) > MOST:
        slower = sum(curve.verdict == "slowed down" for _, curve in curves if curve is not None)
        tone: Tone = "bad" if slower else ""
        return [Verdict(f"{slower} of {len(curves)} artefacts slowed down in a run without a pause.", tone)]
    found = []
    for each, curve in curves:
        assert curve is not None
        after = f"over {curve.secs / 60:g} minutes without a pause it {curve.verdict}"
        if curve.verdict.startswith("too"):
            after = f"{curve.verdict} whether it throttles over {curve.secs / 60:g} minutes"
        found.append(Verdict(f"{each.name}: {after}.", COURSES.get(curve.verdict, "warn")))
    return found


def _parity(results: Results) -> list[Verdict]:
    found = []
    for each in results.validations:
        name = short_name(each.artefact)
        if each.passed:
            text = f"{name} computes what its reference computes: all {len(each.gates)} gates hold"
            rate = each.accuracy.top1_artefact.value if each.accuracy is not None else None
            if rate is not None and each.accuracy is not None:
                reference = each.accuracy.top1_reference.value
                text += f"; top-1 {render.percent(rate)} on {each.accuracy.images} images"
                text += f" (PyTorch {render.percent(reference)})"
            found.append(Verdict(f"{text}.", "good"))
        else:
            failed = ", ".join(gate.name for gate in each.gates if gate.required and not gate.passed)
            found.append(Verdict(f"{name} does NOT compute what its reference computes: {failed or 'failed'}.", "bad"))
    if len(found) > MOST and all(each.tone == "good" for each in found):
        return [Verdict(f"All {len(found)} validated artefacts compute what their references compute.", "good")]
    return sorted(found, key=lambda each: each.tone == "good")


def _lint(each: Linted) -> Verdict:
    final = each.after or each.report
    leaving = final.ops - final.supported
    name = f"{short_name(each.subject)} on {each.target}"
    pieces = render.plural(len(final.partitions), "piece")
    was = ""
    if each.after is not None:
        before = each.report.ops - each.report.supported
        was = f" (as written {before} would leave, {render.plural(len(each.report.partitions), 'piece')})"
    if not leaving:
        return Verdict(f"{name}: all {final.ops} operators stay, in {pieces}{was}.", "good")
    tone: Tone = "bad" if final.verdict == "no" else "warn"
    return Verdict(f"{name}: {leaving} of {final.ops} operators would leave, in {pieces}{was}.", tone)
