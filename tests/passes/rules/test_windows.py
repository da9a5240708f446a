"""Attention inside windows of a map: cut channels last, or not cut at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import RewriteError
from mobilec.mobile.emov2 import WindowAttention
from mobilec.passes.rules import mask_windows
from mobilec.passes.rules.attend_windows_channels_last import RULE as CHANNELS_LAST
from mobilec.passes.rules.mask_windows import MASKED
from mobilec.passes.rules.mask_windows import RULE as MASK
from mobilec.passes.rules.merge_products import RULE as MERGE_PRODUCTS
from mobilec.passes.rules.simplify_movement import RULE as SIMPLIFY
from mobilec.passes.rules.sink_permutations import RULE as SINK
from support.movement import SwinBlock, WindowedMap
from support.rewriting import FLOAT64_GAP, apply, inputs, lively

SPELLINGS = ["rank 6", "steps", "apart"]
RULES = {"channels last": CHANNELS_LAST, "masked": MASK}


class Steps(WindowedMap):
    """Puts the windows back one axis after the other as well."""

    def join(self, x: Tensor, height: int, width: int) -> Tensor:
        window, depth = self.window, x.shape[2]
        rows, columns = height // window, width // window
        if self.remote:
            x = x.reshape(-1, columns, depth * window * window).transpose(1, 2)
            x = x.reshape(-1, rows, depth * window, width).transpose(1, 2)
        else:
            x = x.reshape(-1, columns, depth * window, window).transpose(1, 2)
            x = x.reshape(-1, rows, depth, window * width).transpose(1, 2)
        return x.reshape(-1, self.heads * depth, height, width)


@pytest.mark.parametrize(("size", "dynamic_batch"), [((6, 6), False), ((6, 3), False), ((6, 6), True)])
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rule", RULES)
def test_windows(rule: str, spelling: str, remote: bool, size: tuple[int, int], dynamic_batch: bool) -> None:
    kind = Steps if spelling == "steps" else WindowedMap
    module = lively(kind(spelling, remote=remote))
    example = inputs((2, 6, *size))
    check = [example, inputs((3, 6, *size))] if dynamic_batch else [example]
    outcome = apply(
        module, example, RULES[rule], "merge_duplicates", "remove_dead_code", dynamic_batch=dynamic_batch, check=check
    )
    assert outcome.evidence[0].rewritten == 1
    assert outcome.gap < FLOAT64_GAP
    again = apply(module, example, RULES[rule], RULES[rule])
    assert [record.rewritten for record in again.evidence] == [1, 0]  # once is enough
    if rule == "masked":
        moved = [node.args for node in outcome.program.graph.nodes if node.target == torch.ops.aten.permute.default]
        assert not moved
        assert outcome.ops["transpose"] <= 2  # q for the scores, the weights for the product
    else:
        assert outcome.ops["gelu"] == 1


class Both(nn.Module):
    """The two partitions of one map, added, as EMOv2 does; between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.close = Steps("steps", remote=False)
        self.remote = Steps("steps", remote=True)
        self.remote.qk, self.remote.v = self.close.qk, self.close.v
        self.out = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.close(x) + self.remote(x))


def test_two_partitions_share_their_scores() -> None:
    rules: tuple[Any, ...] = ("merge_duplicates", MASK, "merge_duplicates", MERGE_PRODUCTS)
    outcome = apply(lively(Both()), inputs((2, 6, 6, 6)), *rules)
    assert outcome.ops["matmul"] == 2  # the scores, and the one product with both weights added
    assert outcome.ops["softmax"] == 2
    assert outcome.gap < FLOAT64_GAP


def test_two_partitions_share_the_way_from_and_to_the_convolutions() -> None:
    rules: tuple[Any, ...] = ("merge_duplicates", SIMPLIFY, CHANNELS_LAST, "merge_duplicates", SINK)
    outcome = apply(lively(Both()), inputs((2, 6, 6, 6)), *rules)
    assert outcome.evidence[-1].rewritten == 1
    assert outcome.ops["gelu"] == 1
    # channels last: q and k, v, and back; windows: q and k, v, and back, of each partition
    assert outcome.ops["permute"] == 3 + 2 * 3
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("size", [(6, 6), (5, 4), (3, 3)])
@pytest.mark.parametrize("rule", RULES)
def test_emov2(rule: str, size: tuple[int, int]) -> None:
    """Both partitions; a map that is no multiple of the window is padded; one window is the same attention twice."""
    module = lively(WindowAttention(6, 10, heads=2, window=3))
    rules: tuple[Any, ...] = ("remove_no_ops", SIMPLIFY, "merge_duplicates", RULES[rule], "merge_duplicates")
    outcome = apply(module, inputs((1, 6, *size)), *rules, MERGE_PRODUCTS, SINK)
    windows = size != (3, 3)
    assert outcome.evidence[3].rewritten == 2 * windows
    assert outcome.ops["softmax"] == 1 + windows
    assert outcome.ops["matmul"] == (4 if windows and rule == "channels last" else 2)
    if rule == "masked" or not windows:  # q for the scores, and the weights for the product
        assert outcome.ops["permute"] + outcome.ops["transpose"] == 2
    assert outcome.gap < FLOAT64_GAP


