"""Argument types and options that several verbs share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mobilec.cli.group import debug_option
from mobilec.errors import DataError, UsageError

Decorator = Callable[[Any], Any]


class Number(click.ParamType):
    """A finite number from ``least`` up. (click's own ranges put their bounds into the help of every option.)"""

    def __init__(self, kind: type[int] | type[float], least: float) -> None:
        self.kind = kind
        self.least = least
        self.name = "N" if kind is int else "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        try:
            number = self.kind(value)
        except ValueError:
            number = None
        if number is None or not self.least <= number < math.inf:
            what = "a whole number" if self.kind is int else "a number"
            self.fail(f"{value!r} is not {what} of at least {self.least:g}", param, ctx)
        return number


class InputSize(click.ParamType):
    """``224`` (square) or ``320x256`` (height x width), in pixels."""

    name = "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        if not isinstance(value, str):
            return value
        parts = value.lower().split("x")
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts) or len(parts) > 2:
            self.fail(f"{value!r} is not a size in pixels; write 224 or 320x256 (height x width)", param, ctx)
        sides = tuple(int(part) for part in parts)
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


class Cores(click.ParamType):
    """``4,5`` or ``4-7``, as indices of processor cores."""

    name = "CORES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not isinstance(value, str):
            return value
        found: list[int] = []
        for part in value.split(","):
            match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                self.fail(f"{value!r} names no cores; write 4,5 or 4-7", param, ctx)
            found += range(int(match[1]), int(match[2] or match[1]) + 1)
        return tuple(dict.fromkeys(found))


Dims = tuple[int | str, ...]  # sizes, and behind them the type where one was given


class InputShape(click.ParamType):
    """``NAME:1,3,224,224`` or ``NAME:1,77:int64``."""

    name = "NAME:DIMS[:TYPE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Dims]:
        if not isinstance(value, str):
            return value
        name, colon, dims = value.rpartition(":")
        types: tuple[str, ...] = ()
        if dims[:1].isalpha():
            types = (dims,)
            name, colon, dims = name.rpartition(":")
        parts = [part.strip() for part in dims.split(",")]
        if not colon or not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a shape; write NAME:DIMS, for example x:1,3,224,224", param, ctx)
        return name, (*(int(part) for part in parts), *types)


class Triple(click.ParamType):
    """Three numbers, ``0.485,0.456,0.406``; one number stands for three."""

    name = "R,G,B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        if not isinstance(value, str):
            return value
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
            self.fail(f"{value!r} is not three numbers; write for example 0.485,0.456,0.406", param, ctx)
        return numbers[0], numbers[1], numbers[2]


INPUT_SIZE = InputSize()
INPUT_SHAPE = InputShape()
TRIPLE = Triple()
FOLDER = click.Path(path_type=Path)
COUNT = Number(int, 1)


def json_option() -> Decorator:
    return click.option("--json", "as_json", is_flag=True, expose_value=False, help="Print one JSON document instead.")


def common(command: Any) -> Any:
    """``--json`` and ``--debug``; the state of the run reads both from the arguments."""
    command = json_option()(command)
    command.__click_params__.insert(0, debug_option())
    return command


def model_options(command: Any) -> Any:
    """What decides which model with which weights is meant."""
    for option in reversed(
        (
            click.option("--checkpoint", type=FOLDER, metavar="FILE", help="Weights: .pth, .pt or .safetensors."),
            click.option("--num-classes", type=COUNT, metavar="N", help="Classes of the model's head."),
            click.option(
                "--replace-head", is_flag=True, help="Where the checkpoint has other classes: draw a new head."
            ),
            click.option("--pretrained", is_flag=True, help="Fetch published weights (timm:NAME only)."),
        )
    ):
        command = option(command)
    return command


def rule_options(command: Any) -> Any:
    """Which rewrites run."""
    for option in reversed(
        (
            click.option("--skip-rule", multiple=True, metavar="RULE", help="Leave a rewrite out; repeat for more."),
            click.option("--only-rule", multiple=True, metavar="RULE", help="Run no other rewrite; repeat for more."),
            click.option(
                "--rules",
                "rule_files",
                type=FOLDER,
                multiple=True,
                metavar="FILE.py",
                help="Rules of your own, run after the target's. The file is executed.",
            ),
        )
    ):
        command = option(command)
    return command


def given_again(*names: str) -> list[str]:
    """Those of the running command's options that were given, by their parameters' names, as words to give again."""
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in names or context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        option, value = parameter.opts[0], context.params[name]
        if isinstance(value, bool):
            words += [option] if value else []
            continue
        for item in value if parameter.multiple else [value]:
            words += [option, _text_of(item)]
    return words


def _text_of(value: Any) -> str:
    """An option's value as it is written: the reverse of the types above."""
    if not isinstance(value, tuple):
        return str(value)
    if isinstance(value[0], str):  # InputShape
        name, dims = value
        sizes = ",".join(str(part) for part in dims if isinstance(part, int))
        return ":".join((name, sizes, *(part for part in dims if isinstance(part, str))))
    return "x".join(map(str, value))  # InputSize


def unique_shapes(shapes: Sequence[tuple[str, Dims]]) -> dict[str, Dims] | None:
    """The repeated ``--input-shape`` as a mapping, None without any. Raises UsageError for a name given twice."""
    table: dict[str, Dims] = {}
    for name, dims in shapes:
        if name in table:
            raise UsageError(f"--input-shape names {name!r} twice", hint="give each input one shape")
        table[name] = dims
    return table or None


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the outputs. Raises DataError when the file cannot serve."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})", hint="write one class name a line") from error
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", hint="--labels takes a text file, one class name a line"
        ) from error
    labels = tuple(line.strip() for line in text.rstrip().split("\n")) if text.strip() else ()
    if not labels:
        raise DataError(f"{path}: no class names in it", hint="write one class name a line")
    if "" in labels:
        raise DataError(f"{path}: line {labels.index('') + 1} is empty", hint="write one class name a line")
    return labels
