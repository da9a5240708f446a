"""Functions of vectors, in instructions that every CPU has: no calls into a maths library, the same in all lanes.

Largest errors against float64, over all of float32 (tested): `exp` 2e-7 relative (less than 1.9e-38 becomes 0),
`falling` 2e-7, `sigmoid` 1.2e-7, `tanh` 2.4e-7, `erf` 4e-7 and `gelu` 1.8e-6 absolute, where they are not above 1, and
of their value where they are; near zero `gelu` is within 1.1e-5 of its value. `log` 2e-7 relative (1e-7 absolute around
1), `log1p` 3e-7 relative, `softplus` 3e-7. NaN gives NaN, infinities give the limits
up to these errors.
A comparison with NaN is false, so each Select is written to hand NaN on. What is used twice is given a name first
(`named`): TVM walks expressions as trees, and nested repetition would take it exponential time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Expr = Any

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6  # Cody and Waite: high has few bits, n * high is exact
EXP_HIGHEST, EXP_LOWEST = 88.72283935546875, -86.9  # above: infinity; below: zero, for less than 1.9e-38
LOGISTIC_RANGE = 88.0  # e to its minus is 6e-39
ONE_BITS = 0x3F800000
ROUND, ROUND_BITS = 12582912.0, 0x4B400000  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
# exp(r) = 1 + r + r^2 * EXP(r) on |r| <= ln(2)/2
EXP = (0.5, 0.166666672, 0.0416664556, 0.00833329745, 0.00139345450, 0.000199004440)
# log(1 + f) = f - f^2 / 2 + f^3 * LOG(f), and ln(2) in two parts: Moshier's Cephes (logf.c)
LOG = (
    3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1, -1.2420140846e-1,
    1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2,
)  # fmt: skip
LOG_LN2_HIGH, LOG_LN2_LOW = 0.693359375, -2.12194440e-4
LOG_MIDDLE = 0x3F3504F3  # the bits of the square root of 1/2
SMALLEST_NORMAL = 1.1754943508222875e-38
# 2**r on |r| <= 1/2, within 9e-8 of its value
EXP2 = (1.0, 0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.0013264724984765053)
# erf(x) = x * ERF(x^2 / 8 - 1) on |x| <= 4: a Chebyshev fit, its coefficients fall off, so that Horner's rule is safe
ERF_RANGE = 4.0
ERF = (
    0.353531033, -0.176576853, 0.131672651, -0.10768497, 0.0902472287, -0.0750277117, 0.0596873648,
    -0.044235047, 0.0334372781, -0.0264005195, 0.0143791642, -0.00337581523, 0.0039114086, -0.00588802481,
    0.00232284237,
)  # fmt: skip
# gelu(x) = max(x, 0) - |x| * GELU(|x|)^8: the normal distribution's tail falls like a power of a short polynomial, and
# needs no division. The best by the error of the whole; beyond the range what is subtracted stays below 1e-6.
GELU_RANGE = 5.2
GELU = (0.917005181, -0.0914967135, -0.0317151472, -0.00111117004, 0.00194016134, -0.000190957377)


def constant(number: float, like: Expr) -> Expr:
    """``number`` in the type of ``like``, repeated over its lanes."""
    from tvm import tirx

    return tirx.const(number, str(like.ty.dtype))


def choose(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Lane by lane. What does not change along a vector may be a scalar, as in other arithmetic."""
    from tvm import tirx

    lanes = max(map(_lanes, (condition, yes, no)))
    spread = [tirx.Broadcast(each, lanes) if _lanes(each) < lanes else each for each in (condition, yes, no)]
    return tirx.Select(*spread)


def _lanes(value: Expr) -> int:
    return int(str(value.ty.dtype).partition("x")[2] or 1)


def named(value: Expr, use: Callable[[Expr], Expr]) -> Expr:
    """``use`` of a name for ``value``, so that it is computed and looked at once however often it is used."""
    from tvm import tirx

    if isinstance(value, tirx.Var):
        return use(value)
    name = tirx.Var("v", str(value.ty.dtype))
    return tirx.Let(name, value, use(name))


