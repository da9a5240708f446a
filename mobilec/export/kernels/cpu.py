"""The CPU that kernels are written for: its name for LLVM, and the few numbers that templates ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mobilec.errors import UsageError, did_you_mean

HOST = "host"
# What code may use, of all that LLVM says of a CPU (the rest is tuning): a library needs these where it runs.
_INSTRUCTIONS = """
    sse3 ssse3 sse4.1 sse4.2 avx avx2 fma f16c bmi bmi2 lzcnt movbe popcnt avx512f avx512bw avx512cd avx512dq avx512vl
    avx512vnni avx512bf16 avx512fp16 avx512ifma avx512vbmi avx512vbmi2 avx512bitalg avx512vpopcntdq avxvnni gfni vaes
    amx-tile amx-int8 amx-bf16 neon fp-armv8 dotprod fullfp16 sve sve2 bf16 i8mm lse rdm
"""
INSTRUCTIONS = frozenset(_INSTRUCTIONS.split())
_CORES_ASSUMED = 4  # for the shape of parallel loops; any number of threads gives the same result


@dataclass(frozen=True)
class Cpu:
    """Attributes:
    name: as the user gave it. model: LLVM's name. triple: LLVM's.
    features: instruction sets that code may use.
    lanes: float32 numbers in a vector. accumulators: vector registers that a tile of results may fill.
    near_floats: numbers that the first-level cache holds beside what streams through it.
    """

    name: str
    model: str
    triple: str
    features: tuple[str, ...]
    lanes: int
    accumulators: int
    near_floats: int = 6000


def find_cpu(name: str = HOST) -> Cpu:
    """The CPU called ``name``: ``host``, or one of LLVM's names for this machine's architecture (``x86-64-v3``).

    Raises UsageError for a name that LLVM does not know.
    """
    import tvm

    ask = tvm.get_global_func
    triple = str(ask("target.llvm_get_system_triple")())
    model = str(ask("target.llvm_get_system_cpu")()) if name == HOST else name
    if not ask("target.llvm_is_valid_cpu")(model, triple):
        known = [HOST, *map(str, ask("target.llvm_get_cpu_archlist")(tvm.target.Target("llvm")))]
        architecture = triple.split("-")[0]
        raise UsageError(
            f"unknown CPU {name!r} for {architecture}",
            hint=did_you_mean(name, known, "host is the one of this machine"),
        )
    described = ask("target.llvm_get_cpu_features")(tvm.target.Target({"kind": "llvm", "mcpu": model}))
    features = tuple(sorted(INSTRUCTIONS & set(map(str, described))))
    lanes, accumulators = _vectors(features)
    return Cpu(name, model, triple, features, lanes, accumulators)


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

    wide = ["-prefer-256-bit"] if cpu.lanes == 16 else []
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu.model, "mattr": wide, "num-cores": _CORES_ASSUMED})


def missing_instructions(features: list[str]) -> list[str]:
    """Those of ``features`` that this machine lacks."""
    return sorted(set(features) - set(find_cpu().features))
