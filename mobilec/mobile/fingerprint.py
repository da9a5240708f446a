"""Whether a module still holds the weights its provenance speaks of: people load and train after building."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from mobilec.mobile.provenance import Provenance, Weights

if TYPE_CHECKING:
    from torch import nn


def fingerprint(module: nn.Module) -> int:
    """CRC-32 of all parameters and buffers, as float32 so that ``module.double()`` changes nothing."""
    import torch

    crc = 0
    for name, tensor in sorted(module.state_dict().items()):
        if not _has_numbers(tensor):
            continue
        values = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        crc = zlib.crc32(name.encode(), crc)
        if values.numel():  # an empty tensor has no bytes to view
            crc = zlib.crc32(values.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def _has_numbers(value: object) -> bool:
    """Not so: a lazy module's parameters before the first run, tensors on ``meta``, extra state that is no tensor."""
    import torch
    from torch.nn.parameter import is_lazy

    return isinstance(value, torch.Tensor) and not is_lazy(value) and not value.is_meta


def attach(module: nn.Module, provenance: Provenance) -> None:
    """Set ``module.provenance``, stamped with the weights as they are now."""
    module.__dict__["provenance"] = replace(provenance, fingerprint=fingerprint(module))


def provenance_of(module: nn.Module) -> Provenance | None:
    """The module's provenance as it holds today: weights that were changed since are ``given``. None without one."""
    known = getattr(module, "provenance", None)
    if not isinstance(known, Provenance):
        return None
    if known.fingerprint == fingerprint(module):
        return known
    return replace(known, weights=Weights("given"), fingerprint=None)