def test_takes_parts_of_one_convolution_channels_last() -> None:
    class OneProjection(WindowedMap):
        def forward(self, x: Tensor) -> Tensor:
            height, width = x.shape[2:]
            weight = torch.cat([self.qk[0].weight, self.v.weight])  # type: ignore[list-item]
            bias = torch.cat([self.qk[0].bias, self.v.bias])  # type: ignore[list-item]
            qk, v = torch.nn.functional.conv2d(x, weight, bias).split([16, 10], dim=1)
            q, k = self.cut(qk, 4).chunk(2, dim=1)
            out = self.cut(torch.nn.functional.gelu(v), 2) @ (q.transpose(2, 3) @ k).softmax(3).transpose(2, 3)
            return self.join(out, height, width)

    outcome = apply(
        lively(OneProjection("rank 6", remote=True)), inputs((2, 6, 6, 6)), CHANNELS_LAST, "merge_duplicates"
    )
    assert outcome.evidence[0].rewritten == 1
    order = [node.name.split("_default")[0] for node in outcome.program.graph.nodes if node.op == "call_function"]
    assert order.index("permute") < order.index("split_with_sizes")
    assert outcome.gap < FLOAT64_GAP


@pytest.mark.parametrize("rule", RULES)
def test_no_windows_no_rule(rule: str) -> None:
    module = lively(WindowedMap("rank 6", remote=False))
    assert apply(module, inputs((2, 6, 3, 3)), RULES[rule]).rewritten == 0  # one window is the whole map


@pytest.mark.parametrize("rule", RULES)
def test_leaves_scores_with_a_bias(rule: str) -> None:
    module = lively(WindowedMap("apart", remote=False, bias=True))
    assert apply(module, inputs((2, 6, 6, 6)), RULES[rule]).rewritten == 0


@pytest.mark.parametrize("rule", RULES)
def test_leaves_windows_that_are_cut_channels_last_already(rule: str) -> None:
    assert apply(lively(SwinBlock()), inputs((2, 8, 8, 12)), RULES[rule]).rewritten == 0


def test_refuses_to_mask_many_windows() -> None:
    outcome = apply(lively(WindowedMap("rank 6", remote=False)), inputs((2, 6, 9, 6)), MASK)
    assert outcome.reasons == ["6 windows: masking them would multiply the products by as much"]


def test_refuses_to_mask_a_large_map() -> None:
    module = lively(WindowedMap("rank 6", remote=False, window=14))
    outcome = apply(module, inputs((1, 6, 28, 28)), MASK)
    assert outcome.reasons == ["the map has 784 pixels, more than 576"]


def test_leaves_attention_whose_value_is_cut_otherwise() -> None:
    class Mixed(WindowedMap):
        def forward(self, x: Tensor) -> Tensor:
            q, k = self.cut(self.qk[0](x), 4).chunk(2, dim=1)
            self.remote = True
            v = self.cut(self.v(x), 2)
            out = v @ (q.transpose(2, 3) @ k).softmax(3).transpose(2, 3)
            result = self.join(out, *x.shape[2:])
            self.remote = False
            return result

    module = lively(Mixed("rank 6", remote=False))
    for rule in RULES.values():
        assert apply(module, inputs((2, 6, 6, 6)), rule).rewritten == 0


def test_masked_weights_are_zero_and_the_others_as_in_the_window() -> None:
    torch.manual_seed(0)
    scores = 30 * torch.randn(2, 8, 8)
    mask = torch.full((8, 8), MASKED)
    mask[:4, :4] = mask[4:, 4:] = 0.0
    for dtype in (torch.float32, torch.float64, torch.float16):
        weights = (scores.to(dtype) + mask.to(dtype)).softmax(-1)
        assert weights.isfinite().all()
        assert (weights[:, :4, 4:] == 0).all()
        alone = scores[:, :4, :4].to(dtype).softmax(-1)
        assert torch.allclose(weights[:, :4, :4], alone, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_proof_sees_a_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mask_windows.mask
    monkeypatch.setattr(mask_windows, "mask", lambda path: right(path).roll(1, 0))
    with pytest.raises(RewriteError, match="mask_windows"):
        apply(lively(WindowedMap("rank 6", remote=False)), inputs((2, 6, 6, 6)), MASK)
