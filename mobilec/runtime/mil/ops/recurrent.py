"""Recurrent layers, run step by step.

Semantics: coremltools 9, ``mil/ops/defs/iOS15/recurrent.py``, ``iOS18/recurrent.py``, and for the order of gates and
``reset_after`` coremltools' ``ops/tests/iOS14/test_recurrent.py`` and ``ops/tests/iOS18/test_recurrent.py``. Sequences
are [S, B, I], states [B, H]; with ``output_sequence`` every step is returned, else the last; a reversed layer returns
its steps in the order in which it ran them. States between steps are rounded to half precision where the result is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilec.errors import BackendError
from mobilec.runtime.mil.numerics import to_half
from mobilec.runtime.mil.ops.support import Call

# A hard sigmoid and a scaled tanh without parameters of their own are Keras' and LeCun's, as Core ML's layers had them.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
}


def _activation(call: Call, name: str, default: str) -> Callable[[Tensor], Tensor]:
    kind = call.text(name, default).lower()
    if kind not in _ACTIVATIONS:
        raise BackendError(f"{call.op.where}: {name} {kind!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[kind]


def _stored(call: Call, state: Tensor) -> Tensor:
    return to_half(state) if call.numerics.rounds(call.output.dtype) else state


def _steps(x: Tensor, backwards: bool) -> list[Tensor]:
    steps = list(x.unbind(0))
    return steps[::-1] if backwards else steps


def _sequence(call: Call, states: list[Tensor]) -> Tensor:
    """[S, B, H] in the order in which the steps were run, or [1, B, H]: the last one."""
    return torch.stack(states) if call.bool("output_sequence", False) else states[-1].unsqueeze(0)


def _backwards(call: Call) -> bool:
    return bool(call.text("direction", "forward") == "reverse")


def _rnn(call: Call) -> tuple[Tensor, Tensor]:
    """``h = activation(W_ih x + W_hh h + bias)``."""
    activation = _activation(call, "activation", "tanh")
    ih, hh, bias, h = call.tensor("weight_ih"), call.tensor("weight_hh"), call.get("bias"), call.tensor("initial_h")
    states = []
    for x in _steps(call.tensor("x"), _backwards(call)):
        h = _stored(call, activation(F.linear(x, ih, bias) + F.linear(h, hh)))
        states.append(h)
    return _sequence(call, states), h


def _gru(call: Call) -> tuple[Tensor, Tensor]:
    """Gates in the order reset r, new o, update z: ``h = (1 - z) o + z h``.

    The reset gate multiplies the state before ``W_ho``; with ``reset_after`` what ``W_ho`` and its bias make of it, as
    in torch, where ``input_bias`` is added to the input's side.
    """
    inner, outer = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")
    h, after = call.tensor("initial_h"), call.bool("reset_after", False)
    ih, (hr, ho, hz) = call.tensor("weight_ih"), call.tensor("weight_hh").chunk(3)
    zeros = torch.zeros(ih.shape[0])
    bias, input_bias = (zeros if found is None else found for found in (call.get("bias"), call.get("input_bias")))
    br, bo, bz = bias.chunk(3)
    states = []
    for x in _steps(call.tensor("x"), _backwards(call)):
        xr, xo, xz = F.linear(x, ih, input_bias).chunk(3, dim=1)
        r, z = inner(xr + F.linear(h, hr, br)), inner(xz + F.linear(h, hz, bz))
        o = outer(xo + (r * F.linear(h, ho, bo) if after else F.linear(r * h, ho, bo)))
        h = _stored(call, (1 - z) * o + z * h)
        states.append(h)
    return _sequence(call, states), h


def _lstm_direction(call: Call, suffix: str, h: Tensor, c: Tensor, backwards: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One direction; gates in the order input i, forget f, output o, cell z. Returns sequence, last h, last c."""
    inner, cell = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "cell_activation", "tanh")
    outer, limit = _activation(call, "activation", "tanh"), call.float("clip", None)
    ih, hh = call.tensor("weight_ih" + suffix), call.tensor("weight_hh" + suffix)
    bias, peephole = call.get("bias" + suffix), call.get("peephole" + suffix)
    pi, pf, po = torch.zeros(3, h.shape[1]) if peephole is None else peephole.reshape(3, -1)
    states = []
    for x in _steps(call.tensor("x"), backwards):
        xi, xf, xo, xz = (F.linear(x, ih, bias) + F.linear(h, hh)).chunk(4, dim=1)
        i, f, z = inner(xi + pi * c), inner(xf + pf * c), cell(xz)
        c = f * c + i * z
        if limit is not None:
            c = c.clamp(-limit, limit)
        c = _stored(call, c)
        h = _stored(call, inner(xo + po * c) * outer(c))
        states.append(h)
    return _sequence(call, states), h, c


def _lstm(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Of a bidirectional layer both halves stand side by side, each step where it stands in the input."""
    h, c, direction = call.tensor("initial_h"), call.tensor("initial_c"), call.text("direction", "forward")
    if direction != "bidirectional":
        return _lstm_direction(call, "", h, c, direction == "reverse")
    halves = [each.chunk(2, dim=1) for each in (h, c)]
    forth = _lstm_direction(call, "", halves[0][0], halves[1][0], False)
    back = _lstm_direction(call, "_back", halves[0][1], halves[1][1], True)
    back = (back[0].flip(0), *back[1:])
    sequence, last_h, last_c = (torch.cat(pair, dim=-1) for pair in zip(forth, back, strict=True))
    return sequence, last_h, last_c


OPS: dict[str, Callable[[Call], tuple[Tensor, ...]]] = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}
