"""Building blocks shared by the families. Names stay with the callers: these return plain modules."""

from __future__ import annotations

from torch import nn


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    eps: float = 1e-5,
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution padded by ``kernel_size // 2`` and its batch norm.

    They come as a pair so that each family can file them under its authors' names:
    ``self.conv1, self.bn1 = conv_bn(...)`` or ``nn.Sequential(*conv_bn(...), nn.GELU())``.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
    return conv, nn.BatchNorm2d(out_channels, eps=eps)
