"""How far an array is from its reference in decibels: one formula for parity, compression and half precision."""

from __future__ import annotations

import math

import numpy as np


def psnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """``10 log10(peak^2 / mean squared error)`` over elements of two arrays of one shape, in float64.

    The mean is over all elements, whatever the batch; the peak is the reference's largest magnitude. Integers and
    booleans are numbers like others. inf when nothing differs (empty arrays too), -inf for a zero reference with an
    error. Places that hold the same NaN or infinity on both sides are left out; any other NaN or infinity gives -inf.
    """
    b, a = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    finite = np.isfinite(b) & np.isfinite(a)
    if not finite.all():
        if not np.array_equal(b[~finite], a[~finite], equal_nan=True):
            return -math.inf
        b, a = b[finite], a[finite]
    # Scaled by the largest error, so that squares neither overflow nor vanish.
    with np.errstate(over="ignore"):
        errors = np.abs(a - b)
    largest, peak = float(errors.max(initial=0.0)), float(np.abs(b).max(initial=0.0))
    if largest == 0:
        return math.inf
    if peak == 0 or math.isinf(largest):
        return -math.inf
    return 20 * math.log10(peak) - 20 * math.log10(largest) - 10 * math.log10(float(np.mean((errors / largest) ** 2)))
