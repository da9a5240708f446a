"""Everything mobilec raises on purpose.

The tree::

    MobilecError                exit 1  something went wrong; the message says where, what and what to do
    ├── UsageError              exit 2  an argument cannot mean anything (unknown name, malformed shape)
    ├── ModelError              exit 1  the model cannot be built from what was given
    │   └── CheckpointError     exit 1  a weights file is broken, hostile or does not fit
    ├── CaptureError            exit 1  torch.export cannot trace the module
    ├── RewriteError            exit 1  a pass broke the graph, or its proof exceeded the rule's budget
    ├── ExportError             exit 1  a writer (ONNX, Core ML) failed
    ├── ArtifactError           exit 1  an artefact folder is missing, broken, in the way or cannot be written
    ├── BackendError            exit 1  a session failed at run time
    │   └── BackendUnavailable  exit 1  this machine cannot run it; the hint says what would
    ├── DataError               exit 1  images, labels or data folders that cannot be used
    └── CheckFailed             exit 3  a gate of `validate` (or another checker) did not hold

One line first: ``str(error)`` is the whole message for a user. ``hint`` says what to do next, ``detail``
holds the long form (an inner traceback, a converter's log) that the command line shows with ``--debug``.
"""

from __future__ import annotations

from collections.abc import Iterable


class MobilecError(Exception):
    """Root of every error a user may see.

    Args:
        message: where, what was found, what was expected; one line.
        hint: what to do next; one line, may be empty.
        detail: the long form, shown only on request.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(MobilecError):
    exit_code = 2


class ModelError(MobilecError):
    pass


class CheckpointError(ModelError):
    pass


class CaptureError(MobilecError):
    pass


class RewriteError(MobilecError):
    pass


class ExportError(MobilecError):
    pass


class ArtifactError(MobilecError):
    pass


class BackendError(MobilecError):
    pass


class BackendUnavailable(BackendError):
    pass


class DataError(MobilecError):
    pass


class CheckFailed(MobilecError):
    exit_code = 3


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for an unknown name: ``did you mean a, b or c?``, the nearest first, three at most.

    Upper and lower case do not count: where they are the only difference, that name alone is offered. ``otherwise``
    where no known name is near.
    """
    from difflib import get_close_matches

    spellings: dict[str, list[str]] = {}
    for each in known:
        spellings.setdefault(each.lower(), []).append(each)
    sought = str(name).lower()
    near = [sought] if sought in spellings else get_close_matches(sought, spellings, n=3, cutoff=0.6)
    offers = [each for lower in near for each in spellings[lower]][:3]
    if not offers:
        return otherwise
    *others, last = offers
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
