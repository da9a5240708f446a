"""Facts and state out of what a device's files say, whatever it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from latency.devices.test_keeper import Local

from mobilec.errors import BackendError, BackendUnavailable
from mobilec.latency.devices.survey import read_state, read_survey

PI = {
    "/proc/cpuinfo": """processor\t: 0
Features\t: fp asimd evtstrm crc32 atomics asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd evtstrm crc32 atomics asimddp
Model\t\t: Raspberry Pi 5 Model B Rev 1.0""",
    "/proc/self/status": "Name:\tsh\nCpus_allowed_list:\t0-1,3\n",
    "/proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    4000000 kB\n",
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "uname": "aarch64\nLinux\n6.6.31+rpt-rpi-2712\n",
    "python": "3.11.2 numpy=1.24.2 onnxruntime=1.20.0\n",
    "/proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
    "/proc/stat": "cpu  100 0 50 1000 5 0 1 7 0 0\ncpu0 1 2 3\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
    "/sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2400000\n",
    "/sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq": "2300000\n",
    "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "/sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "/sys/class/thermal/thermal_zone0/temp": "61250\n",
    "/sys/class/thermal/thermal_zone1/type": "battery\n",
    "/sys/class/thermal/thermal_zone1/temp": "99000\n",
    "/sys/class/power_supply/usb/type": "USB\n",
    "/sys/class/power_supply/usb/online": "0\n",
}


class Says(Local):
    """A device that answers every script with the same text."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__()
        self._text, self._status = text, status

    def command(self, words: Sequence[str], *, keeps: bool = False) -> list[str]:
        return ["sh", "-c", f'cat > /dev/null; printf %s "$1"; exit {self._status}', "sh", self._text]


def answer(found: dict[str, str]) -> str:
    return "".join(f"\nmobilec-survey {name}\n{text}" for name, text in found.items()) + "\nmobilec-survey end\n"


def test_facts_of_a_raspberry_pi() -> None:
    survey = read_survey(Says(answer(PI)))
    facts = survey.facts
    assert (facts.cpu, facts.architecture) == ("Raspberry Pi 5 Model B Rev 1.0", "aarch64")
    assert (facts.logical_cores, facts.usable_cores) == (2, (0, 1, 3))
    assert facts.governors == ("ondemand",)
    assert facts.memory_bytes == 8_192_000_000
    assert facts.os == "Debian GNU/Linux 12 (bookworm), Linux 6.6.31+rpt-rpi-2712"
    assert facts.python == "3.11.2"
    assert survey.packages == {"numpy": "1.24.2", "onnxruntime": "1.20.0"}
    assert {"asimd", "asimddp", "atomics"} <= survey.flags


def test_state_of_a_raspberry_pi() -> None:
    state = read_state(Says(answer(PI)))
    assert state.load_1min == 0.52
    assert state.available_memory_bytes == 4_096_000_000
    assert state.cpu_mhz == 1950
    assert state.temperature_c == 61.25
    assert (state.steal_s, state.cpu_s) == (0.07, 11.63)
    assert state.on_battery is True
    assert state.power_saving is None
    assert (state.throttle_count, state.max_mhz) == (7, 2350)


def test_a_device_that_tells_nothing() -> None:
    facts = read_survey(Says(answer({}))).facts
    assert (facts.cpu, facts.architecture, facts.usable_cores, facts.memory_bytes) == ("", "", (), None)
    state = read_state(Says(answer({})))
    assert (state.load_1min, state.cpu_mhz, state.temperature_c, state.on_battery) == (None, None, None, None)


@pytest.mark.parametrize("windows", [False, True])
def test_lines_may_end_in_either_way(windows: bool) -> None:
    text = answer(PI)
    assert read_survey(Says(text.replace("\n", "\r\n") if windows else text)).facts.architecture == "aarch64"


def test_what_a_device_says_stays_text_and_inside() -> None:
    """Names of files that lead elsewhere are not written, and control characters are not shown."""
    evil = {
        **PI,
        "/proc/../../../tmp/evil-mobilec": "x",
        "uname": "a\x1b[2J\n$(reboot)\n`id`\n",
    }
    facts = read_survey(Says(answer(evil))).facts
    assert not Path("/tmp/evil-mobilec").exists()
    assert facts.architecture == "a?[2J"
    assert "$(reboot)" in facts.os
    broken = {**PI, "/proc/stat": "cpu x y\n", "/proc/loadavg": "many", "/proc/meminfo": "MemAvailable: lots kB"}
    state = read_state(Says(answer(broken)))
    assert (state.load_1min, state.available_memory_bytes, state.steal_s) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "status", "kind", "told"),
    [
        ("", 0, BackendError, "does not tell its facts: no answer"),
        ("Last login: never\n", 0, BackendError, "does not tell its facts: Last login: never"),
        (answer(PI).replace("mobilec-survey end", ""), 0, BackendError, "does not tell its facts"),
        (answer(PI), 1, BackendError, "does not tell its facts"),
        ("", 255, BackendUnavailable, "here: ended with 255"),
    ],
)
def test_answers_that_are_not_ours(text: str, status: int, kind: type[BackendError], told: str) -> None:
    with pytest.raises(kind, match=told):
        read_survey(Says(text, status))
