"""What a benchmark keeps between its runs: environments and converted models, in a cache folder.

Every entry is a folder that appears whole or not at all. A model's entry carries the digest of what it was made from
(code, weights, versions), and is made again when that changes. A conversion that failed is kept too, with its reason.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.convert import KINDS, ROOT
from peers.runtimes import CONVERTED_HERE, HERE, Environment, Way

CONVERT = Path(__file__).resolve().parent / "convert.py"
CONVERSION_SECS = 3600.0
Tell = Callable[[str], None]
# What decides how a file comes out: parts of the package, by kind.
_CODE = {
    "onnx": ("mobile/*.py", "passes/**/*.py", "export/*.py"),
    "native": ("mobile/*.py", "passes/**/*.py", "export/*.py", "export/kernels/*.py", "export/runner/*.[ch]"),
}
_PEER_CODE = ("mobile/*.py",)


def default_cache() -> Path:
    """The user's cache folder, where the platform has one (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobilec" / "peers"


class CannotMake(Exception):
    """Why there is no environment or file; one line."""


def python_of(environment: Environment, folder: Path, tell: Tell) -> Path:
    """The interpreter of an environment, which is made or completed first.

    Raises CannotMake where pip cannot install it.
    """
    if environment == HERE:
        return Path(sys.executable)
    home = folder / environment.name
    python, stamp = home / "bin" / "python", home / "requirements.json"
    wanted = list(environment.requirements)
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return python
    tell(f"installing {', '.join(wanted)}")
    _run_quietly([sys.executable, "-m", "venv", str(home)])
    _run_quietly([str(python), "-m", "pip", "install", "--quiet", *wanted])
    stamp.write_text(json.dumps(wanted))
    return python


def _run_quietly(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise CannotMake(f"cannot be installed: {(lines or ['no reason given'])[0]}")


@dataclass(frozen=True)
class Entry:
    """A converted model: its folder, and what its conversion told."""

    folder: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class Store:
    """Converted models of one batch size.

    Attributes:
        cache: the folder. environments: the folder of these. batch: images in a run.
        retry: make again what failed before.
    """

    cache: Path
    environments: Path
    batch: int
    retry: bool
    tell: Tell

    def file_of(self, way: Way, model: str) -> Path:
        """The file that a runtime loads. Raises CannotMake with the converter's reason."""
        return self.entry(way.kind, way.environment, model).folder / way.file

    def entry(self, kind: str, environment: Environment, model: str) -> Entry:
        """Raises CannotMake: the environment or the file cannot be made."""
        where = HERE if kind in CONVERTED_HERE else environment
        home = self.cache / "models" / f"{model}-b{self.batch}"
        folder, record = home / kind, home / f"{kind}.json"
        digest = _digest(kind, where)
        kept = json.loads(record.read_text()) if record.is_file() else {}
        failed = "error" in kept and not self.retry
        fresh = kept.get("digest") == digest and (failed or folder.is_dir())
        if not fresh:
            reference = self.entry("reference", HERE, model).folder if kind != "reference" else folder
            python = python_of(where, self.environments, self.tell)
            self.tell(f"{model}, batch {self.batch}: {kind}")
            kept = {"digest": digest, **self._convert(python, kind, model, reference, folder)}
            record.write_text(json.dumps(kept, indent=1))
        if "error" in kept:
            raise CannotMake(f"cannot be converted: {kept['error']}")
        return Entry(folder, kept)

    def _convert(self, python: Path, kind: str, model: str, reference: Path, folder: Path) -> dict[str, Any]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            out = Path(scratch) / kind
            out.mkdir()
            command = [str(python), str(CONVERT), kind, model, str(self.batch), str(reference), str(out)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERSION_SECS)
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {CONVERSION_SECS:g} s"}
            lines = done.stdout.splitlines()
            if not lines:
                last = (done.stderr.strip().splitlines() or [""])[-1]
                return {"error": f"the process ended with {done.returncode}: {last[:160]}"}
            answer = json.loads(lines[-1])
            if "error" not in answer:
                out.rename(folder)
            return answer


@functools.cache
def _digest(kind: str, environment: Environment) -> str:
    """Of all that a file of this kind is made from, except the model's name and batch, which name its folder."""
    from importlib.metadata import version

    found = hashlib.sha256(inspect.getsource(KINDS[kind]).encode())
    here = ("torch", "apache-tvm") if kind == "native" else ("torch",)
    facts = [*environment.requirements, *(f"{name}=={version(name)}" for name in here)]
    found.update(json.dumps(facts).encode())
    for part in _CODE.get(kind, _PEER_CODE):
        for path in sorted((ROOT / "mobilec").glob(part)):
            found.update(path.read_bytes())
    return found.hexdigest()
