"""A device with a shell, over ssh or adb: what it can run, putting it there, and the processes that time it."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import BackendError
from mobilec.export.kernels.account import read_account
from mobilec.latency.channel import Channel, Worker
from mobilec.latency.devices import onnx_there
from mobilec.latency.devices.fitness import onnx_refusal, own_processor_refusal
from mobilec.latency.devices.keeper import Keeper
from mobilec.latency.devices.native_process import NativeProcess
from mobilec.latency.devices.onnx_process import OnnxProcess
from mobilec.latency.devices.survey import Survey, read_state, read_survey
from mobilec.latency.devices.transport import Transport, run, told
from mobilec.latency.runner import Job
from mobilec.latency.samples import MachineFacts, MachineState

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact

_COMMAND_SECS = 60.0
_SLOWEST_LINE = 100e3  # bytes a second; a copy may take that long, and a minute
_LOSS_SECS = 2.0  # between the end of a process and the end of the session, where a device went away


class ShellDevice:
    """A session on a device, which is its own from here to ``close``; use it as a context.

    Attributes:
        name: as the user wrote it. runs_onnx: whether ONNX models may be tried there.

    Raises BackendUnavailable, BackendError: see ``keeper.Keeper`` and ``survey.read_survey``.
    """

    def __init__(self, transport: Transport, *, runs_onnx: bool, timeout_secs: float) -> None:
        self.name = transport.name
        self._transport = transport
        self.runs_onnx = runs_onnx
        self._placed = 0
        self._keeper = Keeper(transport, timeout_secs=min(timeout_secs, _COMMAND_SECS))
        try:
            self._survey: Survey = read_survey(transport)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShellDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all that runs there and remove the folder. The device does both, also where nobody can call this."""
        try:
            self._keeper.close()
        finally:
            self._transport.close()

    def facts(self) -> MachineFacts:
        return self._survey.facts

    def state(self) -> MachineState:
        return read_state(self._transport)

    def refusal(self, artifact: Artifact) -> str:
        """Why the artefact cannot run there; empty if it can."""
        manifest = artifact.manifest
        if manifest.backend == "tvm":
            return own_processor_refusal(manifest.options, self._survey)
        if manifest.backend == "onnx":
            return onnx_refusal(artifact, self._survey) if self.runs_onnx else "no Python runs there"
        return f"{manifest.backend} artefacts do not run there"

    def place(self, artifact: Artifact, job: Job, threads: int | None, pin: tuple[int, ...]) -> Job:
        """Copy what it takes to run ``artifact``; ``job`` then starts its processes there.

        Raises BackendError: no space, gone. UsageError: no such core. ArtifactError: it does not say what its kernels
        are for.
        """
        uses = read_account(artifact.path) if artifact.manifest.backend == "tvm" else ()
        folder = f"{self._keeper.folder}/{self._placed}"
        self._placed += 1
        self._run(["mkdir", folder])
        count = threads or len(pin) or len(self.facts().usable_cores) or self.facts().logical_cores or 1
        if artifact.manifest.backend == "tvm":
            from mobilec.export.native import executable_of

            self._push(executable_of(artifact), f"{folder}/model")
            self._run(["chmod", "700", f"{folder}/model"])
            words = [f"{folder}/model", "--serve", "--threads", str(count)]
            words += ["--pin", ",".join(map(str, pin))] if pin else []
        else:
            self._push(artifact.model_path, f"{folder}/{onnx_there.MODEL}")
            self._push(Path(onnx_there.__file__), f"{folder}/process.py")
            words = ["taskset", "-c", ",".join(map(str, pin))] if pin else []
            words += ["python3", "-I", f"{folder}/process.py"]
        command = tuple(self._transport.command(words))

        def start(timeout_secs: float) -> Channel:
            worker = Worker(job.label, command, timeout_secs=timeout_secs, ended=self._ended)
            if artifact.manifest.backend == "tvm":
                return NativeProcess(worker, uses)
            return OnnxProcess(worker, artifact.manifest.inputs, count)

        return dataclasses.replace(job, command=command, start=start)

    def _push(self, source: Path, target: str) -> None:
        self._transport.push(source, target, timeout_secs=_COMMAND_SECS + source.stat().st_size / _SLOWEST_LINE)

    def _run(self, words: list[str]) -> None:
        done = run(self._transport, words, timeout_secs=_COMMAND_SECS)
        if done.status:
            if not self._keeper.holds:
                raise self._transport.failure(done.status, done.words)
            why = told(done.words.splitlines()[-1]) if done.words else f"status {done.status}"
            raise BackendError(f"{self.name}: {words[0]} failed there: {why}", detail=done.words)

    def _ended(self, status: int) -> tuple[str, str]:
        """How a process there ended, and what to make of it."""
        end = time.monotonic() + _LOSS_SECS
        while self._keeper.holds and time.monotonic() < end:
            time.sleep(0.05)
        if not self._keeper.holds:
            return f"was lost with {self.name}, which went away", self._keeper.why_gone()
        if status in (126, 127):
            return "cannot be started there", "the program does not fit the device, or its folder runs none"
        if status == 255 or 128 < status < 160:
            number = status - 128
            name = f"ended by {signal.Signals(number).name}" if number in set(signal.Signals) else "killed"
            hint = "its processor lacks an instruction" if number == signal.SIGILL else "it may have run out of memory"
            return f"was {name} on {self.name}", hint
        return f"exited with status {status} on {self.name}", ""
