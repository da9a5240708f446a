"""Facts of the machine that figures depend on, its state of the moment, and what in them spoils a measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mobilec.latency.samples import MachineFacts, MachineState

# Packages whose version can change a figure.
PACKAGES = ("mobilec", "onnxruntime", "coremltools", "torch", "numpy", "apache-tvm")

_ROOT = Path("/")
_MAC = sys.platform == "darwin"
# Drivers whose "powersave" still clocks up at once under load.
_SELF_CLOCKING = {"intel_pstate", "amd-pstate-epp"}
_NO_MEMORY_LIMIT = 1 << 60  # control groups of version 1 write a number beyond any memory for "no limit"


def read_facts(root: Path = _ROOT) -> MachineFacts:
    """What does not change while measuring. ``root`` stands for ``/`` (the kernel's files below it are read)."""
    import psutil

    limit = _memory_limit(root)
    installed = int(psutil.virtual_memory().total)
    return MachineFacts(
        cpu=_run("sysctl", "-n", "machdep.cpu.brand_string") if _MAC else cpu_model(root),
        architecture=platform.machine(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        usable_cores=_usable_cores(),
        cpu_quota=_cpu_quota(root),
        governors=governors(root),
        memory_bytes=min(installed, limit) if limit else installed,
        os=f"{_mac_name() if _MAC else os_name(root)}, {platform.system()} {platform.release()}",
        virtualised=_mac_virtualised() if _MAC else virtualised(root),
        python=platform.python_version(),
        versions=_versions(),
    )


def read_state(root: Path = _ROOT) -> MachineState:
    """What does change."""
    import psutil

    times = psutil.cpu_times()
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return MachineState(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        available_memory_bytes=int(psutil.virtual_memory().available),
        cpu_mhz=float(frequency.current) if frequency else None,
        temperature_c=_hottest(),
        steal_s=float(times.steal) if hasattr(times, "steal") else None,
        cpu_s=float(sum(times)),
        on_battery=None if battery is None else not battery.power_plugged,
        power_saving=_power_saving(root),
        throttle_count=throttle_count(root),
        max_mhz=max_mhz(root),
    )


def warnings_before(facts: MachineFacts, state: MachineState, threads: Sequence[int | None]) -> tuple[str, ...]:
    """What spoils figures and can be seen beforehand. ``threads``: of every session, None where unknown."""
    found = []
    cores = len(facts.usable_cores) or facts.logical_cores or 1
    if state.load_1min is not None and state.load_1min > cores / 2:
        found.append(
            f"load average {state.load_1min:.1f} on {_cores(cores)}: other work is running, figures will be noisy"
        )
    most = max((count for count in threads if count is not None), default=0)
    if most > cores:
        found.append(f"{most} threads on {_cores(cores)}: they will wait for each other")
    if facts.cpu_quota is not None and facts.cpu_quota < max(most, 1):
        found.append(f"a control group allows {facts.cpu_quota:g} cores' worth of CPU time: runs will be throttled")
    slow = sorted(set(facts.governors) & {"powersave", "conservative"})
    if slow:
        found.append(
            f"frequency governor {', '.join(slow)}: the clock may stay low; `performance` gives steady figures"
        )
    if state.on_battery:
        found.append("running on battery: the clock may be held low")
    if state.power_saving:
        found.append("a low-power mode is on: the clock is held low")
    return tuple(found)


def warnings_after(before: MachineState, after: MachineState) -> tuple[str, ...]:
    """What went wrong with the machine while measuring."""
    found = []
    stolen, passed = _difference(before.steal_s, after.steal_s), _difference(before.cpu_s, after.cpu_s)
    if passed > 0 and stolen / passed > 0.01:
        found.append(f"the hypervisor gave {100 * stolen / passed:.0f} % of the CPU time to other guests meanwhile")
    if after.temperature_c is not None and after.temperature_c >= 90:
        found.append(f"the CPU reached {after.temperature_c:.0f} °C: it may have throttled")
    throttled = _difference(before.throttle_count, after.throttle_count)
    if throttled > 0:
        found.append(f"the CPU throttled meanwhile ({throttled:.0f} times)")
    if before.max_mhz and after.max_mhz and after.max_mhz < 0.98 * before.max_mhz:
        found.append(f"the highest clock fell from {before.max_mhz:.0f} to {after.max_mhz:.0f} MHz meanwhile: heat")
    return tuple(found)


def _difference(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else after - before


def _cores(count: int) -> str:
    return f"{count} core" if count == 1 else f"{count} cores"


def _read(path: Path) -> str:
    """The file's text without surrounding blanks; empty where there is none or it may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _run(*command: str) -> str:
    """Standard output of a small system tool; empty where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cpu_model(root: Path) -> str:
    """As a Linux kernel names it; ``root`` holds its files."""
    info = _read(root / "proc/cpuinfo")
    # x86 names the model; many ARM kernels name only the hardware, or implementer and part numbers.
    for key in ("model name", "Hardware", "Model"):
        if match := re.search(rf"^{key}\s*:\s*(.+)$", info, re.MULTILINE):
            return match[1].strip()
    parts = [re.search(rf"^CPU {key}\s*:\s*(\S+)$", info, re.MULTILINE) for key in ("implementer", "part")]
    if parts[0] and parts[1]:
        return f"implementer {parts[0][1]}, part {parts[1][1]}"
    return platform.processor()


def _usable_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def _control_group_files(root: Path, name: str, old_controller: str, old_name: str) -> list[Path]:
    """Where a limit may stand: version 2 (this process's group and those above it), then version 1."""
    mount = root / "sys/fs/cgroup"
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, path = line.split(":", 2)
        if line.startswith("0::"):
            group = Path(path.strip("/"))
            found += [mount / above / name for above in (group, *group.parents)]
        elif old_controller in line.split(":")[1].split(","):
            found += [mount / old_controller / path.strip("/") / old_name, mount / old_controller / old_name]
    return found


def _cpu_quota(root: Path) -> float | None:
    """The tightest limit of CPU time, in cores."""
    limits = []
    for path in _control_group_files(root, "cpu.max", "cpu", "cpu.cfs_quota_us"):
        words = _read(path).split()
        if path.name == "cpu.cfs_quota_us":
            words += [_read(path.with_name("cpu.cfs_period_us"))]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def _memory_limit(root: Path) -> int | None:
    limits = [
        int(text)
        for path in _control_group_files(root, "memory.max", "memory", "memory.limit_in_bytes")
        if (text := _read(path)).isdigit() and int(text) < _NO_MEMORY_LIMIT
    ]
    return min(limits, default=None)


def governors(root: Path) -> tuple[str, ...]:
    """Frequency governors in use; drivers that clock themselves are named instead of their "powersave"."""
    found = set()
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        governor, driver = _read(folder / "scaling_governor"), _read(folder / "scaling_driver")
        if governor:
            found.add(f"{driver}/{governor}" if driver in _SELF_CLOCKING else governor)
    return tuple(sorted(found))


def _mac_name() -> str:
    return f"macOS {platform.mac_ver()[0]}"


def _mac_virtualised() -> tuple[str, ...]:
    return ("virtual machine",) if _run("sysctl", "-n", "kern.hv_vmm_present") == "1" else ()


def throttle_count(root: Path) -> int | None:
    """How often cores were slowed down for their heat since boot; None where the kernel does not count."""
    counts = [
        _read(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    ]
    known = [int(text) for text in counts if text.isdigit()]
    return sum(known) if known else None


def max_mhz(root: Path) -> float | None:
    """The highest clock that cores may have now, their mean."""
    places = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq")
    known = [int(text) / 1000 for text in map(_read, places) if text.isdigit()]
    return sum(known) / len(known) if known else None


def os_name(root: Path) -> str:
    """Of a Linux distribution; ``root`` holds its files."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', _read(root / "etc/os-release"), re.MULTILINE)
    return match[1] if match else platform.system()


def virtualised(root: Path) -> tuple[str, ...]:
    """Signs of a hypervisor or container; each may be missed, none is invented. ``root``: Linux's files."""
    found = []
    if re.search(r"^flags\s*:.*\bhypervisor\b", _read(root / "proc/cpuinfo"), re.MULTILINE):
        product = _read(root / "sys/class/dmi/id/product_name")
        found.append(f"virtual machine ({product})" if product else "virtual machine")
    marked = any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
    if marked or re.search(r"docker|kubepods|containerd|lxc", _read(root / "proc/1/cgroup")):
        found.append("container")
    if "microsoft" in _read(root / "proc/version").lower():
        found.append("WSL")
    return tuple(found)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return found


def _hottest() -> float | None:
    import psutil

    if not hasattr(psutil, "sensors_temperatures"):
        return None
    chips = psutil.sensors_temperatures()
    readings = [
        float(sensor.current)
        for name in ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")
        for sensor in chips.get(name, [])
        if sensor.current is not None
    ]
    return max(readings, default=None)


def _power_saving(root: Path) -> bool | None:
    if sys.platform == "darwin":
        match = re.search(r"^\s*lowpowermode\s+(\d)", _run("pmset", "-g"), re.MULTILINE)
        return match[1] == "1" if match else None
    profile = _read(root / "sys/firmware/acpi/platform_profile")
    return profile == "low-power" if profile else None
