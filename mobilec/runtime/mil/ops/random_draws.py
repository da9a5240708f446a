"""Random numbers: of the right shape and distribution, not those that Core ML would draw.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/random.py``. Core ML's generator is not published. The draws here come
from torch's, started at the op's ``seed``; at the op's position in the program where it has none (-1), so that a
model gives the same result each time and two ops differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.ops.support import Call


def _generator(call: Call) -> torch.Generator:
    seed = call.int("seed", -1)
    return torch.Generator().manual_seed(call.op.position if seed == -1 else seed)


def _bernoulli(call: Call) -> Tensor:
    return (torch.rand(call.ints("shape"), generator=_generator(call)) < call.float("prob", 0.5)).float()


def _normal(call: Call) -> Tensor:
    drawn = torch.randn(call.ints("shape"), generator=_generator(call))
    return drawn * call.float("stddev", 1.0) + call.float("mean", 0.0)


def _uniform(call: Call) -> Tensor:
    low, high = call.float("low", 0.0), call.float("high", 1.0)
    return torch.rand(call.ints("shape"), generator=_generator(call)) * (high - low) + low


def _categorical(call: Call) -> Tensor:
    """``size`` indices for each distribution in the last axis of ``x``, drawn with replacement."""
    x, mode, size = call.tensor("x"), call.text("mode", "logits"), call.int("size", 1)
    if mode not in ("logits", "probs"):
        raise BackendError(f"{call.op.where}: mode {mode!r} is neither logits nor probs")
    chances = torch.softmax(x, -1) if mode == "logits" else x
    flat = chances.reshape(-1, x.shape[-1])
    drawn = torch.multinomial(flat, size, replacement=True, generator=_generator(call))
    return drawn.reshape(*x.shape[:-1], size).float()


OPS: dict[str, Callable[[Call], Tensor]] = {
    "random_bernoulli": _bernoulli,
    "random_categorical": _categorical,
    "random_normal": _normal,
    "random_uniform": _uniform,
}
