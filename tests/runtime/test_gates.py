from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mobilec.errors import BackendError, UsageError
from mobilec.export.manifest import OutputSpec
from mobilec.runtime.cases import Case
from mobilec.runtime.gates import POLICIES, Gate, Limits, Policy, at_least, at_most, failures, policy_for
from mobilec.runtime.metrics import softmax
from mobilec.runtime.parity import Comparison, Row, as_stated, class_output
from support.artefacts import logits


def compare(
    b: np.ndarray, a: np.ndarray, policy: Policy | str = "fp32", **facts: object
) -> tuple[dict[str, Gate], list[Row], Comparison]:
    """Gates by name and rows for two outputs ``[N, C]``."""
    policy = POLICIES[policy] if isinstance(policy, str) else policy
    spec = logits(b.shape[1], batch=b.shape[0], **facts)
    comparison = Comparison([spec], policy, backend="fixed")
    names = tuple(f"s{index}" for index in range(len(b)))
    rows = comparison.judge(Case(names, len(b), {}, {}), {"logits": as_stated(b, spec)}, {"logits": a})
    return {gate.name: gate for gate in comparison.gates()}, rows, comparison


B = np.array([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]])


def test_limits_are_those_of_the_field() -> None:
    assert (POLICIES["fp32"].atol, POLICIES["fp32"].rtol) == (1e-4, 1e-4)
    assert (POLICIES["fp16"].psnr_db, POLICIES["fp16"].cosine) == (40.0, 0.999)


def test_given_tolerances_replace_those_of_fp32_and_join_those_of_fp16() -> None:
    assert policy_for("fp32", limits=Limits(atol=0.1)) == Policy(atol=0.1, rtol=1e-4)
    assert policy_for("fp32", limits=Limits(rtol=0.0)) == Policy(atol=1e-4, rtol=0.0)
    both = Policy(atol=0.1, rtol=0.2, psnr_db=40.0, cosine=0.999)
    assert policy_for("fp16", limits=Limits(atol=0.1, rtol=0.2)) == both
    assert policy_for("fp32", approximate=True) == policy_for("fp16", approximate=True) == POLICIES["fp16"]
    half = policy_for("fp16", limits=Limits(atol=0.1))
    assert policy_for("fp32", approximate=True, limits=Limits(atol=0.1)) == half
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="atol"):
            Limits(atol=wrong)


def test_levels_that_are_given_replace_those_of_a_precision_one_by_one() -> None:
    for precision in ("fp16", "int8"):
        assert policy_for(precision, limits=Limits(psnr_db=30.0)) == Policy(psnr_db=30.0, cosine=0.999)
        assert policy_for(precision, limits=Limits(cosine=0.9)) == Policy(psnr_db=40.0, cosine=0.9)
    assert policy_for("fp32", limits=Limits(psnr_db=30.0)) == Policy(psnr_db=30.0)  # nothing else is left of fp32's
    assert policy_for("fp32", limits=Limits(top1=0.9)) == replace(POLICIES["fp32"], top1=0.9)
    for wrong in ({"psnr_db": float("inf")}, {"cosine": 1.1}, {"top1": -0.1}):
        with pytest.raises(UsageError, match="expected a"):
            Limits(**wrong)
    with pytest.raises(UsageError, match=r"top-1 agreement 98: expected a share from 0 to 1; 98 % is 0\.98"):
        Limits(top1=98.0)


def test_an_unknown_precision_has_no_limits() -> None:
    assert POLICIES["int8"] == POLICIES["fp16"]
    with pytest.raises(UsageError, match="precision 'int4'"):
        policy_for("int4")


def test_gates_judge_by_their_relation() -> None:
    assert at_most("a", 1.0, 1.0).passed
    assert not at_most("a", np.nextafter(1.0, 2.0), 1.0).passed
    assert not at_most("a", None, 1.0).passed
    assert at_least("a", 40.0, 40.0).passed
    assert not at_least("a", 39.9999999, 40.0).passed  # nothing is rounded before it is judged
    assert not at_least("a", None, 40.0).passed
    assert at_least("a", None, 40.0, exact=True).passed
    gates = (at_most("a", 2.0, 1.0), at_most("b", 2.0, 1.0, required=False))
    assert [gate.name for gate in failures(gates)] == ["a"]


def test_equal_outputs_pass() -> None:
    for precision in POLICIES:
        gates, rows, _ = compare(B, B.copy(), precision)
        assert not failures(tuple(gates.values()))
        assert all(row.passed and row.metrics.exact for row in rows)


def test_tolerance_gate_at_its_limit() -> None:
    limit = 1e-4 + 1e-4 * np.abs(B)
    policy = Policy(atol=1e-4, rtol=1e-4)
    gates, rows, _ = compare(B, B + 0.999 * limit, policy)
    assert gates["tolerance"].passed
    a = B.copy()
    a[1, 1] += 1.001 * limit[1, 1]  # one element of one sample
    gates, rows, comparison = compare(B, a, policy)
    assert not gates["tolerance"].passed
    assert gates["tolerance"].value == pytest.approx(1.001e-4)
    assert [row.passed for row in rows] == [True, False]
    assert comparison.summaries()[0].worst_sample == "s1"
    assert comparison.summaries()[0].passing_atol == pytest.approx(1.1e-4)


