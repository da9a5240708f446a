"""The judge: findings, pieces as ONNX Runtime counts them, verdicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.tools.mobile_helpers.usability_checker import PartitioningInfo, check_partitioning

from mobilec.passes.lint.fixes import DEFAULT_ADVICE, REMEDIES, rules_named
from mobilec.passes.lint.judge import UNKNOWN_SHAPE, LintReport, OpRecord, Shape, lint, partition, verdict
from mobilec.passes.lint.limits import CHECKS
from mobilec.passes.lint.targets import facts, vocabularies
from mobilec.passes.rules.table import RULES

MAP: Shape = (1, 8, 6, 6)
NNAPI = facts("nnapi", "onnx")


def node(name: str, op: str, *inputs: str, shape: Shape = MAP, macs: int = 0, **attributes: object) -> OpRecord:
    return OpRecord(
        name,
        op,
        torch_op=op.lower(),
        where=f"stage.{name}",
        line=f"model.py:{len(name)}",
        input_shapes=tuple(shape for _ in inputs),
        output_shapes=(shape,),
        attributes={"constant": [value.startswith("w") for value in inputs]} | attributes,
        inputs=inputs,
        outputs=(f"{name}.out",),
        macs=macs,
    )


def judge(*records: OpRecord, target: str = "nnapi", vocabulary: str = "onnx") -> LintReport:
    return lint(records, facts(target, vocabulary), "test")


def test_a_finding_says_all_there_is_to_say() -> None:
    report = judge(
        node("conv", "Conv", "x", "w", macs=90), node("act", "Erf", "conv.out"), node("sum", "Add", "act.out", "x")
    )
    (finding,) = report.findings
    assert dataclasses.asdict(finding) == {
        "node": "act",
        "op": "Erf",
        "torch_op": "erf",
        "where": "stage.act",
        "line": "model.py:3",
        "constraint": "ONNX Runtime's NNAPI provider has no Erf",
        "source": "onnxruntime 1.31 tools/mobile_helpers/nnapi_supported_ops.md",
        "fix": "approximate_gelu",
        "advice": "use x * sigmoid(1.59577 * (x + 0.044715 * x^3)), or another activation",
        "certain": True,
        "leaves": True,
    }
    assert (report.ops, report.supported, report.macs, report.macs_inside) == (3, 2, 90, 90)
    assert [(piece.ops, piece.macs, piece.first, piece.last) for piece in report.partitions] == [
        (1, 90, "conv", "conv"),
        (1, 0, "sum", "sum"),
    ]
    assert report.verdict == report.verdict_static == "no"
    assert "estimate" in report.estimate
    json.dumps(dataclasses.asdict(report))


def test_nothing_to_say_about_what_is_supported() -> None:
    report = judge(node("conv", "Conv", "x", "w", macs=90), node("act", "Relu", "conv.out"))
    assert report.findings == ()
    assert report.verdict == "yes"
    assert report.macs_inside == 90


def test_a_cpu_takes_everything() -> None:
    report = judge(node("act", "Erf", "x", shape=("n", 1, 2, 3, 4, 5, 6)), target="cpu")
    assert (report.findings, report.verdict, report.supported) == ((), "yes", 1)


def test_an_operator_may_break_several_limits() -> None:
    report = judge(node("pool", "AveragePool", "x", shape=(1, 8, 9), count_include_pad=1, ceil_mode=1))
    assert [finding.constraint for finding in report.findings] == [
        "only 2-D pooling of a rank 4 tensor",
        "count_include_pad is not supported",
        "ceil_mode is not supported",
    ]
    assert report.supported == 0


def test_dynamic_shapes_are_judged_twice() -> None:
    shape: Shape = ("batch", 8, 6, 6)
    report = judge(node("act", "Relu", "x", shape=shape))
    assert [finding.advice for finding in report.findings] == ["export with a fixed batch and image size"]
    assert (report.verdict, report.verdict_static) == ("no", "yes")
    report = judge(node("act", "Erf", "x", shape=shape))
    assert (report.verdict, report.verdict_static) == ("no", "no")


def test_an_unknown_shape_counts_as_dynamic() -> None:
    assert judge(node("act", "Relu", "x", shape=UNKNOWN_SHAPE)).supported == 0


def test_advice_does_not_make_an_operator_leave() -> None:
    high, higher = (1, 2, 4, 6, 6), (1, 2, 4, 6, 3, 2)
    report = judge(node("act", "Relu", "x", shape=high), target="ane")
    assert [(finding.leaves, finding.certain) for finding in report.findings] == [(False, False)]
    assert report.verdict == "yes"
    report = judge(node("act", "Relu", "x", shape=higher), target="ane")
    assert [(finding.leaves, finding.fix) for finding in report.findings] == [(True, "lower_movement_rank")]


def test_operators_in_doubt_are_counted_out_and_say_so() -> None:
    report = judge(node("pad", "Pad", "x"), target="ane")
    assert [(finding.certain, finding.leaves) for finding in report.findings] == [(False, True)]
    assert "although a builder is registered" in report.findings[0].constraint


def test_where_memory_is_shared_work_decides() -> None:
    records = [node("conv", "Conv", "x", "w", macs=99), *(node(f"add{n}", "Add", "x", "x") for n in range(9))]
    report = judge(*records, target="xnnpack")
    assert (report.verdict, report.supported) == ("yes", 1)
    assert {finding.advice for finding in report.findings} == {"nothing: it runs on the same CPU at no further cost"}
    assert judge(node("mm", "MatMul", "x", "x", macs=99), *records, target="xnnpack").verdict == "no"


@pytest.mark.parametrize(
    ("op", "target", "vocabulary", "attributes", "fix"),
    [
        ("Gelu", "nnapi", "onnx", {"approximate": "none"}, "approximate_gelu"),
        ("Gelu", "nnapi", "onnx", {"approximate": "tanh"}, "lower_gelu_tanh"),
        ("LayerNormalization", "nnapi", "onnx", {}, "lower_layer_norm"),
        ("InstanceNormalization", "nnapi", "onnx", {}, "lower_group_norm"),
        ("HardSigmoid", "nnapi", "onnx", {}, "lower_hard_sigmoid"),
        ("Expand", "ane", "onnx", {}, "remove_broadcast_expand"),
        ("Einsum", "ane", "onnx", {}, "lower_einsum"),
        ("Min", "ane", "onnx", {}, "maximise_cyclic_shifts"),
        ("gather", "ane", "mil", {}, ""),
        ("transpose", "ane", "mil", {"perm": [0, 2, 3, 1]}, "simplify_movement"),
        ("FancyOp", "nnapi", "onnx", {}, ""),
    ],
)
def test_fixes(op: str, target: str, vocabulary: str, attributes: dict[str, object], fix: str) -> None:
    (finding,) = judge(node("n", op, "x", **attributes), target=target, vocabulary=vocabulary).findings
    assert finding.fix == fix
    assert finding.advice


def test_a_roll_is_told_from_other_gathers() -> None:
    rolled = dataclasses.replace(node("n", "gather", "x"), torch_op="roll")
    assert judge(rolled, target="ane", vocabulary="mil").findings[0].fix == "lower_roll"


def test_remedies_speak_of_what_there_is() -> None:
    checks = {check for remedy in REMEDIES for check in remedy.checks}
    assert checks <= {*CHECKS, "missing", "doubtful"}
    known = {op for pair in vocabularies() for op in (*facts(*pair).ops, *facts(*pair).doubtful)}
    onnx_ops = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {op for remedy in REMEDIES for op in remedy.ops} <= known | onnx_ops
    assert all(remedy.advice for remedy in REMEDIES)
    assert DEFAULT_ADVICE


def test_every_rule_named_exists() -> None:
    assert set(rules_named()) <= set(RULES)


# --- pieces: ONNX Runtime's checker decides -----------------------------------------------------------------------


class _Supports:
    """Stands in for the checker's list: ``Relu`` and ``Add`` are in it."""

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        return node.op_type in ("Relu", "Add")


