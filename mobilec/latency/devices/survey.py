"""Facts and state of a device that has a shell and the kernel's files, read by one small program there."""

from __future__ import annotations

import datetime
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobilec.errors import BackendError
from mobilec.latency import machine
from mobilec.latency.devices.transport import Transport, run, told
from mobilec.latency.samples import MachineFacts, MachineState

_MARK = "mobilec-survey"
_CPU = "/sys/devices/system/cpu/cpu[0-9]*"
_ONCE = (
    "/proc/cpuinfo",
    "/proc/self/status",
    "/proc/meminfo",
    "/etc/os-release",
    "/sys/class/dmi/id/product_name",
    f"{_CPU}/cpufreq/scaling_governor",
    f"{_CPU}/cpufreq/scaling_driver",
)
_EACH_TIME = (
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    f"{_CPU}/cpufreq/scaling_cur_freq",
    f"{_CPU}/cpufreq/scaling_max_freq",
    f"{_CPU}/thermal_throttle/core_throttle_count",
    "/sys/class/thermal/thermal_zone[0-9]*/type",
    "/sys/class/thermal/thermal_zone[0-9]*/temp",
    "/sys/class/power_supply/*/type",
    "/sys/class/power_supply/*/online",
    "/sys/firmware/acpi/platform_profile",
)
_PROPERTIES = ("ro.product.manufacturer", "ro.product.model", "ro.soc.model", "ro.build.version.release")
_PYTHON = (
    "import importlib.util, importlib.metadata, platform; "
    "found = [each for each in ('numpy', 'onnxruntime') if importlib.util.find_spec(each)]; "
    "print(platform.python_version(), *(each + '=' + importlib.metadata.version(each) for each in found))"
)
_PATH = re.compile(r"/(?:proc|sys|etc)(?:/[A-Za-z0-9_:@.-]*[A-Za-z0-9_:@-])+")  # no part of it is .. or .
_LARGEST = 1 << 16  # bytes of one file
_SURVEY_SECS = 30.0


def _script(files: tuple[str, ...], *, once: bool) -> str:
    lines = [
        f"say() {{ printf '\\n{_MARK} %s\\n' \"$1\"; }}",
        f"for file in {' '.join(files)}; do",
        f'  if [ -r "$file" ]; then say "$file"; head -c {_LARGEST} "$file" 2>/dev/null; fi',
        "done",
    ]
    if once:
        lines += ["say uname; uname -m; uname -s; uname -r"]
        lines += [f"say {name}; getprop {name} 2>/dev/null" for name in _PROPERTIES]
        lines += [f'say python; python3 -c "{_PYTHON}" 2>/dev/null']
    return "\n".join([*lines, "say end", "exit 0", ""])


@dataclass(frozen=True)
class Survey:
    """What does not change.

    Attributes:
        facts: as of this machine. flags: instruction sets as the kernel names them.
        packages: of Python there (numpy, onnxruntime), name to version; empty without Python.
    """

    facts: MachineFacts
    flags: frozenset[str]
    packages: dict[str, str]


def read_survey(transport: Transport) -> Survey:
    """Raises BackendError when the device does not answer as asked."""
    found = _ask(transport, _script(_ONCE, once=True))
    architecture, system, release = (*found.get("uname", "").split(), "", "", "")[:3]
    python, *packages = found.get("python", "").split() or [""]
    versions = dict(each.split("=", 1) for each in packages if "=" in each)
    status = found.get("/proc/self/status", "")
    usable = _cores(_field(status, "Cpus_allowed_list"))
    memory = _field(found.get("/proc/meminfo", ""), "MemTotal").split()
    maker, model, chip, android = (found.get(name, "").strip() for name in _PROPERTIES)
    with _as_files(found) as root:
        cpu = machine.cpu_model(root)
        governors, virtualised = machine.governors(root), machine.virtualised(root)
        name = f"Android {android}" if android else machine.os_name(root)
    processors = len(re.findall(r"^processor\s*:", found.get("/proc/cpuinfo", ""), re.MULTILINE))
    facts = MachineFacts(
        cpu=told(" ".join(filter(None, (maker, model, f"({chip})" if chip else ""))) or cpu),
        architecture=told(architecture),
        physical_cores=None,
        logical_cores=processors or None,
        usable_cores=usable,
        cpu_quota=None,
        governors=tuple(map(told, governors)),
        memory_bytes=int(memory[0]) * 1024 if memory and memory[0].isdigit() else None,
        os=f"{told(name)}, {told(system)} {told(release)}",
        virtualised=tuple(map(told, virtualised)),
        python=told(python),
        versions={told(each): told(version) for each, version in versions.items()},
    )
    listed = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", found.get("/proc/cpuinfo", ""), re.MULTILINE)
    return Survey(facts, frozenset(listed[0].split() if listed else ()), versions)


