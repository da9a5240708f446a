"""Packages read as plain data, and every way in which a broken one is told in one line."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mobilec.errors import ArtifactError, BackendError, MobilecError
from mobilec.runtime.mil.interpreter import Interpreter
from mobilec.runtime.mil.program import MilOp, load_package
from support.artefacts import Lively
from support.mlpackages import (
    MODEL,
    WEIGHTS,
    Builder,
    Model_pb2,
    convert,
    convert_mil,
    ct,
    edited,
    operations,
    records,
    relinked,
    reweighted,
)

mb = Builder  # coremltools' own name for it
Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pixels in half precision. Do not change it."""
    return convert(
        nn.Sequential(Lively(), nn.Softmax(1)).eval(),
        [torch.zeros(1, 3, 32, 32)],
        tmp_path_factory.mktemp("good") / "good.mlpackage",
        half=True,
        inputs=[ct.ImageType(name="picture", shape=(1, 3, 32, 32), scale=1 / 255, bias=[-0.4, -0.5, -0.6])],
        classifier_config=ct.ClassifierConfig([f"class {n}" for n in range(10)]),
    )


def refused(path: Path, match: str, kind: type[MobilecError] = ArtifactError) -> None:
    """Loading and running fails with one line."""
    with pytest.raises(kind, match=match) as caught:
        Interpreter(load_package(path)).run({"picture": torch.full((1, 3, 32, 32), 128.0)})
    assert "\n" not in str(caught.value)


def test_a_package_as_data(good: Path) -> None:
    model = load_package(good)
    (picture,) = model.inputs
    assert (picture.name, picture.kind, picture.color, picture.shape) == ("picture", "image", "RGB", (1, 3, 32, 32))
    assert [(feature.name, feature.kind) for feature in model.outputs] == [
        ("classLabel", "classlabel"),
        ("classLabel_probs", "dict"),
    ]
    assert model.labels == tuple(f"class {n}" for n in range(10))
    assert (model.probabilities, model.default_function, model.specification_version) == ("classLabel_probs", "main", 8)
    ops = model.functions["main"].block.ops
    assert [op.position for op in ops] == list(range(len(ops)))
    scale, conv = (next(op for op in ops if op.type == kind) for kind in ("mul", "conv"))
    assert scale.outputs[0].name == "picture__scaled__"
    assert (conv.outputs[0].dtype, conv.outputs[0].shape) == ("fp16", (1, 16, 16, 16))
    assert list(conv.names)[-1] == "picture_to_fp16"
    assert Interpreter(model).constant(conv.inputs["weight"][0]).dtype == torch.float32


def test_the_model_file_alone(good: Path) -> None:
    """Its weights lie beside it."""
    assert Interpreter(load_package(good / MODEL)).ops[0].type == "mul"


def test_weights_are_mapped(tmp_path: Path) -> None:
    """A float32 weight is the file's own memory: no second copy of it exists."""
    package = convert(Lively(), [torch.zeros(1, 3, 32, 32)], tmp_path / "m.mlpackage")
    interpreter = Interpreter(load_package(package))
    conv = next(op for op in interpreter.ops if op.type == "conv")
    (name,) = conv.inputs["weight"]
    weight = interpreter.constant(name)
    mapped = next(op for op in interpreter.model.functions["main"].block.ops if op.name == name).inputs["val"][0].data
    assert weight.data_ptr() == mapped.ctypes.data
    assert isinstance(mapped.base if not isinstance(mapped, np.memmap) else mapped, np.memmap)
    before = (package / WEIGHTS).read_bytes()
    weight += 1  # reaches this process's pages only
    assert (package / WEIGHTS).read_bytes() == before


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_that_are_missing_or_elsewhere(good: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none.mlpackage", "no such file")
    refused(relinked(good, tmp_path / "a", None), r"its Manifest\.json names no model")
    refused(relinked(good, tmp_path / "b", "../../elsewhere.mlmodel"), "lies outside the package")
    refused(relinked(good, tmp_path / "c", "com.apple.CoreML/other.mlmodel"), "other.mlmodel, which is missing")
    shutil.copytree(good, tmp_path / "d")
    (tmp_path / "d" / WEIGHTS).unlink()
    refused(tmp_path / "d", r"const .* keeps its value in '@model_path/weights/weight.bin', which is missing")
    (tmp_path / "d" / WEIGHTS).symlink_to(good / WEIGHTS)
    refused(tmp_path / "d", "which lies outside the package")
    (tmp_path / "d" / "Manifest.json").write_text("[" * 100000)
    refused(tmp_path / "d", r"its Manifest\.json names no model")


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.7, 0.99])
def test_a_specification_that_is_cut_short(good: Path, tmp_path: Path, keep: float) -> None:
    shutil.copytree(good, tmp_path / "m")
    raw = (good / MODEL).read_bytes()
    (tmp_path / "m" / MODEL).write_bytes(raw[: int(len(raw) * keep)])
    refused(tmp_path / "m", r"is no Core ML file|expected an mlProgram")


