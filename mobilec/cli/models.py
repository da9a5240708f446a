"""``mobilec models``: what the zoo holds."""

from __future__ import annotations

from itertools import groupby

import click

from mobilec.cli.group import Verb, described
from mobilec.cli.options import common
from mobilec.cli.output import State, emit


@described(
    examples=(
        "mobilec models                  all of them",
        "mobilec models 'shvit*'         by shell pattern",
        "mobilec models ghost            or by a part of the name",
    )
)
@click.command("models", cls=Verb, short_help="List the models of the zoo.")
@click.argument("pattern", required=False)
@common
@click.pass_obj
def command(state: State, pattern: str | None) -> None:
    """List the models of the zoo, with what they cost and what their authors report.

    PATTERN is a shell pattern or a part of a name. Parameters are counted at 1000 classes, multiply-accumulates (MACs)
    at the native resolution; the published figures are the authors' own on ImageNet-1K.
    """
    from mobilec.errors import UsageError
    from mobilec.mobile.zoo import find_variant, list_models

    names = list_models(pattern)
    if pattern and not names and not set(pattern) & set("*?["):
        names = list_models(f"*{pattern}*")
    if pattern and not names:
        raise UsageError(f"no model matches {pattern!r}", hint="`mobilec models` lists all")
    rows = [find_variant(name) for name in names]
    if state.json:
        emit(
            state,
            {
                "models": [
                    {
                        "name": variant.name,
                        "family": family.name,
                        "title": family.title,
                        "paper": family.paper,
                        "resolution": variant.resolution,
                        "parameters": variant.parameters,
                        "macs": variant.macs,
                        "published": variant.published,
                    }
                    for family, variant in rows
                ]
            },
        )
        return

    from mobilec.cli import render
    from mobilec.cli.output import stdout_console

    console = stdout_console()
    longest = max(len(name) for name in names)
    for number, (title, group) in enumerate(groupby(rows, key=lambda row: f"{row[0].title} (arXiv {row[0].paper})")):
        render.heading(console, title, gap=number > 0)
        cells = [
            (v.name, f"{v.resolution} px", render.count(v.parameters), render.count(v.macs), v.published)
            for _, v in group
        ]
        headers = ("name", "input", "parameters", "MACs", "published")
        console.print(render.table(headers, cells, right=(1, 2, 3), min_widths={0: longest, 1: 6, 2: 10, 3: 6}))
    console.print()
    console.print(f"{render.plural(len(rows), 'model')}; `mobilec info NAME` shows where one spends its work")
