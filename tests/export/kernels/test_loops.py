"""Statements as compilers want them: no names in expressions, small arrays on the stack."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx

from mobilec.export.kernels import arithmetic as ar
from mobilec.export.kernels import loops, products, tiles
from mobilec.export.kernels.cpu import find_cpu, target_of
from mobilec.export.kernels.program import WITHOUT
from mobilec.export.kernels.values import Hole, Map, Memory, contiguous

ROWS, DEPTH, COLUMNS = 28, 3, 64


def memory(size: int) -> Memory:
    return Memory(tirx.decl_buffer((size,), "float32", name="x"), size, "float32")


def product_with_gelu() -> tirx.PrimFunc:
    left, packed, target = memory(ROWS * DEPTH), memory(DEPTH * COLUMNS), memory(ROWS * COLUMNS)
    shape = (ROWS, COLUMNS)
    tile = tiles.choose_tile(ROWS, COLUMNS, DEPTH, find_cpu())
    statement = products.product(
        contiguous(left, (ROWS, DEPTH)),
        contiguous(packed, (DEPTH * COLUMNS,)),
        tile,
        Map(ar.gelu, (Hole(shape),), shape, "float32"),
        contiguous(target, shape),
    )
    return tirx.PrimFunc([left.buffer, packed.buffer, target.buffer], statement).with_attr("global_symbol", "kernel")


def test_a_stored_value_has_no_names_in_it() -> None:
    """TVM's passes take exponential time over names in names: GELU's took seconds a kernel."""
    buffer = tirx.decl_buffer((16,), "float32", name="x")
    value = ar.gelu(tirx.BufferLoad(buffer, [tirx.Ramp(0, 1, 16)]))
    assert "Let" in str(value)
    assert "Let" not in str(loops.assign(buffer, tirx.Ramp(0, 1, 16), value))


def test_a_value_without_names_is_stored_as_it_is() -> None:
    buffer = tirx.decl_buffer((4,), "float32", name="x")
    value = tirx.BufferLoad(buffer, [tirx.const(1, "int32")]) + tirx.const(1.0, "float32")
    statement = loops.assign(buffer, tirx.const(0, "int32"), value)
    assert isinstance(statement, tirx.BufferStore)
    tvm.ir.assert_structural_equal(statement.value, value)


def fetches_from_a_pool() -> bool:
    with tvm.transform.PassContext(config=WITHOUT):
        library = tvm.compile(tvm.IRModule({"kernel": product_with_gelu()}), target=target_of(find_cpu()))
    return "load ptr, ptr @__TVMBackendAllocWorkspace" in library.mod.inspect_source("ll")


def test_tiles_stay_on_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM fetches arrays above 1 kB from a pool unless told not to; a tile is larger, and there are thousands."""
    assert not fetches_from_a_pool()
    monkeypatch.setattr(loops, "STACK_FLOATS", 0)
    assert fetches_from_a_pool()


def test_large_arrays_are_left_to_tvm() -> None:
    small, large = (tirx.decl_buffer((size,), "float32", name="x") for size in (256, loops.STACK_FLOATS + 1))
    assert "disable_lower_builtin" in dict(loops.allocate(small).annotations)
    assert not dict(loops.allocate(large).annotations)


def test_half_a_vector_at_the_end_where_it_is_cheaper() -> None:
    assert loops.narrow_pieces(40, 16) == [(0, 16), (16, 16), (32, 8)]
    assert loops.narrow_pieces(37, 16) == [(0, 16), (16, 16), (29, 8)]
    assert loops.narrow_pieces(41, 16) == [(0, 16), (16, 16), (25, 16)]
    for size, lanes in ((32, 16), (12, 16), (13, 8), (7, 4)):
        assert loops.narrow_pieces(size, lanes) == loops.pieces(size, lanes)
