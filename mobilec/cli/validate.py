"""``mobilec validate``: do artefacts compute what their references compute?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mobilec.cli.documents import check_writable, write_document
from mobilec.cli.group import Verb, described
from mobilec.cli.options import COUNT, FOLDER, TRIPLE, Number, common
from mobilec.cli.output import State, emit, noise_to_stderr, note
from mobilec.cli.progress import stages

if TYPE_CHECKING:
    from mobilec.runtime.validate import Validations


@described(
    sections={
        "Reference": ("against", "checkpoint", "num_classes"),
        "Images": ("images", "data", "limit", "resume"),
        "Preprocessing, where no manifest says it": ("mean", "std", "color", "crop_pct"),
        "Limits, to the letter": ("atol", "rtol", "min_psnr", "min_cosine", "min_top1"),
        "Where it goes wrong": ("check_stages", "bisect", "rule_files", "save_arrays"),
        "Running": ("threads", "interpreter", "accumulate"),
        "Result": ("save",),
    },
    examples=(
        "mobilec validate shvit_s1-onnx",
        "mobilec validate shvit_s1-onnx shvit_s1-coreml --data imagenet/val --limit 1000",
        "mobilec validate shvit_s1-onnx --images photos/ cat.jpg",
        "mobilec validate model.mlpackage --against shvit_s1 --checkpoint shvit_s1.pth",
        "mobilec validate small.onnx --against large.onnx --min-psnr 30 --min-top1 0.98",
        "mobilec validate shvit_s1-onnx --data val.csv --resume pass.json",
        "mobilec validate shvit_s1-coreml --bisect",
    ),
)
@click.command("validate", cls=Verb, short_help="Check artefacts against their references, on images.")
@click.argument("artefacts", metavar="ARTEFACT... [--images PATH...]", nargs=-1, required=True)
@click.option(
    "--against", metavar="MODEL", help="Compare with this: a model's name, an artefact, .onnx, .mlpackage or .pt2."
)
@click.option("--checkpoint", type=FOLDER, metavar="FILE", help="Weights of a model named with --against.")
@click.option("--num-classes", type=COUNT, metavar="N", help="Classes of that model.")
@click.option("--images", multiple=True, metavar="PATH...", help="Images, folders or patterns to compare on.")
@click.option(
    "--data", type=FOLDER, metavar="DIR|CSV", help="One folder a class, or rows of path,label: accuracy of all sides."
)
@click.option("--limit", type=COUNT, metavar="N", help="At most so many images of --data, spread over classes.")
@click.option(
    "--resume",
    type=FOLDER,
    metavar="FILE.json",
    help="Keep how far --data has come, and go on from there if it exists.",
)
@click.option("--mean", type=TRIPLE, help="Mean of the pixels, scaled to 0..1.")
@click.option("--std", type=TRIPLE, help="Standard deviation of the pixels.")
@click.option("--color", type=click.Choice(["RGB", "BGR"]), metavar="RGB|BGR", help="Channel order of the input.")
@click.option("--crop-pct", type=float, metavar="SHARE", help="Part of the image that the crop keeps; 1 is all.")
@click.option("--atol", type=Number(float, 0), metavar="X", help="Absolute tolerance.  [default: 1e-4 for fp32]")
@click.option("--rtol", type=Number(float, 0), metavar="X", help="Relative tolerance.  [default: 1e-4 for fp32]")
@click.option(
    "--min-psnr", type=Number(float, 0), metavar="DB", help="Least PSNR of any image.  [default: 40 for fp16, int8]"
)
@click.option("--min-cosine", type=Number(float, 0), metavar="X", help="Least cosine.  [default: 0.999 for fp16, int8]")
@click.option(
    "--min-top1",
    type=Number(float, 0),
    metavar="SHARE",
    help="Least share of images with the same top-1 class.  [default: all but ties]",
)
@click.option(
    "--stages",
    "check_stages",
    is_flag=True,
    help="Instead: every stage from the PyTorch model to the running file, made again, and the first that fails.",
)
@click.option(
    "--bisect", is_flag=True, help="The same, and the first op that is wrong, with its module and source line."
)
@click.option(
    "--rules",
    "rule_files",
    type=FOLDER,
    multiple=True,
    metavar="FILE.py",
    help="Rules of your own that the export ran. The file is executed.",
)
@click.option("--save-arrays", type=FOLDER, metavar="DIR", help="Also write the tensors of wrong ops, as .npz.")
@click.option("--threads", type=COUNT, metavar="N", help="Threads of all sides.  [default: all cores]")
@click.option("--interpreter", is_flag=True, help="Run Core ML files in the interpreter on macOS too.")
@click.option(
    "--accumulate",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    metavar="fp32|fp16",
    help="How the interpreter adds up inside an operator.  [default: fp32]",
)
@click.option("--save", type=FOLDER, metavar="FILE.json", help="Also write the result to a file.")
@common
@click.pass_obj
def command(
    state: State,
    artefacts: tuple[str, ...],
    against: str | None,
    checkpoint: Path | None,
    num_classes: int | None,
    images: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    resume: Path | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    color: str | None,
    crop_pct: float | None,
    atol: float | None,
    rtol: float | None,
    min_psnr: float | None,
    min_cosine: float | None,
    min_top1: float | None,
    check_stages: bool,
    bisect: bool,
    rule_files: tuple[Path, ...],
    save_arrays: Path | None,
    threads: int | None,
    interpreter: bool,
    accumulate: str,
    save: Path | None,
) -> None:
    """Run artefacts and their references on the same images and judge the difference.

    An artefact is compared with the PyTorch program it was captured from; a bare .onnx or .mlpackage file with what
    --against names. Several are judged one by one, and those of one model share its reference.

    Without images, built-in test pictures are used. fp32 must agree within 1e-4 + 1e-4 x |value| everywhere (the first
    1e-4 grows with outputs above 5), and within 1e-4 of the largest value; fp16 and int8 must reach a PSNR of 40 dB and
    a cosine of 0.999 on every image, and so must an fp32 file with approximate rewrites or compressed weights; NaN,
    infinities, changed files and another top-1 class always fail. Exit code 3 when something fails. The limits that
    would pass are always shown.
    """
    tested, pictures = _told_apart(artefacts, images)
    settings = {"mean": mean, "std": std, "color": color, "crop_pct": crop_pct}
    for path in (save, resume):
        if path is not None:
            check_writable(path)
    if save_arrays is not None and not bisect:
        raise click.UsageError("--save-arrays goes with --bisect, which finds the ops whose tensors are written")
    if rule_files and not (check_stages or bisect):
        raise click.UsageError("--rules goes with --stages and --bisect, which rewrite the model again")
    if check_stages or bisect:
        reference = {"against": against, "checkpoint": checkpoint, "num-classes": num_classes}
        pictures_of = {"data": data, "limit": limit, "resume": resume, "mean": mean, "std": std, "color": color}
        limits = {"atol": atol, "rtol": rtol, "min-psnr": min_psnr, "min-cosine": min_cosine, "min-top1": min_top1}
        _refuse_beside_stages({**reference, **pictures_of, "crop-pct": crop_pct, **limits})
        from mobilec.cli.stages import run

        run(
            state,
            tested,
            pictures,
            bisect=bisect,
            rule_files=rule_files,
            save_arrays=save_arrays,
            threads=threads,
            interpreter=interpreter,
            accumulate=accumulate,
            save=save,
        )
        return
    with stages(state, "loading") as progress, noise_to_stderr():
        from mobilec.runtime.validate import validate_all

        try:
            result = validate_all(
                tested,
                against=against,
                checkpoint=checkpoint,
                num_classes=num_classes,
                images=pictures,
                data=data,
                limit=limit,
                resume=resume,
                preprocessing={name: value for name, value in settings.items() if value is not None},
                threads=threads,
                interpreter=interpreter,
                accumulate=accumulate,
                atol=atol,
                rtol=rtol,
                min_psnr=min_psnr,
                min_cosine=min_cosine,
                min_top1=min_top1,
                progress=lambda done, total: progress("comparing images", done, total),
            )
        except KeyboardInterrupt:
            if resume is not None and resume.exists():
                note("kept", f"how far it came stands in {resume}; the same command goes on from there")
            raise
    document = asdict(result.artefacts[0] if len(tested) == 1 else result)
    if state.json:
        emit(state, document)
    else:
        _show(result, tested)
    if save is not None:
        write_document(save, state, document)
    result.raise_if_failed()


def _refuse_beside_stages(options: dict[str, object]) -> None:
    """Options that ask for another comparison than that of the stages, which have their own inputs and limits."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)} does not go with --stages and --bisect, which compare the stages")


def _told_apart(words: Sequence[str], images: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Artefacts and images: after ``--images`` a shell's pattern leaves words that may be either."""
    if not images:
        return tuple(words), ()
    tested = [word for word in words if _is_tested(word)] or [words[0]]
    return tuple(tested), (*images, *(word for word in words if word not in tested))


def _is_tested(word: str) -> bool:
    from mobilec.runtime.load import is_model_file

    path = Path(word)
    return is_model_file(path) or path.name == "manifest.json" or (path / "manifest.json").is_file()


def _show(result: Validations, tested: Sequence[str]) -> None:
    from mobilec.cli.validation import show, show_several

    if len(tested) == 1:
        show(result.artefacts[0], tested[0])
    else:
        show_several(result, tested)
