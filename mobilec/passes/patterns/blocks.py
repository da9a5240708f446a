"""What ONNX Runtime's convolutions cost on a CPU: they work on blocks of channels, and round up inside.

Nanoseconds an entry or a multiply-accumulate, measured with ONNX Runtime 1.31 on one thread of an AVX-512 CPU at 3.7
GHz. Rules weigh them against each other, so that only their proportions matter.
"""

from __future__ import annotations

BLOCK = 16  # channels; 8 without AVX-512, of which 16 is a multiple
ALIGNMENT = 4  # channels of what a convolution reads in blocks (``channel_alignment`` in nchwc_transformer.cc)
ENTRY = 0.1  # of an operator in blocks
ENTRY_OUTSIDE = 0.3  # of one in plain layout, with what brings its operands there and its result back
ENTRY_JOINED_OUTSIDE = 0.5  # of a concatenation, likewise
PRODUCT = 0.02
PRODUCT_OUTSIDE = 0.026
PRODUCT_DEPTHWISE = 0.04


def in_whole_blocks(channels: int) -> int:
    """The channels that a convolution computes for these."""
    return -(-channels // BLOCK) * BLOCK
