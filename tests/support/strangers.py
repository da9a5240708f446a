"""Small networks in the styles of published architectures, for which no rule was written.

Each entry of ``STRANGERS`` builds a module in its initial state (``support.rewriting.lively`` gives it numbers), with
the shapes it takes. Channels and images are small; what matters is how people write these things: in place or not,
``view`` or ``flatten``, modules or functions, channels first or last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from support import strangers_attention, strangers_conv, strangers_misc, strangers_tokens, strangers_windows

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Stranger:
    """An architecture.

    Attributes:
        build: a new module.
        shapes: of its inputs.
        norms_left: batch norms for which the cpu pipeline can find no layer to go into.
        dynamic: whether its forward leaves the batch size open.
        onnx: whether torch.onnx can write the untouched module at all.
        shares_weights: folding into a weight that stays in use elsewhere costs a second one.
    """

    build: Callable[[], nn.Module]
    shapes: Shapes
    norms_left: int = 0
    dynamic: bool = True
    onnx: bool = True
    shares_weights: bool = False


def _image(channels: int = 3, height: int = 32, width: int = 32, batch: int = 1) -> Shapes:
    return ((batch, channels, height, width),)


_conv, _attention, _misc = strangers_conv, strangers_attention, strangers_misc
_tokens, _windows = strangers_tokens, strangers_windows

STRANGERS: dict[str, Stranger] = {
    # convolutional classifiers
    "resnet": Stranger(_conv.resnet, _image(3, 33, 37, 2)),
    "resnet, odd image": Stranger(_conv.resnet, _image(3, 33, 47)),
    "preactivation resnet": Stranger(_conv.preactivation_resnet, _image(), 3),
    "mobilenetv3": Stranger(_conv.mobilenetv3, _image(3, 33, 32)),
    "efficientnet": Stranger(_conv.efficientnet, _image()),
    "convnext": Stranger(_conv.convnext, _image(3, 32, 40, 2)),
    "convnextv2": Stranger(_conv.convnextv2, _image()),
    # the identity branch's norm has no layer of its own to go into
    "repvgg": Stranger(_conv.repvgg, _image(3, 18, 16), 2),
    "shufflenet": Stranger(_conv.shufflenet, _image()),
    "densenet": Stranger(_conv.densenet, _image(3, 18, 16, 2), 6),
    "inception": Stranger(_conv.inception, _image(3, 33, 33)),
    "ghostnet": Stranger(_conv.ghostnet, _image()),
    "res2net": Stranger(_conv.res2net, _image()),
    "depthwise with prelu": Stranger(_conv.mobilefacenet, _image(3, 33, 47)),
    "squeezenet": Stranger(_conv.squeezenet, _image()),
    "alexnet": Stranger(_conv.alexnet, _image(3, 64, 64)),
    "regnet": Stranger(_conv.regnet, _image()),
    "starnet": Stranger(_conv.starnet, _image(), 1),
    "fasternet": Stranger(_conv.fasternet, _image()),
    # gates and their pooling
    "squeeze-excite by view": Stranger(_conv.squeeze_excite, _image(3, 17, 16, 2)),
    "cbam": Stranger(_conv.cbam, _image()),
    "coordinate attention": Stranger(_conv.coordinate_attention, _image(3, 32, 40)),
    "eca by transpose": Stranger(_conv.efficient_channel_attention, _image(3, 16, 16, 2)),
    # attention
    "vit, module attention": Stranger(_attention.vit_module, _image()),
    "vit, fused attention": Stranger(_attention.vit_fused, _image(), dynamic=False),
    "einsum attention": Stranger(_attention.einsum_attention, _image()),
    "swin": Stranger(_attention.swin, _image(3, 32, 48)),
    "mobilevit": Stranger(_attention.mobilevit, _image(3, 32, 24), dynamic=False),
    "edgenext": Stranger(_attention.edgenext, _image()),
    "efficientformer": Stranger(_attention.efficientformer, _image()),
    "pyramid vision transformer": Stranger(_attention.pvt, _image()),
    "linear attention": Stranger(_attention.linear_attention, _image(3, 32, 40)),
    "maxvit grid": Stranger(_attention.maxvit, _image()),
    "masked text encoder": Stranger(_attention.text_encoder, ((2, 12, 16),), dynamic=False),
    "poolformer": Stranger(_attention.poolformer, _image()),
    "mlp-mixer": Stranger(_attention.mixer, _image()),
    "gmlp": Stranger(_attention.gated_mlp, _image()),
    "swin, mask filled in forward": Stranger(_windows.swin_filled_mask, _image(3, 36, 44)),
    "swin v2": Stranger(_windows.swin_v2, _image(3, 32, 48, 2)),
    "twins": Stranger(_windows.twins, _image(3, 32, 48)),
    "involution": Stranger(_windows.involution, _image(3, 32, 24)),
    "detr": Stranger(_tokens.detr, _image(3, 32, 48)),
    "causal decoder": Stranger(_tokens.causal_decoder, ((2, 10, 16),)),
    "rotary positions": Stranger(_tokens.rotary, _image()),
    "levit": Stranger(_tokens.levit, _image()),
    "conditional convolution": Stranger(_tokens.conditional_conv, _image(3, 32, 24), 1),
    # dense prediction
    "unet": Stranger(_misc.unet, _image(3, 32, 48)),
    "unet, odd factors": Stranger(_misc.unet_odd, _image(3, 33, 47), dynamic=False),
    "fpn detector": Stranger(_misc.fpn, _image(3, 64, 48), shares_weights=True),
    "pixel shuffle": Stranger(_misc.super_resolution, _image(1, 16, 20)),
    "segmenter": Stranger(_misc.segmenter, _image(3, 33, 40), dynamic=False),
    "transposed convolutions": Stranger(_misc.transposed, _image(3, 32, 24)),
    "ssd": Stranger(_misc.ssd, _image(3, 32, 48)),
    "yolo": Stranger(_misc.yolo, _image(3, 64, 64)),
    # habits
    "shared everything": Stranger(_misc.SharedEverything, _image(3, 16, 12, 2), 2, shares_weights=True),
    "norm used twice": Stranger(_misc.NormTwice, _image(), 1, shares_weights=True),
    "in-place branches": Stranger(_misc.InPlaceBranches, _image()),
    "surgery": Stranger(_misc.Surgery, ((2, 3, 5, 4), (2, 2, 5, 4)), 1, onnx=False),
    "parametrised": Stranger(_misc.Parametrised, _image(3, 8, 7, 2), shares_weights=True),
    "numbers in buffers": Stranger(_misc.NumbersInBuffers, _image(1, 28, 28)),
    "activation zoo": Stranger(_misc.activation_zoo, _image()),
    "norm zoo": Stranger(_misc.norm_zoo, _image(3, 17, 16), 2),
    "audio": Stranger(_misc.Audio, ((2, 2, 40),), onnx=False),
    "temporal convolutions": Stranger(_misc.temporal, ((2, 4, 40),)),
    # the second norm stands before a 1x1x1 convolution
    "video": Stranger(_misc.Video, ((1, 2, 4, 5, 6),)),
}
