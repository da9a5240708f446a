"""A file appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, or leave what was at ``path`` untouched. A link keeps pointing to its file.

    Raises OSError.
    """
    path = path.resolve()
    aside = path.with_name(f".mobilec-{secrets.token_hex(6)}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        with suppress(FileNotFoundError):  # it has its final name
            aside.unlink()
