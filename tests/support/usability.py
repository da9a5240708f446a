"""ONNX Runtime's own judge of mobile execution providers, run as users run it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NNAPI, COREML = "NNAPI", "CoreML MLProgram"


@dataclass(frozen=True)
class Judgement:
    """What the checker prints for one execution provider."""

    verdict: str  # YES, MAYBE or NO
    partitions: int
    supported: int
    nodes: int
    unsupported_ops: str

    @property
    def is_whole(self) -> bool:
        """One partition that holds every node."""
        return self.verdict == "YES" and self.partitions == 1 and self.supported == self.nodes


def judge(model: Path) -> dict[str, Judgement]:
    """The verdict for each provider, by the checker's name for it."""
    command = [sys.executable, "-m", "onnxruntime.tools.check_onnx_model_mobile_usability", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    for section in re.split(r"Checking (?=NNAPI|CoreML)", done.stdout + done.stderr)[1:]:
        counts = re.search(r"(\d+) partitions with a total of (\d+)/(\d+) nodes", section)
        verdict = re.search(r"as is: (\w+)", section)
        unsupported = re.search(r"Unsupported ops: (\S+)", section)
        assert counts is not None, section
        assert verdict is not None, section
        found[section.splitlines()[0].strip()] = Judgement(
            verdict[1], *(int(count) for count in counts.groups()), unsupported[1] if unsupported else ""
        )
    return found
