"""Whether tests of Core AI run here. Where wheels exist they must: a missing package is then a failure, not a skip."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec

import pytest

HAS_WHEELS = sys.platform == "linux" and platform.machine() == "x86_64"

needs_coreai = pytest.mark.skipif(
    find_spec("coreai_torch") is None and not HAS_WHEELS,
    reason="coreai-torch is not installed, and there is none for this machine",
)