def read_state(transport: Transport) -> MachineState:
    """How the device is now. Raises as ``read_survey``."""
    found = _ask(transport, _script(_EACH_TIME, once=False))
    load = found.get("/proc/loadavg", "").split()
    free = _field(found.get("/proc/meminfo", ""), "MemAvailable").split()
    clocks = [int(text) / 1000 for name, text in found.items() if name.endswith("cur_freq") and text.strip().isdigit()]
    times = found.get("/proc/stat", "").partition("\n")[0].split()[1:]  # after the word "cpu"
    ticks = [int(each) for each in times if each.isdigit()]
    mains = {name.removesuffix("online"): text.strip() for name, text in found.items() if name.endswith("/online")}
    kinds = {name: found.get(f"{name}type", "").strip() for name in mains}
    plugs = [online == "1" for name, online in mains.items() if kinds[name] in ("Mains", "USB", "Wireless")]
    profile = found.get("/sys/firmware/acpi/platform_profile", "").strip()
    with _as_files(found) as root:
        throttled, highest = machine.throttle_count(root), machine.max_mhz(root)
    return MachineState(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load_1min=_number(load[0]) if load else None,
        available_memory_bytes=int(free[0]) * 1024 if free and free[0].isdigit() else None,
        cpu_mhz=sum(clocks) / len(clocks) if clocks else None,
        temperature_c=_hottest(found),
        steal_s=ticks[7] / 100 if len(ticks) > 7 else None,
        cpu_s=sum(ticks[:8]) / 100 if ticks else None,
        on_battery=not any(plugs) if plugs else None,
        power_saving=profile == "low-power" if profile else None,
        throttle_count=throttled,
        max_mhz=highest,
    )


def _ask(transport: Transport, script: str) -> dict[str, str]:
    """The script's answer: names (of files, or made up) to texts."""
    done = run(transport, ["sh", "-s"], feed=script.encode(), timeout_secs=_SURVEY_SECS)
    text = done.output.decode(errors="replace").replace("\r\n", "\n")
    parts = re.split(rf"^{_MARK} (.*)\n", text, flags=re.MULTILINE)
    names, texts = parts[1::2], parts[2::2]
    if done.status or names[-1:] != ["end"]:
        if done.status == 255:
            raise transport.failure(done.status, done.words)
        raise BackendError(
            f"{transport.name} does not tell its facts: {told(done.words or done.output[-80:]) or 'no answer'}"
        )
    return dict(zip(names, texts, strict=False))


class _as_files:  # noqa: N801  # used like a function
    """The files that a device sent, below a temporary folder that stands for its ``/``."""

    def __init__(self, found: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mobilec-facts-")
        for name, text in found.items():
            if _PATH.fullmatch(name) and ".." not in name:
                path = Path(self._folder.name, name[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def __enter__(self) -> Path:
        return Path(self._folder.name)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cores(listed: str) -> tuple[int, ...]:
    """``0-3,6`` as (0, 1, 2, 3, 6)."""
    found: list[int] = []
    for part in re.findall(r"(\d{1,4})(?:-(\d{1,4}))?", listed):
        found += range(int(part[0]), int(part[1] or part[0]) + 1)
    return tuple(found)


def _hottest(found: Mapping[str, str]) -> float | None:
    """Of the zones that belong to processors; kernels name them in many ways, in thousandths of a degree."""
    readings = []
    for name, kind in found.items():
        if name.endswith("/type") and re.search(r"cpu|soc|tsens|x86_pkg|big|little", kind, re.IGNORECASE):
            reading = _number(found.get(f"{name.removesuffix('type')}temp", ""))
            if reading is not None:
                readings.append(reading / 1000 if abs(reading) > 1000 else reading)
    return max((each for each in readings if 0 < each < 150), default=None)
