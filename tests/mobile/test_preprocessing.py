from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mobilec.errors import DataError, UsageError
from mobilec.mobile.preprocessing import MAX_PIXELS, Preprocessing, load_image, load_pixels, normalise

WHOLE = Preprocessing(crop_pct=1.0, interpolation="nearest")


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    base = 127 + 90 * np.sin(y / 5)[..., None] * np.cos(
        x / np.array([3, 7, 11, 13][:channels])[:, None, None]
    ).transpose(1, 2, 0)
    return np.clip(base + generator.normal(0, 10, base.shape), 0, 255).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(("height", "width"), [(37, 90), (300, 200), (64, 64), (20, 25)])
@pytest.mark.parametrize("size_hw", [(64, 64), (48, 96)])
def test_pixels_are_those_of_resizing_the_whole_image_and_cropping_it(
    tmp_path: Path, height: int, width: int, size_hw: tuple[int, int], interpolation: str
) -> None:
    path = saved(tmp_path / "a.png", photo(height, width))
    got = load_pixels(path, size_hw, Preprocessing(crop_pct=0.8, interpolation=interpolation))
    cover = [round(size / 0.8) for size in size_hw]
    scale = max(cover[0] / height, cover[1] / width)
    scaled = [int(height * scale + 1e-6), int(width * scale + 1e-6)]  # the longer side is cut to whole pixels
    top, left = (round((whole - size) / 2) for whole, size in zip(scaled, size_hw, strict=True))
    whole = Image.open(path).resize((scaled[1], scaled[0]), Image.Resampling[interpolation.upper()])
    expected = np.asarray(whole)[top : top + size_hw[0], left : left + size_hw[1]]
    assert got.shape == (*size_hw, 3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_crop_pct_decides_how_much_border_is_lost(tmp_path: Path) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[10:90, 10:90] = 200  # a frame of ten pixels
    path = saved(tmp_path / "frame.png", pixels)
    assert load_pixels(path, (80, 80), Preprocessing(crop_pct=0.8)).min() == 200
    assert load_pixels(path, (80, 80), Preprocessing(crop_pct=1.0)).min() == 0


def test_bgr_reverses_channels_and_their_statistics(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", photo(40, 40))
    rgb = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    bgr = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), color="BGR")
    np.testing.assert_array_equal(load_pixels(path, (32, 32), bgr), load_pixels(path, (32, 32), rgb)[..., ::-1])
    np.testing.assert_array_equal(load_image(path, (32, 32), bgr), load_image(path, (32, 32), rgb)[::-1])
    assert bgr.channel_mean == (0.3, 0.2, 0.1)
    assert bgr.channel_std == (0.6, 0.5, 0.4)
    assert rgb.channel_mean == rgb.mean


def test_normalise_against_a_hand_computed_value() -> None:
    pixels = np.zeros((2, 4, 5, 3), np.uint8)
    pixels[1, 2, 3] = (255, 51, 0)
    out = normalise(pixels, Preprocessing(mean=(0.5, 0.1, 0.25), std=(0.5, 0.2, 0.125)))
    assert out.shape == (2, 3, 4, 5)
    assert out.dtype == np.float32
    assert out.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(out[1, :, 2, 3], [1.0, 0.5, -2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_normalise_refuses_what_is_not_pixels(pixels: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 \[..., H, W, 3\]"):
        normalise(pixels, Preprocessing())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    upright = photo(20, 30)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif.tobytes())
    np.testing.assert_array_equal(load_pixels(path, (20, 30), WHOLE), upright)


def test_every_pixel_format_becomes_rgb(tmp_path: Path) -> None:
    rgb = photo(16, 16)
    grey = rgb[..., 0]

    def load(name: str, image: Image.Image) -> np.ndarray:
        image.save(tmp_path / name)
        return load_pixels(tmp_path / name, (16, 16), WHOLE)

    three = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(load("grey.png", Image.fromarray(grey)), three)
    np.testing.assert_array_equal(load("bits.png", Image.fromarray(grey).convert("1", dither=0)) > 0, three > 127)
    palette = Image.fromarray(rgb).convert("P")
    np.testing.assert_array_equal(load("palette.png", palette), np.asarray(palette.convert("RGB")))
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(load("deep.png", Image.fromarray(deep)), three)
    np.testing.assert_array_equal(load("deep.tif", Image.fromarray(deep)), three)
    np.testing.assert_array_equal(load("wide.tif", Image.fromarray(deep.astype(np.int32))), three)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(load("cmyk.tif", cmyk), np.asarray(cmyk.convert("RGB")))


def test_transparent_pixels_are_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 200  # red under everything
    rgba[:4, :, 3] = 255
    rgba[6:, :, 3] = 128
    path = saved(tmp_path / "a.png", rgba)
    got = load_pixels(path, (8, 8), WHOLE)
    assert got[0, 0].tolist() == [200, 0, 0]
    assert got[4, 0].tolist() == [255, 255, 255]
    assert abs(int(got[7, 0, 1]) - 127) <= 1
    grey_alpha = np.dstack([np.full((8, 8), 10, np.uint8), np.zeros((8, 8), np.uint8)])
    assert load_pixels(saved(tmp_path / "la.png", grey_alpha), (8, 8), WHOLE).min() == 255
    palette = Image.fromarray(rgba[..., :3]).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert load_pixels(tmp_path / "p.png", (8, 8), WHOLE)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -3, np.int32), np.full((4, 4), 70_000, np.int32)]
)
def test_numbers_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected 8 or 16 bits") as caught:
        load_pixels(saved(tmp_path / "a.tif", values), (4, 4), WHOLE)
    assert "a.tif" in str(caught.value)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 1000) + b"IDAT"


