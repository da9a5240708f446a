"""Packed weights, judged by coremltools' own unpacking: op by op, and whole compressed packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilec.errors import ArtifactError
from mobilec.export.quiet import quiet
from mobilec.runtime.mil.interpreter import Interpreter
from mobilec.runtime.mil.numerics import Numerics
from mobilec.runtime.mil.program import MilModel, load_package
from support.artefacts import Lively
from support.mlpackages import Builder, convert, convert_mil, ct, edited, operations
from support.zoo import relative_gap

with quiet():
    import coremltools.optimize as cto
    from coremltools.converters.mil.mil import types
    from coremltools.optimize import _utils as packing

RANDOM = np.random.default_rng(0)
AXES = (("int8", 0), ("uint8", -1), ("uint8", None))
BLOCKS = ((1, 1), (4, 2), (4, 6), (2, 3))
FORMS = (((1, 1), 1, None), ((2, 3), 1, None), ((1, 2), 3, 0), ((1, 1), 2, -1))  # blocks, vector, vector_axis
mb = Builder  # coremltools' own name for it


def _random(kind: str, *shape: int) -> np.ndarray:
    """Numbers of a MIL type, as coremltools marks its types of less than eight bits."""
    if kind.startswith("fp"):
        return RANDOM.standard_normal(shape).astype(np.float16 if kind == "fp16" else np.float32)
    builtin = types.string_to_builtin(kind)
    bits, signed = builtin.get_bitwidth(), not builtin.is_unsigned()
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    return RANDOM.integers(low, high, shape).astype(types.nptype_from_builtin(builtin))


@dataclass(frozen=True)
class Case:
    """A ``constexpr_`` op on constants; ``sparse`` ones give a mask and values, which are made dense again."""

    op: str
    arguments: dict[str, Any]
    sparse: bool = False

    def build(self) -> Any:
        made = getattr(mb, f"constexpr_{self.op}")(**self.arguments)
        return mb.constexpr_sparse_to_dense(nonzero_data=made[1], mask=made[0]) if self.sparse else made


def _affine(scale: str, data: str, axis: int | None) -> Case:
    shape = (4, 3, 5)
    each = () if axis is None else (shape[axis],)
    facts = {"quantized_data": _random(data, *shape), "zero_point": np.array(_random(data, *each))}
    scales = np.array(_random(scale, *each))
    return Case("affine_dequantize", {**facts, "scale": scales, "axis": axis or 0})


def _table16(bits: int) -> Case:
    indices = packing.pack_elements_into_bits(RANDOM.integers(0, 1 << bits, 105).astype(np.uint8), bits)
    shape = np.array([3, 5, 7], np.uint32)
    return Case("lut_to_dense", {"indices": indices, "lut": _random("fp16", 1 << bits), "shape": shape})


def _sparse16(*shape: int) -> Case:
    mask = RANDOM.integers(0, 2, shape)
    packed = np.packbits(mask.reshape(-1), bitorder="little")
    values = _random("fp16", int(mask.sum()))
    return Case("sparse_to_dense", {"nonzero_data": values, "mask": packed, "shape": np.array(shape, np.uint32)})


def _blockwise(data: str, blocks: tuple[int, int]) -> Case:
    scale = _random("fp16" if data == "int8" else "fp32", *blocks)
    offset = {} if data == "uint4" else {"offset": _random(data, *blocks)}
    return Case("blockwise_shift_scale", {"data": _random(data, 4, 6), "scale": scale, **offset})


def _table(bits: int, blocks: tuple[int, int], vector: int, axis: int | None) -> Case:
    facts = {"indices": _random(f"uint{bits}", 4, 6), "lut": _random("fp16", *blocks, 1 << bits, vector)}
    return Case("lut_to_dense", facts if axis is None else {**facts, "vector_axis": axis})


def _sparse_table(vector: int, axis: int | None) -> Case:
    mask = _random("uint1", 4, 6)
    found = _random("uint2", int(np.count_nonzero(mask)))
    facts = {"indices_mask": mask, "indices_nonzero_data": found, "lut": _random("fp16", 1, 1, 4, vector)}
    return Case("lut_to_sparse", facts if axis is None else {**facts, "vector_axis": axis}, sparse=True)


def _sparse_blockwise(data: str) -> Case:
    mask = _random("uint1", 5, 7)
    values = _random(data, int(np.count_nonzero(mask)))
    facts = {"data_mask": mask, "nonzero_data": values, "scale": _random("fp16", 5, 1), "offset": _random(data, 5, 1)}
    return Case("sparse_blockwise_shift_scale", facts, sparse=True)


def _sparse() -> Case:
    mask = _random("uint1", 5, 7)
    return Case("sparse_to_dense", {"nonzero_data": _random("fp16", int(np.count_nonzero(mask))), "mask": mask})


CASES: dict[str, list[Case]] = {
    "iOS16": [
        *(_affine(scale, data, axis) for scale in ("fp16", "fp32") for data, axis in AXES),
        *(_table16(bits) for bits in (1, 2, 4, 6, 8)),
        *(_sparse16(5), _sparse16(3, 5, 7)),
        Case("cast", {"source_val": _random("fp16", 3, 20), "output_dtype": "fp32"}),
    ],
    "iOS18": [
        *(_blockwise(data, blocks) for data in ("int4", "uint4", "int8", "uint8", "fp16") for blocks in BLOCKS),
        *(_table(bits, *form) for bits in (1, 2, 3, 4, 6, 8) for form in FORMS),
        *(_sparse_table(*form) for form in ((1, None), (2, 1))),
        *(_sparse_blockwise(data) for data in ("int8", "uint4")),
        _sparse(),
    ],
}


@pytest.mark.parametrize("target", list(CASES))
def test_each_op(tmp_path: Path, target: str) -> None:
    """A program whose outputs are what the ops unpack to, against coremltools' own numbers."""
    wanted: list[np.ndarray] = []

    def body(x: Any) -> Any:
        found = []
        for case in CASES[target]:
            made = case.build()
            wanted.append(made.op.materialized_val_inference())
            found.append(mb.add(x=mb.cast(x=made, dtype="fp32"), y=x))
        return tuple(found)

    package = convert_mil(body, [(1,)], tmp_path / "m.mlpackage", target=target)
    found = Interpreter(load_package(package)).run({"x": torch.zeros(1)})
    assert len(found) == len(wanted) == len(CASES[target])
    for case, value, expected in zip(CASES[target], found.values(), wanted, strict=True):
        np.testing.assert_array_equal(value.numpy(), expected.astype(np.float32), err_msg=str(case))


