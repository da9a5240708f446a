"""Entry point of the ``mobilec`` command, and the table of its verbs.

Nothing but the standard library is imported here: the signal handlers stand before anything slow begins.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

# verb -> the module that holds a click command called `command`; the order is the order of `mobilec --help`
VERBS = {
    "models": "mobilec.cli.models",
    "info": "mobilec.cli.info",
    "export": "mobilec.cli.export",
    "validate": "mobilec.cli.validate",
    "profile": "mobilec.cli.profile",
    "history": "mobilec.cli.history",
    "report": "mobilec.cli.report",
    "devices": "mobilec.cli.devices",
    "tune": "mobilec.cli.tune",
    "lint": "mobilec.cli.lint",
    "ranges": "mobilec.cli.ranges",
    "passes": "mobilec.cli.passes",
    "doctor": "mobilec.cli.doctor",
}


def top() -> click.Group:
    """The command that holds the verbs."""
    from mobilec.cli.group import Verbs

    return Verbs(VERBS)


def main() -> None:
    """Run the command line on this process's arguments and exit with its code."""
    from mobilec.cli import signals

    code = 0
    try:
        with signals.caught():
            from mobilec.cli.failures import run

            code = run(sys.argv[1:], top)
    except signals.Interrupted as interruption:  # before `run` could begin, or after it had ended
        code = code or 128 + interruption.number
    for number in signals.HANDLED:
        # The work is over and the exit code is settled: a late Ctrl-C must not turn it into another, or into a
        # traceback, while the interpreter shuts down.
        signals.signal.signal(number, signals.signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
