"""Gathering and scattering by index.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/scatter_gather.py`` and its iOS 16 and 17 versions. Negative indices
count from the end, as up to iOS 16; from iOS 17 on they, and indices beyond the end, leave Core ML's result undefined.
An index that is outside either way is an error here, with ``validate_indices`` a negative one too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call

_MODES = ("update", "add", "sub", "mul", "div", "max", "min")


def _checked(call: Call, indices: Tensor, size: int) -> Tensor:
    """Indices as int64 in [0, size). Raises BackendError for others."""
    indices = indices.long()
    if indices.numel() == 0:
        return indices
    low = 0 if call.bool("validate_indices", False) else -size
    least, most = int(indices.min()), int(indices.max())
    if least < low or most >= size:
        wrong = least if least < low else most
        raise BackendError(f"{call.op.where}: index {wrong} is outside of {size} elements, so its result is undefined")
    return torch.where(indices < 0, indices + size, indices) if least < 0 else indices


def _gather(call: Call) -> Tensor:
    """Slices of ``x`` at ``indices`` of an axis; the first ``batch_dims`` axes of both go together.

    The shape is ``x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1:]``.
    """
    x, batch = call.tensor("x"), call.int("batch_dims", 0)
    axis = call.int("axis", 0) % x.ndim
    indices = _checked(call, call.tensor("indices"), x.shape[axis])
    shape = (*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :])
    if batch == 0:
        return x.index_select(axis, indices.reshape(-1)).reshape(shape)
    count = math.prod(x.shape[:batch])
    rows = zip(x.reshape(count, *x.shape[batch:]), indices.reshape(count, -1), strict=True)
    return torch.stack([row.index_select(axis - batch, places) for row, places in rows]).reshape(shape)


def _gather_along_axis(call: Call) -> Tensor:
    x = call.tensor("x")
    axis = call.int("axis", 0) % x.ndim
    return x.gather(axis, _checked(call, call.tensor("indices"), x.shape[axis]))


def _flat_places(call: Call, indices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Index vectors [..., len(sizes)] as indices into the axes of ``sizes`` laid end to end, [...]."""
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for size, part in zip(sizes, indices.unbind(-1), strict=True):
        places = places * size + _checked(call, part, size)
    return places


def _gather_nd(call: Call) -> Tensor:
    """``x[indices[i]]`` for each index vector, which stands in the last axis of ``indices``; see ``gather``."""
    x, indices, batch = call.tensor("x"), call.tensor("indices"), call.int("batch_dims", 0)
    count, depth = math.prod(x.shape[:batch]), indices.shape[-1]
    sizes, rest = x.shape[batch : batch + depth], x.shape[batch + depth :]
    places = _flat_places(call, indices, sizes).reshape(count, -1)
    places = places + torch.arange(count)[:, None] * math.prod(sizes)
    flat = x.reshape(count * math.prod(sizes), *rest)
    return flat.index_select(0, places.reshape(-1)).reshape(*indices.shape[:-1], *rest)


def _scattered(call: Call, data: Tensor, axis: int, places: Tensor, updates: Tensor) -> Tensor:
    """``data`` with ``updates`` worked in at ``places`` (of the same shape) along an axis; repeated places add up.

    With ``update`` the last of several wins. Integers divide towards zero, once, by the product of their divisors.
    """
    mode = call.text("mode", "add")
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, places, updates if mode == "add" else -updates)
    if mode in ("max", "min"):
        return data.scatter_reduce(axis, places, updates, "amax" if mode == "max" else "amin")
    if mode == "mul":
        return data.scatter_reduce(axis, places, updates, "prod")
    if mode == "div":
        divisor = torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
        return data / divisor if data.is_floating_point() else torch.div(data, divisor, rounding_mode="trunc")
    raise BackendError(f"{call.op.where}: mode {mode!r} is none of {', '.join(_MODES)}")


def _scatter(call: Call) -> Tensor:
    """``updates`` are slices of ``data``, whose axis is replaced by those of ``indices``."""
    data, indices = call.tensor("data"), call.tensor("indices")
    axis = call.int("axis", 0) % data.ndim
    places = _checked(call, indices, data.shape[axis]).reshape(-1)
    updates = call.tensor("updates").reshape(*data.shape[:axis], places.numel(), *data.shape[axis + 1 :])
    places = places.reshape([-1 if each == axis else 1 for each in range(data.ndim)]).expand(updates.shape)
    return _scattered(call, data, axis, places, updates)


def _scatter_along_axis(call: Call) -> Tensor:
    data = call.tensor("data")
    axis = call.int("axis", 0) % data.ndim
    places = _checked(call, call.tensor("indices"), data.shape[axis])
    return _scattered(call, data, axis, places, call.tensor("updates"))


def _scatter_nd(call: Call) -> Tensor:
    """Slices at index vectors, which stand in the last axis of ``indices``."""
    data, indices = call.tensor("data"), call.tensor("indices")
    depth = indices.shape[-1]
    sizes, rest = data.shape[:depth], data.shape[depth:]
    places = _flat_places(call, indices, sizes).reshape(-1)
    updates = call.tensor("updates").reshape(places.numel(), *rest)
    places = places.reshape(-1, *(1,) * len(rest)).expand(updates.shape)
    return _scattered(call, data.reshape(math.prod(sizes), *rest), 0, places, updates).reshape(data.shape)


OPS: dict[str, Callable[[Call], Tensor]] = {
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
}
