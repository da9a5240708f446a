from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilec.errors import DataError, UsageError
from mobilec.export.adapt import image_scaling, scale_input
from mobilec.export.calibration import DYNAMIC_BATCH, calibration
from mobilec.export.manifest import InputSpec
from mobilec.mobile.images import probe_images
from mobilec.mobile.preprocessing import Preprocessing, load_image, normalise
from mobilec.passes.capture import capture
from support.artefacts import image_input

TOKENS = InputSpec("tokens", (1, 5), "int64")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, pixels in probe_images((40, 48))[:5]:
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def test_images_become_normalised_batches(pictures: Path) -> None:
    found = calibration([image_input(32)], [pictures])
    assert (found.source, found.made_up, found.total) == ("5 images", False, 5)
    batches = list(found)
    assert [len(batch.names) for batch in batches] == [1] * 5
    first = next(iter(sorted(pictures.iterdir())))
    assert batches[0].names == (str(first),)
    assert np.array_equal(batches[0].tensors["x"][0], load_image(first, (32, 32), Preprocessing()))
    again = [batch.tensors["x"] for batch in found]
    assert all(np.array_equal(a.tensors["x"], b) for a, b in zip(batches, again, strict=True))


def test_a_fixed_batch_is_filled_and_an_open_one_is_not(pictures: Path) -> None:
    fixed = list(calibration([image_input(32, batch=3)], [pictures]))
    assert [batch.tensors["x"].shape[0] for batch in fixed] == [3, 3]
    assert [len(batch.names) for batch in fixed] == [3, 2]
    assert np.array_equal(fixed[1].tensors["x"][2], fixed[1].tensors["x"][0])
    open_ended = list(calibration([image_input(32, batch="batch")], [pictures]))
    assert [batch.tensors["x"].shape[0] for batch in open_ended] == [DYNAMIC_BATCH, 5 - DYNAMIC_BATCH]


def test_without_images_there_are_probes_and_the_source_says_so() -> None:
    spec = image_input(24, preprocessing=Preprocessing(color="BGR").to_dict())
    found = calibration([spec])
    assert found.made_up
    assert found.source == f"{len(probe_images((24, 24)))} built-in pictures"
    name, rgb = probe_images((24, 24))[0]
    first = next(iter(found))
    assert first.names == (name,)
    assert np.array_equal(first.tensors["x"][0], normalise(rgb[..., ::-1], Preprocessing(color="BGR")))


def test_pixels_arrive_as_core_ml_hands_them_on() -> None:
    """An image input is scaled by one number and a bias a channel outside; the graph has the rest."""
    spec = image_input(16)
    program = capture(torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 16, 16),))
    scaled = scale_input(program, 0, image_scaling(Preprocessing()).factor)
    plain, pixels = calibration([spec]), calibration([replace(spec, kind="image")])
    for before, after in zip(plain, pixels, strict=True):
        wanted = program.module()(torch.from_numpy(before.tensors["x"]))
        found = scaled.module()(torch.from_numpy(after.tensors["x"]))
        assert torch.allclose(wanted, found, atol=1e-5)
        assert not np.allclose(before.tensors["x"], after.tensors["x"], atol=0.1)


def test_other_inputs_are_made_up() -> None:
    both = list(calibration([image_input(16), TOKENS]))
    assert both[0].tensors["tokens"].dtype == np.int64
    alone = calibration([TOKENS])
    assert alone.source == f"{alone.total} kinds of made-up tensors"
    assert len(list(alone)) == alone.total
    open_ended = next(iter(calibration([InputSpec("z", ("batch", 3), "float32")])))
    assert open_ended.tensors["z"].shape == (1, 3)


def test_a_broken_image_is_reported_and_the_rest_is_used(pictures: Path) -> None:
    broken = pictures / "a_broken.png"
    broken.write_bytes(b"no picture")
    batches = list(calibration([image_input(32)], [pictures]))
    assert [message for batch in batches for message in batch.unreadable] == [
        f"{broken} is no image of a known format ({', '.join(_formats())})"
    ]
    assert sum(len(batch.names) for batch in batches) == 5
    with pytest.raises(DataError, match="none of 1 images can be read"):
        list(calibration([image_input(32)], broken))


def test_images_for_a_model_without_images_are_refused(pictures: Path) -> None:
    with pytest.raises(UsageError, match=r"tokens \[1, 5\]"):
        calibration([TOKENS], [pictures])
    with pytest.raises(DataError, match="no such image"):
        calibration([image_input(32)], [pictures / "missing"])


def _formats() -> tuple[str, ...]:
    from mobilec.mobile.preprocessing import FORMATS

    return FORMATS