def test_models_of_another_kind(good: Path, tmp_path: Path) -> None:
    other = Model_pb2.Model()
    other.specificationVersion = 4
    other.neuralNetwork.SetInParent()
    (tmp_path / "old.mlmodel").write_bytes(other.SerializeToString())
    refused(tmp_path / "old.mlmodel", "holds neuralNetwork, expected an mlProgram; convert it with")
    other.pipeline.SetInParent()
    (tmp_path / "many.mlmodel").write_bytes(other.SerializeToString())
    refused(tmp_path / "many.mlmodel", "holds pipeline, expected an mlProgram")


# --- weight files -----------------------------------------------------------------------------------------------------


def _set(place: int, form: str, value: int) -> Callable[[bytearray], None]:
    """Write into the last record of a weight file, at ``place`` inside it."""

    def change(raw: bytearray) -> None:
        struct.pack_into(form, raw, records(raw)[-1] + place, value)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: b"", "has 0 bytes, too few for a weight file: it is cut short"),
        (lambda raw: raw[:63], "has 63 bytes, too few"),
        (lambda raw: raw[: len(raw) // 2], r"has no record at offset \d+|it is cut short or damaged"),
        (lambda raw: raw[:-1], "it is cut short or damaged"),
        (lambda raw: b"\x00" * len(raw), r"is no weight file of version 2 \(found version 0, 0 blobs\)"),
        (_set(0, "<I", 0xDEADBEEE), "its mark is 0xdeadbeee"),
        (_set(4, "<I", 2), r"holds fp32 at offset \d+, the program says fp16"),
        (_set(4, "<I", 99), r"holds type 99 at offset \d+, the program says fp16"),
        (_set(8, "<Q", 2), r"holds 2 bytes at offset \d+, fp16 \[[\d, ]+\] takes \d+"),
        (_set(16, "<Q", 1 << 62), "would be at 4611686018427387904"),
        (_set(16, "<Q", 0), "would be at 0"),
    ],
)
def test_damaged_weight_files(good: Path, tmp_path: Path, change: Change, match: str) -> None:
    refused(reweighted(good, tmp_path / "m", change), match)


def test_flipped_bits_are_seen_in_records_but_not_in_numbers(good: Path, tmp_path: Path) -> None:
    """Every byte of a record's first 24 is checked. A bare package has no checksums: its numbers may be anything."""
    raw = (good / WEIGHTS).read_bytes()
    place = records(raw)[0]
    for byte in range(24):

        def flip(raw: bytearray, at: int = place + byte) -> None:
            raw[at] ^= 0x11

        refused(reweighted(good, tmp_path / str(byte), flip), r"weight\.bin")

    def number(raw: bytearray) -> None:
        raw[place + 64] ^= 0x11

    Interpreter(load_package(reweighted(good, tmp_path / "number", number)))


# --- programs ---------------------------------------------------------------------------------------------------------


def _conv(model: Any) -> Any:
    return operations(model, "conv")[0]


def _rename_input(model: Any) -> None:
    _conv(model).inputs["x"].arguments[0].name = "nobody"


def _later_input(model: Any) -> None:
    _conv(model).inputs["x"].arguments[0].name = operations(model, "linear")[0].outputs[0].name


def _twice(model: Any) -> None:
    operations(model, "linear")[0].outputs[0].name = _conv(model).outputs[0].name


def _no_operator_set(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML99"


def _no_function(model: Any) -> None:
    model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])
    del model.mlProgram.functions["main"]


def _output_of_nobody(model: Any) -> None:
    function = model.mlProgram.functions["main"]
    function.block_specializations[function.opset].outputs[1] = "nobody"


def _rank(model: Any) -> None:
    _conv(model).outputs[0].type.tensorType.rank = 3


def _data_type(model: Any) -> None:
    _conv(model).outputs[0].type.tensorType.dataType = 7


def _no_type(model: Any) -> None:
    _conv(model).outputs[0].type.Clear()


