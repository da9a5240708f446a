"""What `--help` says, word for word.

The expected texts lie in tests/data/help/. After a change on purpose, write them anew and read the difference:

    MOBILEC_UPDATE_HELP=1 python -m pytest tests/cli/test_help.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilec.cli.group import Verb, Verbs
from mobilec.cli.main import VERBS

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "help"


@pytest.mark.parametrize("verb", ["mobilec", *VERBS])
def test_help_is_as_recorded(run: Callable, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*([] if verb == "mobilec" else [verb]), "--help")
    assert done.code == 0
    assert done.stderr == ""
    path = GOLDEN / f"{verb}.txt"
    if os.environ.get("MOBILEC_UPDATE_HELP"):
        path.write_text(done.stdout)
    assert done.stdout == path.read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option_and_gives_examples(run: Callable, verb: str) -> None:
    command = Verbs(VERBS).get_command(None, verb)
    assert isinstance(command, Verb)
    known = {parameter.name for parameter in command.params}
    filed = [name for names in command.sections.values() for name in names]
    assert len(filed) == len(set(filed))
    assert set(filed) <= known
    assert command.short_help.endswith(".")
    text = run(verb, "--help").stdout
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert max(parameter.opts, key=len) in text
            assert parameter.help
    assert command.examples
    assert all(line.startswith(f"mobilec {verb}") for line in command.examples)


def test_every_verb_takes_json_and_debug() -> None:
    for verb in VERBS:
        options = {option for parameter in Verbs(VERBS).get_command(None, verb).params for option in parameter.opts}
        assert {"--json", "--debug"} <= options


def test_version(run: Callable) -> None:
    import mobilec

    assert run("--version").stdout == f"mobilec {mobilec.__version__}\n"


def test_no_command_shows_the_help_as_wrong_usage(run: Callable) -> None:
    done = run()
    assert done.code == 2
    assert done.stdout == ""
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(("typed", "meant"), [("exprot", "export"), ("Models", "models"), ("valdate", "validate")])
def test_mistyped_commands_are_guessed(run: Callable, typed: str, meant: str) -> None:
    done = run(typed)
    assert done.code == 2
    assert f"did you mean {meant}?" in done.stderr


def test_unlike_commands_are_not_guessed(run: Callable) -> None:
    done = run("zzz")
    assert done.code == 2
    assert "there is models, info, export" in done.stderr


def test_mistyped_options_are_guessed(run: Callable) -> None:
    done = run("profile", "x", "--num-run", "3")
    assert done.code == 2
    assert "--num-runs" in done.stderr
