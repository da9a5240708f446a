"""Android devices: the real adb client against a stand-in for the daemon, with AArch64 programs in an emulator."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from latency.devices.conftest import SECS, Phone, job_of, until

from mobilec.errors import BackendError, BackendUnavailable, UsageError
from mobilec.latency.devices import adb
from mobilec.latency.devices.adb import Adb, list_devices
from mobilec.latency.devices.shell_device import ShellDevice
from mobilec.latency.profile import MeasurementCut, measure
from mobilec.latency.samples import ProfileReport, Settings
from support.adbd import write_tools

Make = Callable[..., Any]


def timed(phone: Phone, settings: Settings, *artefacts: Any, secs: float = SECS, **options: Any) -> ProfileReport:
    with ShellDevice(phone.open(), runs_onnx=False, timeout_secs=secs) as device:
        jobs = [device.place(each, job_of(each), 1, ()) for each in artefacts]
        return measure(jobs, settings, per_op=False, timeout_secs=secs, place=device, **options)


@pytest.mark.parametrize("serial", ["", "-s", "a b", "a;b", "$(x)", "a'b", "../x"])
def test_what_is_no_serial(serial: str) -> None:
    with pytest.raises(UsageError, match="is no serial of a device"):
        Adb(serial)


def test_a_phone_tells_its_facts(phone: Phone) -> None:
    assert list_devices() == [(phone.device.removeprefix("adb:"), "device", "Stand_in")]
    with ShellDevice(phone.open(), runs_onnx=False, timeout_secs=SECS) as device:
        facts = device.facts()
        assert (facts.cpu, facts.architecture) == ("Google Pixel 7; $(id) (GS201)", "aarch64")
        assert facts.os == "Android 14, Linux 5.10.157-android13"
        assert (facts.python, facts.versions) == ("", {})
        assert device.state().load_1min is not None
    assert phone.left == []


def test_artefacts_take_turns_on_a_phone(phone: Phone, settings: Settings, artefacts: Make) -> None:
    evil = artefacts("a b; touch $(echo evil) `evil` 'x' \"y\"", "aarch64")
    report = timed(phone, settings, evil, artefacts("plain"))
    assert [item.latency.runs >= settings.num_runs for item in report.artifacts] == [True, True]
    assert report.comparisons[0].verdict == "no difference seen"
    assert phone.left == []
    asked = " ".join(phone.daemon.device.commands)
    assert "evil" not in asked
    assert "plain" not in asked
    assert phone.daemon.device.pushed == [f"/data/local/tmp/mobilec-session/{place}/model" for place in (0, 1)]


def test_unplugged_in_the_middle(phone: Phone, settings: Settings, artefacts: Make) -> None:
    def unplug(stage: str, done: int, total: int | None) -> None:
        if stage == "measure" and done >= 3:
            phone.daemon.unplug()

    with pytest.raises(MeasurementCut, match=r"was lost with adb:.*, which went away") as caught:
        timed(phone, settings, artefacts(), progress=unplug)
    assert 3 <= caught.value.report.artifacts[0].latency.runs < settings.num_runs
    until(lambda: phone.left == [])


def test_no_space_on_the_phone(phone: Phone, settings: Settings, artefacts: Make) -> None:
    phone.daemon.device.space_bytes = 100
    with pytest.raises(BackendError, match=r"has no space left for 0\.0 MB"):
        timed(phone, settings, artefacts())
    assert phone.left == []


def test_a_copy_that_is_refused(phone: Phone, settings: Settings, artefacts: Make) -> None:
    phone.daemon.device.push_fails = "couldn't create file: Permission denied \x1b[2J"
    with pytest.raises(BackendError, match=r"could not be copied: .*Permission denied") as caught:
        timed(phone, settings, artefacts())
    assert "\x1b" not in str(caught.value)
    assert phone.left == []


def test_a_killed_process(phone: Phone, settings: Settings, artefacts: Make) -> None:
    """As Android does when memory runs short."""
    with pytest.raises(MeasurementCut, match="sick: the measuring process was ended by SIGKILL on adb:") as caught:
        timed(phone, settings, artefacts("sick", fault="SIGKILL", at=5))
    assert "out of memory" in caught.value.hint
    assert phone.left == []


def test_a_shell_that_hangs(phone: Phone) -> None:
    phone.daemon.device.hangs = True
    with pytest.raises(BackendUnavailable, match="gave no answer for 2 s"):
        ShellDevice(phone.open(), runs_onnx=False, timeout_secs=2.0)


def test_two_sessions_at_once(phone: Phone) -> None:
    with (
        ShellDevice(phone.open(), runs_onnx=False, timeout_secs=SECS),
        pytest.raises(BackendUnavailable, match="is in use by "),
    ):
        ShellDevice(phone.open(), runs_onnx=False, timeout_secs=SECS)
    assert phone.left == []


def test_a_phone_that_is_not_there(phone: Phone) -> None:
    with pytest.raises(BackendUnavailable, match=r"adb:NOBODY is not connected; there is 127\.0\.0\.1:"):
        Adb("NOBODY")


def test_a_phone_of_before_android_7(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    phone.adb.run("disconnect")
    phone.daemon.device.features = "cmd"
    phone.adb.connect(phone.daemon)
    with pytest.raises(BackendUnavailable, match="Android 7 or newer is needed"):
        phone.open()


@pytest.mark.parametrize(
    ("state", "told", "hint"),
    [
        ("unauthorized", "is unauthorized", "allow USB debugging"),
        ("offline", "is offline", "plug it in again"),
        ("no permissions (user in plugdev group; are your udev rules wrong?)", "is no permissions", "udev"),
        ("sideload", "is sideload", "boot Android"),
    ],
)
def test_phones_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, told: str, hint: str
) -> None:
    """Recorded answers of adb."""
    answer = f"printf 'List of devices attached\\nX1       {state} usb:1-1 transport_id:3\\n\\n'"
    write_tools(tmp_path / "tools", adb=answer)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:/usr/bin:/bin")
    with pytest.raises(BackendUnavailable, match=told) as caught:
        Adb("X1")
    assert hint in caught.value.hint


def test_no_adb_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="adb is not installed"):
        list_devices()


def test_a_server_of_adb_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_tools(tmp_path / "tools", adb="sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:/usr/bin:/bin")
    monkeypatch.setattr(adb, "_ADB_SECS", 1.0)
    before = time.monotonic()
    with pytest.raises(BackendError, match="adb gave no answer for 1 s"):
        list_devices()
    assert time.monotonic() - before < SECS
