"""The facts behind ``mobilec doctor``: versions from package metadata against the tested set. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

OLDEST_PYTHON = (3, 11)
REQUIRED = "required"


@dataclass(frozen=True)
class Package:
    """A package the project knows of. ``extra`` is ``required`` or the extra that brings it."""

    name: str
    module: str
    extra: str
    use: str


PACKAGES = (
    Package("torch", "torch", REQUIRED, "builds, captures models"),
    Package("numpy", "numpy", REQUIRED, "arrays"),
    Package("onnx", "onnx", REQUIRED, "writes and checks ONNX"),
    Package("onnxscript", "onnxscript", REQUIRED, "torch's ONNX writer"),
    Package("onnxsim", "onnxsim", REQUIRED, "simplifies ONNX"),
    Package("onnxruntime", "onnxruntime", REQUIRED, "runs ONNX"),
    Package("coremltools", "coremltools", REQUIRED, "writes Core ML"),
    Package("safetensors", "safetensors", REQUIRED, "reads checkpoints"),
    Package("pillow", "PIL", REQUIRED, "reads images"),
    Package("scipy", "scipy", REQUIRED, "numerics"),
    Package("psutil", "psutil", REQUIRED, "machine facts"),
    Package("click", "click", REQUIRED, "command line"),
    Package("rich", "rich", REQUIRED, "tables"),
    Package("onnx-ir", "onnx_ir", REQUIRED, "comes with onnxscript"),
    Package("protobuf", "google.protobuf", REQUIRED, "comes with onnx"),
    Package("timm", "timm", "timm", "timm:NAME models"),
    Package("torchvision", "torchvision", "timm", "comes with timm"),
    Package("coreai-torch", "coreai_torch", "coreai", "writes Core AI"),
    Package("coreai-core", "coreai", "coreai", "runs Core AI"),
    Package("apache-tvm", "tvm", "tvm", "native kernels"),
    Package("apache-tvm-ffi", "tvm_ffi", "tvm", "comes with TVM"),
    Package("ziglang", "ziglang", "cross", "links for other CPUs"),
    Package("tornado", "tornado", "rpc", "pools of boards"),
    Package("cloudpickle", "cloudpickle", "rpc", "pools of boards"),
    Package("scikit-learn", "sklearn", "examples", "digits example"),
)


@dataclass(frozen=True)
class Finding:
    """One package here. ``state`` is ok, differs, too old, missing, broken or absent (an extra)."""

    package: str
    extra: str
    use: str
    installed: str | None
    tested: str | None
    state: str
    meaning: str


@dataclass(frozen=True)
class Trap:
    """Versions known to fail together."""

    packages: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Ability:
    """Something mobilec does. ``here`` says whether this machine can, ``how`` what it takes or why not."""

    name: str
    here: bool
    how: str


@dataclass(frozen=True)
class Checkup:
    python: str
    python_ok: bool
    platform: str
    cores: int
    memory_bytes: int | None
    packages: tuple[Finding, ...]
    traps: tuple[Trap, ...]
    abilities: tuple[Ability, ...]
    remedies: tuple[str, ...]
    healthy: bool


def tested_versions() -> dict[str, str]:
    """The pins of ``mobilec/constraints.txt``."""
    pins: dict[str, str] = {}
    for line in files("mobilec").joinpath("constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version = line.split("#")[0].strip().partition("==")
        if equals:
            pins[canonical(name)] = version
    return pins


def minimum_versions() -> dict[str, str]:
    """Lower bounds that mobilec's own metadata declares; empty where mobilec runs without being installed."""
    try:
        requirements = importlib.metadata.requires("mobilec") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*>=\s*([\w.]+)", line) for line in requirements)
    return {canonical(match[1]): match[2] for match in found if match}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def release(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as ``(2, 13, 0)``; stops at the first part that is no number."""
    numbers: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = re.match(r"\d+", part)
        if digits is None:
            break
        numbers.append(int(digits[0]))
        if digits[0] != part:
            break
    return tuple(numbers)


def examine() -> Checkup:
    """Look at this machine."""
    tested, minimum = tested_versions(), minimum_versions()
    findings = tuple(_find(package, tested, minimum) for package in PACKAGES)
    versions = {item.package: item.installed for item in findings if item.installed and item.state != "broken"}
    python_ok = sys.version_info >= OLDEST_PYTHON and struct.calcsize("P") == 8
    traps = tuple(trap for look in TRAPS if (trap := look(versions)))
    healthy = python_ok and not any(item.extra == REQUIRED and _is_bad(item) for item in findings)
    return Checkup(
        python=platform.python_version(),
        python_ok=python_ok,
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        packages=findings,
        traps=traps,
        abilities=_abilities(findings),
        remedies=_remedies(findings, python_ok),
        healthy=healthy,
    )


def _is_bad(item: Finding) -> bool:
    return item.state in ("missing", "broken", "too old")


def _find(package: Package, tested: Mapping[str, str], minimum: Mapping[str, str]) -> Finding:
    pin, least = tested.get(canonical(package.name)), minimum.get(canonical(package.name))
    installed, fault = _installed(package)

    def found(state: str, meaning: str = "") -> Finding:
        return Finding(package.name, package.extra, package.use, installed, pin, state, meaning)

    if fault:
        return found("broken", fault)
    if installed is None:
        return found("missing" if package.extra == REQUIRED else "absent")
    if least and release(installed) < release(least):
        return found("too old", f"at least {least} is needed")
    if pin and installed.split("+")[0] != pin:
        age = "newer" if release(installed) > release(pin) else "older"
        return found("differs", f"{age} than tested")
    return found("ok")


def _installed(package: Package) -> tuple[str | None, str]:
    """Version and what is wrong with the installation, from its metadata and the presence of its module."""
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None, ""
    except (KeyError, OSError, ValueError) as error:
        return None, f"its metadata cannot be read ({error})"
    if not isinstance(version, str) or not version:
        return None, "its metadata names no version"
    try:
        present = importlib.util.find_spec(package.module.split(".")[0]) is not None
    except (ImportError, ValueError):
        present = False
    return version, "" if present else f"listed as installed, but module {package.module} is not there"


def _tvm(versions: Mapping[str, str]) -> Trap | None:
    tvm, ffi = versions.get("apache-tvm", ""), versions.get("apache-tvm-ffi", "")
    if release(tvm)[:2] == (0, 27) and release(ffi)[:3] == (0, 1, 15):
        return Trap(
            f"apache-tvm {tvm} with apache-tvm-ffi {ffi}",
            "saving any module crashes the process",
            'pip install "apache-tvm-ffi==0.1.14.post1"',
        )
    return None


def _coremltools(versions: Mapping[str, str]) -> Trap | None:
    core, numpy = versions.get("coremltools", ""), versions.get("numpy", "")
    if release(core)[:1] == (9,) and release(numpy) >= (2, 4):
        return Trap(
            f"coremltools {core} with numpy {numpy}",
            "a module that turns shapes into tensors and back, as in int(tensor), fails in Core ML conversion with "
            '"only 0-dimensional arrays can be converted"; the models of the zoo are written without it',
            "write such arithmetic with plain integers in your own modules",
        )
    return None


def _torchvision(versions: Mapping[str, str]) -> Trap | None:
    """torchvision 0.(n + 15) is built for torch 2.n: https://github.com/pytorch/vision#installation"""
    torch, vision = release(versions.get("torch", "")), release(versions.get("torchvision", ""))
    if torch[:1] == (2,) and len(torch) > 1 and len(vision) > 1 and vision[:2] != (0, torch[1] + 15):
        return Trap(
            f"torch {versions['torch']} with torchvision {versions['torchvision']}",
            "torchvision is built for another torch, so timm may fail at import",
            f'pip install "torchvision==0.{torch[1] + 15}.*"',
        )
    return None


TRAPS: tuple[Callable[[Mapping[str, str]], Trap | None], ...] = (_tvm, _coremltools, _torchvision)


def _abilities(findings: tuple[Finding, ...]) -> tuple[Ability, ...]:
    usable = {item.package for item in findings if item.installed and not _is_bad(item)}
    mac = platform.system() == "Darwin"

    def needs(name: str, packages: tuple[str, ...], how: str) -> Ability:
        lacking = [package for package in packages if package not in usable]
        return Ability(name, not lacking, f"needs {', '.join(lacking)}" if lacking else how)

    capture = ("torch", "numpy")
    core_ml = "natively" if mac else "the interpreter, for its numbers; Core ML itself runs on macOS only"
    return (
        needs("export to ONNX", (*capture, "onnx", "onnxscript", "onnxsim"), "torch.export, onnxsim, onnx.checker"),
        needs("export to Core ML", (*capture, "coremltools"), "ML Program, fp16 and fp32"),
        needs("export to Core AI", (*capture, "coreai-torch", "coreai-core"), "fp16 and fp32"),
        needs("kernels for other CPUs", (*capture, "apache-tvm", "ziglang"), "export --to tvm --cpu, --executable"),
        needs("run ONNX", (*capture, "onnxruntime"), "ONNX Runtime on the CPU"),
        needs("run Core ML", (*capture, "coremltools"), core_ml),
        needs("run Core AI", (*capture, "coreai-core"), "its portable runtime, or macOS 27 itself"),
        needs("timm:NAME models", ("timm", "torchvision"), "timm's models by name"),
        _program("time over ssh", "ssh", "a board, with its own keys and configuration", "openssh-client"),
        _program("time over adb", "adb", "an Android device", "adb"),
        needs("time over rpc", ("apache-tvm", "cloudpickle", "tornado"), "a pool of boards; `mobilec devices serve`"),
        Ability("time through Core ML", mac, "compute units and placement" if mac else "needs macOS"),
    )


def _program(name: str, program: str, how: str, package: str) -> Ability:
    found = shutil.which(program) is not None
    return Ability(name, found, how if found else f"needs {program} (on Debian: apt-get install {package})")


def _remedies(findings: tuple[Finding, ...], python_ok: bool) -> tuple[str, ...]:
    """Commands that bring what is missing, the necessary ones first."""
    remedies = [] if python_ok else ["install a 64-bit Python 3.11 or newer"]
    bad = [item for item in findings if item.extra == REQUIRED and _is_bad(item)]
    if bad:
        pins = " ".join(f'"{item.package}=={item.tested}"' if item.tested else item.package for item in bad)
        force = "--force-reinstall --no-deps " if any(item.state == "broken" for item in bad) else ""
        remedies.append(f"pip install {force}{pins}")
    extras = (
        ("timm", "for timm:NAME models"),
        ("coreai", "for Core AI"),
        ("tvm", "for native kernels"),
        ("cross", "for executables and other CPUs"),
        ("rpc", "for pools of boards"),
    )
    for extra, use in extras:
        members = [item for item in findings if item.extra == extra]
        if any(item.state != "ok" and item.state != "differs" for item in members):
            pins = " ".join(f'"{item.package}=={item.tested}"' if item.tested else item.package for item in members)
            remedies.append(f"pip install {pins}   ({use}, optional)")
    return tuple(remedies)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every platform tells
        return None