def test_relative_gate_sees_what_an_absolute_limit_misses() -> None:
    b = softmax(0.2 * np.random.default_rng(0).standard_normal((2, 1000)))  # values around 1e-3
    a = b * (1 + 0.01 * np.where(np.arange(1000) % 2, 1.0, -1.0))
    gates, _, _ = compare(b, a, meaning="probabilities")
    assert gates["tolerance"].passed
    assert not gates["relative"].passed


def test_a_score_near_zero_in_one_image_is_no_fault() -> None:
    b = np.array([[1e-3], [2.0]])
    gates = compare(b, b + 5e-7)[0]  # 5e-4 of the first score, rounding for an output that reaches 2
    assert gates["relative"].value == pytest.approx(2.5e-7)
    assert gates["relative"].passed
    assert not compare(b, b + np.array([[3e-4], [0.0]]))[0]["relative"].passed


def test_large_outputs_may_round_but_no_more() -> None:
    b = np.array([[124.0, 0.0], [0.0, 124.0]])
    noise = np.array([[0.0, 1.7e-4], [0.0, 0.0]])  # 1.4e-6 of the peak, as another order of summation gives
    gates, rows, comparison = compare(b, b + noise)
    assert gates["tolerance"].passed
    assert rows[0].passed
    assert comparison.summaries()[0].passing_atol == pytest.approx(1.7e-4)  # literally, for whoever types it
    assert not compare(b, b + noise, policy_for("fp32", limits=Limits(atol=1e-4)))[0]["tolerance"].passed
    gates, rows, _ = compare(b, b + 16 * noise)  # 2.2e-5 of the peak
    assert not gates["tolerance"].passed
    assert gates["relative"].passed
    assert [row.passed for row in rows] == [False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", ["reference", "artefact", "both"])
@pytest.mark.parametrize("precision", sorted(POLICIES))
def test_nan_and_infinity_always_fail(value: float, sides: str, precision: str) -> None:
    b, a = B.copy(), B.copy()
    if sides != "artefact":
        b[0, 0] = value
    if sides != "reference":
        a[0, 0] = value
    gates, rows, _ = compare(b, a, precision)
    assert not gates["finite"].passed
    assert gates["finite"].value == (2 if sides == "both" else 1)
    assert [row.passed for row in rows] == [False, True]


def test_all_nan_fails_every_numeric_gate() -> None:
    for precision, names in (("fp32", ("finite", "tolerance", "relative")), ("fp16", ("finite", "psnr_db", "cosine"))):
        gates, _, comparison = compare(B, np.full_like(B, np.nan), precision)
        assert not any(gates[name].passed for name in names)
        assert comparison.summaries()[0].passing_atol is None


def test_psnr_and_cosine_of_half_precision() -> None:
    rng = np.random.default_rng(0)
    b = rng.standard_normal((4, 100))
    noise = rng.standard_normal((4, 100))
    good, _, _ = compare(b, b + 0.01 * noise, "fp16")
    assert good["psnr_db"].passed
    assert good["cosine"].passed
    a = b.copy()
    a[2] += 0.06 * noise[2]  # one sample of four: the mean over all would pass
    bad, rows, _ = compare(b, a, "fp16")
    assert not bad["psnr_db"].passed
    assert not bad["cosine"].passed
    assert [row.passed for row in rows] == [True, True, False, True]
    assert "tolerance" not in bad
    assert "tolerance" in compare(b, b, policy_for("fp16", limits=Limits(atol=0.1)))[0]


def test_a_dead_reference_with_an_error_fails() -> None:
    gates, _, _ = compare(np.zeros((2, 3)), np.full((2, 3), 1e-9), "fp16")
    assert gates["psnr_db"].value is None
    assert not gates["psnr_db"].passed
    assert not gates["cosine"].passed


def test_top1_flips_beyond_a_tie_fail() -> None:
    b = np.array([[1.0, 0.9], [0.0, 1.0]])
    a = np.array([[0.9, 1.0], [0.0, 1.0]])
    gates, rows, comparison = compare(b, a, "fp16")  # allowed error 0.01: a lead of 0.1 is no tie
    assert gates["top1"].value == 1
    assert not gates["top1"].passed
    assert (rows[0].top1_reference, rows[0].top1_artefact, rows[0].flip_explained) == (0, 1, False)
    top1 = comparison.summaries()[0].top1
    assert top1 is not None
    assert (top1.count, top1.total) == (1, 2)


def test_top1_flips_within_a_tie_are_explained() -> None:
    b = np.array([[1.0, 0.985], [0.0, 1.0]])
    a = np.array([[0.992, 0.993], [0.0, 1.0]])
    gates, rows, comparison = compare(b, a, "fp16")
    assert gates["top1"].passed
    assert "1 more differ within a tie" in gates["top1"].detail
    assert rows[0].flip_explained
    assert rows[0].passed
    assert comparison.summaries()[0].flips == 1


def test_a_dead_model_warns() -> None:
    same = np.repeat(B[:1], 3, axis=0)
    gates, _, _ = compare(same, same.copy())
    assert not gates["lively"].passed
    assert not gates["lively"].required
    assert compare(B, B.copy())[0]["lively"].passed


def test_shapes_that_differ_are_an_error() -> None:
    comparison = Comparison([logits(3, batch=2)], POLICIES["fp32"], backend="fixed")
    with pytest.raises(BackendError, match=r"'logits' of fixed has shape \[2, 2\], its reference \[2, 3\]"):
        comparison.judge(Case(("a", "b"), 2, {}, {}), {"logits": B}, {"logits": B[:, :2]})


def test_padding_is_not_judged() -> None:
    a = B.copy()
    a[1] += 1
    comparison = Comparison([logits(3, batch=2)], POLICIES["fp32"], backend="fixed")
    rows = comparison.judge(Case(("a",), 2, {}, {}), {"logits": B}, {"logits": a})
    assert [row.passed for row in rows] == [True]


def test_repeated_samples_count_in_no_rate_but_can_fail() -> None:
    comparison = Comparison([logits(3, batch=2)], POLICIES["fp32"], backend="fixed")
    comparison.judge(Case(("a", "b"), 2, {}, {}, repeated=True), {"logits": B}, {"logits": B[::-1].copy()})
    top1 = comparison.summaries()[0].top1
    assert top1 is not None
    assert top1.total == 0
    assert failures(comparison.gates())


def test_probabilities_are_compared_with_the_softmax_of_logits() -> None:
    spec = logits(3, batch=2, meaning="probabilities")
    np.testing.assert_allclose(as_stated(B, spec).sum(axis=1), 1.0)
    np.testing.assert_array_equal(as_stated(softmax(B), spec), softmax(B))  # its own softmax: left alone
    np.testing.assert_array_equal(as_stated(B, logits(3, batch=2)), B)
    gates, rows, _ = compare(B, softmax(B), meaning="probabilities")
    assert not failures(tuple(gates.values()))
    assert rows[0].metrics.kl == pytest.approx(0.0, abs=1e-12)
    assert failures(tuple(compare(B, B.copy(), meaning="probabilities")[0].values()))


def test_which_output_holds_class_scores() -> None:
    def spec(name: str, shape: tuple[int | str, ...], meaning: str = "") -> OutputSpec:
        return OutputSpec(name, shape, "float32", meaning)

    stated = spec("b", ("batch", 10), "logits")
    assert class_output([spec("a", (1, 7)), stated]) is stated
    lone = spec("a", (1, 7))
    assert class_output([lone]) is lone
    for none in ([spec("a", (1, 7), "features")], [spec("a", (1, 7, 7, 7))], [spec("a", (1, 7)), spec("b", (1, 7))]):
        assert class_output(none) is None
    assert class_output([spec("a", (1, 1), "logits")]) is None


def test_feature_maps() -> None:
    """Features of any rank go through the same gates, without classes."""
    b = np.random.default_rng(0).standard_normal((2, 4, 3, 3))
    spec = OutputSpec("maps", (2, 4, 3, 3), "float32", "features")
    comparison = Comparison([spec], POLICIES["fp32"], backend="fixed")
    rows = comparison.judge(Case(("a", "b"), 2, {}, {}), {"maps": b}, {"maps": b + 1e-3})
    assert "top1" not in {gate.name for gate in comparison.gates()}
    assert rows[0].metrics.elements == 36
    assert not rows[0].passed


def test_a_share_of_samples_may_be_asked_for() -> None:
    b = np.eye(4) + 0.1
    a = b.copy()
    a[0, :2] = a[0, 1::-1]  # one sample of four
    for least, passes in ((0.75, True), (0.76, False)):
        gates, rows, _ = compare(b, a, Policy(top1=least))
        assert gates["top1_agreement"].value == 0.75
        assert gates["top1_agreement"].passed is passes
        assert "top1" not in gates
        assert all(row.passed for row in rows)


def test_a_tally_can_be_gone_back_to() -> None:
    comparison = Comparison([logits(3, batch=2)], POLICIES["fp32"], backend="fixed")
    case = Case(("a", "b"), 2, {}, {})
    comparison.judge(case, {"logits": B}, {"logits": B.copy()})
    kept = comparison.tally
    before = comparison.summaries()
    comparison.judge(case, {"logits": -B}, {"logits": B + 1})
    assert comparison.summaries() != before
    comparison.tally = kept
    assert comparison.summaries() == before