# --- whole packages ---------------------------------------------------------------------------------------------------

LAYERS = {"weight_threshold": 16}
SCHEMES: dict[str, Any] = {
    "linear 8 bit": lambda m: cto.coreml.linear_quantize_weights(
        m, cto.coreml.OptimizationConfig(cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", **LAYERS))
    ),
    "linear 4 bit blocks": lambda m: cto.coreml.linear_quantize_weights(
        m,
        cto.coreml.OptimizationConfig(
            cto.coreml.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=8, **LAYERS
            )
        ),
    ),
    "palette 4 bit": lambda m: cto.coreml.palettize_weights(
        m, cto.coreml.OptimizationConfig(cto.coreml.OpPalettizerConfig(mode="uniform", nbits=4, **LAYERS))
    ),
    "palette 6 bit groups": lambda m: cto.coreml.palettize_weights(
        m,
        cto.coreml.OptimizationConfig(
            cto.coreml.OpPalettizerConfig(
                mode="uniform", nbits=6, granularity="per_grouped_channel", group_size=4, **LAYERS
            )
        ),
    ),
    "pruned": lambda m: cto.coreml.prune_weights(
        m, cto.coreml.OptimizationConfig(cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.6, **LAYERS))
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compressed")
    found = {}
    for target in ("iOS16", "iOS18"):
        found[target] = convert(
            Lively(classes=64), [torch.zeros(1, 3, 32, 32)], folder / f"{target}.mlpackage", half=True, target=target
        )
    return found


def _constants(model: MilModel) -> set[str]:
    return {op.type for op in model.functions["main"].block.ops if op.type.startswith("constexpr_")}


IOS18_ONLY = ("linear 4 bit blocks", "palette 6 bit groups")


@pytest.mark.parametrize(
    ("target", "scheme"),
    [("iOS18", scheme) for scheme in SCHEMES] + [("iOS16", scheme) for scheme in SCHEMES if scheme not in IOS18_ONLY],
)
def test_compressed_packages(plain: dict[str, Path], tmp_path: Path, target: str, scheme: str) -> None:
    """A compressed package against the same one unpacked by coremltools, bit for bit."""
    with quiet():
        compressed = SCHEMES[scheme](ct.models.MLModel(str(plain[target]), skip_model_load=True))
        compressed.save(str(tmp_path / "c.mlpackage"))
        cto.coreml.decompress_weights(compressed).save(str(tmp_path / "d.mlpackage"))
    packed, unpacked = (load_package(tmp_path / f"{name}.mlpackage") for name in "cd")
    assert _constants(packed)
    assert not _constants(unpacked)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (name,) = (value.name for value in Interpreter(packed).inputs)
    (found,), (wanted,) = (Interpreter(model).run({name: x}).values() for model in (packed, unpacked))
    np.testing.assert_array_equal(found, wanted)
    (before,) = Interpreter(load_package(plain[target]), Numerics("fp32")).run({name: x}).values()
    assert 0 < relative_gap(found, before) < 1.0  # it does something, and not anything


# --- broken ones ------------------------------------------------------------------------------------------------------


def _palette(tmp_path: Path) -> Path:
    def body(x: Any) -> Any:
        made = mb.constexpr_lut_to_dense(indices=_random("uint2", 4, 6), lut=_random("fp16", 2, 3, 4, 1), name="table")
        return mb.add(x=mb.cast(x=made, dtype="fp32"), y=x)

    return convert_mil(body, [(1,)], tmp_path / "m.mlpackage", target="iOS18")


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    package = _palette(tmp_path)

    def shape(model: Any) -> None:
        (op,) = operations(model, "constexpr_lut_to_dense")
        value = op.inputs["lut"].arguments[0].value
        value.type.tensorType.dimensions[0].constant.size = 3
        value.type.tensorType.dimensions[1].constant.size = 2

    with pytest.raises(ArtifactError, match=r"constexpr_lut_to_dense 'table' \(op 0\): axis 0 of .* into 3 blocks"):
        Interpreter(load_package(edited(package, tmp_path / "a.mlpackage", shape)))

    def declared(model: Any) -> None:
        (op,) = operations(model, "constexpr_lut_to_dense")
        op.outputs[0].type.tensorType.dimensions[0].constant.size = 5

    with pytest.raises(ArtifactError, match=r"'table' unpacks to \[4, 6\], declared is \[5, 6\]"):
        Interpreter(load_package(edited(package, tmp_path / "b.mlpackage", declared)))


def test_a_mask_with_another_number_of_places(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        mask = np.array([1, 0, 1, 1], types.nptype_from_builtin(types.uint1))
        made = mb.constexpr_sparse_to_dense(nonzero_data=_random("fp16", 3), mask=mask)
        return mb.add(x=mb.cast(x=made, dtype="fp32"), y=x)

    def change(model: Any) -> None:
        (op,) = operations(model, "constexpr_sparse_to_dense")
        op.inputs["mask"].arguments[0].value.immediateValue.tensor.bytes.values = bytes([0b1111])

    package = convert_mil(body, [(1,)], tmp_path / "m.mlpackage", target="iOS18")
    with pytest.raises(ArtifactError, match="the mask has 4 places for 3 values"):
        Interpreter(load_package(edited(package, tmp_path / "a.mlpackage", change)))