def _checked(nodes: Sequence[onnx.NodeProto]) -> PartitioningInfo:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(list(nodes), "g", [value], [])
    return check_partitioning(graph, _Supports(), require_fixed_input_sizes=False)


@st.composite
def _graphs(draw: st.DrawFn) -> list[tuple[str, list[str]]]:
    """Operators with what they read, in an order in which they can run."""
    count = draw(st.integers(1, 14))
    graph = []
    for position in range(count):
        op = draw(st.sampled_from(("Relu", "Add", "Erf")))
        sources = draw(st.lists(st.integers(-1, position - 1), min_size=1, max_size=3)) if position else [-1]
        graph.append((op, ["x" if source < 0 else f"v{source}" for source in sources]))
    return graph


@settings(max_examples=150, deadline=None)
@given(_graphs())
def test_pieces_are_those_of_the_checker(graph: list[tuple[str, list[str]]]) -> None:
    nodes = [onnx.helper.make_node(op, ins, [f"v{n}"], name=f"n{n}") for n, (op, ins) in enumerate(graph)]
    info = _checked(nodes)
    records = [OpRecord(f"n{n}", op, inputs=tuple(ins), outputs=(f"v{n}",)) for n, (op, ins) in enumerate(graph)]
    groups = partition(records, [record.op != "Erf" for record in records])
    assert [{record.name for record in group} for group in groups] == [
        {node.name for node in group} for group in info.supported_groups
    ]
    assert verdict(len(groups), sum(map(len, groups)), len(records)).upper() == info.suitability().name


def test_a_diamond_around_an_unsupported_operator_is_two_pieces() -> None:
    records = [
        node("a", "Relu", "x"),
        node("b", "Erf", "a.out"),
        node("c", "Relu", "a.out"),
        node("d", "Add", "b.out", "c.out"),
    ]
    assert [piece.ops for piece in judge(*records).partitions] == [2, 1]


def test_sub_graphs_are_cut_for_themselves() -> None:
    outer = dataclasses.replace(node("if", "If", "cond"), captured=("a.out",))
    inner = [dataclasses.replace(node(f"i{n}", "Relu", "a.out"), scope="if.then") for n in range(2)]
    report = judge(node("a", "Relu", "x"), outer, *inner)
    assert [(piece.first, piece.ops) for piece in report.partitions] == [("a", 1), ("i0", 2)]


@pytest.mark.parametrize("partitions", range(4))
@pytest.mark.parametrize("supported", [0, 10, 11, 15, 16, 20])
def test_verdicts_are_those_of_the_checker(partitions: int, supported: int) -> None:
    info = PartitioningInfo(20, supported, partitions, _Supports(), [], set(), 0, 0, 0, set())
    assert verdict(partitions, supported, 20).upper() == info.suitability().name


def test_no_operators_no_objection() -> None:
    assert judge().verdict == "yes"
