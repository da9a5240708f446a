"""A folder appears whole or not at all: written aside on the same file system, renamed into place at the end."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mobilec.errors import ArtifactError, MobilecError, UsageError
from mobilec.export.manifest import MANIFEST_NAME

ASIDE_PREFIX = ".mobilec-"
SWAP_ATTEMPTS = 20
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
NEARLY_FULL_BYTES = 64 * 1024
NO_SPACE = {
    errno.ENOSPC: "no space left on",
    errno.EDQUOT: "disk quota used up on",
    errno.EFBIG: "file size limit reached on",
}
WRITE_FAILED = re.compile(
    r"no space left|quota exceeded|file too large|writing failed|failed writing|write failed|while writing data", re.I
)


@dataclass
class NewFolder:
    """A folder in the making.

    Attributes:
        path: where to write the files; it becomes the artefact.
        scratch: a folder beside it for temporary files, gone at the end.
        target: where the artefact will be.
        free_bytes: space on its file system before anything was written.
        needs_bytes: what the export is expected to need there, 0 until `reserve` told.
    """

    path: Path
    scratch: Path
    target: Path
    free_bytes: int
    needs_bytes: int = 0

    def reserve(self, needs_bytes: int) -> None:
        """Say how much will be written; raises ArtifactError at once where it cannot fit."""
        self.needs_bytes = needs_bytes
        if self.free_bytes < needs_bytes:
            raise no_space(self, NO_SPACE[errno.ENOSPC])


@contextmanager
def new_artifact_folder(out: str | Path, force: bool = False) -> Iterator[NewFolder]:
    """Yield a hidden folder beside ``out``; when the block ends well it takes ``out``'s place, else it vanishes.

    Whatever ends the block, Ctrl-C included, ``out`` is either as it was or complete. With ``force`` an artefact
    at ``out`` is set aside at the very end and put back should the swap fail. Missing parents are made, and unmade
    on failure. A symbolic link to a folder is followed.

    Raises:
        ArtifactError: ``out`` is in the way (naming ``--force``), is no artefact (whatever ``force`` says), is a
            file, or cannot be written.
        UsageError: ``out`` cannot name a folder.
    """
    target = check_out(out, force)
    made: list[Path] = []
    aside: Path | None = None
    try:
        try:
            _make_parents(target.parent, made)
            free_bytes = shutil.disk_usage(target.parent).free
            aside = target.parent / f"{ASIDE_PREFIX}{secrets.token_hex(6)}"
            for path in (aside, aside / "new", aside / "scratch"):
                path.mkdir()
        except OSError as error:
            raise write_error(target, error) from error
        folder = NewFolder(aside / "new", aside / "scratch", target, free_bytes)
        try:
            yield folder
            _sync(folder.path)
            _swap_in(folder.path, target, aside / "old", force)
        except Exception as error:
            reason = _out_of_space(error, target.parent)
            if reason:
                raise no_space(folder, reason, repr(error)) from error
            if isinstance(error, OSError):
                raise write_error(target, error) from error
            raise
    finally:
        if aside is not None:
            _put_back(aside, target)
            shutil.rmtree(aside, ignore_errors=True)
        for parent in reversed(made):
            with suppress(OSError):  # not empty: the artefact, or somebody else's files, stand in it
                parent.rmdir()


def check_out(out: str | Path, force: bool = False) -> Path:
    """The folder that ``out`` names, links followed. Cheap, so that it can be asked before any work.

    Raises ArtifactError when something is in the way, UsageError when ``out`` can name no folder.
    """
    target = _resolve(out)
    try:
        if not os.path.lexists(target):
            return target
        if os.path.ismount(target):  # a mount point cannot be renamed onto
            raise ArtifactError(f"{target} is a mount point, expected a folder to make", hint="name a new folder in it")
        if not target.is_dir():
            raise ArtifactError(f"{target} is a file, expected a folder to write", hint="name another folder")
        entries = sorted(os.listdir(target))
    except OSError as error:
        raise write_error(target, error) from error
    if not entries:
        return target
    if MANIFEST_NAME not in entries:
        # --force replaces artefacts; it must never delete somebody's other files.
        raise ArtifactError(
            f"{target} is not empty and not an artefact (no {MANIFEST_NAME}; it holds {entries[0]!r})",
            hint="name another folder; --force replaces artefacts only",
        )
    if not force:
        raise ArtifactError(f"{target} exists already", hint="pass --force to replace it, or name another folder")
    return target


def write_error(target: Path, error: OSError) -> ArtifactError:
    """What a failed write means, in one line."""
    reasons = {
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of the path is a file",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ELOOP: "the symbolic links go round in a circle",
        errno.EBUSY: "it is in use (a mount point?)",
    } | {number: f"{text} {target.parent}" for number, text in NO_SPACE.items()}
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return ArtifactError(
        f"cannot write {target}: {reason}; nothing was written", hint="name another folder", detail=repr(error)
    )


def no_space(folder: NewFolder, reason: str, detail: str = "") -> ArtifactError:
    """The error for a full disk; ``reason`` is one of NO_SPACE's phrases."""
    room = f"{folder.free_bytes / 1e6:.0f} MB free"
    if folder.needs_bytes:
        room += f", this export needs about {max(folder.needs_bytes / 1e6, 1):.0f} MB"
    return ArtifactError(
        f"{reason} {folder.target.parent} ({room}); nothing was written",
        hint="make room, or name a folder on another disk",
        detail=detail,
    )


