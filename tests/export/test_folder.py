"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mobilec.errors import ArtifactError, ExportError, MobilecError, UsageError
from mobilec.export import folder as folder_module
from mobilec.export.folder import check_out, new_artifact_folder


def make(out: Path, word: str, force: bool = False) -> None:
    with new_artifact_folder(out, force) as new:
        (new.path / "manifest.json").write_text(word)
        (new.path / "inner").mkdir()
        (new.path / "inner" / "file").write_text(word)
        (new.scratch / "waste").write_text(word)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def whole(word: str) -> dict[str, str]:
    return {"inner/file": word, "manifest.json": word}


def test_it_appears_at_the_end_and_only_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_artifact_folder(out) as new:
        (new.path / "manifest.json").write_text("x")
        assert not out.exists()
        assert new.path.stat().st_dev == tmp_path.stat().st_dev
    assert os.listdir(tmp_path) == ["out"]
    assert tree(out) == {"manifest.json": "x"}


def test_permissions_are_those_of_a_plain_folder(tmp_path: Path) -> None:
    make(tmp_path / "out", "x")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, ExportError("no"), ValueError("no"), GeneratorExit])
def test_any_failure_leaves_nothing(tmp_path: Path, failure: BaseException | type[BaseException]) -> None:
    expected = failure if isinstance(failure, type) else type(failure)

    def fail() -> None:
        with new_artifact_folder(tmp_path / "deep" / "er" / "out") as new:
            (new.path / "half").write_text("x")
            raise failure

    with pytest.raises(expected):
        fail()
    assert os.listdir(tmp_path) == []


def test_missing_parents_are_made(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b" / "out", "x")
    assert tree(tmp_path / "a" / "b" / "out") == whole("x")


def test_an_existing_artefact_needs_force(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(ArtifactError, match="--force"):
        make(tmp_path / "out", "new")
    assert tree(tmp_path / "out") == whole("old")
    make(tmp_path / "out", "new", force=True)
    assert tree(tmp_path / "out") == whole("new")
    assert os.listdir(tmp_path) == ["out"]


def test_force_never_deletes_what_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    for force in (False, True):
        with pytest.raises(ArtifactError, match=r"not an artefact.*cat\.jpg"):
            make(tmp_path / "photos", "x", force=force)
    assert tree(tmp_path / "photos") == {"cat.jpg": "cat"}


def test_force_keeps_the_old_one_when_the_new_one_fails(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")

    def fail() -> None:
        with new_artifact_folder(tmp_path / "out", force=True) as new:
            (new.path / "manifest.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert tree(tmp_path / "out") == whole("old")
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_a_failed_swap_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    make(tmp_path / "out", "old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise failure
        rename(source, target)

    monkeypatch.setattr(folder_module.os, "rename", failing)
    with pytest.raises(ArtifactError if isinstance(failure, OSError) else KeyboardInterrupt):
        make(tmp_path / "out", "new", force=True)
    assert tree(tmp_path / "out") == whole("old")
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_finished_swap_replaced_never_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    make(out, "old")
    rename = os.rename

    def beside_another(source: Path, target: Path) -> None:
        rename(source, target)
        if target == out:
            rename(out, theirs)  # another export sets ours aside; its own folder is about to come

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", beside_another)
        make(out, "new", force=True)
    assert (tree(theirs), os.listdir(tmp_path)) == (whole("new"), ["theirs"])


def test_an_undone_swap_yields_to_another_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    make(out, "old")
    rename = os.rename

    def beside_another(source: Path, target: Path) -> None:
        if source.name == "new":
            raise KeyboardInterrupt
        if source.name == "old":
            with monkeypatch.context() as plain:
                plain.setattr(os, "rename", rename)
                make(out, "theirs")  # it comes between our look and our rename
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", beside_another)
        with pytest.raises(KeyboardInterrupt):
            make(out, "new", force=True)
    assert (tree(out), os.listdir(tmp_path)) == (whole("theirs"), ["out"])


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "x")
    assert tree(tmp_path / "out") == whole("x")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="is a file"):
            make(tmp_path / "out", "x", force=force)
    with pytest.raises(ArtifactError, match="a part of the path is a file"):
        make(tmp_path / "out" / "below", "x")
    assert (tmp_path / "out").read_text() == "precious"


def test_impossible_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out, words in [
        ("", "no path"),
        ("a\0b", "no path"),
        (".", "current folder"),
        ("..", "current folder"),
        ("/", "root"),
    ]:
        with pytest.raises(UsageError, match=words):
            make(out, "x")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="too long"):
        make(tmp_path / ("n" * 300), "x")
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    make(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert tree(tmp_path / "real") == whole("new")


def test_broken_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(ArtifactError, match="nowhere, which does not exist"):
        make(tmp_path / "dangling", "x")
    with pytest.raises(ArtifactError, match="circle"):
        make(tmp_path / "round", "x")


def test_a_mount_point_is_refused_at_once() -> None:
    mounts = [path for path in (Path("/dev/shm"), Path("/proc")) if path.is_mount()]
    if not mounts:
        pytest.skip("no mount point to try")
    with pytest.raises(ArtifactError, match="mount point"):
        check_out(mounts[0])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"cannot write .*out: .*(permission|read-only)"):
        make(tmp_path / "out", "x")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/1"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, wrapped: bool
) -> None:
    usage = shutil.disk_usage(tmp_path)

    def fail() -> None:
        with new_artifact_folder(tmp_path / "out") as new:
            new.reserve(5_000_000)
            monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage._replace(free=0))
            (new.path / "half").write_text("x")
            if wrapped:
                raise ExportError("the converter failed") from failure
            raise failure

    with pytest.raises(ArtifactError) as caught:
        fail()
    assert str(caught.value).startswith(f"no space left on {tmp_path} (")
    assert "MB free, this export needs about 5 MB); nothing was written" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))

    def reserve() -> None:
        with new_artifact_folder(tmp_path / "out") as new:
            new.reserve(31_000_000)

    with pytest.raises(ArtifactError, match=r"no space left on .* \(2 MB free, this export needs about 31 MB\)"):
        reserve()
    assert os.listdir(tmp_path) == []


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    def fail(error: Exception) -> None:
        with new_artifact_folder(tmp_path / "out"):
            raise error

    with pytest.raises(RuntimeError, match=r"^strange$"):
        fail(RuntimeError("strange"))
    with pytest.raises(ExportError, match=r"^no such op$"):
        fail(ExportError("no such op"))
    with pytest.raises(ArtifactError, match=r"cannot write .*: Input/output error; nothing was written"):
        fail(OSError(errno.EIO, "Input/output error"))


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
from mobilec.errors import ArtifactError
from mobilec.export.folder import new_artifact_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with new_artifact_folder({str(tmp_path / "out")!r}) as new:
        (new.path / "big").write_bytes(bytes(10_000))
except ArtifactError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"file size limit reached on {tmp_path}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_many_at_once_leave_one_whole_folder(tmp_path: Path, force: bool) -> None:
    out, count = tmp_path / "out", 8
    start = threading.Barrier(count)
    faults: list[MobilecError] = []
    if force:
        make(out, "old")

    def write(index: int) -> None:
        try:
            with new_artifact_folder(out, force) as new:
                for name in ("manifest.json", "file"):
                    (new.path / name).write_text(str(index))
                start.wait(20)
        except MobilecError as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tree(out).values())) == 1
    assert set(tree(out)) == {"manifest.json", "file"}
    assert os.listdir(tmp_path) == ["out"]
    if not force:
        assert len(faults) == count - 1
    assert all(isinstance(fault, ArtifactError) for fault in faults)
