"""How an image file becomes an input: decode, resize, crop, normalise, the same for every backend.

Importing this file loads neither torch nor numpy nor pillow, so that a manifest can be read quickly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import DataError, UsageError
from mobilec.mobile.text import first_line

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

COLORS = ("RGB", "BGR")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")

# Only raster formats that decode in-process: pillow hands EPS and PDF to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")

# Pillow's own first threshold: a quarter GiB at three bytes a pixel. A photo has a tenth of it.
MAX_PIXELS = 2**30 // 4 // 3


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image file to numbers.

    Attributes:
        mean / std: of red, green and blue (in that order, whatever ``color`` says), pixels scaled to 0..1.
        color: order of the channels in the input, ``RGB`` or ``BGR``.
        crop_pct: the shorter side is resized to ``round(size / crop_pct)``, then the centre is cropped;
            1.0 loses no border of a square image.
        interpolation: ``bicubic``, ``bilinear`` (both antialiased, as pillow does them) or ``nearest``.

    Raises UsageError for values that mean nothing.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    color: str = "RGB"
    crop_pct: float = 0.9
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean))
        object.__setattr__(self, "std", _three_numbers("std", self.std))
        if min(self.std) <= 0:
            raise UsageError(f"preprocessing std is {list(self.std)}, every entry must be above zero")
        if self.color not in COLORS:
            raise UsageError(f"preprocessing color is {self.color!r}, expected one of {', '.join(COLORS)}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"preprocessing interpolation is {self.interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}"
            )
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise UsageError(f"preprocessing crop_pct is {self.crop_pct!r}, expected a number above 0 and at most 1")
        object.__setattr__(self, "crop_pct", float(self.crop_pct))

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """``mean`` in the order of the input's channels."""
        return self.mean if self.color == "RGB" else self.mean[::-1]

    @property
    def channel_std(self) -> tuple[float, ...]:
        """``std`` in the order of the input's channels."""
        return self.std if self.color == "RGB" else self.std[::-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``from_dict`` reads it back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``. Raises DataError for missing or unknown keys and impossible values."""
        if not isinstance(data, Mapping):
            raise DataError(f"preprocessing is a {type(data).__name__}, expected a table of its settings")
        names = [field.name for field in fields(cls)]
        faults = [f"{name} is missing" for name in names if name not in data]
        faults += [f"{name!r} is unknown" for name in data if name not in names]
        if faults:
            raise DataError(f"preprocessing does not hold exactly {', '.join(names)}: {'; '.join(faults)}")
        try:
            return cls(**{name: data[name] for name in names})
        except UsageError as error:
            raise DataError(error.message) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _three_numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(_is_number(value) for value in values):
        raise UsageError(f"preprocessing {name} is {values!r}, expected three finite numbers")
    return tuple(float(value) for value in values)


def load_pixels(path: Path, size_hw: tuple[int, int], spec: Preprocessing) -> np.ndarray:
    """Decode, turn upright, resize and crop an image file.

    The image is scaled (keeping its proportions) until it covers ``round(size / crop_pct)`` in both directions,
    then the centre is cut out. Transparent images are laid over white, as a page shows them; 16-bit grey is
    scaled to 8 bits; palette, CMYK and other colour models become RGB; of an animation the first frame counts;
    embedded colour profiles are not applied, as in the networks' training. The pixels are bit for bit those of
    torchvision's ``Resize`` and ``CenterCrop`` on pillow images.

    Returns: uint8 ``[H, W, 3]`` in ``spec.color`` order.
    Raises DataError naming the file where it cannot be read, is no image, is truncated, or has more than
    ``MAX_PIXELS`` pixels (before or after resizing); UsageError for an impossible size.
    """
    import numpy as np
    from PIL import Image

    height, width = _checked_size(size_hw)
    image = _decode(Path(path))
    cover_h, cover_w = round(height / spec.crop_pct), round(width / spec.crop_pct)
    if cover_h * image.width >= cover_w * image.height:
        scaled_h, scaled_w = cover_h, image.width * cover_h // image.height
    else:
        scaled_h, scaled_w = image.height * cover_w // image.width, cover_w
    if scaled_h * scaled_w > MAX_PIXELS:  # a strip of 1 x 100 000 pixels must not fill the memory
        raise DataError(
            f"{path} of {image.width} x {image.height} pixels is too narrow to be cut to a {height} x {width}"
        )
    top, left = round((scaled_h - height) / 2), round((scaled_w - width) / 2)
    image = image.resize((scaled_w, scaled_h), Image.Resampling[spec.interpolation.upper()])
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels if spec.color == "RGB" else pixels[..., ::-1])


def normalise(pixels: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """``(pixels / 255 - mean) / std``, channels first.

    Args:
        pixels: uint8 ``[..., H, W, 3]`` in ``spec.color`` order.

    Returns: float32 ``[..., 3, H, W]``, contiguous.
    """
    import numpy as np

    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise UsageError(f"pixels are {pixels.dtype} {list(pixels.shape)}, expected uint8 [..., H, W, 3]")
    mean = np.asarray(spec.channel_mean, dtype=np.float32)
    std = np.asarray(spec.channel_std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))  # [..., H, W, 3] -> [..., 3, H, W]


def load_image(path: Path, size_hw: tuple[int, int], spec: Preprocessing) -> np.ndarray:
    """An image file as an input without its batch axis: float32 ``[3, H, W]``. Errors as ``load_pixels``."""
    return normalise(load_pixels(path, size_hw, spec), spec)


def _checked_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    sizes = tuple(size_hw)
    if len(sizes) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise UsageError(f"image size is {size_hw!r}, expected a height and a width in pixels")
    return sizes[0], sizes[1]


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Truncated files and oversized images are errors, whatever another library has set."""
    from PIL import Image, ImageFile

    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EXIF and TIFF oddities that pillow copes with
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _decode(path: Path) -> Image.Image:
    """The image, upright, in mode ``RGB``."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.exists():
        raise DataError(f"{path}: no such image file")
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected an image file")
    try:
        with _strict_pillow(), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} has {image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no image of a known format ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} has too many pixels, at most {MAX_PIXELS} are read") from error
    except Exception as error:  # pillow's decoders raise whatever a broken file leads them to
        raise DataError(f"{path} is broken: {first_line(error)}") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return _grey_16_bit(np.asarray(image), path).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey_16_bit(values: np.ndarray, path: Path) -> Image.Image:
    """Whole numbers 0..65535 as 8-bit grey; pillow itself would clip them at 255."""
    import numpy as np
    from PIL import Image

    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{path} holds {values.dtype} pixels from {values.min()} to {values.max()}, expected 8 or 16 bits",
            hint="save it with 8 bits a channel",
        )
    return Image.fromarray(np.round(values / 257.0).astype(np.uint8))
