"""The ONNX writer: right numbers, clean files, the same bytes twice, clear errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mobilec.errors import ExportError
from mobilec.export import to_onnx
from support import writing

request_for = partial(writing.request_for, model_file="model.onnx", precision="fp32")


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


def gap(found: np.ndarray, expected: Tensor) -> float:
    wanted = expected.detach().numpy()
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_numbers_names_and_metadata(bare: nn.Module, tmp_path: Path) -> None:
    request = request_for(bare, (IMAGE,), tmp_path)
    written = to_onnx.write(request)
    assert written.options == {"opset": to_onnx.OPSET, "onnxsim": True, "external_data": False}
    assert gap(run(tmp_path / "model.onnx", {"x": IMAGE.numpy()})[0], bare(IMAGE)) < 1e-5
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [opset.version for opset in model.opset_import if not opset.domain] == [to_onnx.OPSET]
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert (model.producer_name, model.doc_string) == ("mobilec", "a small model")
    assert {prop.key: prop.value for prop in model.metadata_props} == {"model": "small", "weights": "RANDOM"}
    modules = {prop.value for node in model.graph.node for prop in node.metadata_props}
    assert {"stem.2", "head"} <= modules
    inferred = {value.name for value in model.graph.value_info}
    outputs = {value.name for value in model.graph.output}
    assert {name for node in model.graph.node for name in node.output} == inferred | outputs


def test_nothing_tells_of_the_machine(bare: nn.Module, tmp_path: Path) -> None:
    to_onnx.write(request_for(bare, (IMAGE,), tmp_path))
    data = (tmp_path / "model.onnx").read_bytes()
    for word in (str(Path(__file__).parent), "site-packages", ".py", "stack_trace", "onnxsim", "fx_node"):
        assert word.encode() not in data


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_same_program_gives_the_same_bytes(bare: nn.Module, tmp_path: Path, precision: str) -> None:
    for name in ("a", "b"):
        to_onnx.write(request_for(bare, (IMAGE,), tmp_path / name, precision=precision))
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_the_batch_stays_open(bare: nn.Module, tmp_path: Path) -> None:
    request = request_for(bare, (IMAGE,), tmp_path, dynamic_batch=True)
    assert request.inputs[0].shape == ("batch", 3, 32, 32)
    to_onnx.write(request)
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    for value in (graph.input[0], graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 32)
        assert gap(run(tmp_path / "model.onnx", {"x": images.numpy()})[0], bare(images)) < 1e-5


def test_half_precision_keeps_float_ends(bare: nn.Module, tmp_path: Path) -> None:
    to_onnx.write(request_for(bare, (IMAGE,), tmp_path, precision="fp16"))
    model = onnx.load(str(tmp_path / "model.onnx"))
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.data_type != onnx.TensorProto.INT64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    found = run(tmp_path / "model.onnx", {"x": IMAGE.numpy()})[0]
    assert 1e-6 < gap(found, bare(IMAGE)) < 5e-3  # half, not float in disguise


class MinMax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, x * 0.5), x - 1)


def test_min_and_max_run_in_half(tmp_path: Path) -> None:
    to_onnx.write(request_for(MinMax(), (IMAGE,), tmp_path, precision="fp16"))
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [node.op_type for node in model.graph.node].count("Cast") == 2  # at both ends only
    assert gap(run(tmp_path / "model.onnx", {"x": IMAGE.numpy()})[0], MinMax()(IMAGE)) < 2e-3


def test_a_weight_that_half_cannot_hold_is_named(bare: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        bare.head.weight[0, 0] = 1e6  # type: ignore[union-attr,index,operator]
    with pytest.raises(ExportError, match=r"tensor head\.weight holds 1e\+06, half precision ends at 65504.*fp32"):
        to_onnx.write(request_for(bare, (IMAGE,), tmp_path, precision="fp16"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_external_data_only_when_needed(bare: nn.Module, tmp_path: Path, precision: str) -> None:
    wide = nn.Sequential(bare, nn.Linear(5, 4000))
    written = to_onnx.write(request_for(wide, (IMAGE,), tmp_path, precision=precision), external_data_bytes=10_000)
    assert written.options == {"opset": to_onnx.OPSET, "onnxsim": False, "external_data": True}
    assert written.notes
    assert (tmp_path / "model.onnx").stat().st_size < 20_000 < (tmp_path / "model.onnx.data").stat().st_size
    limit = 1e-5 if precision == "fp32" else 5e-3
    assert gap(run(tmp_path / "model.onnx", {"input": IMAGE.numpy()})[0], wide(IMAGE)) < limit
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    places = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    assert {entry.value for entry in places} == {"model.onnx.data"}


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 3, 1), nn.ModuleList([nn.ReLU(), Bessel()])

    def forward(self, x: Tensor) -> Tensor:
        return self.odd[1](self.odd[0](self.stem(x)))


def test_an_op_without_translation_is_named_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"bessel_j0.* in odd\.1 \(Bessel\)") as caught:
        to_onnx.write(request_for(Holder().eval(), (IMAGE,), tmp_path))
    assert "\n" not in str(caught.value)
    assert "DispatchError" in caught.value.detail


def test_a_failing_simplifier_is_named(bare: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no luck\nat line 3")

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(ExportError, match=r"^onnxsim cannot simplify the model: no luck$"):
        to_onnx.write(request_for(bare, (IMAGE,), tmp_path))


def test_a_graph_that_breaks_the_rules_is_rejected(
    bare: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simplify = to_onnx._simplify

    def damage(model: onnx.ModelProto) -> onnx.ModelProto:
        model = simplify(model)
        next(node for node in model.graph.node if node.op_type == "Conv").attribute.add(
            name="group", type=onnx.AttributeProto.FLOAT, f=1.0
        )
        return model

    monkeypatch.setattr(to_onnx, "_simplify", damage)
    with pytest.raises(ExportError, match=r"ONNX shape inference failed|onnx\.checker rejects"):
        to_onnx.write(request_for(bare, (IMAGE,), tmp_path))


class Several(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": left + right, "same": left}


def test_several_inputs_and_an_output_that_is_an_input(tmp_path: Path) -> None:
    left, right = torch.randn(1, 4), torch.randn(1, 4)
    to_onnx.write(request_for(Several(), (left, right), tmp_path))
    total, same = run(tmp_path / "model.onnx", {"left": left.numpy(), "right": right.numpy()})
    assert np.array_equal(same, left.numpy())
    assert np.allclose(total, (left + right).numpy())


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None, int, Tensor]:
        return x + 1, None, 3, x.mean((2, 3))


def test_what_is_no_tensor_stays_out(tmp_path: Path) -> None:
    to_onnx.write(request_for(Mixed(), (IMAGE,), tmp_path))
    first, last = run(tmp_path / "model.onnx", {"x": IMAGE.numpy()})
    assert gap(first, IMAGE + 1) < 1e-6
    assert gap(last, IMAGE.mean((2, 3))) < 1e-6


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)


def test_an_output_that_changes_its_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is complex64 .* in PyTorch, and float32 \[.*, 2\] in the ONNX graph"):
        to_onnx.write(request_for(Spectrum(), (IMAGE,), tmp_path))
    assert not (tmp_path / "model.onnx").exists()
