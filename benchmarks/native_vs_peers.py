"""Our native library against the runtimes a user would pick instead, on the same weights.

    python benchmarks/native_vs_peers.py [--models NAME ...] [--large] [--threads 2 1] [--batch 1] [--rounds 16]
                                         [--peers NAME ...] [--json FILE] [--markdown FILE]
    python benchmarks/native_vs_peers.py --convert-only     # everything that is not timed; minutes a model, kept

*mobilec* is ``mobilec export --to tvm`` as it comes. The peers run the plain export of the same module: ONNX Runtime,
OpenVINO and MNN what ``torch.onnx.export(dynamo=True)`` writes, LiteRT what ``litert_torch.convert`` writes, ExecuTorch
what its XNNPACK partitioner makes of ``torch.export``. ONNX Runtime and OpenVINO also run ``mobilec export --to onnx``.
fp32; threads are set through each runtime's own interface, nothing is pinned to a core, and the share of time that
each thread computed is kept with the figures.

Before anything is timed, every runtime's outputs on two inputs are compared with PyTorch's. One that answers wrongly,
cannot convert, load or run a model is shown so, with its reason, and is no candidate for the fastest peer.

Every runtime has a process of its own. One round gives each of them one turn, in an order drawn anew: untimed runs
until the machine has settled, then timed ones. A ratio is the median over rounds of the peer's median by ours in the
same round, so that what slows a round slows both; its interval is a 95 % bootstrap over rounds.

*Bound* is the time that the model's multiply-adds take at the speed of a product of matrices that fits in the caches
(``peers/probe.py``), which takes a turn in every round like the others.

Peers live in virtual environments that the script makes in ``--envs``, from pinned versions (``peers/runtimes.py``).
These and the converted models are kept in the user's cache folder; what is there and still fits is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from common import SMALLEST, machine
from peers.files import CannotMake, Store, default_cache, python_of
from peers.measure import Result, Turns, measure
from peers.runtimes import HERE, OURS, WAYS, Way
from peers.tables import Run, markdown_report, show

LARGE = ("mobilevig_b", "shvit_s4", "ghostnetv2_160", "eca_resnet101", "emov2_50m", "care_s2")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SMALLEST), metavar="NAME")
    parser.add_argument("--large", action="store_true", help="one large model of every family as well")
    parser.add_argument("--threads", nargs="+", type=int, default=[2], metavar="N", help="one table for each")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--min-secs", type=float, default=0.2, help="timed seconds of a turn")
    parser.add_argument("--settle-secs", type=float, default=0.1, help="untimed seconds before them")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--peers", nargs="+", choices=[name for name in WAYS if name != OURS], help="only these")
    parser.add_argument("--envs", type=Path, help="folder of the peers' environments (default: in the user's cache)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of converted models")
    parser.add_argument("--retry", action="store_true", help="convert again what failed before")
    parser.add_argument("--convert-only", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, written after every model")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args()


def _prepare(store: Store, models: list[str], ways: list[Way], console: Console) -> None:
    """Makes every environment and file, so that nothing is installed or converted between timed runs."""
    for model in models:
        for way in ways:
            try:
                python_of(way.environment, store.environments, store.tell)
                store.file_of(way, model)
            except CannotMake as error:
                console.print(f"{model}, {way.label}: {error}", markup=False, highlight=False)


def _document(runs: list[Run], arguments: argparse.Namespace) -> dict[str, Any]:
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    return {"machine": machine(), "options": options, "runs": [asdict(run) for run in runs]}


def _failed(results: list[Result]) -> list[str]:
    return [result.problem for result in results if result.way == OURS and result.problem]


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    models = [*arguments.models, *(LARGE if arguments.large else ())]
    ways = [way for name, way in WAYS.items() if name == OURS or not arguments.peers or name in arguments.peers]
    envs = arguments.envs or arguments.cache / "envs"
    runs: list[Run] = []
    with console.status("") as status:
        store = Store(arguments.cache, envs, arguments.batch, arguments.retry, status.update)
        _prepare(store, models, ways, console)
        if arguments.convert_only:
            return
        for threads in arguments.threads:
            turns = Turns(threads, arguments.rounds, arguments.settle_secs, arguments.min_secs, arguments.seed)
            for model in models:
                macs = store.entry("reference", HERE, model).facts["macs"]
                results, probe = measure(model, ways, store, turns, status.update)
                runs.append(Run(model, threads, arguments.batch, macs, results, probe))
                if arguments.json:
                    arguments.json.write_text(json.dumps(_document(runs, arguments), indent=1))
    settings = f"{machine()}; fp32, batch {arguments.batch}; {arguments.rounds} rounds"
    show(Console(), runs, settings)
    if arguments.markdown:
        arguments.markdown.write_text(markdown_report(runs, settings))
    broken = [f"{run.model}: {problem}" for run in runs for problem in _failed(run.results)]
    if broken:
        sys.exit("\n".join(["our library is not right:", *broken]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # every process it started is ended by now
        sys.exit(130)
