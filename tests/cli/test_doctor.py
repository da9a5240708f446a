from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest

from mobilec.cli import checkup
from mobilec.cli.checkup import PACKAGES, TRAPS, Finding, examine, release


def _pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | Exception | None) -> None:
    """Metadata as tested, but for ``versions`` (underscores for dashes); None is not installed."""
    pins = checkup.tested_versions()
    changed = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name: str) -> str:
        found = changed.get(name, pins.get(name))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def _finding(name: str) -> Finding:
    return next(item for item in examine().packages if item.package == name)


def test_the_tested_set_is_healthy(monkeypatch: pytest.MonkeyPatch, run: Callable) -> None:
    _pretend(monkeypatch)
    found = examine()
    assert found.healthy
    assert {item.state for item in found.packages} == {"ok"}
    assert found.remedies == ()
    done = run("doctor")
    assert done.code == 0
    assert "Everything required is here." in done.stdout
    for package in PACKAGES:
        assert package.name in done.stdout


def test_every_known_package_is_pinned_or_optional() -> None:
    unpinned = {package.name for package in PACKAGES} - checkup.tested_versions().keys()
    assert not unpinned


@pytest.mark.parametrize(
    ("version", "state", "code"),
    [
        ("2.13.0+cpu", "ok", 0),
        ("2.14.0", "differs", 0),
        ("2.12.1", "differs", 0),
        ("2.0.0", "too old", 1),
        (None, "missing", 1),
    ],
)
def test_versions_of_torch(
    monkeypatch: pytest.MonkeyPatch, run: Callable, version: str | None, state: str, code: int
) -> None:
    _pretend(monkeypatch, torch=version)
    assert _finding("torch").state == state
    done = run("doctor", "--json")
    assert done.code == code
    assert done.document["healthy"] is (code == 0)
    if code:
        assert any(remedy.startswith('pip install "torch==') for remedy in done.document["remedies"])
        assert not next(item for item in done.document["abilities"] if item["name"] == "export to ONNX")["here"]


@pytest.mark.parametrize("broken", [KeyError("Version"), OSError("unreadable"), ""])
def test_broken_metadata_is_a_finding_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, run: Callable, broken: object
) -> None:
    _pretend(monkeypatch, onnx=broken)
    assert _finding("onnx").state == "broken"
    assert run("doctor").code == 1


def test_metadata_without_its_module_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "coremltools" else object())
    found = examine()
    assert not found.healthy
    assert "--force-reinstall" in found.remedies[0]
    assert "coremltools" in found.remedies[0]


def test_an_absent_extra_is_no_illness(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, timm=None)
    found = examine()
    assert found.healthy
    assert _finding("timm").state == "absent"
    assert any("timm==" in remedy and "torchvision==" in remedy for remedy in found.remedies)


@pytest.mark.parametrize(
    ("versions", "count"),
    [
        ({"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"}, 1),
        ({"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}, 0),
        ({"apache-tvm": "0.28.0", "apache-tvm-ffi": "0.1.15"}, 0),
        ({"coremltools": "9.0", "numpy": "2.4.6"}, 1),
        ({"coremltools": "9.0", "numpy": "2.3.5"}, 0),
        ({"coremltools": "10.0", "numpy": "2.4.6"}, 0),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, 0),
        ({"torch": "2.13.0", "torchvision": "0.27.1"}, 1),
        ({}, 0),
    ],
    ids=str,
)
def test_known_traps(versions: dict[str, str], count: int) -> None:
    assert sum(look(versions) is not None for look in TRAPS) == count


def test_core_ml_itself_runs_on_macs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch)
    for system, how in (("Darwin", "natively"), ("Linux", "the interpreter")):
        monkeypatch.setattr(checkup.platform, "system", lambda system=system: system)
        ability = next(item for item in examine().abilities if item.name == "run Core ML")
        assert ability.here
        assert ability.how.startswith(how)


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("0.27.0.post1", (0, 27, 0)), ("9.0b1", (9, 0)), ("", ())]
)
def test_release(version: str, numbers: tuple[int, ...]) -> None:
    assert release(version) == numbers
