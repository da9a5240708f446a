"""What this machine reaches at best, measured with kernels of our own: multiply-adds in registers, and copies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mobilec.errors import BackendUnavailable

SECS = 0.25  # for each of the two
ROWS, DEPTH, COLUMNS = 784, 256, 256  # a layer that keeps its tiles in registers and its weights in the caches
COPIED = 262_144  # float32 numbers, 1 MB: about one feature map, which the second- and third-level caches hold
COPIES = 8  # in one call, whose own cost then does not count


@dataclass(frozen=True)
class Ceiling:
    """Attributes:
    macs_per_s: float32 multiply-accumulates a second. bytes_per_s: read and written, by a copy of 1 MB.
    threads: how many reached that.
    """

    macs_per_s: float
    bytes_per_s: float
    threads: int


def measure_ceiling(threads: int) -> Ceiling:
    """Raises BackendUnavailable where TVM is not installed."""
    from importlib.util import find_spec

    from mobilec.export.to_tvm import INSTALL
    from mobilec.runtime.tvm_session import with_pool

    if find_spec("tvm") is None:
        raise BackendUnavailable("what this machine reaches is measured through apache-tvm", hint=INSTALL)
    return with_pool(threads, lambda: _measure(threads))


def _measure(threads: int) -> Ceiling:
    import numpy as np
    import tvm

    library = tvm.compile(tvm.IRModule(_kernels()), target=_target())
    rng = np.random.default_rng(0)

    def tensor(size: int) -> Any:
        return tvm.runtime.tensor(rng.standard_normal(size).astype(np.float32))

    product = [tensor(size) for size in (ROWS * DEPTH, DEPTH * COLUMNS, ROWS * COLUMNS)]
    copy = [tensor(COPIED), tensor(COPIED)]
    macs = ROWS * DEPTH * COLUMNS / _fastest(lambda: library["product"](*product))
    moved = 2 * 4 * COPIED * COPIES / _fastest(lambda: library["copy"](*copy))
    return Ceiling(macs, moved, threads)


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest call: what others did to the slower ones is not the machine's limit."""
    best, end = float("inf"), time.perf_counter() + SECS
    while True:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        if begin > end:
            return best


def _target() -> Any:
    from mobilec.export.kernels.cpu import find_cpu, target_of

    return target_of(find_cpu())


def _kernels() -> dict[str, Any]:
    from tvm import tirx

    from mobilec.export.kernels.cpu import find_cpu
    from mobilec.export.kernels.loops import loop
    from mobilec.export.kernels.pointwise import pointwise
    from mobilec.export.kernels.products import product
    from mobilec.export.kernels.tiles import choose_tile
    from mobilec.export.kernels.values import Hole, Memory, contiguous

    cpu = find_cpu()

    def stored(*shape: int) -> Any:
        size = math.prod(shape)
        return contiguous(Memory(tirx.decl_buffer((size,), "float32", name="x"), size, "float32"), shape)

    def kernel(name: str, tensors: list[Any], body: Any) -> Any:
        kernel = tirx.PrimFunc([each.memory.buffer for each in tensors], body)
        return kernel.with_attr("global_symbol", name).with_attr("tirx.noalias", True)

    left, weights, result = stored(ROWS, DEPTH), stored(DEPTH * COLUMNS), stored(ROWS, COLUMNS)
    tile = choose_tile(ROWS, COLUMNS, DEPTH, cpu)
    source, target = stored(64, COPIED // 64), stored(64, COPIED // 64)
    multiplied = product(left, weights, tile, Hole((ROWS, COLUMNS)), result)
    copied = loop(COPIES, lambda _: pointwise(source, target, cpu))
    return {
        "product": kernel("product", [left, weights, result], multiplied),
        "copy": kernel("copy", [source, target], copied),
    }
