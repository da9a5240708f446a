"""Nothing above four axes is left of the movements that people write."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobilec.passes.rules.lower_movement_rank import RULE
from mobilec.passes.rules.select_before_permute import RULE as SELECT
from mobilec.passes.rules.simplify_movement import RULE as SIMPLIFY
from support.movement import ChannelShuffle, MobileViTUnfold, PixelShuffleByHand, SwinBlock, ViTAttention
from support.rewriting import apply, inputs, lively


def most_axes(program: ExportedProgram) -> int:
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "call_function"]
    return max(value.dim() for value in values if isinstance(value, Tensor))


class Between(nn.Module):
    """A permutation of one tensor between two operators that do something."""

    def __init__(self, sizes: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes, self.dims = sizes, dims

    def forward(self, x: Tensor) -> Tensor:
        y = x.sin().reshape(self.sizes).permute(self.dims)
        return y.reshape(y.shape[0], -1).cos()


CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "swin": (SwinBlock(), (2, 8, 12, 12), 6),
    "swin, shifted": (SwinBlock(shift=2), (2, 8, 12, 12), 6),
    "mobilevit": (MobileViTUnfold(), (2, 8, 6, 4), 5),
    "pixel shuffle": (PixelShuffleByHand(), (2, 4, 5, 6), 2),
    "channel shuffle": (ChannelShuffle(), (2, 8, 5, 6), 1),
    "rank 7": (Between((2, 3, 2, 2, 3, 2, 2), (4, 2, 0, 6, 3, 5, 1)), (2, 144), 3),
}


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_lowers(case: str, dynamic_batch: bool) -> None:
    module, shape, permutations = CASES[case]
    if case == "rank 7" and dynamic_batch:
        module = Between((-1, *module.sizes[1:]), module.dims)  # type: ignore[misc, index]
    example = inputs(shape)
    other = inputs((3, *shape[1:])) if dynamic_batch else example
    rules = (SELECT, SIMPLIFY, RULE, "remove_dead_code")
    outcome = apply(lively(module), example, *rules, dynamic_batch=dynamic_batch, check=[example, other])
    assert most_axes(outcome.program) <= 4
    assert outcome.gap == 0.0
    assert outcome.ops["permute"] <= permutations  # one a tensor that is cut, moved or put back


def test_a_swin_partition_is_one_permutation() -> None:
    class Partition(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin().view(2, 2, 4, 3, 4, 12).permute(0, 1, 3, 2, 4, 5).contiguous()
            return y.view(-1, 16, 12).cos()

    outcome = apply(Partition(), inputs((2, 8, 12, 12)), RULE)
    assert outcome.ops == {"sin": 1, "cos": 1, "reshape": 2, "permute": 1}
    assert most_axes(outcome.program) <= 4
    assert outcome.gap == 0.0


def test_refuses_too_many_axes() -> None:
    module = Between((2,) * 8, (1, 3, 5, 7, 0, 2, 4, 6)[::-1])
    outcome = apply(module, inputs((2, 128)), RULE)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["it permutes 8 axes, too many to search for the fewest steps"]


def test_leaves_a_tensor_of_many_axes_that_something_else_reads() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin().reshape(2, 2, 3, 2, 2).permute(0, 3, 2, 1, 4)
            return y.cos()

    outcome = apply(Reads(), inputs((2, 24)), RULE)
    assert outcome.ops["cos"] == 1
    assert most_axes(outcome.program) == 5
    assert outcome.gap == 0.0


HOWS = ["unbind", "index", "parts innermost", "parts in a head", "not permuted"]


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("how", HOWS)
def test_takes_q_k_and_v_first(how: str, dynamic_batch: bool) -> None:
    example = inputs((2, 7, 12))
    check = [example, inputs((3, 7, 12))] if dynamic_batch else [example]
    module = lively(ViTAttention(how))
    outcome = apply(module, example, "remove_no_ops", SELECT, RULE, dynamic_batch=dynamic_batch, check=check)
    assert outcome.evidence[1].rewritten == (1 if how in ("unbind", "parts innermost", "parts in a head") else 3)
    assert most_axes(outcome.program) <= 4
    assert outcome.ops["unbind"] == 0
    assert outcome.gap < 1e-15


def test_leaves_parts_of_a_tensor_that_is_read_whole() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.sin().reshape(2, 3, 3, 2, 2).permute(2, 0, 3, 1, 4)
            return y[0].cos(), y.sum((0, 1))

    outcome = apply(Whole(), inputs((2, 36)), SELECT)
    assert outcome.rewritten == 0
    assert outcome.reasons == ["the tensor of more than four axes is read as a whole elsewhere"]


def test_leaves_parts_of_small_tensors() -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.sin().reshape(2, 3, 12).transpose(0, 1)
            return y[0] + y[1]

    assert apply(Small(), inputs((2, 36)), SELECT).rewritten == 0


def test_the_proof_sees_a_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilec.errors import RewriteError
    from mobilec.passes.patterns.movement import identity
    from mobilec.passes.rules import lower_movement_rank

    def wrong(movement, most):  # type: ignore[no-untyped-def]
        return (identity(movement.source).reshaped(movement.shape),)

    monkeypatch.setattr(lower_movement_rank, "steps", wrong)
    with pytest.raises(RewriteError, match="lower_movement_rank"):
        apply(PixelShuffleByHand().double(), inputs((2, 4, 5, 6)), RULE)
