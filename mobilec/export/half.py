"""What half precision cannot hold is said before it is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mobilec.errors import ExportError

if TYPE_CHECKING:
    import numpy as np

FP16_MAX = 65504.0


def check_fits_half(tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Raise ExportError naming the first float32 tensor with a finite value beyond half's range.

    The converters clamp such a value or make it infinite without a word.
    """
    import numpy as np

    for name, values in tensors:
        largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
        if largest > FP16_MAX:
            raise ExportError(
                f"tensor {name} holds {largest:.6g}, half precision ends at {FP16_MAX:.0f}",
                hint="export with --precision fp32",
            )