def at_least(x: Expr, limit: float) -> Expr:
    """max(x, limit); NaN stays."""
    low = constant(limit, x)
    return named(x, lambda v: choose(v < low, low, v))


def at_most(x: Expr, limit: float) -> Expr:
    """min(x, limit); NaN stays."""
    high = constant(limit, x)
    return named(x, lambda v: choose(v > high, high, v))


def _unsigned_bits(x: Expr) -> Expr:
    from tvm import tirx

    whole = str(x.ty.dtype).replace("float", "int")
    return tirx.reinterpret(whole, x) & tirx.const(0x7FFFFFFF, whole)


def magnitude(x: Expr) -> Expr:
    """|x|; NaN stays."""
    from tvm import tirx

    return tirx.reinterpret(str(x.ty.dtype), _unsigned_bits(x))


def sign(x: Expr) -> Expr:
    """1, -1, or what is neither above nor below zero as it is."""
    zero = constant(0.0, x)
    return named(x, lambda v: choose(v > zero, constant(1.0, v), choose(v < zero, constant(-1.0, v), v)))


def relu(x: Expr) -> Expr:
    return at_least(x, 0.0)


def polynomial(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Coefficients from the constant term up, by Horner's rule; ``x`` is a name."""
    value = constant(coefficients[-1], x)
    for factor in reversed(coefficients[:-1]):
        value = value * x + constant(factor, x)
    return value


def exp(x: Expr) -> Expr:
    """e to the x: 2**n * exp(r) with n the nearest integer to x / ln(2)."""
    from tvm import tirx

    real = str(x.ty.dtype)
    whole = real.replace("float", "int")

    def scaled(r: Expr, count: Expr) -> Expr:
        value = polynomial(r, EXP) * (r * r) + r + constant(1.0, r)
        exponent = count + tirx.const(126, whole)  # of 2**(n - 1): 2**128 would not fit
        scale = tirx.reinterpret(real, exponent << tirx.const(23, whole))
        return value * scale * constant(2.0, r)

    def reduced(held: Expr, count: Expr) -> Expr:
        n = tirx.Cast(real, count)  # TVM would cancel the added number against a subtracted one
        rest = named(n, lambda n: held - n * constant(LN2_HIGH, held) - n * constant(LN2_LOW, held))
        return named(rest, lambda r: scaled(r, count))

    def inside(held: Expr) -> Expr:
        shifted = held * constant(LOG2_E, held) + constant(ROUND, held)
        count = tirx.reinterpret(whole, shifted) - tirx.const(ROUND_BITS, whole)
        return named(count, lambda count: reduced(held, count))

    def limited(x: Expr) -> Expr:
        finite = named(at_least(at_most(x, EXP_HIGHEST), EXP_LOWEST), inside)
        beyond = choose(x > constant(EXP_HIGHEST, x), constant(float("inf"), x), finite)
        return choose(x < constant(EXP_LOWEST, x), constant(0.0, x), beyond)

    return named(x, limited)


def log(x: Expr) -> Expr:
    """The natural logarithm: e * ln(2) + log(m), m within a square root of two around 1. NaN below zero."""
    from tvm import tirx

    real = str(x.ty.dtype)
    whole = real.replace("float", "int")

    def number(bits: int) -> Expr:
        return tirx.const(bits, whole)

    def joined(f: Expr, e: Expr) -> Expr:
        square = f * f
        small = f * square * polynomial(f, LOG) + e * constant(LOG_LN2_LOW, f) - square * constant(0.5, f)
        return f + small + e * constant(LOG_LN2_HIGH, f)

    def apart(held: Expr, tiny: Expr) -> Expr:
        shifted = tirx.reinterpret(whole, held) - number(LOG_MIDDLE)

        def parts(s: Expr) -> Expr:
            exponent = tirx.Cast(real, s >> number(23)) - choose(tiny, constant(23.0, x), constant(0.0, x))
            mantissa = tirx.reinterpret(real, (s & number(0x7FFFFF)) + number(LOG_MIDDLE))
            return named(mantissa - constant(1.0, x), lambda f: named(exponent, lambda e: joined(f, e)))

        return named(shifted, parts)

    def limited(v: Expr) -> Expr:
        tiny = v < constant(SMALLEST_NORMAL, v)
        value = named(choose(tiny, v * constant(2.0**23, v), v), lambda held: apart(held, tiny))
        infinity = constant(float("inf"), v)
        beyond = choose(v < infinity, value, v)  # infinity and NaN stay
        return choose(
            v <= constant(0.0, v),
            choose(v < constant(0.0, v), constant(float("nan"), v), constant(float("-inf"), v)),
            beyond,
        )

    return named(x, limited)


def log1p(x: Expr) -> Expr:
    """log(1 + x): log(u) * x / (u - 1) with u what 1 + x rounds to, which mends the rounding (Kahan)."""
    from tvm import tirx

    real = str(x.ty.dtype)

    def mended(v: Expr, bits: Expr) -> Expr:  # as bits: TVM would cancel the sum against the difference
        u = tirx.reinterpret(real, bits)
        one = constant(1.0, v)
        whole = choose(u < constant(float("inf"), v), log(u) * (v / (u - one)), u)
        return choose(bits_are(bits, ONE_BITS), v, whole)

    def bits_are(bits: Expr, wanted: int) -> Expr:
        return tirx.EQ(bits, tirx.const(wanted, str(bits.ty.dtype)))

    return named(
        x,
        lambda v: named(
            tirx.reinterpret(real.replace("float", "int"), v + constant(1.0, v)), lambda bits: mended(v, bits)
        ),
    )


def softplus(x: Expr) -> Expr:
    """log(1 + e to the x), without overflow."""
    return named(x, lambda v: relu(v) + log1p(falling(constant(0.0, v) - magnitude(v))))


def power(x: Expr, exponent: float) -> Expr:
    """x to an exponent that is no whole number; the error grows with the logarithm of the result."""
    return exp(log(x) * constant(exponent, x))


def mish(x: Expr) -> Expr:
    return named(x, lambda v: v * tanh(softplus(v)))


def truth(holds: Callable[..., Expr]) -> Callable[..., Expr]:
    """A comparison as a number: 1 where it holds, else 0."""
    return lambda *given: choose(holds(*given), constant(1.0, given[0]), constant(0.0, given[0]))


def equals(a: Expr, b: Expr) -> Expr:
    """1 or 0; NaN equals nothing, itself included, though TVM takes x == x for true."""
    from tvm import tirx

    return named(a, lambda a: named(b, lambda b: choose(is_nan(a), constant(0.0, a), truth(tirx.EQ)(a, b))))


def differs(a: Expr, b: Expr) -> Expr:
    return constant(1.0, a) - equals(a, b)


def _power(x: Expr, factor: float, use: Callable[[Expr, Expr], Expr]) -> Expr:
    """``use`` of two factors of 2**(x * factor): the first within 0.7 and 1.42, the second a power of two.

    ``x`` is a name for what is NaN or gives |x * factor| < 127.4; NaN stays in the first factor, whatever its bits.
    The error grows with the exponent, as that of the product does: 6e-8 of the value for each.
    """
    from tvm import tirx

    real = str(x.ty.dtype)
    whole = real.replace("float", "int")

    def reduced(shifted: Expr) -> Expr:
        count = tirx.reinterpret(whole, shifted)  # in its low bits; the others leave with the shift
        scale = tirx.reinterpret(real, (count << tirx.const(23, whole)) + tirx.const(ONE_BITS, whole))
        nearest = tirx.reinterpret(real, count) - constant(ROUND, x)  # as bits: TVM would cancel it against the sum
        rest = named(nearest, lambda n: x * constant(factor, x) - n)
        return named(rest, lambda r: use(polynomial(r, EXP2), scale))

    return named(x * constant(factor, x) + constant(ROUND, x), reduced)


def falling(x: Expr) -> Expr:
    """e to the x for x up to 0, as softmax needs it; 0 below -88."""

    def inside(held: Expr) -> Expr:
        power = _power(held, LOG2_E, lambda value, scale: value * scale)
        return choose(held <= constant(-LOGISTIC_RANGE, held), constant(0.0, held), power)

    return named(at_least(x, -LOGISTIC_RANGE), inside)


def _logistic(x: Expr, numerator: Callable[[Expr], Expr], slope: float) -> Expr:
    """``numerator`` of x / (1 + exp(-slope * x)); of -88 / slope for all x below, where the quotient is 5e-39."""
    limit = LOGISTIC_RANGE / slope

    def quotient(low: Expr, held: Expr) -> Expr:
        one = constant(1.0, held)
        return numerator(low) / _power(held, -slope * LOG2_E, lambda value, scale: value * scale + one)

    return named(at_least(x, -limit), lambda low: named(at_most(low, limit), lambda held: quotient(low, held)))


def sigmoid(x: Expr) -> Expr:
    return _logistic(x, lambda low: constant(1.0, low), 1.0)


def silu(x: Expr) -> Expr:
    return _logistic(x, lambda low: low, 1.0)


def tanh(x: Expr) -> Expr:
    return _logistic(x, lambda low: constant(2.0, low), 2.0) - constant(1.0, x)


def erf(x: Expr) -> Expr:
    def inside(held: Expr) -> Expr:
        square = held * held * constant(0.125, held) - constant(1.0, held)
        return held * named(square, lambda u: polynomial(u, ERF))

    value = named(at_least(at_most(x, ERF_RANGE), -ERF_RANGE), inside)
    return at_least(at_most(value, 1.0), -1.0)


def gelu(x: Expr) -> Expr:
    def below(v: Expr, size: Expr) -> Expr:
        tail = polynomial(size, GELU)
        for _ in range(3):
            tail = named(tail, lambda power: power * power)
        return relu(v) - size * tail

    return named(x, lambda v: named(at_most(magnitude(v), GELU_RANGE), lambda size: below(v, size)))


def gelu_tanh(x: Expr) -> Expr:
    half, one, slope = constant(0.5, x), constant(1.0, x), 0.7978845608028654  # sqrt(2 / pi)

    def use(v: Expr) -> Expr:
        return half * v * (one + tanh(v * (constant(slope, v) + constant(slope * 0.044715, v) * v * v)))

    return named(x, use)


def hardsigmoid(x: Expr) -> Expr:
    return at_least(at_most(x * constant(1 / 6, x) + constant(0.5, x), 1.0), 0.0)


def hardswish(x: Expr) -> Expr:
    return named(x, lambda v: v * hardsigmoid(v))


def is_nan(x: Expr) -> Expr:
    """By its bits: TVM takes x != x for false."""
    from tvm import tirx

    bits = _unsigned_bits(x)
    return bits > tirx.const(0x7F800000, str(bits.ty.dtype))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN when either is."""
    return named(a, lambda a: named(b, lambda b: choose(is_nan(a), a, choose(a > b, a, b))))


def larger(a: Expr, b: Expr) -> Expr:
    """The larger; ``b`` when one is NaN."""
    return named(a, lambda a: named(b, lambda b: choose(a > b, a, b)))


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN when either is."""
    return named(a, lambda a: named(b, lambda b: choose(is_nan(a), a, choose(a < b, a, b))))


# Functions of so many instructions that code for every vector of a tile would take long to compile.
LONG = frozenset({exp, falling, log, log1p, softplus, mish, sigmoid, tanh, erf, gelu, gelu_tanh, silu})


def lengthy(function: Callable[..., Expr]) -> Callable[..., Expr]:
    """Marks a function that is made for one operator as one of those."""
    function.is_long = True  # type: ignore[attr-defined]
    return function


def is_long(function: Callable[..., Expr]) -> bool:
    return function in LONG or getattr(function, "is_long", False)
