"""How much each layer alone costs, and which to leave out so that the whole stays near enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram

from mobilec.errors import ExportError
from mobilec.export.compress.build import Stored, build
from mobilec.export.compress.fidelity import Fidelity, Tally, compare, worst_first
from mobilec.export.compress.layers import Candidate
from mobilec.export.compress.numbers import Affine, fake
from mobilec.export.compress.running import Runner
from mobilec.export.compress.samples import Samples
from mobilec.export.compress.schemes import Format, Limit


@dataclass(frozen=True)
class Choice:
    """Layers left out, in the order in which they were, and the fidelity of the rest on the samples measured."""

    left_out: tuple[str, ...]
    fidelity: Fidelity


def measure_layers(
    runner: Runner,
    layers: Sequence[Candidate],
    stored: Mapping[str, Stored],
    activations: Mapping[str, Affine],
    samples: Samples,
) -> dict[str, Fidelity]:
    """What each layer costs when it alone is compressed. Raises ExportError for a program that writes in place."""
    if runner.writes:
        raise ExportError(
            "sensitivity cannot be measured: the program overwrites tensors",
            hint="let the rule remove_in_place run, or name the layers with --keep",
        )
    changes = {layer.name: _alone(runner, layer, stored[layer.name], activations) for layer in layers}
    tallies = {layer.name: Tally() for layer in layers}
    for tensors, count in samples.batches(f"measuring {len(layers)} layers one by one"):
        reference, changed = runner.run_each(tensors, changes)
        for name, outputs in changed.items():
            tallies[name].add(reference, outputs, count)
    return {name: tally.close() for name, tally in tallies.items()}


def _alone(
    runner: Runner, layer: Candidate, stored: Stored, activations: Mapping[str, Affine]
) -> Callable[[Tensor], Tensor]:
    """The layer as it will be, from what it reads."""
    call = runner.call(layer.name)
    weight = stored.values()
    source = None if layer.source_is_constant else activations.get(layer.source)
    result = None if layer.ends_program else activations.get(layer.end)

    def compressed(x: Tensor) -> Tensor:
        y = call(fake(x, source) if source is not None else x, weight if weight is not None else layer.weight)
        # behind a ReLU only what it lets through is written, and cutting the rest is what it does
        return fake(y, result) if result is not None else y

    return compressed


def leave_out(
    program: ExportedProgram,
    reference: Runner,
    layers: Sequence[Candidate],
    costs: Mapping[str, Fidelity],
    limit: Limit,
    stored: Mapping[str, Stored],
    activations: Mapping[str, Affine],
    form: Format,
    samples: Samples,
) -> Choice:
    """Leaves out the layers that cost most, as few as reach the limit (found by halving).

    Raises ExportError when even one layer alone exceeds it.
    """
    order = worst_first((layer.name, costs[layer.name].psnr_db) for layer in layers)

    def without(count: int) -> Fidelity:
        left = set(order[:count])
        rest = [layer for layer in layers if layer.name not in left]
        built = Runner(build(program, rest, stored, activations, form).program)
        return compare(reference, built, samples, f"trying without {count} of {len(layers)} layers")

    fewest, fidelity = 0, without(0)
    if not fidelity.meets(limit):
        low, high, fidelity_at = 1, len(order) - 1, {}
        while low <= high:
            middle = (low + high) // 2
            fidelity_at[middle] = without(middle)
            if fidelity_at[middle].meets(limit):
                high = middle - 1
            else:
                low = middle + 1
        if low not in fidelity_at or not fidelity_at[low].meets(limit):
            raise ExportError(
                f"no layer can be compressed within {limit}", hint="ask for less, or export without compression"
            )
        fewest, fidelity = low, fidelity_at[low]
    return Choice(order[:fewest], fidelity)
