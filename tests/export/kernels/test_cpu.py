"""Names of CPUs, for this machine and for others."""

from __future__ import annotations

import pytest

from mobilec.errors import UsageError
from mobilec.export.kernels.cpu import find_cpu, this_architecture


@pytest.mark.parametrize(
    ("name", "model", "architecture", "lanes"),
    [
        ("x86-64-v3", "x86-64-v3", "x86_64", 8),
        ("x86-64-v4", "x86-64-v4", "x86_64", 16),
        ("x86_64-linux-gnu:znver3", "znver3", "x86_64", 8),
        ("cortex-a76", "cortex-a76", "aarch64", 4),
        ("aarch64", "generic", "aarch64", 4),
        ("arm64", "generic", "aarch64", 4),
        ("aarch64-linux-android:cortex-a55", "cortex-a55", "aarch64", 4),
        ("aarch64-linux-musl:neoverse-n1+i8mm+bf16", "neoverse-n1", "aarch64", 4),
    ],
)
def test_names(name: str, model: str, architecture: str, lanes: int) -> None:
    cpu = find_cpu(name)
    assert (cpu.name, cpu.model, cpu.architecture, cpu.lanes) == (name, model, architecture, lanes)
    assert cpu.is_here == (architecture == this_architecture())
    assert cpu.triple.startswith(architecture)
    assert set(cpu.added) <= set(cpu.features)


def test_registers_of_arm() -> None:
    cpu = find_cpu("cortex-a76")
    assert (cpu.lanes, cpu.accumulators) == (4, 24)
    assert {"neon", "dotprod"} <= set(cpu.features)
    assert "dotprod" not in find_cpu("aarch64").features


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pentium9", "unknown CPU 'pentium9' for x86_64 or aarch64; did you mean pentium"),
        ("cortex-a7", "unknown CPU 'cortex-a7' for x86_64 or aarch64; did you mean cortex-a7"),
        ("", "unknown CPU '' for"),
        ("aarch64:cortex-a7x", "unknown CPU 'cortex-a7x' for aarch64 in 'aarch64:cortex-a7x'; did you mean cortex-a7"),
        ("aarch64:", "unknown CPU '' for aarch64"),
        ("aarch64:x86-64-v3", "unknown CPU 'x86-64-v3' for aarch64"),
        ("x86-64-v3:generic", "unknown CPU 'x86-64-v3:generic'"),
        ("aarch64-apple-darwin", "aarch64-apple-darwin is no Linux system"),
        ("aarch64-linux-gnu'; rm -r", "is no Linux system"),
        ("riscv64-linux-gnu", "unknown CPU 'riscv64-linux-gnu'"),
        ("cortex-a76+dotprodd", "unknown feature 'dotprodd' in 'cortex-a76+dotprodd'; did you mean dotprod?"),
        ("cortex-a76+", "unknown feature ''"),
        ("cortex-a76+avx2", "unknown feature 'avx2'"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_cpu(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