def _const(model: Any, place: str) -> Any:
    name = _conv(model).inputs[place].arguments[0].name
    return next(op for op in operations(model, "const") if op.outputs[0].name == name)


def _weight_shape(model: Any) -> None:
    for each in (_const(model, "weight").outputs[0], _const(model, "weight").attributes["val"]):
        each.type.tensorType.dimensions[0].constant.size = 15


def _declared_shape(model: Any) -> None:
    _const(model, "weight").outputs[0].type.tensorType.dimensions[0].constant.size = 15


def _escape(model: Any) -> None:
    _const(model, "weight").attributes["val"].blobFileValue.fileName = "@model_path/../../../etc/passwd"


def _absolute(model: Any) -> None:
    _const(model, "weight").attributes["val"].blobFileValue.fileName = "/etc/passwd"


def _offset(model: Any) -> None:
    _const(model, "weight").attributes["val"].blobFileValue.offset += 1


def _far_offset(model: Any) -> None:
    _const(model, "weight").attributes["val"].blobFileValue.offset = 1 << 40


def _no_value(model: Any) -> None:
    del _const(model, "weight").attributes["val"]


def _other_field(model: Any) -> None:
    tensor = _const(model, "strides").attributes["val"].immediateValue.tensor
    tensor.floats.values.extend([2.0, 2.0])


def _too_few(model: Any) -> None:
    del _const(model, "strides").attributes["val"].immediateValue.tensor.ints.values[0]


def _missing_feature(model: Any) -> None:
    del model.description.output[1]
    model.description.output[0].name = "other"


def _image_size(model: Any) -> None:
    model.description.input[0].type.imageType.width = 48


def _color(model: Any) -> None:
    model.description.input[0].type.imageType.colorSpace = 77


