"""How the commands present themselves: verbs that load when they are called, help in sections, examples below."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from mobilec import __version__
from mobilec.cli.failures import run
from mobilec.cli.output import State
from mobilec.errors import did_you_mean

HELP = """Take an efficient vision model from PyTorch to a file a phone can run, prove that the file computes the
same thing, and say how fast it is."""

EXAMPLES = (
    "mobilec models 'shvit*'                      what there is",
    "mobilec export shvit_s1 --to onnx            write shvit_s1-onnx/",
    "mobilec validate shvit_s1-onnx               does it compute the same?",
    "mobilec profile shvit_s1-onnx                how fast is it here?",
)


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Verb(click.Command):
    """A command whose options stand in named sections and whose help ends with examples."""

    sections: Mapping[str, Sequence[str]] = {}
    examples: Sequence[str] = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        title_of = {name: title for title, names in self.sections.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*self.sections, "Options")}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):  # the usage line and the text have it
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                rows[title_of.get(parameter.name or "", "Options")].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)


def described(
    *, sections: Mapping[str, Sequence[str]] | None = None, examples: Sequence[str] = ()
) -> Callable[[click.Command], Verb]:
    """Give a verb its help sections (title -> parameter names) and examples."""

    def apply(command: click.Command) -> Verb:
        if not isinstance(command, Verb):
            raise TypeError(f"{command.name} must be made with click.command(cls=Verb)")
        command.sections = sections or {}
        command.examples = examples
        return command

    return apply


class Verbs(click.Group):
    """The top of the command line. ``modules`` maps a verb to the module that holds its ``command``."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        super().__init__("mobilec", help=HELP, no_args_is_help=True, context_settings={"max_content_width": 100})
        self.modules = dict(modules)
        self.params = [
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_version,
                help="Print the version.",
            ),
            debug_option(),
        ]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self.modules.get(cmd_name)
        return None if module is None else import_module(module).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.modules and not args[0].startswith("-"):
            offer = did_you_mean(args[0], self.modules, f"there is {', '.join(self.modules)}")
            raise click.UsageError(f"no command {args[0]!r}; {offer}", ctx)
        state = ctx.find_object(State)
        if state is not None and args:
            state.command = args[0]
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, EXAMPLES)
        formatter.write_paragraph()
        formatter.write_text(
            "`mobilec COMMAND --help` explains each. With --json a command prints one JSON document and nothing else "
            "to standard output. Exit codes: 0 good, 1 error, 2 wrong usage, 3 a check failed."
        )

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        """As click's, but with this project's way of failing."""
        sys.exit(run(sys.argv[1:] if args is None else args, lambda: self))


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"mobilec {__version__}")
        ctx.exit()


def debug_option() -> click.Option:
    """``--debug``; read from the arguments by ``State``, so it is declared only to be accepted and explained."""
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks and inner details.")
