"""Programs from outside Python that some tests drive: a browser, an ssh server, an emulator and its C library."""

from __future__ import annotations

import os
import shutil

import pytest

# program -> the Debian package that brings it
PACKAGES = {
    "/usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1": "libc6-arm64-cross",
    "adb": "adb",
    "chromium": "chromium",
    "qemu-aarch64": "qemu-user",
    "scp": "openssh-client",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
}
_PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))  # where sshd lives


def need(program: str) -> str:
    """Where the program lies; without it the test is skipped, and fails in continuous integration (``CI`` is set)."""
    found = shutil.which(program, path=_PLACES)
    if found:
        return found
    told = f"{program} is not installed, so this was NOT tested; on Debian: apt-get install {PACKAGES[program]}"
    if os.environ.get("CI"):
        pytest.fail(told)
    pytest.skip(told)
