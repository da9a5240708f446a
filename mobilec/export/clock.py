"""The time that an export is stamped with."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from mobilec.errors import UsageError


def export_time() -> datetime:
    """Now in UTC; SOURCE_DATE_EPOCH (https://reproducible-builds.org) stands in for the clock. Raises UsageError."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}, expected seconds since 1970") from error