def test_broken_files_are_named_in_one_line(tmp_path: Path) -> None:
    jpeg = saved(tmp_path / "good.jpg", photo(64, 64)).read_bytes()
    png = saved(tmp_path / "good.png", photo(64, 64)).read_bytes()
    cases = {
        "short.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "short.png": (png[: len(png) // 2], "broken"),
        "empty.jpg": (b"", "no image of a known format"),
        "page.jpg": (b"<html>404</html>", "no image of a known format"),
        "drawing.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        "bomb.png": (png_header(60_000, 60_000), "too many pixels"),
        "large.png": (png_header(12_000, 12_000), "too many pixels"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            load_pixels(tmp_path / name, (32, 32), Preprocessing())
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
    with pytest.raises(DataError, match="no such image file"):
        load_pixels(tmp_path / "absent.jpg", (32, 32), Preprocessing())
    with pytest.raises(DataError, match="is a folder"):
        load_pixels(tmp_path, (32, 32), Preprocessing())


def test_the_pixel_limit_holds_when_pillow_s_own_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "large.png").write_bytes(png_header(12_000, 12_000))
    assert MAX_PIXELS < 12_000**2
    with pytest.raises(DataError, match="12000 x 12000 pixels"):
        load_pixels(tmp_path / "large.png", (32, 32), Preprocessing())


def test_truncated_files_are_refused_even_where_pillow_was_told_to_accept_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = saved(tmp_path / "a.jpg", photo(64, 64))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.jpg is broken"):
        load_pixels(path, (32, 32), Preprocessing())
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_small_and_narrow_images_fill_the_input(tmp_path: Path, height: int, width: int) -> None:
    path = saved(tmp_path / "strip.png", photo(height, width))
    pixels = load_pixels(path, (224, 192), Preprocessing())
    assert pixels.shape == (224, 192, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 30_000), (30_000, 1)])
def test_strips_whose_enlargement_would_fill_the_memory_are_refused(tmp_path: Path, height: int, width: int) -> None:
    path = saved(tmp_path / "strip.png", photo(height, width))
    with pytest.raises(DataError, match=rf"strip\.png of {width} x {height} pixels is too narrow"):
        load_pixels(path, (224, 224), Preprocessing())


def test_loading_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", photo(90, 70))
    first, second = (load_image(path, (64, 64), Preprocessing()) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.shape == (3, 64, 64)


@pytest.mark.parametrize("size_hw", [(0, 4), (4, -1), (4,), (4.0, 4), (True, 4)])
def test_impossible_sizes_are_refused(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    path = saved(tmp_path / "a.png", photo(8, 8))
    with pytest.raises(UsageError, match="expected a height and a width"):
        load_pixels(path, size_hw, Preprocessing())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": (0.5,)}, "mean is .* expected three"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean is .* expected three finite"),
        ({"mean": "abc"}, "expected three"),
        ({"std": (0.2, 0.0, 0.2)}, "std is .* above zero"),
        ({"std": (0.2, -1.0, 0.2)}, "above zero"),
        ({"std": (0.2, True, 0.2)}, "expected three"),
        ({"color": "rgb"}, "expected one of RGB, BGR"),
        ({"interpolation": "lanczos"}, "expected one of bicubic"),
        ({"crop_pct": 0.0}, "above 0 and at most 1"),
        ({"crop_pct": 1.01}, "above 0 and at most 1"),
        ({"crop_pct": float("inf")}, "above 0"),
        ({"crop_pct": "1"}, "above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Preprocessing(**settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        Preprocessing.from_dict(Preprocessing().to_dict() | settings)


@given(
    mean=st.tuples(*[st.floats(-10, 10)] * 3),
    std=st.tuples(*[st.floats(1e-6, 10)] * 3),
    color=st.sampled_from(["RGB", "BGR"]),
    crop_pct=st.floats(0.01, 1),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
)
@settings(max_examples=40, deadline=None)
def test_a_round_trip_through_json_changes_nothing(
    mean: tuple[float, ...], std: tuple[float, ...], color: str, crop_pct: float, interpolation: str
) -> None:
    spec = Preprocessing(mean, std, color, crop_pct, interpolation)
    assert Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_from_dict_names_missing_and_unknown_keys() -> None:
    data = Preprocessing().to_dict()
    data["resize"] = data.pop("crop_pct")
    with pytest.raises(DataError, match="crop_pct is missing; 'resize' is unknown"):
        Preprocessing.from_dict(data)
    with pytest.raises(DataError, match="is a list, expected a table"):
        Preprocessing.from_dict([])  # type: ignore[arg-type]


def test_the_tables_load_without_heavy_packages() -> None:
    code = (
        "import sys, mobilec.mobile.preprocessing, mobilec.mobile.zoo, mobilec.mobile.provenance;"
        "heavy = 'torch numpy PIL coremltools onnx onnxruntime scipy safetensors'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
