"""The compressed program: what it computes, what stays as it is, what is measured of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from export.compress.nets import IMAGE, SIZE, Net, probes, program_of
from PIL import Image
from torch import Tensor, nn

from mobilec.errors import DataError, ExportError, UsageError
from mobilec.export.calibration import calibration
from mobilec.export.compress.compress import compress
from mobilec.export.compress.fidelity import Tally
from mobilec.export.compress.layers import find_layers, kept
from mobilec.export.compress.running import Runner
from mobilec.export.compress.schemes import W8A8, WEIGHT_SCHEMES, Compression, Format, Limit

ONNX = Format(half=False, signed=False, integer_bias=True, grouped=False)
COREML = Format(half=True, signed=True, integer_bias=False, grouped=False)
PALETTE = Compression(WEIGHT_SCHEMES["palettize4"], COREML)


def quiet(stage: str) -> None:
    pass


@pytest.fixture(scope="module")
def program():
    return program_of(Net())


def weights_of(program):
    """Layer by name -> the weight it computes with."""
    return {layer.name: layer.weight for layer in find_layers(program)}


def test_layers_are_found_with_what_they_are(program):
    layers = find_layers(program)
    assert [layer.kind for layer in layers] == ["conv2d", *["depthwise conv2d", "conv2d"] * 2, "linear"]
    assert [layer.where for layer in layers][1:3] == ["blocks.0.depthwise", "blocks.0.project"]
    assert [layer.end.partition("_")[0] for layer in layers] == ["relu", "relu", "conv2d", "relu", "conv2d", "linear"]
    assert [layer.ends_program for layer in layers] == [False] * 5 + [True]


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.layer.weight[:] = torch.tensor([[1.27, -0.634, 0.0], [0.127, 0.0, 0.0]]).reshape(2, 3, 1, 1)
            self.layer.bias[:] = torch.tensor([0.5, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3))


def test_one_layer_by_hand():
    """Inputs of -2.55 to 0 and outputs by hand: steps of 0.01 at the input, 0.01 and 0.001 in the weights."""
    program = program_of(OneLayer())
    spec = replace(IMAGE, preprocessing={**IMAGE.preprocessing, "mean": (1, 1, 1), "std": (1 / 2.55,) * 3})
    pictures = calibration([spec])
    done = compress(program, Compression(W8A8, ONNX), pictures, quiet)
    x = torch.full((1, 3, SIZE, SIZE), -1.004)
    quantised = Runner(done.program).run([x])[0]
    # -1.00 * (127 - 63) * 0.01 + 0.5, then the output's own steps
    exact = torch.tensor([[-1.0 * 0.64 + 0.5, -1.0 * 0.127]])
    step = done.report["estimate"]["psnr_db"]
    assert step > 30
    torch.testing.assert_close(quantised, exact, atol=0.012, rtol=0)
    assert not torch.equal(quantised, Runner(program).run([x])[0])


def test_8_bit_weights_are_integers_with_a_scale_for_each_channel(program):
    done = compress(program, Compression(WEIGHT_SCHEMES["int8"], ONNX), probes(), quiet).program
    integers = [tensor for tensor in done.state_dict.values() if tensor.dtype == torch.int8 and tensor.dim() > 1]
    assert sorted(tuple(t.shape) for t in integers) == sorted(tuple(w.shape) for w in weights_of(program).values())
    scales = {name: tensor for name, tensor in done.state_dict.items() if "scale" in name}
    assert sorted(len(scale) for scale in scales.values()) == [10, 32, 32, 32, 32, 32]
    assert not any("quantize_per_tensor" in str(node.target) for node in done.graph.nodes)


@pytest.mark.parametrize("compression", [Compression(W8A8, ONNX), Compression(W8A8, COREML), PALETTE])
def test_the_estimate_is_what_the_program_computes(program, compression):
    samples = probes()
    done = compress(program, compression, samples, quiet)
    tally = Tally()
    for feeds in samples:
        x = [torch.from_numpy(feeds.tensors["x"])]
        tally.add(Runner(program).run(x), Runner(done.program).run(x), 1)
    found = tally.close()
    estimate = done.report["estimate"]
    assert (estimate["psnr_db"], estimate["same_top1"]) == (found.psnr_db, found.same_top1)
    assert 10 < found.psnr_db < 60
    assert estimate["samples"] == estimate["classified"] == 10
    json.dumps(done.report, allow_nan=False)
    assert done.report["weight_bytes"] < 0.6 * done.report["weight_bytes_before"]


def test_more_bits_cost_less(program):
    cost = {
        name: compress(program, Compression(scheme, COREML), probes(), quiet).report["estimate"]["mean_psnr_db"]
        for name, scheme in WEIGHT_SCHEMES.items()
        if name != "palettize8"  # too small a net for tables of 256
    }
    assert cost["palettize4"] + 6 < cost["palettize6"] < cost["int8"]


def test_activations_cost_on_top(program):
    alone, both = (
        compress(program, Compression(scheme, ONNX), probes(), quiet).report["estimate"]["mean_psnr_db"]
        for scheme in (WEIGHT_SCHEMES["int8"], W8A8)
    )
    assert both < alone


@pytest.mark.parametrize("compression", [Compression(W8A8, ONNX), PALETTE])
def test_layers_that_are_kept_are_float(program, compression):
    done = compress(program, replace(compression, keep=("depthwise", "head")), probes(), quiet)
    before, after = weights_of(program), weights_of(done.program)
    layers = {layer.name: layer for layer in find_layers(program)}
    for name in [name for name, layer in layers.items() if "depthwise" in layer.kind or layer.where == "head"]:
        assert torch.equal(after[name], before[name])
    changed = [name for name in before if name not in after or not torch.equal(after[name], before[name])]
    assert len(changed) == 3
    left = done.report["left_out"]
    assert [item["where"] for item in left] == ["blocks.0.depthwise", "blocks.1.depthwise", "head"]
    assert {item["why"] for item in left} == {"named with --keep"}
    assert (done.report["layers"], done.report["compressed"]) == (6, 3)


def test_a_kept_layer_reads_what_others_read_in_float(program):
    """The head's input is its own; nothing quantises it when the head is kept."""
    done = compress(program, Compression(W8A8, ONNX, keep=("head",)), probes(), quiet).program
    head = next(node for node in done.graph.nodes if "linear" in str(node.target))
    assert "quantize" not in str(head.args[0].target)


