"""``mobilec validate``: does an artefact compute what its reference computes?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mobilec.cli.documents import check_writable, write_document
from mobilec.cli.group import Verb, described
from mobilec.cli.options import FOLDER, Number, common
from mobilec.cli.output import State, emit, noise_to_stderr
from mobilec.cli.progress import stages


@described(
    sections={
        "Images": ("images", "data", "limit"),
        "Tolerance": ("atol", "rtol"),
        "Running": ("threads",),
        "Result": ("save",),
    },
    examples=(
        "mobilec validate shvit_s1-onnx",
        "mobilec validate shvit_s1-onnx --images photos/ cat.jpg",
        "mobilec validate shvit_s1-onnx --data imagenet/val --limit 1000",
    ),
)
@click.command("validate", cls=Verb, short_help="Check an artefact against its reference, on images.")
@click.argument("artefact", type=FOLDER)
@click.argument("more_images", metavar="[--images PATH...]", nargs=-1)
@click.option("--images", multiple=True, metavar="PATH...", help="Images, folders or patterns to compare on.")
@click.option("--data", type=FOLDER, metavar="DIR", help="Folder with one folder a class: accuracy of both sides.")
@click.option(
    "--limit", type=Number(int, 1), metavar="N", help="At most so many images of --data, spread over classes."
)
@click.option("--atol", type=Number(float, 0), metavar="X", help="Absolute tolerance.  [default: 1e-4 for fp32]")
@click.option("--rtol", type=Number(float, 0), metavar="X", help="Relative tolerance.  [default: 1e-4 for fp32]")
@click.option("--threads", type=Number(int, 1), metavar="N", help="Threads of both sides.  [default: all cores]")
@click.option("--save", type=FOLDER, metavar="FILE.json", help="Also write the result to a file.")
@common
@click.pass_obj
def command(
    state: State,
    artefact: Path,
    more_images: tuple[str, ...],
    images: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    atol: float | None,
    rtol: float | None,
    threads: int | None,
    save: Path | None,
) -> None:
    """Run an artefact and its reference on the same images and judge the difference.

    Without images, built-in test pictures are used. fp32 must agree within 1e-4 + 1e-4 x |value| everywhere (the first
    1e-4 grows with outputs above 5), and within 1e-4 of the largest value; fp16 must reach a PSNR of 40 dB and a
    cosine of 0.999 on every image, and so must an fp32 file with approximate rewrites; NaN, infinities, changed files
    and another top-1 class always fail. Exit code 3 when something fails. The tolerance that would pass is always
    shown.
    """
    if more_images and not images:
        raise click.UsageError(f"unexpected argument {more_images[0]!r}; images are given with --images")
    if save is not None:
        check_writable(save)
    with stages(state, "loading") as progress, noise_to_stderr():
        from mobilec.runtime.validate import validate

        result = validate(
            artefact,
            images=(*images, *more_images),
            data=data,
            threads=threads,
            atol=atol,
            rtol=rtol,
            limit=limit,
            progress=lambda done, total: progress("comparing images", done, total),
        )
    document = asdict(result)
    if state.json:
        emit(state, document)
    else:
        from mobilec.cli.validation import show

        show(result, artefact)
    if save is not None:
        write_document(save, state, document)
    result.raise_if_failed()
