"""A real Chromium without a window, told what to do through its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.tools import need

ANSWER_SECS = 120.0
# The browser reads from descriptor 3 and writes to 4.
SHUFFLE = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Tab:
    """One tab. What the page said and asked for is collected from the moment it is opened.

    Attributes:
        said: messages on the console, exceptions, and what the browser itself complained about.
        asked: addresses the page asked for, its own one first.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self._out, self._in = to_browser, from_browser
        self._pending = b""
        self._number = 0
        self._loaded = False
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False, media: str = "") -> None:
        """Show a file as a screen of this width does, or as paper does (``media="print"``)."""
        self.said.clear()
        self.asked.clear()
        self._loaded = False
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + ANSWER_SECS
        while not self._loaded:
            self._take(self._message(end))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the whole page, or of what is in view."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def paper(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._out, json.dumps(request).encode() + b"\0")
        end = time.monotonic() + ANSWER_SECS
        while True:
            message = self._message(end)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        found = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.consoleAPICalled":
                self.said.append(f"console: {found['args']}")
            case "Runtime.exceptionThrown":
                self.said.append(f"exception: {found['exceptionDetails']}")
            case "Log.entryAdded":
                self.said.append(f"log: {found['entry']['text']}")
            case "Network.requestWillBeSent":
                self.asked.append(found["request"]["url"])

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser gives no answer"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser ended"
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\0")
        return json.loads(line)


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a fresh browser, which ends with the block. Skips or fails where there is no Chromium."""
    program = need("chromium")
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-") as folder:
        words = [program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--hide-scrollbars"]
        words += ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
        words += ["--no-sandbox"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [sys.executable, "-c", SHUFFLE, str(commands), str(answers), *words],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        try:
            yield Tab(to_browser, from_browser)
        finally:
            os.close(to_browser)  # it ends when nobody speaks to it any more
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_browser)
