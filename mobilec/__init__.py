"""mobilec: from a PyTorch vision model to a file a phone can run, proven and timed.

The names below load on first use, so that ``import mobilec`` costs next to nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime's wheel reports home unless told not to before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "create_model": "mobilec.mobile.create",
    "list_models": "mobilec.mobile.zoo",
    "compile": "mobilec.export.compile",
    "Artifact": "mobilec.export.artifact",
    "lint": "mobilec.export.lint_model",
    "load": "mobilec.runtime.load",
    "ranges": "mobilec.runtime.ranges",
    "validate": "mobilec.runtime.validate",
    "validate_all": "mobilec.runtime.validate",
    "profile": "mobilec.latency.profile",
}

__all__ = [
    "Artifact",
    "__version__",
    "compile",
    "create_model",
    "lint",
    "list_models",
    "load",
    "profile",
    "ranges",
    "validate",
    "validate_all",
]

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.export.compile import compile
    from mobilec.export.lint_model import lint
    from mobilec.latency.profile import profile
    from mobilec.mobile.create import create_model
    from mobilec.mobile.zoo import list_models
    from mobilec.runtime.load import load
    from mobilec.runtime.ranges import ranges
    from mobilec.runtime.validate import validate, validate_all


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mobilec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
