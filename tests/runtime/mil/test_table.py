"""The table of ops against everything that coremltools can write."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilec.errors import BackendError
from mobilec.export.quiet import quiet
from mobilec.runtime.mil.ops.table import KEEPS_HALF, NOT_RUN, find_op, op_table
from mobilec.runtime.mil.program import MilOp

with quiet():
    import coremltools.converters.mil.frontend.torch  # noqa: F401  (registers the ops of coremltools' own dialects)
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

# What coremltools' coreml_update_state becomes in a file, with a read_state after it.
ONLY_IN_FILES = {"write_state"}


def test_every_op_of_every_operator_set_is_run_or_listed() -> None:
    known = set(SSAOpRegistry.core_ops)
    assert len(known) > 160
    assert known - op_table().keys() == NOT_RUN.keys() & known
    assert op_table().keys() - known == ONLY_IN_FILES
    assert not op_table().keys() & NOT_RUN.keys()
    assert op_table().keys() >= KEEPS_HALF


def test_ops_of_dialects_never_reach_a_file() -> None:
    """coremltools lowers them, or splits them in two, before it writes; one that became a core op would fail here."""
    dialects = set(SSAOpRegistry.dialect_ops)
    assert not dialects & op_table().keys()
    assert all(name.startswith(("complex", "torch_")) for name in dialects - {"coreml_update_state"})


def test_ops_that_are_not_run_say_why() -> None:
    with pytest.raises(BackendError, match="the code of a custom layer is not part of the package"):
        find_op(MilOp("mine", "custom_layer", {}, (), (), 3), Path("m.mlpackage"))
    with pytest.raises(BackendError, match=r"m: warp 'mine' \(op 3\): the interpreter has no op 'warp'; add a line"):
        find_op(MilOp("mine", "warp", {}, (), (), 3), Path("m"))
