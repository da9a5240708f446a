"""Architectures that no kernel was written for, as the native pipeline leaves them, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from mobilec.errors import ExportError
from mobilec.passes.capture import capture
from mobilec.passes.pipelines import pipeline
from mobilec.passes.rewrite import rewrite
from support.native import run_program
from support.rewriting import inputs, lively
from support.strangers import STRANGERS

LIMIT = 1e-5  # of the largest number
WITHOUT = {
    "alexnet": r"aten\.avg_pool3d\.default in 2 \(LocalResponseNorm\)",
    "conditional convolution": "is computed as the model runs, native kernels need it as a constant",
    "video": r"aten\.conv3d\.default in layers\.0 \(Conv3d\)",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_by_native_kernels(name: str) -> None:
    stranger = STRANGERS[name]
    module = lively(stranger.build()).float()
    example, image = (tuple(each.float() for each in inputs(*stranger.shapes, seed=seed)) for seed in (1, 5))
    program = rewrite(capture(module, example), pipeline("native"), proof=False).program
    if name in WITHOUT:
        with pytest.raises(ExportError, match=WITHOUT[name]):
            run_program(program, image)
        return
    with torch.no_grad():
        wanted = [each.numpy() for each in pytree.tree_leaves(module(*(each.clone() for each in image)))]
    found = run_program(program, image)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= LIMIT * np.abs(theirs).max()
