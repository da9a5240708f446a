"""Time of the whole pipeline on ever deeper graphs: seconds, and microseconds a node.

    python benchmarks/rewrite_scaling.py [--nodes 500 5000 20000] [--targets cpu ane ...] [--rounds 1] [--profile]

The network repeats a block of every kind of layer the rules look at (convolutions with norms, gates, attention with
its reshapes, layer norm, GELU, concats, slices, shifts), on small maps so that arithmetic on tensors does not hide the
work on the graph. Capture is torch's and is not timed. Every run is a process of its own, with and without proof.
Near linear means: the last column, time a node at the largest size by that at the smallest, stays near one.
"""

from __future__ import annotations

import argparse
import json
import time

from common import machine, markdown, median, run_self

WIDTH = 16
NODES = (500, 5000, 20000)


def _network(blocks: int):  # a module; torch is imported in the measured process only
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.norm = nn.Conv2d(WIDTH, 2 * WIDTH, 1, bias=False), nn.BatchNorm2d(2 * WIDTH)
            self.depthwise = nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1, groups=2 * WIDTH)
            self.project, self.gate = nn.Conv2d(2 * WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)
            self.layer_norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
            self.out, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(WIDTH, 1, 1))

        def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
            y = F.gelu(self.norm(self.expand(x)))
            y = self.project(F.hardswish(self.depthwise(y)))
            y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
            x = x + self.scale * y
            batch, channels, height, width = x.shape
            tokens = self.layer_norm(x.flatten(2).transpose(1, 2))
            qkv = self.qkv(tokens).reshape(batch, height * width, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            y = ((q / (channels // 2) ** 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
            y = self.out(y.transpose(1, 2).reshape(batch, height * width, channels))
            x = x + y.transpose(1, 2).reshape(batch, channels, height, width)
            left, right = x.chunk(2, 1)
            # a mean, so that hundreds of blocks neither overflow nor fade
            return 0.5 * (torch.cat([F.silu(left), torch.roll(right, 1, 2) * 0.5], 1) + x)

    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *(Block() for _ in range(blocks))).eval()


def _one(target: str, nodes: int, proof: bool, profile: bool) -> None:
    """One rewrite in this process; prints the figures as JSON."""
    import cProfile
    import pstats
    import sys

    import torch

    from mobilec.passes.capture import capture
    from mobilec.passes.pipelines import pipeline
    from mobilec.passes.rewrite import rewrite

    torch.set_num_threads(1)
    sys.setrecursionlimit(10_000)
    torch.manual_seed(0)
    example = (torch.randn(1, 3, 4, 4),)

    def calls(program: torch.export.ExportedProgram) -> int:
        return sum(node.op == "call_function" for node in program.graph.nodes)

    one = calls(capture(_network(1), example)) - 1
    program = capture(_network(max(1, round(nodes / one))), example)
    rules = pipeline(target)
    profiler = cProfile.Profile() if profile else None
    start = time.process_time()
    if profiler is not None:
        profiler.enable()
    result = rewrite(program, rules, proof=proof)
    if profiler is not None:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(40)
    seconds = time.process_time() - start
    print(json.dumps({"nodes": calls(program), "after": calls(result.program), "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", nargs="+", type=int, default=list(NODES))
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="with --one: where the time goes, on standard error")
    parser.add_argument("--one", nargs=3, metavar=("TARGET", "NODES", "PROOF"), help="a single run, printed as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        target, nodes, proof = arguments.one
        _one(target, int(nodes), proof == "proof", arguments.profile)
        return
    from mobilec.passes.pipelines import TARGETS

    print(f"{machine()}; one thread, processor seconds, medians of {arguments.rounds}\n", flush=True)
    header = ["target", "proof"]
    header += [f"{nodes} nodes s" for nodes in arguments.nodes] + [
        f"{nodes} nodes us a node" for nodes in arguments.nodes
    ]
    header.append("growth")
    rows: list[list[str]] = []
    for target in arguments.targets or TARGETS:
        for proof in ("none", "proof"):
            seconds, each = [], []
            for nodes in arguments.nodes:
                runs = [run_self(__file__, "--one", target, str(nodes), proof) for _ in range(arguments.rounds)]
                seconds.append(median([run["seconds"] for run in runs]))
                each.append(1e6 * seconds[-1] / runs[0]["nodes"])
            row = [target, "yes" if proof == "proof" else "no", *(f"{value:.2f}" for value in seconds)]
            row += [*(f"{value:.0f}" for value in each), f"{each[-1] / each[0]:.2f}x"]
            rows.append(row)
            print("  " + " ".join(row), flush=True)
    print("\n" + markdown(header, rows))


if __name__ == "__main__":
    main()
