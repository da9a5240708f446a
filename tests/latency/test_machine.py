"""Facts of machines other than this one, from the kernel files they would have."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from mobilec.latency.machine import (
    max_mhz,
    read_facts,
    read_state,
    throttle_count,
    warnings_after,
    warnings_before,
)
from mobilec.latency.samples import MachineFacts, MachineState

FACTS = MachineFacts(
    cpu="Chip",
    architecture="arm64",
    physical_cores=4,
    logical_cores=4,
    usable_cores=(0, 1),
    cpu_quota=None,
    governors=(),
    memory_bytes=2**33,
    os="Some OS",
    virtualised=(),
    python="3.11.0",
    versions={},
)
STATE = MachineState(
    time="2025-01-01T00:00:00+00:00",
    load_1min=0.5,
    available_memory_bytes=2**32,
    cpu_mhz=2000.0,
    temperature_c=50.0,
    steal_s=1.0,
    cpu_s=1000.0,
    on_battery=False,
    power_saving=False,
)

linux = pytest.mark.skipif(sys.platform == "darwin", reason="kernel files of Linux")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_this_machine_has_facts_and_a_state() -> None:
    facts, state = read_facts(), read_state()
    assert facts.architecture
    assert facts.logical_cores
    assert facts.versions["numpy"]
    assert facts.memory_bytes is not None
    assert facts.memory_bytes > 2**28
    assert state.available_memory_bytes is not None
    assert state.available_memory_bytes > 0
    assert json.loads(json.dumps([dataclasses.asdict(facts), dataclasses.asdict(state)], allow_nan=False))


@linux
def test_an_empty_machine_has_no_invented_facts(tmp_path: Path) -> None:
    facts = read_facts(tmp_path)
    assert (facts.cpu_quota, facts.governors, facts.virtualised) == (None, (), ())
    assert read_state(tmp_path).power_saving is None


@linux
@pytest.mark.parametrize(
    ("info", "cpu"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC 9\nflags : fpu", "AMD EPYC 9"),
        ("processor : 0\nBogoMIPS : 50\n\nHardware\t: BCM2835", "BCM2835"),
        ("processor : 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b", "implementer 0x41, part 0xd0b"),
    ],
)
def test_the_cpu_is_named(tmp_path: Path, info: str, cpu: str) -> None:
    assert read_facts(write(tmp_path, {"proc/cpuinfo": info})).cpu == cpu


@linux
def test_limits_of_control_groups_version_2_are_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/batch/job",
            "sys/fs/cgroup/batch/job/cpu.max": "max 100000",
            "sys/fs/cgroup/batch/cpu.max": "150000 100000",
            "sys/fs/cgroup/batch/job/memory.max": "1073741824",
            "sys/fs/cgroup/batch/memory.max": "max",
        },
    )
    facts = read_facts(root)
    assert (facts.cpu_quota, facts.memory_bytes) == (1.5, 2**30)


@linux
def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    facts = read_facts(root)
    assert facts.cpu_quota == 0.5
    assert facts.memory_bytes is not None
    assert facts.memory_bytes < 2**60


@linux
def test_no_quota_of_version_1_is_no_limit(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "3:cpu:/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert read_facts(write(tmp_path, files)).cpu_quota is None


@linux
def test_governors_and_virtual_machines(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    root = write(
        tmp_path,
        {
            f"{cpus}/cpu0/cpufreq/scaling_governor": "schedutil",
            f"{cpus}/cpu1/cpufreq/scaling_governor": "powersave",
            f"{cpus}/cpu2/cpufreq/scaling_governor": "powersave",
            f"{cpus}/cpu2/cpufreq/scaling_driver": "intel_pstate",
            "proc/cpuinfo": "flags\t: fpu hypervisor lm",
            "sys/class/dmi/id/product_name": "Virtual Box",
            "run/.containerenv": "",
            "etc/os-release": 'NAME="X"\nPRETTY_NAME="Raspbian 12"',
            "sys/firmware/acpi/platform_profile": "low-power",
        },
    )
    facts = read_facts(root)
    assert facts.governors == ("intel_pstate/powersave", "powersave", "schedutil")
    assert facts.virtualised == ("virtual machine (Virtual Box)", "container")
    assert facts.os.startswith("Raspbian 12, ")
    assert read_state(root).power_saving is True


def test_a_quiet_machine_gives_no_warning() -> None:
    assert warnings_before(FACTS, STATE, [2, None]) == ()
    assert warnings_before(dataclasses.replace(FACTS, governors=("intel_pstate/powersave",)), STATE, [2]) == ()
    assert warnings_after(STATE, dataclasses.replace(STATE, cpu_s=1100.0)) == ()
    unknown = dataclasses.replace(STATE, load_1min=None, temperature_c=None, steal_s=None, on_battery=None)
    assert warnings_before(FACTS, unknown, [None]) == ()
    assert warnings_after(unknown, unknown) == ()


@pytest.mark.parametrize(
    ("facts", "state", "threads", "message"),
    [
        ({}, {"load_1min": 3.14}, 1, "load average 3.1 on 2 cores"),
        ({"usable_cores": (5,)}, {"load_1min": 0.6}, 1, "load average 0.6 on 1 core:"),
        ({}, {}, 4, "4 threads on 2 cores"),
        ({"cpu_quota": 1.5}, {}, 2, "allows 1.5 cores' worth"),
        ({"governors": ("powersave", "schedutil")}, {}, 1, "frequency governor powersave:"),
        ({}, {"on_battery": True}, 1, "on battery"),
        ({}, {"power_saving": True}, 1, "low-power mode"),
    ],
)
def test_what_spoils_figures_is_told_beforehand(facts: dict, state: dict, threads: int, message: str) -> None:
    (found,) = warnings_before(dataclasses.replace(FACTS, **facts), dataclasses.replace(STATE, **state), [threads])
    assert message in found


def test_what_went_wrong_meanwhile_is_told() -> None:
    stolen = dataclasses.replace(STATE, steal_s=6.0, cpu_s=1100.0)
    assert warnings_after(STATE, stolen) == ("the hypervisor gave 5 % of the CPU time to other guests meanwhile",)
    (hot,) = warnings_after(STATE, dataclasses.replace(STATE, temperature_c=95.0))
    assert "95 °C" in hot


def test_heat_that_slows_cores_down(tmp_path: Path) -> None:
    cpu = tmp_path / "sys/devices/system/cpu"
    for core, (count, clock) in enumerate(((3, 2_400_000), (4, 2_000_000))):
        for name, text in (("thermal_throttle/core_throttle_count", count), ("cpufreq/scaling_max_freq", clock)):
            path = cpu / f"cpu{core}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    assert (throttle_count(tmp_path), max_mhz(tmp_path)) == (7, 2200)
    assert (throttle_count(tmp_path / "none"), max_mhz(tmp_path / "none")) == (None, None)
    before = dataclasses.replace(STATE, throttle_count=7, max_mhz=2200.0)
    assert warnings_after(before, before) == ()
    (counted,) = warnings_after(before, dataclasses.replace(before, throttle_count=9))
    assert counted == "the CPU throttled meanwhile (2 times)"
    (lowered,) = warnings_after(before, dataclasses.replace(before, max_mhz=1800.0))
    assert "fell from 2200 to 1800 MHz" in lowered
