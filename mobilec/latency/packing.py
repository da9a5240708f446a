"""Arrays as JSON, for measuring processes that are asked line by line."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np

from mobilec.errors import BackendError


def pack(array: np.ndarray) -> dict[str, Any]:
    """Type, shape and little-endian numbers in row-major order."""
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(data).decode("ascii")}


def unpack(packed: Any) -> np.ndarray:
    """The array again. Raises BackendError for anything ``pack`` does not make."""
    try:
        dtype, shape = np.dtype(str(packed["dtype"])), tuple(int(size) for size in packed["shape"])
        data = base64.b64decode(packed["base64"], validate=True)
        if dtype.kind not in "fiub" or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError("its size does not fit")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise BackendError(f"not an array of the measuring process: {error}") from error
