"""Approximates GELU by its tanh form, written with one sigmoid, for targets without an error function (NNAPI).

    before   y = gelu(x) = 0.5 x (1 + erf(x / sqrt(2)))
    after    y = x * sigmoid(x * (a + b * x^2))                             a = 2 sqrt(2 / pi), b = 0.044715 a

An approximation, not an identity: the one of Hendrycks and Gimpel (arXiv:1606.08415, section 2). It is off by 4.7e-4 at
most (at |x| = 2.7). Peak signal to noise: 92 dB on a standard normal (of peak 5), 93 dB on values spread evenly over
[-8, 8]. NNAPI has neither Erf nor Gelu (ONNX Runtime's nnapi_supported_ops.md). Half precision: as ``lower_gelu_tanh``.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from mobilec.passes.graph import Editor
from mobilec.passes.patterns.precision import too_coarse
from mobilec.passes.rule import Match, Refused, Rule
from mobilec.passes.rules import lower_gelu_tanh

# 4.7e-4 by the largest value of the tensor, which is above 0.17 wherever the difference is that large: on negative
# values alone, the worst there is, 4.7e-4 / 0.17.
_BUDGET = 3e-3
# Each place adds its own to what reaches the outputs: 1.5e-3 of the largest logit was measured on MobileViG-Ti, which
# has 27 of them. Larger variants have more, and networks of others more again.
_OUTPUT_BUDGET = 1e-2


def match(editor: Editor, node: Node) -> Match | Refused | None:
    if editor.arguments(node)["approximate"] != "none":
        return None
    return too_coarse(editor, node) or Match((node,))


RULE = Rule(
    name="approximate_gelu",
    summary="GELU by its tanh form, written as products and a sigmoid",
    anchors=(torch.ops.aten.gelu.default,),
    match=match,
    rewrite=lower_gelu_tanh.rewrite,
    budget=_BUDGET,
    algebra_budget=_BUDGET,
    output_budget=_OUTPUT_BUDGET,
    approximation=(
        "GELU by x * sigmoid(1.595769 x + 0.0713548 x^3), off by 4.7e-4 at most (92 dB on a standard normal), because "
        "the target has no error function"
    ),
)