def _out_of_space(error: BaseException, place: Path) -> str:
    """Whether a full disk is behind ``error``: one of NO_SPACE's phrases, or nothing.

    Python says it with an errno; the C++ writers of torch and coremltools say that writing failed, or little at all,
    so for them a disk that is full by now is taken as the cause.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in NO_SPACE:
            return NO_SPACE[link.errno]
        if not isinstance(link, OSError | MobilecError) and WRITE_FAILED.search(str(link)):
            return NO_SPACE[errno.ENOSPC] if _nearly_full(place) else "writing failed on"
        link = link.__cause__ or link.__context__
    return NO_SPACE[errno.ENOSPC] if _nearly_full(place) and not isinstance(error, UsageError) else ""


def _nearly_full(place: Path) -> bool:
    try:
        return shutil.disk_usage(place).free < NEARLY_FULL_BYTES
    except OSError:
        return False


def _resolve(out: str | Path) -> Path:
    text = os.fspath(out)
    if not text or "\0" in text:
        raise UsageError(f"output folder {text!r} is no path", hint="name a folder to write")
    try:
        here = Path.cwd()
        given = here / text
        target = given.resolve()
        dangling = given.is_symlink() and not target.exists()
    except OSError as error:
        raise write_error(Path(text), error) from error
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise ArtifactError(f"cannot write {text}: the symbolic links go round in a circle") from error
    if dangling:
        raise ArtifactError(
            f"{given} is a symbolic link to {target}, which does not exist", hint="remove the link, or name its target"
        )
    if not target.name:
        raise UsageError(f"output folder {text!r} is the root of the file system", hint="name a new folder")
    if target == here or target in here.parents:
        raise UsageError(f"output folder {text!r} is the current folder or holds it", hint="name a new folder in it")
    return target


def _make_parents(parent: Path, made: list[Path]) -> None:
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
    for folder in reversed(missing):
        made.append(folder)
        folder.mkdir(exist_ok=True)


def _sync(folder: Path) -> None:
    """Force every file to the disk, so that the rename cannot outlive the data, and late write errors show here."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _swap_in(new: Path, target: Path, old: Path, force: bool) -> None:
    """Rename ``new`` to ``target``; what stands there goes to ``old`` first. Others may do the same meanwhile."""
    for _ in range(SWAP_ATTEMPTS):
        check_out(target, force)
        with suppress(FileNotFoundError):  # nothing there, or another export is in the middle of its swap
            if force and target.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            continue  # somebody else's came first: look at it again
        return
    raise ArtifactError(f"{target} keeps changing: another export writes to the same folder", hint="run one at a time")


def _put_back(aside: Path, target: Path) -> None:
    """Undo half a swap: what was set aside returns unless the new folder, or another export's, has taken its place.

    Looks at the disk rather than at a flag: Ctrl-C may fall between any two steps.
    """
    old, new = aside / "old", aside / "new"
    if old.is_dir() and new.is_dir() and not os.path.lexists(target):
        try:
            os.rename(old, target)
        except OSError as error:
            if error.errno not in TAKEN:  # somebody else's came between the look and the rename
                raise
