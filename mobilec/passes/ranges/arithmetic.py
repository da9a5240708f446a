"""How an operator of many steps is computed: each step named, so that it can be looked at, or rounded.

A step is ``stored`` where the written file holds it as a tensor of its own, in half precision for certain; ``inside``
where one operator of the engine does it, in half precision or in float32, which no list tells. The same few lines of an
operator (``operators.py``) run three ways: as they are, with the stored steps rounded, and with every step rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mobilec.passes.ranges import half
from mobilec.passes.ranges.half import RangeCounter

Backend = Literal["coreml", "onnx"]
ROWS_LOOKED_AT = 64  # of a sum: enough to see what it loses


@dataclass
class Steps:
    """What is done with each step; see the module.

    Attributes:
        backend: in whose file. round_stored / round_inside: whether such steps are rounded.
        flush: whether subnormal numbers become zero.
        seen: ranges of the steps by name, filled where given. kinds: of the steps, ``stored``, ``inside``, ``partial
            sums`` or ``constant``. lost: share of the increments that a sum in half precision would lose, the largest.
    """

    backend: Backend
    round_stored: bool = False
    round_inside: bool = False
    flush: bool = False
    seen: dict[str, RangeCounter] | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    def stored(self, name: str, value: Tensor) -> Tensor:
        self._see(name, "stored", value)
        return half.rounded(value, flush=self.flush) if self.round_stored else value

    def inside(self, name: str, value: Tensor) -> Tensor:
        self._see(name, "inside", value)
        return half.rounded(value, flush=self.flush) if self.round_inside else value

    def step(self, *stored_by: Backend) -> Callable[[str, Tensor], Tensor]:
        """``stored`` for the backends named, ``inside`` for others."""
        return self.stored if self.backend in stored_by else self.inside

    def constant(self, name: str, value: float) -> float:
        """A small number such as an eps."""
        self._see(name, "constant", torch.tensor([value]))
        return half.constant(value, flush=self.flush) if self.round_stored else value

    def partial_sums(self, bound: Callable[[], Tensor]) -> None:
        """``bound``: of what any partial sum of a product may reach, the sum of all magnitudes."""
        if self.seen is not None:
            self._see("partial sums", "partial sums", bound())

    def total(self, value: Tensor, dims: Sequence[int], *, keepdim: bool = False) -> Tensor:
        """The sum over some axes, in one operator; all axes where none are given."""
        dims = [dim % value.dim() for dim in dims] or list(range(value.dim()))
        if self.seen is not None and value.numel():
            kept = [dim for dim in range(value.dim()) if dim not in dims]
            count = 1
            for dim in dims:
                count *= value.shape[dim]
            rows = value.permute(*kept, *dims).reshape(-1, max(count, 1))
            self._look_at_increments(rows[:: max(1, len(rows) // ROWS_LOOKED_AT)][:ROWS_LOOKED_AT])
        if not value.dim():
            return value
        return self.inside("sum", value.sum(dims, keepdim=keepdim))

    def _look_at_increments(self, rows: Tensor) -> None:
        running = rows.cumsum(-1)[:, :-1]
        added = rows[:, 1:].abs()
        counted = added > 0
        total = int(counted.sum())
        if total:
            share = float((counted & (added < half.half_ulp(running))).sum()) / total
            self.lost["sum"] = max(share, self.lost.get("sum", 0.0))

    def increments(self, name: str, to: Tensor, added: Tensor) -> None:
        """What ``to + added`` would lose, where it is kept in half precision."""
        if self.seen is not None and to.shape == added.shape and added.numel():
            counted = added != 0
            total = int(counted.sum())
            if total:
                share = float((counted & (added.abs() < half.half_ulp(to))).sum()) / total
                self.lost[name] = max(share, self.lost.get(name, 0.0))

    def _see(self, name: str, kind: str, value: Tensor) -> None:
        if self.seen is not None:
            self.kinds[name] = kind
            self.seen.setdefault(name, RangeCounter()).see(value)