def test_names_that_no_layer_has(program):
    with pytest.raises(UsageError, match="no layer of this model is called 'haed'; did you mean head"):
        compress(program, replace(PALETTE, keep=("haed",)), probes(), quiet)
    with pytest.raises(UsageError, match="no layer of this model is called 'relu'"):  # a node, but no layer
        kept(program, find_layers(program), ("relu",))


def test_nothing_left(program):
    with pytest.raises(ExportError, match="nothing is left to compress"):
        compress(program, replace(PALETTE, keep=("*",)), probes(), quiet)
    with pytest.raises(ExportError, match="nothing to compress"):
        compress(program_of(nn.Sequential(nn.ReLU(), nn.Flatten())), PALETTE, probes(), quiet)


def test_broken_numbers_are_named():
    broken = Net()
    broken.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match="a weight of linear in head is infinite or no number"):
        compress(program_of(broken), PALETTE, probes(), quiet)
    loud = Net()
    loud.stem.bias.data[0] = 3e38
    loud.blocks[0].depthwise.weight.data[0] = 9.0
    with pytest.raises(ExportError, match="is infinite or no number on calibration inputs"):
        compress(program_of(loud), Compression(W8A8, ONNX), probes(), quiet)


def test_layers_are_left_out_until_the_limit_holds(program):
    free = compress(program, PALETTE, probes(), quiet).report["estimate"]["psnr_db"]
    done = compress(program, replace(PALETTE, limit=Limit(psnr_db=free + 6)), probes(), quiet).report
    assert done["estimate"]["psnr_db"] >= free + 6
    left = [item["name"] for item in done["left_out"]]
    assert 0 < len(left) < 6
    by_cost = sorted(done["sensitivity"], key=lambda item: item["psnr_db"])
    assert len(by_cost) == 6
    assert {item["name"] for item in by_cost[: len(left)]} == set(left)
    # each alone costs no less than all together
    assert all(item["psnr_db"] > free - 3 for item in by_cost)
    assert {item["why"] for item in done["left_out"]} == {"sensitive"}


@pytest.mark.parametrize("scheme", [W8A8, WEIGHT_SCHEMES["palettize4"]])
def test_one_layer_alone_is_measured_as_it_is_built(program, scheme):
    name = find_layers(program)[2].name  # blocks.0.project
    others = ("stem", "depthwise", "blocks.1", "head")
    done = compress(program, Compression(scheme, COREML, keep=others), probes(), quiet).report
    table = compress(program, Compression(scheme, COREML, limit=Limit(psnr_db=1.0)), probes(), quiet).report
    alone = {item["name"]: item["psnr_db"] for item in table["sensitivity"]}
    assert alone[name] == pytest.approx(done["estimate"]["psnr_db"], abs=0.05)
    assert table["left_out"] == ()


