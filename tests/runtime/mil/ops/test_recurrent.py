"""Recurrent layers against torch's, and a step written out where torch has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mobilec.runtime.mil.numerics import Numerics
from support.mil_ops import compute, uniform

f32 = np.float32
S, B, I, H = 4, 2, 3, 5  # noqa: E741


def _weights(layer: torch.nn.RNNBase, order: list[int], suffix: str = "_l0") -> tuple[np.ndarray, ...]:
    """Input and state weights, input and state biases, their gates put in order."""

    def sorted_gates(name: str) -> np.ndarray:
        parts = getattr(layer, name + suffix).detach().chunk(len(order))
        return torch.cat([parts[i] for i in order]).numpy()

    return tuple(sorted_gates(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_rnn(direction: str, every: bool, kind: Any) -> None:
    torch.manual_seed(0)
    layer = torch.nn.RNN(I, H, nonlinearity=kind)
    ih, hh, b1, b2 = _weights(layer, [0])
    x, h = uniform(0, S, B, I), uniform(1, B, H)
    given: dict[str, Any] = {"weight_ih": ih, "weight_hh": hh, "bias": b1 + b2, "activation": kind}
    found = compute("rnn", x=x, initial_h=h, direction=direction, output_sequence=every, **given)
    fed = torch.from_numpy(x if direction == "forward" else x[::-1].copy())
    with torch.no_grad():
        sequence, last = layer(fed, torch.from_numpy(h)[None])
    np.testing.assert_allclose(found[0], sequence if every else sequence[-1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], last[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [False, True])
def test_gru_with_the_reset_after_is_that_of_torch(every: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.GRU(I, H)
    ih, hh, b1, b2 = _weights(layer, [0, 2, 1])
    x, h = uniform(0, S, B, I), uniform(1, B, H)
    given: dict[str, Any] = {"weight_ih": ih, "weight_hh": hh, "bias": b2, "input_bias": b1, "reset_after": True}
    found = compute("gru", x=x, initial_h=h, output_sequence=every, **given)
    with torch.no_grad():
        sequence, last = layer(torch.from_numpy(x), torch.from_numpy(h)[None])
    np.testing.assert_allclose(found[0], sequence if every else sequence[-1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], last[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_resets_before_by_default(direction: str) -> None:
    """Written out after ``coremltools/converters/mil/mil/ops/tests/iOS14/test_recurrent.py``."""
    x, h = uniform(0, S, B, I), uniform(1, B, H)
    ih, hh, bias = uniform(2, 3 * H, I), uniform(3, 3 * H, H), uniform(4, 3 * H)
    given: dict[str, Any] = {"weight_ih": ih, "weight_hh": hh, "bias": bias, "output_sequence": True}
    found = compute("gru", x=x, initial_h=h, direction=direction, **given)
    (wr, wo, wz), (rr, ro, rz), (br, bo, bz) = (np.split(each, 3) for each in (ih, hh, bias))

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    steps = []
    for step in x if direction == "forward" else x[::-1]:
        z, r = sigmoid(step @ wz.T + h @ rz.T + bz), sigmoid(step @ wr.T + h @ rr.T + br)
        o = np.tanh(step @ wo.T + (r * h) @ ro.T + bo)
        h = (1 - z) * o + z * h
        steps.append(h)
    np.testing.assert_allclose(found[0], np.stack(steps), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str, every: bool) -> None:
    torch.manual_seed(0)
    both = direction == "bidirectional"
    layer = torch.nn.LSTM(I, H, bidirectional=both)
    x, h, c = uniform(0, S, B, I), uniform(1, B, H * (1 + both)), uniform(2, B, H * (1 + both))
    given: dict[str, Any] = {"direction": direction, "output_sequence": every}
    for suffix, ending in (("_l0", ""), ("_l0_reverse", "_back"))[: 1 + both]:
        ih, hh, b1, b2 = _weights(layer, [0, 1, 3, 2], suffix)
        given |= {f"weight_ih{ending}": ih, f"weight_hh{ending}": hh, f"bias{ending}": b1 + b2}
    found = compute("lstm", x=x, initial_h=h, initial_c=c, **given)
    fed = torch.from_numpy(x[::-1].copy() if direction == "reverse" else x)
    states = [torch.stack(torch.from_numpy(each).chunk(1 + both, 1)) for each in (h, c)]
    with torch.no_grad():
        sequence, (last_h, last_c) = layer(fed, tuple(states))
    if not every:
        sequence = torch.cat([sequence[-1:, :, :H], sequence[:1, :, H:]], 2) if both else sequence[-1:]
    for one, other in zip(found, (sequence, torch.cat(list(last_h), 1), torch.cat(list(last_c), 1)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_lstm_with_peepholes_and_a_limit() -> None:
    x, h, c = uniform(0, 1, B, I), uniform(1, B, H), uniform(2, B, H)
    ih, hh, peep = uniform(3, 4 * H, I), uniform(4, 4 * H, H), uniform(5, 3 * H)
    given: dict[str, Any] = {"weight_ih": ih, "weight_hh": hh, "peephole": peep, "clip": f32(0.4)}
    given |= {"recurrent_activation": "hard_sigmoid", "cell_activation": "scaled_tanh", "activation": "linear"}
    found = compute("lstm", x=x, initial_h=h, initial_c=c, **given)
    i, f, o, z = np.split(x[0] @ ih.T + h @ hh.T, 4, axis=1)
    pi, pf, po = np.split(peep, 3)

    def gate(v: np.ndarray) -> np.ndarray:
        return np.clip(0.2 * v + 0.5, 0, 1)

    cell = np.clip(gate(f + pf * c) * c + gate(i + pi * c) * 1.7159 * np.tanh(2 / 3 * z), -0.4, 0.4)
    np.testing.assert_allclose(found[2], cell, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], gate(o + po * cell) * cell, rtol=1e-5, atol=1e-6)


def test_states_are_kept_in_half_precision() -> None:
    """1 + 2 ** -12 is 1 in half precision, so that a hundred such steps lead nowhere."""
    one = np.ones((1, 1), np.float16)
    given: dict[str, Any] = {"weight_ih": one, "weight_hh": one, "activation": "linear", "initial_h": one}
    x = np.full((100, 1, 1), 2.0**-12, np.float16)
    found = compute("rnn", x=x, numerics=Numerics("declared"), **given)[1].item()
    assert found == 1
    assert compute("rnn", x=x, numerics=Numerics("fp32"), **given)[1].item() == 1 + 100 * 2.0**-12
