"""``mobilec report``: one page that shows what other commands found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mobilec.cli.documents import check_writable, write_document, write_text
from mobilec.cli.group import Verb, described
from mobilec.cli.options import FOLDER, common
from mobilec.cli.output import State, emit, noise_to_stderr, plain

if TYPE_CHECKING:
    from mobilec.cli.html.page import Page


@described(
    sections={"Result": ("out", "title", "csv", "save", "node_data")},
    examples=(
        "mobilec report profile.json",
        "mobilec report profile.json validation.json lint.json shvit_s1-onnx -o shvit_s1.html",
        "mobilec report laptop.json phone.json --csv        several devices, with tables for a spreadsheet",
    ),
)
@click.command("report", cls=Verb, short_help="Put results together as one HTML page.")
@click.argument("results", metavar="RESULT...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "-o", "--out", type=FOLDER, default="report.html", show_default=True, metavar="FILE.html", help="Where to write it."
)
@click.option("--title", metavar="TEXT", help="Headline.  [default: the models, and where they ran]")
@click.option("--csv", is_flag=True, help="Also write each table as CSV, beside the page.")
@click.option("--save", type=FOLDER, metavar="FILE.json", help="Also write all texts and tables as JSON.")
@click.option(
    "--node-data",
    type=FOLDER,
    metavar="FILE.json",
    help="Also write operator times as node data for Model Explorer (one artefact with operators).",
)
@common
@click.pass_obj
def command(
    state: State,
    results: tuple[Path, ...],
    out: Path,
    title: str | None,
    csv: bool,
    save: Path | None,
    node_data: Path | None,
) -> None:
    """Put results together as one HTML page: the answers first, then charts and tables, light and dark, on paper and
    on a phone, without a script and without anything to fetch.

    RESULT is what `profile`, `validate` (--stages and --bisect too) wrote with --save, what `lint` or `export` printed
    with --json, or an artefact folder, for what its rewrites did.
    """
    outputs = [path for path in (out, save, node_data) if path is not None]
    for path in outputs:
        check_writable(path)
    places = [path.resolve() for path in outputs]
    taken = {path.resolve() for path in results}
    if len(set(places)) < len(places) or taken & set(places):
        raise click.UsageError("a file is named twice: results would be written over")
    with noise_to_stderr():
        from mobilec.cli.html.nodes import node_data_of
        from mobilec.cli.html.page import document
        from mobilec.cli.html.results import read_results
        from mobilec.cli.html.write import make_page, page_html

        found = read_results(results)
        page = make_page(found, title or "")
        nodes = node_data_of(found) if node_data is not None else None
        written = [out]
        write_text(out, page_html(page))
    if csv:
        written += _write_csv(page, out)
    content = document(page)
    if save is not None:
        write_document(save, state, content)
        written.append(save)
    if node_data is not None and nodes is not None:
        write_text(node_data, nodes)
        written.append(node_data)
    if state.json:
        emit(state, {"written": [str(path) for path in written], **content})
        return
    for verdict in page.verdicts:
        click.echo(plain(verdict.text))
    click.echo(f"\nWrote {', '.join(plain(path) for path in written)}")


def _write_csv(page: Page, out: Path) -> list[Path]:
    from mobilec.cli.html.page import csv_files

    written = []
    for name, text in csv_files(page).items():
        path = out.with_name(f"{out.stem}-{name}.csv")
        check_writable(path)
        write_text(path, text)
        written.append(path)
    return written