def test_a_limit_on_the_class(program):
    done = compress(program, replace(PALETTE, limit=Limit(top1_agreement=1.0)), probes(), quiet).report
    assert done["estimate"]["same_top1"] == 10


def test_a_limit_that_no_layer_meets(program):
    with pytest.raises(ExportError, match=r"no layer can be compressed within 200 dB"):
        compress(program, replace(PALETTE, limit=Limit(psnr_db=200.0)), probes(), quiet)


def test_calibration_matters(program, tmp_path):
    """Ranges measured on black pictures cut off whatever a lively one holds."""
    for index in range(3):
        Image.new("RGB", (SIZE, SIZE), (index, 0, 0)).save(tmp_path / f"{index}.png")
    black = compress(program, Compression(W8A8, ONNX), calibration([IMAGE], [tmp_path]), quiet)
    lively = compress(program, Compression(W8A8, ONNX), probes(), quiet)
    tally = {name: Tally() for name in ("black", "lively")}
    for feeds in probes():
        x = [torch.from_numpy(feeds.tensors["x"])]
        for name, done in (("black", black), ("lively", lively)):
            tally[name].add(Runner(program).run(x), Runner(done.program).run(x), 1)
    assert tally["black"].close().psnr_db < tally["lively"].close().psnr_db - 10
    assert black.report["calibration"] == "3 images"
    assert not black.report["made_up"]
    assert not black.notes
    assert "no images were given" in lively.notes[0]


def test_no_image_that_can_be_read(program, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 1 images can be read"):
        compress(program, PALETTE, calibration([IMAGE], [tmp_path]), quiet)


def test_an_image_that_cannot_be_read_is_counted_and_named(program, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (SIZE, SIZE), (9, 99, 200)).save(tmp_path / "b.png")
    done = compress(program, Compression(W8A8, ONNX), calibration([IMAGE], [tmp_path]), quiet)
    assert len(done.report["unreadable"]) == 1
    assert done.report["estimate"]["samples"] == 1
    assert done.notes[0].startswith("1 of 2 images could not be read: ")
    assert "a.png" in done.notes[0]


def test_the_same_input_gives_the_same_program(program):
    first, second = (compress(program, Compression(W8A8, COREML), probes(), quiet) for _ in range(2))
    assert first.report == second.report
    assert [node.format_node() for node in first.program.graph.nodes] == [
        node.format_node() for node in second.program.graph.nodes
    ]
    for name, tensor in first.program.state_dict.items():
        assert torch.equal(tensor, second.program.state_dict[name])


def test_the_given_program_is_left_alone(program):
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    text = program.graph_module.code
    compress(program, Compression(W8A8, ONNX), probes(), quiet)
    assert program.graph_module.code == text
    assert all(torch.equal(program.state_dict[name], tensor) for name, tensor in before.items())


def test_a_batch_of_several_counts_each_sample_once():
    done = compress(program_of(Net(), batch=4), PALETTE, probes(batch=4), quiet).report
    assert done["estimate"]["samples"] == done["estimate"]["classified"] == 10


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups):
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, stride=2, groups=groups))
    for form in (ONNX, COREML):
        done = compress(program_of(module), Compression(W8A8, form), probes(), quiet)
        assert done.report["compressed"] == 2
        assert done.report["estimate"]["psnr_db"] > 35


def test_the_worst_output_of_a_sample_tells():
    tally = Tally()
    scores, classes = torch.tensor([[0.0, 4.0]]), torch.tensor([3])
    tally.add([scores, classes], [torch.tensor([[0.0, 3.0]]), classes], 1)
    assert tally.close().psnr_db == pytest.approx(10 * np.log10(16 / 0.5))
    tally.add([scores, classes], [scores, torch.tensor([1])], 1)  # another class is an error too
    assert tally.close().psnr_db == pytest.approx(10 * np.log10(9 / 4))
    tally.add([scores, classes], [torch.full((1, 2), torch.nan), classes], 1)
    assert tally.close().psnr_db == -999.0


def test_nothing_differs():
    tally = Tally()
    masked = torch.tensor([[0.0, -torch.inf]])
    tally.add([masked], [masked], 1)
    assert tally.close().psnr_db is None
