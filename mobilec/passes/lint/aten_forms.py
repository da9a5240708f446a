"""What the tables of ATen operators share: the simple translations, and readings of arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from mobilec.passes.lint.judge import Shape
from mobilec.passes.lint.program import Call, Translation, Value


def unary(op: str, **attributes: Any) -> Translation:
    return lambda call: done(call.emit(op, call.input(0), **attributes))


def binary(op: str) -> Translation:
    return lambda call: done(call.emit(op, call.input(0), call.input(1)))


def chain(*ops: str) -> Translation:
    """Operators one behind the other; those after the first read the result before and, if they take two, the input."""

    def translate(call: Call) -> None:
        value = call.input(0)
        for op in ops:
            value = call.emit(op, value, *((call.input(0),) if op in ("Mul", "mul", "Where") else ()))

    return translate


def done(_: Value) -> None:
    return None


def with_alpha(op: str, scale: str = "Mul") -> Translation:
    """``self op alpha * other``."""

    def translate(call: Call) -> None:
        other = call.input(1)
        if call.get("alpha", 1) != 1:
            other = call.emit(scale, other, call.number(call.get("alpha")), shape=other.shape)
        call.emit(op, call.input(0), other)

    return translate


def pair(value: Any, count: int) -> list[int]:
    """A convolution's parameter, one entry an axis."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return [int(entry) for entry in (entries * count if len(entries) == 1 else entries)]


def kernel_of(call: Call) -> list[int]:
    return [int(size) for size in call.input("weight").shape[2:]]


def padding_of(call: Call, kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """``[begin..., end...]``."""
    padding = call.get("padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]
        return [whole // 2 for whole in total] + [whole - whole // 2 for whole in total]
    return pair(padding, len(kernel)) * 2


def product(sizes: Shape) -> int | str:
    plain = [size for size in sizes if isinstance(size, int)]
    named = [size for size in sizes if isinstance(size, str)]
    return "*".join([*named, str(math.prod(plain))]) if named else math.prod(plain)


def reduce(op: str) -> Translation:
    def translate(call: Call) -> None:
        axes = call.axes()
        keepdims = int(bool(call.get("keepdim", False)))
        call.emit(op, call.input(0), call.number(axes, "axes"), keepdims=keepdims, axes=axes)

    return translate


def extreme(reduced: str, index: str, pairwise: str) -> Translation:
    """``max`` and ``min``: of two tensors, of all elements, or along an axis with its place."""

    def translate(call: Call) -> None:
        if "other" in call.arguments:
            call.emit(pairwise, call.input(0), call.input(1))
            return
        read = [reader.args[1] for reader in call.node.users if reader.target is operator.getitem and reader.users]
        if "dim" in call.arguments and 1 in read:
            call.emit(index, call.input(0), axis=call.axis())
        if "dim" not in call.arguments or 0 in read or not read:
            reduce(reduced)(call)

    return translate


def pooling_of(call: Call) -> dict[str, Any]:
    kernel = pair(call.get("kernel_size"), len(call.shape) - 2 if len(call.shape) > 2 else 1)
    return {
        "kernel_shape": kernel,
        "strides": pair(call.get("stride") or kernel, len(kernel)),
        "pads": pair(call.get("padding", 0), len(kernel)) * 2,
        "ceil_mode": int(bool(call.get("ceil_mode", False))),
    }


def adaptive(pool: str, reduced: str, uneven: str) -> Translation:
    """To one cell: a reduction; to a divisor: a pooling; else pieces gathered one by one."""

    def translate(call: Call) -> None:
        before, after = call.input(0).shape[2:], call.shape[2:]
        if all(size == 1 for size in after):
            axes = list(range(2, 2 + len(after)))
            call.emit(reduced, call.input(0), call.number(axes, "axes"), axes=axes)
        elif any(not _divides(new, old) for old, new in zip(before, after, strict=True)):
            call.emit(uneven, call.input(0))
        else:
            kernel = [int(old) // int(new) for old, new in zip(before, after, strict=True)]
            call.emit(pool, call.input(0), kernel_shape=kernel, strides=kernel, pads=[0] * 2 * len(kernel))

    return translate


def _divides(part: int | str, whole: int | str) -> bool:
    return isinstance(part, int) and isinstance(whole, int) and whole % part == 0


def divided(size: int | str, by: int) -> int | str:
    return size // by if isinstance(size, int) else f"{size}//{by}"


def split_sizes(call: Call) -> list[int | str]:
    axis = call.axis()
    return [value.shape[axis] for value in call.node.meta["val"]]


def permutation_of(call: Call) -> list[int]:
    rank = len(call.input(0).shape)
    if "dims" in call.arguments:
        return [int(axis) % rank for axis in call.get("dims")]
    perm = list(range(rank))
    names = ("dim0", "dim1") if "dim0" in call.arguments else ("axis0", "axis1")
    first, second = (int(call.get(name, place)) % rank for name, place in zip(names, (-2, -1), strict=True))
    perm[first], perm[second] = perm[second], perm[first]
    return perm


def last_two_swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def same(*names: str, to: Translation) -> dict[str, Translation]:
    return dict.fromkeys(names, to)


def group_count(call: Call) -> int:
    """Of ``group_norm`` and ``native_group_norm``."""
    return int(call.arguments["num_groups"] if "num_groups" in call.arguments else call.arguments["group"])


def is_all(value: Value, number: float) -> bool:
    """Whether a constant is known to hold one number alone."""
    return bool(value.elements) and all(element == number for element in value.elements or ())
