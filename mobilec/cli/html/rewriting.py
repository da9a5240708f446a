"""The sections on the graph: what an accelerator makes of it, and what each rewrite did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from mobilec.cli import render
from mobilec.cli.html import charts
from mobilec.cli.html.cells import number, short_name, word
from mobilec.cli.html.page import Block, Cell, Figure, Heading, Note, Section, Table, Tone
from mobilec.cli.html.results import FoundFixed, Judged, Linted, Made, Results
from mobilec.cli.html.speed import Timed

VERDICTS: dict[str, Tone] = {"yes": "good", "maybe": "warn", "no": "bad"}


def partitions(results: Results, rows: Sequence[Timed]) -> Section | None:
    blocks: list[Block] = []
    for each in results.lints:
        blocks += [Heading(f"{short_name(each.subject)} on {each.target}"), *_linted(each)]
    for timed in rows:
        if timed.item.placement:
            blocks += [Heading(f"{timed.name}, as Core ML plans it"), *_placed(timed)]
    if not blocks:
        return None
    lead = (
        "Which operators an accelerator takes, in how many pieces that leaves the network, and why the others leave. "
        "An estimate from published lists and limits: where each operator really runs, only the device tells."
    )
    return Section("partitions", "Accelerator", lead, tuple(blocks))


def _linted(each: Linted) -> list[Block]:
    forms = [("as written" if each.kind == "model" else "as it is", each.report)]
    if each.after is not None:
        forms.append(("after the rewrites", each.after))
    strips = tuple(
        charts.Strip(
            name=name,
            beside=f"{report.supported} of {render.plural(report.ops, 'operator')} stay",
            pieces=tuple(piece.ops for piece in report.partitions),
            leaving=report.ops - report.supported,
            text=render.plural(len(report.partitions), "piece"),
        )
        for name, report in forms
    )
    told = "; ".join(f"{row.name}: {row.beside}, in {row.text}" for row in strips)
    cells = tuple(_form(each, name, report) for name, report in forms)
    headers = ("network", "target", "form", "operators", "would leave", "pieces", "MACs inside", "worth it")
    blocks: list[Block] = [
        Figure(
            f"Pieces of {short_name(each.subject)} on {each.target}",
            f"{told}. Pieces in the order in which they run; what leaves stands between them.",
            partial(charts.strips, strips),
            legend=(("inside", "on the accelerator"), ("leaving", "would leave")),
        ),
        Table("partitions", "Pieces and verdicts", headers, cells, frozenset({3, 4, 5, 6}), spare=frozenset({0, 1})),
    ]
    repaired = each.after is not None
    blocks += _reasons(each, each.report, "refusals", " as written" if repaired else "", repaired=repaired)
    if each.after is not None:
        left = _reasons(each, each.after, "refusals-after", " after the rewrites", repaired=False)
        blocks += left or [Note("After the rewrites no operator would leave.", "good")]
    return blocks


def _placed(timed: Timed) -> list[Block]:
    """Where Core ML plans to run each operator, beside what was expected of it."""
    units = Counter(each.device for each in timed.item.placement)
    total = len(timed.item.placement)
    bars = tuple(charts.Bar(unit, "", count, render.plural(count, "operator")) for unit, count in units.most_common())
    cells = tuple(
        (
            word(timed.name),
            word(each.op, code=True),
            word(each.name, code=True),
            word(each.device),
            word(", ".join(each.supported)),
            number(each.cost, render.percent(each.cost)),
            word(each.expected),
        )
        for each in timed.item.placement
    )
    headers = ("artefact", "operator", "name", "runs on", "could run on", "cost", "expected to leave because")
    return [
        Figure(
            f"Compute units of {timed.name}",
            "; ".join(f"{bar.name} {bar.text}" for bar in bars),
            partial(charts.bars, bars, whole=float(total)),
        ),
        Table(
            "placement",
            f"Where Core ML plans to run the operators of {timed.name}",
            headers,
            cells,
            frozenset({5}),
            folded=f"All {total} operators",
            spare=frozenset({0}),
        ),
    ]


def _form(each: Linted, name: str, report: Judged) -> tuple[Cell, ...]:
    share = report.macs_inside / report.macs if report.macs else 1.0
    leaving = report.ops - report.supported
    return (
        word(short_name(each.subject)),
        word(each.target),
        word(name),
        number(report.ops),
        number(leaving, tone="bad" if leaving else "good"),
        number(len(report.partitions)),
        number(share, render.percent(share)),
        word(report.verdict, tone=VERDICTS.get(report.verdict, "")),
    )


def _reasons(each: Linted, report: Judged, name: str, when: str, *, repaired: bool) -> list[Block]:
    """A table of what leaves, the same operator, reason and cure together, the most frequent first; or nothing."""
    groups: dict[tuple[str, str, str, str], list[FoundFixed]] = {}
    for finding in report.findings:
        if finding.leaves:
            groups.setdefault((finding.op, finding.constraint, _cure(finding, repaired), finding.source), []).append(
                finding
            )
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    rows = tuple(
        (
            word(short_name(each.subject)),
            word(each.target),
            number(len(found)),
            word(op, code=True),
            word(why + ("" if all(finding.certain for finding in found) else " (sources disagree)")),
            word(_places(found), code=True),
            word(cure),
            word(source, tone="dim"),
        )
        for (op, why, cure, source), found in ordered
    )
    if not rows:
        return []
    headers = ("network", "target", "count", "operator", "why", "where", "what helps", "source")
    title = f"What would leave {each.target}{when}, and why"
    folded = f"{title} ({render.plural(len(rows), 'reason')})"
    return [Table(name, title, headers, rows, frozenset({2}), folded=folded, spare=frozenset({0, 1}))]


def _cure(finding: FoundFixed, repaired: bool) -> str:
    if repaired and finding.fixed_by:
        return f"repaired by {finding.fixed_by}"
    if finding.refused:
        return f"{finding.fix} refused: {finding.refused}"
    return finding.advice or (f"the rule {finding.fix}" if finding.fix else "")


def _places(found: Sequence[FoundFixed]) -> str:
    places = list(dict.fromkeys(f"{each.where or each.node}{f' ({each.line})' if each.line else ''}" for each in found))
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return ", ".join(places[:3]) + more


def rewrites(results: Results) -> Section | None:
    blocks: list[Block] = []
    for each in results.made:
        if len(results.made) > 1:
            blocks.append(Heading(short_name(each.path)))
        blocks += _rewrites(each)
    if not blocks:
        return None
    lead = (
        "Each rewrite was checked where it rewrote: its gap is the largest difference it made there, relative to the "
        "tensor, and its budget is what it promises not to exceed."
    )
    return Section("rewrites", "What each rewrite did", lead, tuple(blocks), "Rewrites")


def _rewrites(each: Made) -> list[Block]:
    passes = each.manifest.passes
    fired = [item for item in passes if item.rewritten]
    name = short_name(each.path)
    if not fired:
        return [Note(f"No rule found anything to do in {name}.", "dim")]
    spans = tuple(
        charts.Span(
            name=item.rule,
            beside=f"{render.plural(item.rewritten, 'place')}",
            before=item.before.ops,
            after=item.after.ops,
            text=str(item.before.ops) if item.before.ops == item.after.ops else f"{item.before.ops} → {item.after.ops}",
        )
        for item in fired
    )
    first, last = passes[0].before, passes[-1].after
    cells = tuple(
        (
            word(name),
            word(item.rule, code=True),
            number(item.rewritten),
            number(len(item.refusals)),
            number(item.gap, render.small(item.gap)),
            word("exact" if item.budget == 0 else render.small(item.budget)),
            number(item.after.ops - item.before.ops, f"{item.after.ops - item.before.ops:+d}".replace("+0", "0")),
            number(item.after.macs - item.before.macs, _change(item.before.macs, item.after.macs)),
            number(
                item.after.activation_bytes - item.before.activation_bytes,
                _change(item.before.activation_bytes, item.after.activation_bytes),
            ),
            word(item.approximation),
        )
        for item in fired
    )
    headers = (
        *("artefact", "rule", "rewritten", "refused", "gap", "budget", "operators", "MACs", "activations"),
        "approximates",
    )
    refused = tuple(
        (word(name), word(item.rule, code=True), word(refusal.where or refusal.node, code=True), word(refusal.reason))
        for item in passes
        for refusal in item.refusals
    )
    sizes = (
        (f"{first.ops} operators", f"{last.ops}"),
        (f"{render.count(first.macs)} MACs", render.count(last.macs)),
        (f"{render.size(first.activation_bytes)} of activations", render.size(last.activation_bytes)),
    )
    told = ", ".join(f"{was} became {now}" for was, now in sizes if not was.startswith(f"{now} "))
    blocks: list[Block] = [
        Note(f"{name}: {told or 'nothing became smaller'}."),
        Figure(
            f"Operators of {name} before and after each rewrite",
            "; ".join(f"{row.name} {row.text}" for row in spans),
            partial(charts.spans, spans),
            legend=(("kept", "left"), ("gone", "removed"), ("added", "added")),
        ),
        Table("rewrites", f"Rewrites of {name}", headers, cells, frozenset(range(2, 9)), spare=frozenset({0})),
    ]
    if not each.manifest.proof:
        blocks.insert(0, Note(f"{name} was exported without proofs: no gap was measured.", "warn"))
    if refused:
        blocks.append(
            Table(
                "places-refused",
                f"Where rules of {name} refused, and why",
                ("artefact", "rule", "where", "why"),
                refused,
                folded=f"Where rules refused, and why ({len(refused)})",
                spare=frozenset({0}),
            )
        )
    return blocks


def _change(before: int, after: int) -> str:
    return "0" if before == after or not before else f"{100 * (after / before - 1):+.1f} %"
