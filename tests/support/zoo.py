"""Building zoo networks straight from the table, with weights under which every block matters."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilec.mobile.zoo import find_variant
from support.reference import load_reference


def build(name: str, **overrides: Any) -> nn.Module:
    """The class of ``name`` with its row's numbers, eval mode, weights as torch initialises them."""
    family, variant = find_variant(name)
    cls = getattr(importlib.import_module(family.module), family.class_name)
    return cls(**(variant.config | overrides)).eval()


@functools.lru_cache(maxsize=2)
def _golden_state(name: str) -> dict[str, Tensor]:
    """Drawn once for the tests of a file; ``load_state_dict`` copies out of it."""
    return load_reference(name).state_dict


def build_golden(name: str, **overrides: Any) -> nn.Module:
    """``build`` with the reference weights; ``features_only`` takes the part of them it has."""
    model = build(name, **overrides)
    state = _golden_state(name)
    prefixes = type(model).HEAD_PREFIXES if overrides.get("features_only") else ()
    model.load_state_dict(without(state, prefixes), strict=True)
    return model


def without(state: dict[str, Tensor], prefixes: Collection[str]) -> dict[str, Tensor]:
    """Entries of a state dict that start with none of the prefixes."""
    return {key: value for key, value in state.items() if not key.startswith(tuple(prefixes))}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def image(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """``[batch, 3, height, width]`` float32, standard normal."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def relative_gap(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """Largest difference over the largest expected magnitude; infinite when shapes differ or NaN appears."""
    a, e = (np.asarray(v.detach() if isinstance(v, Tensor) else v, dtype=np.float64) for v in (actual, expected))
    if a.shape != e.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - e).max() / np.abs(e).max())


def capture_any_batch(model: nn.Module, height: int, width: int) -> torch.export.ExportedProgram:
    """The exported program with the batch left open; torch raises if the module fixes it."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        return torch.export.export(model, (image(2, height, width),), dynamic_shapes=({0: batch},))


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Names of the ATen operators in a program, e.g. ``conv2d``."""
    calls = (node for node in program.graph.nodes if node.op == "call_function")
    return {str(node.target).split(".")[1] for node in calls if str(node.target).startswith("aten.")}


def highest_rank(program: torch.export.ExportedProgram) -> int:
    """Rank of the tensor with most axes."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    return max(value.ndim for value in values if isinstance(value, Tensor))


def untouched_by_training_step(model: nn.Module, x: Tensor, labels: Tensor) -> list[str]:
    """One forward and backward in train mode; names of parameters without a finite gradient."""
    model.train()
    loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    model.eval()
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not torch.isfinite(parameter.grad).all()
    ]
