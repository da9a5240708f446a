"""What can be reached from here, and what a device says of itself."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from mobilec.errors import BackendUnavailable, MobilecError
from mobilec.latency.devices.pool import ask_tracker, parse_address, servers_of
from mobilec.latency.devices.serving import LOOPBACK, TRACKER_PORT
from mobilec.latency.devices.table import HERE, KINDS, Wish, parse
from mobilec.latency.machine import read_facts, read_state
from mobilec.latency.samples import MachineFacts, MachineState

_LOOK_SECS = 30.0


@dataclass(frozen=True)
class Found:
    """A device.

    Attributes:
        device: what ``--device`` takes. what: in words. usable: whether it can be used now; ``why`` not, if not.
        runs: what kinds of artefacts. facts / state: None where it was not asked, or there is more than one machine.
    """

    device: str
    what: str
    usable: bool
    why: str
    runs: tuple[str, ...] = ()
    facts: MachineFacts | None = None
    state: MachineState | None = None


def find_devices() -> list[Found]:
    """Everything that can be found without being named: this machine, phones, a pool served here, Core ML."""
    found = [Found(HERE, f"this machine, {platform.machine()}", True, "", ("onnx", "tvm"))]
    found += _phones()
    found += _pools((LOOPBACK, TRACKER_PORT))
    if sys.platform == "darwin":
        found.append(Found("coreml", KINDS["coreml"].what, True, "", ("coreml",)))
    return found


def _phones() -> list[Found]:
    from mobilec.latency.devices.adb import HELP, list_devices

    try:
        known = list_devices()
    except BackendUnavailable:  # `mobilec doctor` tells what is not installed
        return []
    except MobilecError as error:
        return [Found("adb", "Android's debug bridge", False, str(error))]
    return [
        Found(
            f"adb:{serial}",
            model.replace("_", " ") or "an Android device",
            state == "device",
            "" if state == "device" else f"{state}: {HELP.get(state, 'see adb devices')}",
            ("tvm",),
        )
        for serial, state, model in known
    ]


def _pools(tracker: tuple[str, int]) -> list[Found]:
    try:
        keys = sorted({server.key for server in servers_of(tracker)})
        queues = ask_tracker(tracker).get("queue_info", {})
    except BackendUnavailable:  # nobody serves one here
        return []
    return [_pool(tracker, key, queues.get(key, {})) for key in keys]


def _pool(tracker: tuple[str, int], key: str, queue: dict[str, int]) -> Found:
    boards = len(servers_of(tracker, key))
    waiting = queue.get("pending", 0)
    what = f"a pool of {boards} {'board' if boards == 1 else 'boards'}, {queue.get('free', 0)} free, {waiting} waiting"
    device = f"rpc:{tracker[0]}:{tracker[1]}/{key}"
    return Found(device, what, boards > 0, "" if boards else "no board is registered", ("onnx", "tvm"))


def look(device: str) -> Found:
    """One device by name, with its facts.

    Raises UsageError for what is no device. One that cannot be used comes back as such, with the reason.
    """
    kind, address = parse(device)
    what = KINDS[kind].what
    try:
        if kind == HERE:
            return Found(device, what, True, "", ("onnx", "tvm"), read_facts(), read_state())
        if kind == "rpc":
            host, port, key = parse_address(address)
            queues = ask_tracker((host, port)).get("queue_info", {})
            return _pool((host, port), key, queues.get(key, {}))
        if kind == "coreml":
            from mobilec.latency.devices.coreml import check_mac

            check_mac()
            return Found(device, what, True, "", ("coreml",), read_facts(), read_state())
        opener = KINDS[kind].open
        assert opener is not None
        with opener(address, Wish(None, (), _LOOK_SECS)) as opened:
            runs = ("tvm", "onnx") if opened.runs_onnx else ("tvm",)
            return Found(device, what, True, "", runs, opened.facts(), opened.state())
    except BackendUnavailable as error:
        return Found(device, what, False, str(error))
