"""quiet(): nothing leaks, everything is captured, everything is put back."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings

import pytest

from mobilec.export.quiet import aloud, quiet


class Noisy:
    def __init__(self, word: str) -> None:
        self.word = word

    def __del__(self) -> None:
        raise ValueError(f"{self.word}-destructor")


def _everything(word: str) -> None:
    Noisy(word)
    print(f"{word}-stdout")
    print(f"{word}-stderr", file=sys.stderr)
    logging.getLogger("torch.onnx._internal.exporter").warning("%s-log", word)
    logging.getLogger("coremltools").error("%s-converter", word)
    warnings.warn(f"{word}-warning", UserWarning, stacklevel=1)


def test_what_is_said_aloud_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    def say(word: str) -> None:
        print(word, file=sys.stderr)

    def fail(word: str) -> None:
        say(word)
        raise KeyboardInterrupt

    with quiet() as log:
        aloud(say)("progress")
        with pytest.raises(KeyboardInterrupt):
            aloud(fail)("interrupted")
        say("noise")
    assert capfd.readouterr().err == "progress\ninterrupted\n"
    assert log.text == "noise\n"


def test_every_channel_is_captured_and_nothing_leaks(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet() as log:
        _everything("inside")
    for channel in ("stdout", "stderr", "log", "converter", "warning", "destructor"):
        assert log.text.count(f"inside-{channel}") == 1
    leaked = capfd.readouterr()
    assert leaked.out == leaked.err == ""


def test_everything_is_put_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> list[object]:
        logger = logging.getLogger("coremltools")
        channels = [sys.stdout, sys.stderr, warnings.showwarning, sys.unraisablehook]
        return [*channels, list(logger.handlers), logger.propagate]

    before = state()
    records = []

    def interrupted() -> None:
        with quiet() as log:
            records.append(log)
            print("inside")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert state() == before
    print("outside")
    assert records[0].text == "inside\n"
    assert capfd.readouterr().out == "outside\n"


def test_nested_records_are_separate() -> None:
    with quiet() as outer:
        print("one")
        with quiet() as inner:
            print("two")
        print("three")
    assert (outer.text, inner.text) == ("one\nthree\n", "two\n")


def test_other_threads_keep_their_voice(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with quiet() as log:
        thread = threading.Thread(target=lambda: (print("other"), logging.getLogger("coremltools").error("other-log")))
        thread.start()
        thread.join()
    assert log.text == ""
    assert capfd.readouterr().out == "other\n"
    assert [record.getMessage() for record in caplog.records] == ["other-log"]


def test_overlapping_threads_do_not_lose_the_streams() -> None:
    before = (sys.stdout, sys.stderr)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    texts: dict[str, str] = {}

    def first() -> None:
        with quiet() as log:
            first_in.set()
            second_in.wait(10)
            print("first")
        texts["first"] = log.text
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with quiet() as log:
            second_in.set()
            first_out.wait(10)
            print("second")
        texts["second"] = log.text

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {"first": "first\n", "second": "second\n"}
    assert (sys.stdout, sys.stderr) == before


def test_a_handler_born_inside_writes_to_the_real_stream_afterwards() -> None:
    logger = logging.getLogger("onnxsim.newborn")
    with quiet():
        logger.addHandler(logging.StreamHandler())
    try:
        assert logger.handlers[0].stream is sys.stderr  # type: ignore[attr-defined]
    finally:
        logger.handlers.clear()


def test_imports_are_silent() -> None:
    code = (
        "from mobilec.export.quiet import quiet\n"
        "with quiet() as log:\n    import onnxsim, coremltools, torch.onnx\n"
        "import logging; logging.getLogger('coremltools').error('heard again')\n"
        "print('_MLModelProxy' in log.text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert [line for line in done.stderr.splitlines() if "heard again" not in line] == []
    assert "heard again" in done.stderr
