"""Start-up time of the command line, against importing the packages it keeps out of the way.

python benchmarks/startup.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from common import machine, markdown, median

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "mobilec --help": ["-m", "mobilec.cli.main", "--help"],
    "mobilec models": ["-m", "mobilec.cli.main", "models"],
    "mobilec doctor": ["-m", "mobilec.cli.main", "doctor"],
    "import torch": ["-c", "import torch"],
    "import torch, coremltools": ["-c", "import torch, coremltools"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            if turn:  # the first turn warms the file cache
                seconds[name].append(time.perf_counter() - start)
    print(f"{machine()}; medians of {rounds} interleaved runs\n")
    rows = [(f"`{name}`", f"{median(values):.2f}", f"{min(values):.2f}") for name, values in seconds.items()]
    print(markdown(("command", "median s", "min s"), rows))


if __name__ == "__main__":
    main()
