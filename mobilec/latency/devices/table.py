"""From ``--device`` to a place with the jobs on it: one explicit table of kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mobilec.errors import BackendUnavailable, UsageError, did_you_mean
from mobilec.latency.place import Here, Place
from mobilec.latency.runner import Job

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.latency.channel import Channel
    from mobilec.latency.devices.shell_device import ShellDevice
    from mobilec.latency.samples import Checked

HERE = "local"


@dataclass(frozen=True)
class Wish:
    """How processes are to run there. ``threads``: None for all cores. ``pin``: cores to keep to, empty for any."""

    threads: int | None
    pin: tuple[int, ...]
    timeout_secs: float


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
        form: how it is written. what: in words.
        open: the device at an address; None where artefacts are not placed on one device (this machine, pools).
    """

    form: str
    what: str
    open: Callable[[str, Wish], ShellDevice] | None = None


def _ssh(address: str, wish: Wish) -> ShellDevice:
    from mobilec.latency.devices.shell_device import ShellDevice
    from mobilec.latency.devices.ssh import Ssh

    return ShellDevice(Ssh(address), runs_onnx=True, timeout_secs=wish.timeout_secs)


def _adb(address: str, wish: Wish) -> ShellDevice:
    from mobilec.latency.devices.adb import Adb
    from mobilec.latency.devices.shell_device import ShellDevice

    return ShellDevice(Adb(address), runs_onnx=False, timeout_secs=wish.timeout_secs)


KINDS: dict[str, Kind] = {
    HERE: Kind(HERE, "this machine"),
    "ssh": Kind("ssh:USER@HOST[:PORT]", "a board over ssh", _ssh),
    "adb": Kind("adb:SERIAL", "an Android device over adb", _adb),
    "rpc": Kind("rpc:HOST:PORT/KEY", "a pool of boards over TVM's RPC tracker"),
    "coreml": Kind("coreml[:all|cpu|cpu_gpu|cpu_ne]", "Core ML on this Mac"),
}


def parse(device: str) -> tuple[str, str]:
    """The kind and the address behind it. Raises UsageError for a kind there is none of, or a missing address."""
    kind, _, address = device.partition(":")
    if kind not in KINDS:
        forms = ", ".join(each.form for each in KINDS.values())
        raise UsageError(f"{device!r} is no device", hint=did_you_mean(kind, KINDS, f"there is {forms}"))
    if bool(address) != (kind != HERE) and kind != "coreml":
        raise UsageError(f"{device!r} is no device", hint=f"write {KINDS[kind].form}")
    if kind == "coreml":
        from mobilec.latency.devices.coreml import units_of

        units_of(address)
    return kind, address


@contextmanager
def placed(
    device: str, artifacts: Sequence[Artifact], jobs: Sequence[Job], wish: Wish
) -> Iterator[tuple[Place, list[Job]]]:
    """The jobs, made to run on the device; it is held for so long, and left as it was found.

    Raises UsageError, BackendUnavailable (not there, in use, cannot run an artefact: nothing was copied then),
    BackendError.
    """
    kind, address = parse(device)
    if kind == HERE:
        if wish.pin:
            raise UsageError("cores are chosen on devices only", hint="here: taskset -c CORES mobilec profile ...")
        yield Here(), list(jobs)
        return
    if kind == "coreml":
        from mobilec.latency.devices.coreml import Mac, on_mac

        yield Mac(device), on_mac(address, artifacts, jobs)
        return
    opener = KINDS[kind].open
    assert opener is not None  # pools are measured by pool.sweep
    with opener(address, wish) as opened:
        _check_pins(opened, wish.pin)
        for artifact, job in zip(artifacts, jobs, strict=True):
            why = opened.refusal(artifact)
            if why:
                raise BackendUnavailable(f"{job.label} cannot run on {opened.name}: {why}")
        yield (
            opened,
            [
                dataclasses.replace(
                    opened.place(artifact, job, wish.threads, wish.pin), check=partial(_check, artifact, opened.name)
                )
                for artifact, job in zip(artifacts, jobs, strict=True)
            ],
        )


def _check(artifact: Artifact, place: str, channel: Channel, engine: str) -> Checked:
    from mobilec.latency.checking import check_outputs

    return check_outputs(channel, artifact, engine, place)


def _check_pins(device: ShellDevice, pin: Sequence[int]) -> None:
    usable = device.facts().usable_cores
    strange = [core for core in pin if usable and core not in usable]
    if strange:
        raise UsageError(f"{device.name} has no core {strange[0]} to pin to; there are {', '.join(map(str, usable))}")
