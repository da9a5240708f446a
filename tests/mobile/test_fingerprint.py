"""Provenance follows the weights: what was drawn and then changed is no longer called random."""

from __future__ import annotations

import copy

import pytest
import torch

from mobilec import create_model
from mobilec.mobile.fingerprint import fingerprint, provenance_of


def _model() -> torch.nn.Module:
    return create_model("shvit_s1", num_classes=3)


def _train(model: torch.nn.Module) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    model.train()(torch.ones(2, 3, 64, 64)).sum().backward()
    optimiser.step()


def test_untouched_weights_stay_random() -> None:
    model = _model()
    for same in (model, copy.deepcopy(model), copy.deepcopy(model).double(), model.train()):
        found = provenance_of(same)
        assert found is not None
        assert found.weights.source == "random"


@pytest.mark.parametrize("change", ["load", "train", "one scalar", "statistics"])
def test_changed_weights_are_given(change: str) -> None:
    model = _model()
    with torch.no_grad():
        if change == "load":
            model.load_state_dict(create_model("shvit_s1", num_classes=3, seed=1).state_dict())
        elif change == "one scalar":
            model.head.l.bias[0] += 1e-3
        elif change == "statistics":
            model.train()(torch.ones(2, 3, 64, 64))
    if change == "train":
        _train(model)
    found = provenance_of(model)
    assert found is not None
    assert found.weights.source == "given"
    assert found.model == "shvit_s1"


def test_a_plain_module_has_none() -> None:
    assert provenance_of(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize("module", [torch.nn.LazyLinear(2), torch.nn.Linear(2, 2, device="meta")])
def test_tensors_without_numbers_are_passed_over(module: torch.nn.Module) -> None:
    assert fingerprint(module) == fingerprint(torch.nn.ReLU())
