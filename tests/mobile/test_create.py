from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mobilec
from mobilec.errors import CheckpointError, MobilecError, ModelError, UsageError
from mobilec.mobile.initialise import probe_images
from mobilec.mobile.preprocessing import Preprocessing
from mobilec.mobile.zoo import find_variant
from support.reference import load_reference, reference_input

SMALLEST = ("mobilevig_ti", "shvit_s1", "ghostnetv2_100", "care_s0", "eca_mobilenetv2", "eca_resnet18", "emov2_1m")


def images(count: int, size: int) -> Tensor:
    return torch.from_numpy(probe_images(77, count, (size, size)))


def weak_parameters(model: nn.Module, x: Tensor) -> list[str]:
    """Parameters that hardly count: how far a change by one per cent of each would move the logits, to first order."""
    logits = model(x)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((logits * direction).sum(), list(model.parameters()))
    moves = {
        name: float((gradient * value.detach()).norm() / logits.detach().norm())
        for (name, value), gradient in zip(model.named_parameters(), gradients, strict=True)
    }
    return [name for name, move in moves.items() if not move > 1e-5]


@pytest.mark.parametrize("name", SMALLEST)
def test_random_weights_make_every_parameter_count(name: str) -> None:
    model = mobilec.create_model(name)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert weak_parameters(model, images(2, 96)) == []
    resolution = find_variant(name)[1].resolution
    with torch.no_grad():
        logits = model(images(2, resolution))
    assert logits.shape == (2, 1000)
    assert logits.isfinite().all()
    assert 0.3 < logits.std() < 30
    assert (logits[0] - logits[1]).std() > 0.05 * logits.std()


def test_the_check_above_sees_what_default_initialisation_hides() -> None:
    from mobilec.mobile.mobilevig import MobileViG

    hidden = MobileViG(**find_variant("mobilevig_ti")[1].config).eval()
    drawn = mobilec.create_model("mobilevig_ti")
    with torch.no_grad():
        for name, value in hidden.named_parameters():
            value.copy_(drawn.get_parameter(name))
            if "layer_scale" in name:
                value.fill_(1e-6)
    weak = weak_parameters(hidden, images(2, 96))
    assert sum("layer_scale" in name for name in weak) > 5


def test_random_weights_say_so_and_repeat() -> None:
    state = torch.get_rng_state()
    first, second = (mobilec.create_model("ghostnetv2_100", seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.provenance.weights.source == "random"
    assert first.provenance.weights.seed == 3
    assert "RANDOM" in first.provenance.weights.summary
    x = images(1, 64)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
        assert not torch.equal(first(x), mobilec.create_model("ghostnetv2_100")(x))


def test_provenance_tells_what_a_manifest_needs() -> None:
    model = mobilec.create_model("emov2_1m_256", num_classes=7)
    provenance = model.provenance
    assert provenance.model == "emov2_1m_256"
    assert provenance.origin == "zoo"
    assert provenance.resolution == (256, 256)
    assert provenance.output_names == ("logits",)
    assert provenance.preprocessing == Preprocessing()
    assert provenance.config["num_classes"] == 7
    assert provenance.config["features_only"] is False
    assert set(find_variant("emov2_1m_256")[1].config) <= set(provenance.config)
    json.dumps(asdict(provenance))
    with torch.no_grad():
        assert model(images(2, 64)).shape == (2, 7)


def test_features_only_gives_named_stage_maps_of_the_same_weights() -> None:
    whole, features = mobilec.create_model("shvit_s1"), mobilec.create_model("shvit_s1", features_only=True)
    with torch.no_grad():
        maps = features(images(1, 128))
    assert features.provenance.output_names == tuple(f"features_{index}" for index in range(len(maps)))
    assert len(maps) > 1
    names = set(features.state_dict())
    assert names == {name for name in whole.state_dict() if not name.startswith(whole.HEAD_PREFIXES)}
    assert all(torch.equal(features.state_dict()[name], whole.state_dict()[name]) for name in names)


def test_a_wrapped_release_gives_the_golden_logits(tmp_path: Path) -> None:
    reference = load_reference("shvit_s1")
    path = tmp_path / "shvit_s1.pth"
    released = {f"module.{name}": value for name, value in reference.state_dict.items()}
    torch.save({"model": released, "epoch": 300}, path)
    model = mobilec.create_model("shvit_s1", checkpoint=path)
    assert model.provenance.weights.source == "checkpoint"
    assert not model.training
    with torch.no_grad():
        logits = model(torch.from_numpy(reference_input(reference.resolution)))
    golden = torch.from_numpy(reference.logits)
    assert (logits - golden).abs().max() < 2e-5 * golden.abs().max()

    features = mobilec.create_model("shvit_s1", checkpoint=str(path), features_only=True)
    assert features.provenance.weights.sha256 == model.provenance.weights.sha256


def test_class_counts_and_replaced_heads(tmp_path: Path) -> None:
    ten = mobilec.create_model("shvit_s1", num_classes=10, seed=9)
    path = tmp_path / "ten.pth"
    torch.save(ten.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"has 10 classes, the model 1000 .*--num-classes 10 .*--replace-head"):
        mobilec.create_model("shvit_s1", checkpoint=path)
    kept = mobilec.create_model("shvit_s1", checkpoint=path, num_classes=10)
    assert torch.equal(kept.state_dict()["head.l.weight"], ten.state_dict()["head.l.weight"])
    new = mobilec.create_model("shvit_s1", checkpoint=path, replace_head=True, seed=4)
    assert new.provenance.weights.random_tensors == ("head.l.weight", "head.l.bias")
    assert new.provenance.weights.seed == 4
    assert torch.equal(new.state_dict()["head.bn.weight"], ten.state_dict()["head.bn.weight"])
    assert new.state_dict()["head.l.weight"].shape[0] == 1000


def test_a_file_of_another_variant_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "s2.pth"
    torch.save({"model": load_reference("shvit_s2").state_dict}, path)
    with pytest.raises(CheckpointError, match=r"does not fit SHViT: .*misshapen.*; it fits shvit_s2$"):
        mobilec.create_model("shvit_s1", checkpoint=path)
    torch.save({"w": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="does not fit SHViT") as caught:
        mobilec.create_model("shvit_s1", checkpoint=path)
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("shvit_s11", {}, "unknown model 'shvit_s11'; did you mean shvit_s1"),
        ("shvit_s1", {"num_classes": 0}, "num_classes is 0, expected a whole number of at least 1"),
        ("shvit_s1", {"num_classes": 10.0}, "num_classes is 10.0"),
        ("shvit_s1", {"num_classes": True}, "num_classes is True"),
        ("shvit_s1", {"seed": -1}, "seed is -1"),
        ("shvit_s1", {"replace_head": True}, "replace_head goes with a checkpoint"),
        ("shvit_s1", {"replace_head": True, "features_only": True, "checkpoint": "a.pth"}, "which has no head"),
    ],
)
def test_impossible_arguments(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        mobilec.create_model(name, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_a_head_that_no_memory_holds() -> None:
    with pytest.raises(ModelError, match="shvit_s1 with num_classes=1000000000000000 cannot be built") as caught:
        mobilec.create_model("shvit_s1", num_classes=10**15)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_never_becomes_random_weights(tmp_path: Path) -> None:
    with pytest.raises(MobilecError, match="no such weights file"):
        mobilec.create_model("shvit_s1", checkpoint=tmp_path / "absent.pth")
    with pytest.raises(MobilecError, match="is a folder"):
        mobilec.create_model("shvit_s1", checkpoint="")
