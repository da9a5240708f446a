"""Keep the chatter of converters away from the user, and keep it for ``detail``.

torch.onnx, coremltools and onnxsim print, log, warn and draw progress bars, some of it at import. Inside
``quiet()`` all of that goes to a buffer. Only Python-level channels are redirected (``sys.stdout``, ``sys.stderr``,
``logging``, ``warnings``, errors in destructors); what other threads say meanwhile is heard as ever, and everything
is put back when the last ``quiet()`` ends, however it ends.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

# Loggers whose own handlers are set aside while quiet, with everything below them.
NOISY_LOGGERS = ("torch", "coremltools", "onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime")


@dataclass(frozen=True)
class Captured:
    """What was said inside one ``quiet()``."""

    buffer: io.StringIO = field(default_factory=io.StringIO)

    @property
    def text(self) -> str:
        return self.buffer.getvalue()


class _Router(io.TextIOBase):
    """A stream that sends the writes of quiet threads to their buffer and all others to the original stream."""

    def __init__(self, original: TextIO) -> None:
        self.original = original

    def target(self) -> TextIO:
        captured = _captured()
        return captured.buffer if captured else self.original

    def write(self, text: str) -> int:
        return self.target().write(text)

    def flush(self) -> None:
        self.target().flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return not _captured() and self.original.isatty()

    def fileno(self) -> int:
        return self.original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.original.encoding

    @property
    def buffer(self) -> Any:
        return self.original.buffer


class _LogHandler(logging.Handler):
    """Stands in for a logger's handlers: records of quiet threads go to their buffer, others where they always went."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.aside, self.parent = list(logger.handlers), logger.parent if logger.propagate else None

    def emit(self, record: logging.LogRecord) -> None:
        captured = _captured()
        if captured:
            captured.buffer.write(f"{record.levelname} {record.name}: {record.getMessage()}\n")
            return
        for handler in self.aside:
            if record.levelno >= handler.level:
                handler.handle(record)
        if self.parent:
            self.parent.callHandlers(record)


@dataclass
class _Installed:
    """What stood where before the outermost ``quiet()``."""

    stdout: TextIO
    stderr: TextIO
    showwarning: Callable[..., None]
    unraisablehook: Callable[[Any], Any]
    loggers: list[tuple[logging.Logger, list[logging.Handler], bool]]


_lock = threading.RLock()
_thread = threading.local()
_depth = 0
_installed: _Installed | None = None


def _captured() -> Captured | None:
    stack: list[Captured] = getattr(_thread, "stack", [])
    return stack[-1] if stack else None


def _noisy_loggers() -> list[logging.Logger]:
    """The named roots, and every logger below them that has handlers of its own."""
    below = [
        logger
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and name.split(".")[0] in NOISY_LOGGERS and logger.handlers
    ]
    return list(dict.fromkeys([*map(logging.getLogger, NOISY_LOGGERS), *below]))


def _install() -> _Installed:
    before = _Installed(sys.stdout, sys.stderr, warnings.showwarning, sys.unraisablehook, [])
    sys.stdout, sys.stderr = _Router(before.stdout), _Router(before.stderr)

    def showwarning(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        captured = _captured()
        if captured:
            captured.buffer.write(f"{category.__name__}: {message}\n")
        else:
            before.showwarning(message, category, filename, lineno, file, line)

    def unraisablehook(unraisable: Any) -> None:
        captured = _captured()
        if captured:
            captured.buffer.write(f"{unraisable.err_msg or 'ignored'}: {unraisable.exc_value!r}\n")
        else:
            before.unraisablehook(unraisable)

    warnings.showwarning, sys.unraisablehook = showwarning, unraisablehook
    for logger in _noisy_loggers():
        before.loggers.append((logger, list(logger.handlers), logger.propagate))
    for logger, _, _ in before.loggers:
        logger.handlers = [_LogHandler(logger)]
        # Off inside, or a record would be captured twice and reach the root's handlers.
        logger.propagate = False
    return before


def _restore(before: _Installed) -> None:
    sys.stdout, sys.stderr = before.stdout, before.stderr
    warnings.showwarning, sys.unraisablehook = before.showwarning, before.unraisablehook
    for logger, handlers, propagate in before.loggers:
        # Handlers that a package added for itself while it was being imported are kept.
        added = [handler for handler in logger.handlers if not isinstance(handler, _LogHandler)]
        logger.handlers, logger.propagate = handlers + added, propagate
    # Such a handler took our router for the stream; it must not keep it.
    for logger in [logging.getLogger(), *_noisy_loggers()]:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, _Router):
                handler.setStream(handler.stream.original)


@contextmanager
def quiet() -> Iterator[Captured]:
    """Capture what this thread prints, logs and warns; yields the growing record. Nests, and threads may overlap."""
    global _depth, _installed
    captured = Captured()
    with _lock:
        if _depth == 0:
            _installed = _install()
        _depth += 1
    try:
        _thread.stack = [*getattr(_thread, "stack", []), captured]
        yield captured
    finally:
        _thread.stack = _thread.stack[:-1]
        with _lock:
            _depth -= 1
            if _depth == 0 and _installed is not None:
                _restore(_installed)
                _installed = None


def aloud(tell: Callable[..., None]) -> Callable[..., None]:
    """``tell``, heard from within ``quiet()`` too: for our own progress."""

    def told(*words: Any) -> None:
        stack = getattr(_thread, "stack", [])
        _thread.stack = []
        try:
            tell(*words)
        finally:
            _thread.stack = stack

    return told