def _no_classifier(model: Any) -> None:
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    del block.operations[-1]
    block.outputs[:] = [block.operations[-1].outputs[0].name]
    del model.description.output[1]
    model.description.output[0].name = block.outputs[0]
    model.description.output[0].type.multiArrayType.dataType = 65568


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_rename_input, r"conv .* \(op \d+\): takes 'nobody', which nothing before it computes"),
        (_later_input, "which nothing before it computes"),
        (_twice, r"linear .* \(op \d+\): makes .* a second time"),
        (_no_operator_set, "has no block for its operator set 'CoreML99', only CoreML7"),
        (_no_function, "the program has no function 'main', only other"),
        (_output_of_nobody, "gives 'nobody', which nothing computes"),
        (_rank, "states rank 3 with 4 dimensions"),
        (_data_type, "names data type 7, which is not known"),
        (_no_type, "of type unknown, which is not understood"),
        (_weight_shape, r"holds \d+ bytes at offset \d+, fp16 \[15, 3, 3, 3\] takes \d+"),
        (_declared_shape, r"holds fp16 \[16, 3, 3, 3\], declared is fp16 \[15, 3, 3, 3\]"),
        (_escape, "which lies outside the package"),
        (_absolute, "expected a file below @model_path/"),
        (_offset, "has no record at offset"),
        (_far_offset, "has no record at offset 1099511627776"),
        (_no_value, "holds no value"),
        (_other_field, r"holds floats, int32 \[2\] takes ints"),
        (_too_few, r"holds 1 elements, int32 \[2\] takes 2"),
        (_missing_feature, "the description names output 'other', the program has classLabel"),
        (_image_size, r"input 'picture' is described as \[1, 3, 32, 48\], in the program it is \[1, 3, 32, 32\]"),
        (_color, "image 'picture' is of colour space 77"),
        (_no_classifier, "described as a classifier, but its program classifies nothing"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_edited_programs(good: Path, tmp_path: Path, change: Change, match: str) -> None:
    refused(edited(good, tmp_path / "m", change), match)


# --- what shows when it runs ------------------------------------------------------------------------------------------


def _declared_result(model: Any) -> None:
    _conv(model).outputs[0].type.tensorType.dimensions[3].constant.size = 15


def _declared_type(model: Any) -> None:
    operations(model, "reduce_mean")[0].outputs[0].type.tensorType.dataType = 23


def _swapped_weights(model: Any) -> None:
    first, second = operations(model, "conv")[:2]
    second.inputs["weight"].CopyFrom(first.inputs["weight"])


def _unknown_op(model: Any) -> None:
    operations(model, "reduce_mean")[0].type = "reduce_mode"


def _no_argument(model: Any) -> None:
    del _conv(model).inputs["weight"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_declared_result, r"conv .* \(op \d+\) makes .* as \[1, 16, 16, 16\], declared is fp16 \[1, 16, 16, 15\]"),
        (_declared_type, r"reduce_mean .* as float32, declared is int32"),
        (_swapped_weights, r"conv .* \(op \d+\): Given groups=1, weight of size \[16, 3, 3, 3\]"),
        (_unknown_op, r"\(op \d+\): the interpreter has no op 'reduce_mode'; add a line to OPS in the fitting file"),
        (_no_argument, r"conv .* \(op \d+\): argument 'weight' is missing"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_edits_that_show_when_it_runs(good: Path, tmp_path: Path, change: Change, match: str) -> None:
    refused(edited(good, tmp_path / "m", change), match, BackendError)


def test_inputs_of_another_shape_or_none(good: Path) -> None:
    interpreter = Interpreter(load_package(good))
    with pytest.raises(BackendError, match=r"input 'picture' \[1, 3, 32, 30\], declared is fp32 \[1, 3, 32, 32\]"):
        interpreter.run({"picture": torch.zeros(1, 3, 32, 30)})
    with pytest.raises(BackendError, match="input 'picture' is missing"):
        interpreter.run({})
    with pytest.raises(BackendError, match="has no function 'second', only main"):
        Interpreter(load_package(good), function="second")
    with pytest.raises(BackendError, match="has no constant 'picture'"):
        interpreter.constant("picture")


# --- kinds of constants -----------------------------------------------------------------------------------------------


def test_every_kind_of_constant(tmp_path: Path) -> None:
    """Few elements stay in the specification, ten and more go to the weight file; both come back."""
    kinds = (np.float16, np.float32, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.bool_)
    values = {f"{np.dtype(kind).name}_{size}": np.arange(size).astype(kind) for kind in kinds for size in (3, 40)}
    values["scalar"] = np.float32(2.5)

    def body(x: Any) -> Any:
        made = [mb.const(val=value, name=name) for name, value in values.items()]
        return tuple(mb.identity(x=each, name=f"{name}_out") for each, name in zip(made, values, strict=True))

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return body(x)

    from coremltools.converters.mil.backend.mil.load import MILProtoExporter

    weights = tmp_path / "weights"
    weights.mkdir()
    exporter = MILProtoExporter(program, str(weights), 9)
    model = Model_pb2.Model(specificationVersion=9)
    model.mlProgram.CopyFrom(exporter.export())
    exporter.blob_writers.clear()
    model.description.input.add(name="x").type.multiArrayType.dataType = 65568
    (tmp_path / "m.mlmodel").write_bytes(model.SerializeToString())
    read = load_package(tmp_path / "m.mlmodel")
    consts: dict[str, MilOp] = {op.name: op for op in read.functions["main"].block.ops if op.type == "const"}
    interpreter = Interpreter(read)
    in_file = 0
    for name, value in values.items():
        (constant,) = consts[name].inputs["val"]
        in_file += isinstance(constant.data.base, np.memmap) or isinstance(constant.data, np.memmap)
        np.testing.assert_array_equal(constant.data, value)
        np.testing.assert_array_equal(
            interpreter.constant(name).numpy(), value.astype(interpreter.constant(name).numpy().dtype)
        )
    assert in_file == 8  # no booleans there


def test_several_functions_and_a_default(tmp_path: Path) -> None:
    from mobilec.export.quiet import quiet

    def multiplied(factor: float, name: str) -> Path:
        return convert_mil(lambda x: mb.mul(x=x, y=factor), [(3,)], tmp_path / f"{name}.mlpackage")

    folders = [multiplied(2.0, "twice"), multiplied(3.0, "thrice")]
    with quiet():
        descriptor = ct.utils.MultiFunctionDescriptor()
        descriptor.add_function(str(folders[0]), "main", "twice")
        descriptor.add_function(str(folders[1]), "main", "thrice")
        descriptor.default_function_name = "thrice"
        ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))
    model = load_package(tmp_path / "both.mlpackage")
    assert (sorted(model.functions), model.default_function) == (["thrice", "twice"], "thrice")
    assert [feature.shape for feature in model.inputs] == [(3,)]
    x = {"x": torch.ones(3)}
    (thrice,) = Interpreter(model).run(x).values()
    (twice,) = Interpreter(model, function="twice").run(x).values()
    assert (thrice.tolist(), twice.tolist()) == ([3.0] * 3, [2.0] * 3)
