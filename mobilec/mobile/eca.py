"""Efficient channel attention: a gate with k weights (arXiv 1910.03151).

Used by ``eca_mobilenetv2.py`` and ``eca_resnet.py``, and on its own in any network.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from mobilec.errors import ModelError


def adaptive_kernel(channels: int) -> int:
    """The paper's number of taps for a width: ``t = int(|log2(C) / 2 + 1 / 2|)``, and t + 1 where t is even.

    64 channels give 3, 256 give 5, 2048 give 7.
    """
    if channels < 1:
        raise ModelError(f"ECA kernel: {channels} channels, expected at least 1")
    taps = int(abs(math.log2(channels) / 2 + 0.5))
    return taps if taps % 2 else taps + 1


class ECA(nn.Module):
    """``x * sigmoid(conv1d_k(global_average(x)))``, one kernel of k taps shared by all channels.

    Args:
        channels: width of the map; only the adaptive kernel depends on it.
        kernel_size: odd number of taps; None takes ``adaptive_kernel(channels)``.
    """

    def __init__(self, channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        taps = adaptive_kernel(channels) if kernel_size is None else kernel_size
        if taps < 1 or taps % 2 == 0:
            raise ModelError(f"ECA kernel: {taps} taps, expected an odd number", hint="leave kernel_size out")
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3)).unsqueeze(1)  # [B, 1, C]
        gate = self.conv(gate).sigmoid().squeeze(1)  # [B, C]
        # No transpose is needed where one axis is 1, and the multiplication broadcasts: nothing is expanded by hand.
        return x * gate[:, :, None, None]
