"""The CPU that kernels are written for: its name for LLVM, and the few numbers that templates ask for."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilec.errors import UsageError, did_you_mean

HOST = "host"
_ANY = "host is the one of this machine, aarch64 any of 64-bit Arm"
# What code may use, of all that LLVM says of a CPU (the rest is tuning): a library needs these where it runs.
_INSTRUCTIONS = """
    sse3 ssse3 sse4.1 sse4.2 avx avx2 fma f16c bmi bmi2 lzcnt movbe popcnt avx512f avx512bw avx512cd avx512dq avx512vl
    avx512vnni avx512bf16 avx512fp16 avx512ifma avx512vbmi avx512vbmi2 avx512bitalg avx512vpopcntdq avxvnni gfni vaes
    amx-tile amx-int8 amx-bf16 neon fp-armv8 dotprod fullfp16 sve sve2 bf16 i8mm lse rdm
"""
INSTRUCTIONS = frozenset(_INSTRUCTIONS.split())
_CORES_ASSUMED = 4  # for the shape of parallel loops; any number of threads gives the same result


_ARCHITECTURES = ("x86_64", "aarch64")  # that kernels are written for, in LLVM's names
_LINUX = re.compile(r"(-\w+)?-linux(-(gnu|musl|android\d*))?", re.ASCII)  # what may follow an architecture in a triple
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}  # what platforms call an architecture -> what LLVM calls it


@dataclass(frozen=True)
class Cpu:
    """Attributes:
    name: as the user gave it. model: LLVM's name. triple: LLVM's.
    features: instruction sets that code may use.
    lanes: float32 numbers in a vector. accumulators: vector registers that a tile of results may fill.
    near_floats: numbers that the first-level cache holds beside what streams through it.
    added: features that the user asked for beyond those of the model.
    """

    name: str
    model: str
    triple: str
    features: tuple[str, ...]
    lanes: int
    accumulators: int
    near_floats: int = 6000
    added: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        return self.triple.split("-")[0]

    @property
    def is_here(self) -> bool:
        """Whether it has this machine's architecture (and perhaps instructions that this machine lacks)."""
        return self.architecture == this_architecture()


def this_architecture() -> str:
    """Of this machine, in LLVM's name: ``x86_64``, ``aarch64``, ..."""
    machine = platform.machine().lower()
    return _ALIASES.get(machine, machine)


def find_cpu(name: str = HOST) -> Cpu:
    """The CPU called ``name``, for this machine's architecture or another.

    Args:
        name: ``host``; LLVM's name of a CPU (``x86-64-v3``, ``cortex-a76``), of this machine's architecture where it
            is one of several; an architecture or triple, with a CPU or without (``aarch64``,
            ``aarch64-linux-gnu:cortex-a76``). Features may follow all of them (``cortex-a76+i8mm``).

    Raises UsageError for a name that LLVM does not know, and for architectures or systems without kernels.
    """
    head, *added = name.split("+")
    triple, model = _triple_and_model(head, name)
    _check_features(added, triple, name)
    described = _features_of(triple, model, added)
    features = tuple(sorted(INSTRUCTIONS & set(described)))
    lanes, accumulators = _vectors(features)
    return Cpu(name, model, triple, features, lanes, accumulators, added=tuple(added))


def _triple_and_model(head: str, name: str) -> tuple[str, str]:
    import tvm

    ask = tvm.get_global_func
    system = str(ask("target.llvm_get_system_triple")())
    if head == HOST:
        return system, str(ask("target.llvm_get_system_cpu")())
    here = system.split("-")[0]
    order = [here, *(each for each in _ARCHITECTURES if each != here)]
    triples = {each: system if each == here else f"{each}-linux-gnu" for each in order}
    known = {each: _models(triple) for each, triple in triples.items()}
    named, colon, model = head.partition(":")
    first = named.split("-")[0]
    architecture = _ALIASES.get(first, first)
    if architecture not in known:  # no triple
        if not colon:
            for each in order:
                if head in known[each]:
                    return triples[each], head
        raise UsageError(
            f"unknown CPU {name!r} for {' or '.join(order)}",
            hint=did_you_mean(head, [HOST, *order, *(model for each in order for model in known[each])], _ANY),
        )
    rest = named[len(first) :]
    if rest and not _LINUX.fullmatch(rest):
        raise UsageError(f"CPU {name!r}: {named} is no Linux system", hint=f"as in {architecture}-linux-gnu")
    if colon and model not in known[architecture]:
        raise UsageError(
            f"unknown CPU {model!r} for {architecture} in {name!r}",
            hint=did_you_mean(model, known[architecture], "generic is the oldest one"),
        )
    return f"{architecture}{rest}" if rest else triples[architecture], model or "generic"


def _models(triple: str) -> list[str]:
    """LLVM's names of CPUs."""
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    return list(map(str, tvm.get_global_func("target.llvm_get_cpu_archlist")(target)))


def _features_of(triple: str, model: str, added: Sequence[str]) -> list[str]:
    import tvm

    more = [f"+{each}" for each in added]
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": model, "mattr": more})
    return list(map(str, tvm.get_global_func("target.llvm_get_cpu_features")(target)))


def _check_features(added: Sequence[str], triple: str, name: str) -> None:
    """LLVM itself only warns of names that it does not know."""
    if not added:
        return
    known = {feature for model in _models(triple) for feature in _features_of(triple, model, ())}
    for each in added:
        if each not in known:
            raise UsageError(
                f"unknown feature {each!r} in {name!r}",
                hint=did_you_mean(each, sorted(known & INSTRUCTIONS), "features are called as LLVM calls them"),
            )


def _vectors(features: tuple[str, ...]) -> tuple[int, int]:
    """Lanes of float32 in a vector, and how many of its registers results may take."""
    if "avx512f" in features:
        return 16, 28
    if "avx2" in features and "fma" in features:
        return 8, 12
    return (4, 24) if "neon" in features else (4, 12)


def target_of(cpu: Cpu) -> Any:
    """As a TVM target."""
    import tvm

    more = [f"+{each}" for each in cpu.added] + (["-prefer-256-bit"] if cpu.lanes == 16 else [])
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": cpu.triple, "mcpu": cpu.model, "mattr": more, "num-cores": _CORES_ASSUMED}
    )


def missing_instructions(features: list[str]) -> list[str]:
    """Those of ``features`` that this machine lacks."""
    return sorted(set(features) - set(find_cpu().features))
