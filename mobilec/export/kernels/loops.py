"""Statements of kernels: loops, vectors over an axis, small arrays that stay in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from mobilec.export.kernels.values import Gathered, Stored, Value, address, evaluate, is_long

Expr = Any
Stmt = Any

# Sharing a loop out costs some tenths of a microsecond (runner/pool.c), so what one thread does in half of one stays on
# it. In operations on what lies in registers, as products have them; others count what an element costs them in these.
WORTH_A_LAUNCH = 60_000
PARTS = 64  # that loops are shared out in, as evenly as their steps allow (as runner/pool.c knows)
WIDE = 16  # lanes that cost twice as much as half of them: one instruction for two units, or one unit twice
STACK_FLOATS = 16_384
_numbers = count()


def seq(statements: Sequence[Stmt]) -> Stmt:
    from tvm import tirx

    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def loop(extent: int | Expr, body: Callable[[Expr], Stmt], *, start: int | Expr = 0, parallel: bool = False) -> Stmt:
    """``body`` for start, start + 1, ... ; an extent of one needs no loop."""
    from tvm import tirx

    if isinstance(extent, int) and extent == 1:
        return body(start)
    variable = tirx.Var("i", "int32")
    kind = tirx.ForKind.PARALLEL if parallel else tirx.ForKind.SERIAL
    if isinstance(start, int) and start == 0:
        return tirx.For(variable, 0, extent, kind, body(variable))
    return tirx.For(variable, 0, extent, kind, body(variable + start))


def nest(extents: Sequence[int], body: Callable[[list[Expr]], Stmt], *, work: int = 0) -> Stmt:
    """``body`` for every index below ``extents``; with ``work`` operations in each, shared out over threads."""
    total = 1
    for extent in extents:
        total *= extent
    if total > 1 and total * work >= WORTH_A_LAUNCH:

        def before(number: Expr) -> Expr:  # number * total // PARTS, which 32 bits need not hold
            return number * (total // PARTS) + number * (total % PARTS) // PARTS

        def part(number: Expr) -> Stmt:
            first, end = before(number), before(number + 1)
            return loop(end - first, lambda flat: body(unflatten(flat, extents)), start=first)

        return loop(PARTS, part, parallel=True)

    def inner(done: list[Expr]) -> Stmt:
        if len(done) == len(extents):
            return body(done)
        return loop(extents[len(done)], lambda i: inner([*done, i]))

    return inner([])


def unflatten(flat: Expr, extents: Sequence[int]) -> list[Expr]:
    """The index, below ``extents``, of the ``flat``-th element in row-major order."""
    index: list[Expr] = []
    for position, extent in reversed(list(enumerate(extents))):
        if extent == 1:
            index.append(0)
        elif all(size == 1 for size in extents[:position]):
            index.append(flat)
        else:
            index.append(flat % extent)
            flat = flat // extent
    return index[::-1]


def pieces(size: int, lanes: int) -> list[tuple[int, int]]:
    """(start, lanes) of vectors that cover ``size`` elements; the last overlaps its neighbour where they do not fit.

    What lies under an overlap is computed twice, with the same result: every element is a function of the inputs.
    """
    while lanes > size:
        lanes //= 2
    starts = [*range(0, size - lanes + 1, lanes)]
    if size % lanes:
        starts.append(size - lanes)
    return [(start, lanes) for start in starts]


def narrow_pieces(size: int, lanes: int) -> list[tuple[int, int]]:
    """As ``pieces``, with a last vector of half the lanes where these hold the rest and are cheaper."""
    found = pieces(size, lanes)
    if lanes == WIDE and size > lanes and 0 < size % lanes <= lanes // 2:
        found[-1] = (size - lanes // 2, lanes // 2)
    return found


def over_lanes(size: int, lanes: int, body: Callable[[Expr, int], Stmt]) -> Stmt:
    """``body(start, lanes)`` over all of ``pieces``: a loop, and one more where the last overlaps."""
    return over_pieces(pieces(size, lanes), body)


def over_pieces(covered: Sequence[tuple[int, int]], body: Callable[[Expr, int], Stmt]) -> Stmt:
    """``body(start, lanes)`` over what ``pieces`` or ``narrow_pieces`` gave."""
    width = covered[0][1]
    whole = sum(piece == (at * width, width) for at, piece in enumerate(covered))
    statements = [loop(whole, lambda i: body(i * width, width))]
    return seq([*statements, *(body(*piece) for piece in covered[whole:])])


def exact_lanes(size: int, lanes: int, body: Callable[[Expr, int], Stmt]) -> list[Stmt]:
    """As ``over_lanes`` without any overlap, for sums: what does not fill a vector comes one by one."""
    whole = size // lanes
    statements = [loop(whole, lambda i: body(i * lanes, lanes))] if whole else []
    if size % lanes:
        statements.append(loop(size % lanes, lambda i: body(i, 1), start=whole * lanes))
    return statements


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def filled(number: float, lanes: int, dtype: str = "float32") -> Expr:
    from tvm import tirx

    return tirx.const(number, vector_type(dtype, lanes))


def spread(value: Expr, lanes: int) -> Expr:
    """A scalar repeated over lanes; a vector as it is."""
    from tvm import tirx

    return tirx.Broadcast(value, lanes) if lanes > 1 and "x" not in str(value.ty.dtype) else value


def store(target: Value, value: Expr, index: Sequence[Expr], axis: int | None = None, lanes: int = 1) -> Stmt:
    """Write one element, or ``lanes`` neighbours along ``axis``, of a tensor or of places picked from one."""
    from tvm import tirx

    while isinstance(target, Gathered):
        index, axis, target = target.where(index), target.axes[axis] if lanes > 1 else None, target.source  # type: ignore[index]
    assert isinstance(target, Stored)
    place = address(target, index)
    if lanes == 1:
        return assign(target.memory.buffer, place, value)
    assert axis is not None
    return assign(target.memory.buffer, tirx.Ramp(place, target.strides[axis], lanes), spread(value, lanes))


def assign(buffer: Any, place: Expr, value: Expr) -> Stmt:
    """Puts a value into a buffer. What the value has names for goes into variables of its own first.

    TVM's analysers put a named expression in place of its name: where names stand in names, that takes them
    exponential time. They do not look into memory, and LLVM keeps what stays here in registers.
    """
    from tvm import tirx

    statements: list[Stmt] = []
    value = _unnamed(value, {}, statements)
    return seq([*statements, tirx.BufferStore(buffer, value, [place])])


def _unnamed(value: Expr, known: dict[Expr, Expr], statements: list[Stmt]) -> Expr:
    """``value`` with a place in memory for each name in it; ``statements`` put there what it stands for."""
    from tvm import ir, tirx

    def within(part: Expr) -> Expr:
        return _unnamed(part, known, statements)

    if isinstance(value, tirx.Var):
        return known.get(value, value)
    if isinstance(value, tirx.Let):
        kind = str(value.var.ty.dtype)
        lanes = int(kind.partition("x")[2] or 1)
        held = tirx.decl_buffer((lanes,), kind.partition("x")[0], name=f"held_{next(_numbers)}", scope="local")
        place = tirx.Ramp(0, 1, lanes) if lanes > 1 else 0
        statements += [allocate(held), tirx.BufferStore(held, within(value.value), [place])]
        known[value.var] = tirx.BufferLoad(held, [place])
        return within(value.body)
    if isinstance(value, ir.prim.expr.BinaryOpExpr | ir.prim.expr.CmpExpr):
        return type(value)(within(value.a), within(value.b))
    if isinstance(value, tirx.Select):
        return tirx.Select(within(value.condition), within(value.true_value), within(value.false_value))
    if isinstance(value, tirx.Cast):
        return tirx.Cast(value.ty, within(value.value))
    if isinstance(value, tirx.Broadcast):
        return tirx.Broadcast(within(value.value), value.lanes)
    if isinstance(value, ir.Call):
        return ir.Call(value.op, [within(part) for part in value.args], value.attrs, ret_ty=value.ty)
    return value


def finish(
    tree: Value, target: Value, place: Callable[[Expr, Expr], list[Expr]], rows: int,
    columns: Sequence[tuple[Expr, int]], sums: Callable[[int, int], Expr],
) -> list[Stmt]:  # fmt: skip
    """Puts a tile of results through ``tree`` into ``target``, whose last axis the columns are of.

    Where the tree holds long functions, the bare results are put into the first-level cache first and a loop over the
    rows finishes them, so that the code is that of one row. (Not in ``target``: columns may overlap those of other
    threads.)

    Args:
        place: (row, column) -> index. sums: (row, which of the columns) -> the vector of results.
    """
    axis = len(target.shape) - 1
    cells = [(row, which) for row in range(rows) for which in range(len(columns))]

    def cell(row: Expr, which: int, result: Expr) -> Stmt:
        column, lanes = columns[which]
        index = place(row, column)
        return store(target, evaluate(tree, index, axis, lanes, result), index, axis, lanes)

    if rows == 1 or not is_long(tree):
        return [cell(row, which, sums(row, which)) for row, which in cells]

    starts = [sum(lanes for _, lanes in columns[:which]) for which in range(len(columns))]
    width = sum(lanes for _, lanes in columns)

    def kept(memory: Any) -> Stmt:
        from tvm import tirx

        def spot(row: Expr, which: int) -> list[Expr]:
            at, lanes = row * width + starts[which], columns[which][1]
            return [tirx.Ramp(at, 1, lanes) if lanes > 1 else at]

        def again(row: Expr) -> Stmt:
            return seq([cell(row, which, tirx.BufferLoad(memory, spot(row, which))) for which in range(len(columns))])

        bare = [tirx.BufferStore(memory, sums(row, which), spot(row, which)) for row, which in cells]
        return seq([*bare, loop(rows, again)])

    return [scratch(rows * width, kept)]


def allocate(buffer: Any) -> Stmt:
    """Room for a small array on the stack, where LLVM can keep it in registers; for a large one where TVM wants it.

    TVM would fetch everything above 1 kB from a pool, tile by tile.
    """
    from tvm import tirx

    small = int(buffer.shape[0]) <= STACK_FLOATS
    return tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)} if small else {})


class Registers:
    """A small array of vectors at constant places, which LLVM keeps in registers."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """``sizes``: lanes of each vector."""
        from tvm import tirx

        self.sizes = list(sizes)
        self.starts = [sum(self.sizes[:position]) for position in range(len(self.sizes))]
        self.buffer = tirx.decl_buffer((sum(self.sizes),), "float32", name=f"tile_{next(_numbers)}", scope="local")

    def _place(self, position: int) -> Expr:
        from tvm import tirx

        start, lanes = self.starts[position], self.sizes[position]
        return tirx.Ramp(start, 1, lanes) if lanes > 1 else start

    def get(self, position: int) -> Expr:
        from tvm import tirx

        return tirx.BufferLoad(self.buffer, [self._place(position)])

    def put(self, position: int, value: Expr) -> Stmt:
        return assign(self.buffer, self._place(position), spread(value, self.sizes[position]))

    def fill(self, number: float) -> list[Stmt]:
        return [self.put(position, filled(number, lanes)) for position, lanes in enumerate(self.sizes)]

    def scope(self, body: Stmt) -> Stmt:
        """``body`` with the array in it."""
        from tvm import tirx

        return tirx.SeqStmt([allocate(self.buffer), body])


def scratch(size: int, body: Callable[[Any], Stmt]) -> Stmt:
    """``body`` with an array of ``size`` float32 of its own."""
    from tvm import tirx

    buffer = tirx.decl_buffer((size,), "float32", name=f"scratch_{next(_numbers)}", scope="local")
    return tirx.SeqStmt([allocate(buffer), body(buffer)])
