"""What this machine reaches at best, measured with kernels of our own: multiply-adds in registers, and copies."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import BackendUnavailable, ExportError
from mobilec.passes.evidence import TensorSpec

if TYPE_CHECKING:
    from mobilec.export.kernels.cpu import Cpu
    from mobilec.runtime.native_session import NativeSession

SECS = 0.5  # for both
ROWS, DEPTH, COLUMNS = 784, 256, 256  # a layer that keeps its tiles in registers and its weights in the caches
COPIED = 262_144  # float32 numbers, 1 MB: about one feature map, which the second- and third-level caches hold
COPIES = 8  # in one call, whose own cost then does not count
INPUTS = {"rows": (ROWS, DEPTH), "source": (64, COPIED // 64)}
OUTPUTS = {"product": (ROWS, COLUMNS), "copy": (64, COPIED // 64)}


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
    """Raises BackendUnavailable where TVM or what links native code is not installed."""
    from importlib.util import find_spec

    from mobilec.export.to_tvm import INSTALL
    from mobilec.runtime.native_session import NativeSession

    if find_spec("tvm") is None:
        raise BackendUnavailable("what this machine reaches is measured through apache-tvm", hint=INSTALL)
    from mobilec.export.kernels.cpu import find_cpu

    inputs, outputs = _specs(INPUTS), _specs(OUTPUTS)
    with tempfile.TemporaryDirectory(prefix="mobilec-ceiling-") as folder:
        try:
            path = _write(find_cpu(), Path(folder))
        except ExportError as error:
            raise BackendUnavailable(error.message, hint=error.hint, detail=error.detail) from error
        with NativeSession(path, inputs=inputs, outputs=outputs, options={}, threads=threads) as session:
            best = _fastest(session)
    macs = ROWS * DEPTH * COLUMNS / best["product"]
    return Ceiling(macs, 2 * 4 * COPIED * COPIES / best["copy"], threads)


def _specs(shapes: dict[str, tuple[int, int]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items())


def _fastest(session: NativeSession) -> dict[str, float]:
    """Seconds of the fastest call of each kernel: what others did to the slower ones is not the machine's limit."""
    import numpy as np

    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in INPUTS.items()}
    best: dict[str, float] = {}
    end = time.perf_counter() + SECS
    while not best or time.perf_counter() < end:
        for name, secs in session.kernel_times(feeds, 1)[0]:
            best[name] = min(secs, best.get(name, secs))
    return best


def _write(cpu: Cpu, folder: Path) -> Path:
    import numpy as np

    from mobilec.export.kernels.loops import loop
    from mobilec.export.kernels.pointwise import pointwise
    from mobilec.export.kernels.products import pack, product
    from mobilec.export.kernels.program import Program, build
    from mobilec.export.kernels.tiles import choose_tile
    from mobilec.export.kernels.values import Hole
    from mobilec.export.linking import check_linker
    from mobilec.export.native import Model, write_library
    from mobilec.export.quiet import quiet

    check_linker(cpu, executable=False)
    program = Program(cpu, list(INPUTS.values()))
    left, source = program.inputs
    tile = choose_tile(ROWS, COLUMNS, DEPTH, cpu)
    numbers = np.random.default_rng(1).standard_normal((DEPTH, COLUMNS)).astype(np.float32)
    weights = program.constant(pack(numbers, tile))
    results = [
        program.call(
            "product", [left, weights], (ROWS, COLUMNS), (0, 1), "float32",
            lambda target: product(left, weights, tile, Hole((ROWS, COLUMNS)), target),
        ),
        program.call(
            "copy", [source], source.shape, (0, 1), "float32",
            lambda target: loop(COPIES, lambda _: pointwise(source, target, cpu)),
        ),
    ]  # fmt: skip
    with quiet():
        lowered = program.close(results)
        model = Model(build(lowered.kernels, cpu), lowered.calls, _specs(INPUTS), _specs(OUTPUTS), cpu, {})
        write_library(model, folder / "ceiling.so", folder)
    return folder / "ceiling.so"
