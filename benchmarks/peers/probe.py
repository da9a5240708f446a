"""What the cores can do: a product of matrices in the shape that registers like, compiled by TVM for this machine.

``relu(A [M, K] @ W [K, N] + bias [N])`` with ``W`` stored as ``[N / tile, K, tile]``; a tile of results stays in
registers until it is done, and both matrices fit in the second-level caches. On x86-64 with 512-bit vectors it reaches
more than the matrix product of PyTorch on the same cores.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

K, BLOCKS, TILES = 128, 56, 16  # inner length, tiles over rows, tiles over columns
VECTORS = 2  # of columns in a tile


def build_probe(threads: int) -> tuple[Any, int]:
    """A function without arguments that computes the product once, and its multiply-adds.

    Raises RuntimeError: TVM's pool has another number of threads, or the product is wrong.
    """
    os.environ["TVM_NUM_THREADS"], os.environ["TVM_BIND_THREADS"] = str(threads), "0"
    import tvm

    from mobilec.export.kernels.cpu import find_cpu, target_of

    cpu = find_cpu()
    rows, columns = cpu.accumulators // VECTORS, cpu.lanes * VECTORS
    m, n = rows * BLOCKS, columns * TILES
    found = int(tvm.get_global_func("runtime.NumThreads")())
    if found != threads:
        raise RuntimeError(f"TVM's pool has {found} threads, expected {threads}")
    product = tvm.compile(_scheduled(m, n, rows, cpu.lanes), target=target_of(cpu))["main"]
    rng = np.random.default_rng(0)
    a, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, K), (K, n), (n,)))
    packed = np.ascontiguousarray(w.reshape(K, TILES, columns).transpose(1, 0, 2))
    operands = [tvm.runtime.tensor(each) for each in (a, packed, bias, np.zeros((m, n), np.float32))]
    product(*operands)
    wanted = np.maximum(a.astype(np.float64) @ w + bias, 0)
    if not np.allclose(operands[-1].numpy(), wanted, atol=1e-3):
        raise RuntimeError("the probe computes a wrong product")
    return lambda: product(*operands), m * K * n


def _scheduled(m: int, n: int, rows: int, lanes: int) -> Any:
    from tvm import s_tir, te, tirx

    columns = lanes * VECTORS
    a, w = te.placeholder((m, K), name="a"), te.placeholder((n // columns, K, columns), name="w")
    bias, r = te.placeholder((n,), name="bias"), te.reduce_axis((0, K), "r")
    total = te.compute((m, n), lambda i, j: te.sum(a[i, r] * w[j // columns, r, j % columns], axis=r), name="total")
    out = te.compute((m, n), lambda i, j: te.max(total[i, j] + bias[j], tirx.const(0, "float32")), name="out")
    schedule = s_tir.Schedule(te.create_prim_func([a, w, bias, out]))
    block, epilogue = schedule.get_sblock("total"), schedule.get_sblock("out")
    i, j, reduction = schedule.get_loops(block)
    (strip, row), (tile, column) = schedule.split(i, [None, rows]), schedule.split(j, [None, columns])
    vector, lane = schedule.split(column, [None, lanes])
    schedule.reorder(strip, tile, reduction, row, vector, lane)
    schedule.reverse_compute_at(epilogue, tile)
    schedule.set_scope(block, 0, "local")
    last_row, last_column = schedule.get_loops(epilogue)[-2:]
    last_vector, last_lane = schedule.split(last_column, [None, lanes])
    for loop in (lane, last_lane):
        schedule.vectorize(loop)
    for loop in (row, vector, last_row, last_vector):
        schedule.unroll(loop)
    schedule.parallel(strip)
    schedule.decompose_reduction(block, reduction)
    return schedule.mod
