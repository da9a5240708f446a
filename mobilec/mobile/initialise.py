"""Random weights that make every block count.

PyTorch's own initialisation hides whole blocks: layer scales of 1e-6, batch-norm weights of zero, running statistics
that fit nothing. Numbers drawn here leave every parameter visible in the output, and running statistics are measured
on images, so that activations are as tame as a trained network's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mobilec.errors import ModelError, UsageError
from mobilec.mobile.text import first_line

PROBE_IMAGES = 4

# A channel that hardly varies over the probe images would blow up on another: no measured variance
# is left below this share of its layer's mean variance.
VARIANCE_FLOOR = 0.05

_LAYER_SCALES = ("gamma", "layer_scale", "ls", "scale")


def draw_weights(
    model: nn.Module, *, seed: int, resolution: int | tuple[int, int], names: Collection[str] | None = None
) -> None:
    """Fill ``model`` in place with lively random numbers, then measure its batch-norm statistics.

    Each tensor depends on ``seed`` and its state-dict name alone, and no global random state is read or changed.
    Convolutions and linear layers: normal with variance 1.6 / fan-in, biases normal with deviation 0.1. Normalisation
    layers: weights uniform in 0.6..1.4, biases normal with deviation 0.1. Layer scales: uniform in 0.3..0.7.
    Other parameters (position embeddings, tokens, bias tables) stay as constructed unless they are constant.

    Args:
        resolution: of the images on which the statistics are measured; height and width, or one for both.
        names: draw these state-dict entries only and leave the statistics as they are.

    Raises ModelError if the model cannot run on ``[4, 3, H, W]`` images (asked only of models with batch norm)
    or does not stay finite; UsageError for unknown ``names``.
    """
    parameters = {name: (module, leaf, value) for name, module, leaf, value in _named(model)}
    unknown = sorted(set(names or ()) - parameters.keys())
    if unknown:
        raise UsageError(f"{type(model).__name__} has no parameter called {unknown[0]!r}")
    with torch.no_grad():
        for name, (module, leaf, value) in parameters.items():
            if names is None or name in names:
                drawn = _draw(module, leaf, value, _generator(seed, name))
                if drawn is not None:
                    value.copy_(torch.from_numpy(drawn))
        if names is None:
            _measure_statistics(model, seed, resolution)


def probe_images(seed: int, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Images with areas, edges, gradients and noise: float32 ``[count, 3, H, W]``, mean about 0 and deviation about 1.

    White noise averages out in every pooling layer, and a network whose statistics were measured on one kind of image
    may blow up on another. So these take turns: structured, flat (one colour, hardly any contrast), structured
    with strong noise, white noise.
    """
    return np.stack([_probe_image(_generator(seed, f"probe image {i}"), i % 4, size_hw) for i in range(count)])


def _probe_image(generator: np.random.Generator, kind: int, size_hw: tuple[int, int]) -> np.ndarray:
    height, width = size_hw
    structure, noise = ((1.0, 0.1), (0.05, 0.02), (1.0, 0.7), (0.0, 1.0))[kind]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    waves = np.zeros((3, height, width), dtype=np.float32)
    for octave in range(6):
        along_y, along_x = generator.uniform(-1, 1, 2) * 2.0**octave
        wave = np.sin(2 * np.pi * (along_y * y + along_x * x + generator.uniform()))
        wave = np.sign(wave) if octave % 2 else wave  # every other one has hard edges
        waves += generator.standard_normal((3, 1, 1)).astype(np.float32) * wave.astype(np.float32)
    colour = generator.uniform(-1.5, 1.5, (3, 1, 1)) if kind == 1 else generator.uniform(-0.5, 0.5, (3, 1, 1))
    image = waves / waves.std() * np.float32(structure) + colour.astype(np.float32)
    return image + np.float32(noise) * generator.standard_normal(image.shape, dtype=np.float32)


def _generator(seed: int, name: str) -> np.random.Generator:
    """SFC64 is the fastest of numpy's generators: the largest models have tens of millions of weights."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """State-dict name, owner, leaf name and value of every parameter; a shared one comes once, under its first name."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf, value in module.named_parameters(recurse=False):
            if id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{leaf}" if path else leaf, module, leaf, value


def _draw(module: nn.Module, leaf: str, value: Tensor, generator: np.random.Generator) -> np.ndarray | None:
    """New values for one parameter, or None where it stays as constructed."""
    shape = tuple(value.shape)

    def normal(deviation: float) -> np.ndarray:
        values = generator.standard_normal(shape, dtype=np.float32)
        values *= np.float32(deviation)
        return values

    def uniform(low: float, high: float) -> np.ndarray:
        return generator.uniform(low, high, shape).astype(np.float32)

    if isinstance(module, _ConvNd | nn.Linear) and leaf == "weight":
        return normal((1.6 / _fan_in(module, value)) ** 0.5)
    if isinstance(module, _ConvNd | nn.Linear) and leaf == "bias":
        return normal(0.1)
    is_vector = value.numel() == max(shape, default=1)
    if "norm" in type(module).__name__.lower() and is_vector:
        return uniform(0.6, 1.4) if leaf in ("weight", "gamma", "scale") else normal(0.1)
    if leaf.startswith(_LAYER_SCALES) and is_vector and value.numel() > 1:
        return uniform(0.3, 0.7)
    if not value.numel() or not value.is_floating_point() or value.min() != value.max():
        return None
    if "bias" in leaf or leaf == "beta" or not is_vector:
        return normal(0.1)
    if value.numel() == 1 and abs(value.item()) > 0.01:  # a temperature, a gate already open
        return None
    return uniform(0.3, 0.7)


def _fan_in(module: nn.Module, weight: Tensor) -> int:
    if isinstance(module, _ConvTransposeNd):
        return weight[:, 0].numel() // module.groups  # [in, out / groups, *kernel]
    return weight[0].numel()  # [out, in / groups, *kernel]


def _measure_statistics(model: nn.Module, seed: int, resolution: int | tuple[int, int]) -> None:
    """Run probe images once with the batch norms, and nothing else, in training mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    size_hw = (resolution, resolution) if isinstance(resolution, int) else resolution
    images = torch.from_numpy(probe_images(seed, PROBE_IMAGES, size_hw))
    images = images.to(norms[0].running_mean)  # their device and dtype
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()  # no dropout, no stochastic depth
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # plain average over calls
            norm.training = True
        with torch.random.fork_rng(devices=[]):
            model(images)
    except Exception as error:  # anything a stranger's forward may raise
        raise ModelError(
            f"{type(model).__name__} cannot run on random images {list(images.shape)}: {first_line(error)}",
            hint="its batch-norm statistics must be measured; give a checkpoint, or another input size",
        ) from error
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    for norm in norms:
        variance = norm.running_var
        assert variance is not None  # track_running_stats
        if not bool(torch.isfinite(variance).all()):
            raise ModelError(f"{type(model).__name__} does not stay finite with random weights")
        variance.clamp_(min=VARIANCE_FLOOR * float(variance.mean()))
