"""From a float program to a compressed one, with what it saves, what was left out and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from mobilec.errors import ExportError
from mobilec.export.calibration import Calibration
from mobilec.export.compress.activations import measure_ranges
from mobilec.export.compress.build import Stored, build, store_weight
from mobilec.export.compress.fidelity import Fidelity, compare
from mobilec.export.compress.layers import Candidate, find_layers, kept
from mobilec.export.compress.numbers import Affine, affine
from mobilec.export.compress.palettes import Palette
from mobilec.export.compress.running import Runner
from mobilec.export.compress.samples import Samples, Tell
from mobilec.export.compress.schemes import Compression, Format, Scheme
from mobilec.export.compress.sensitivity import leave_out, measure_layers

NAMED = "named with --keep"
SENSITIVE = "sensitive"
SMALL = "too small to gain anything"


@dataclass(frozen=True)
class Compressed:
    """What a writer needs, and what the manifest says of it.

    Attributes:
        palettes: of weights, by their bytes in the type of the tables.
        report: plain data, see ``docs/compression.md``. notes: sentences a user should read.
    """

    program: ExportedProgram
    palettes: dict[bytes, Palette]
    report: dict[str, Any]
    notes: tuple[str, ...]


def compress(program: ExportedProgram, compression: Compression, calibration: Calibration, tell: Tell) -> Compressed:
    """Measures, chooses and rewrites; the given program is left alone.

    Raises UsageError for a name in ``keep`` that no layer has, DataError when no image can be read, ExportError when
    there is nothing to compress or a limit cannot be met.
    """
    scheme, form = compression.scheme, compression.form
    layers = find_layers(program)
    if not layers:
        raise ExportError(f"nothing to compress: the model has no layers with weights of its own for {scheme.what}")
    named = kept(program, layers, compression.keep)
    reasons = dict.fromkeys(named, NAMED)
    chosen = [layer for layer in layers if layer.name not in named]
    reference = Runner(program)
    samples = Samples(calibration, tell)
    activations = _activations(reference, chosen, scheme, form, samples)
    tell("compressing weights")
    stored = {
        layer.name: store_weight(
            layer, scheme, form, None if layer.source_is_constant else activations.get(layer.source)
        )
        for layer in chosen
    }
    small = [layer.name for layer in chosen if stored[layer.name].values() is None]
    reasons |= dict.fromkeys(small, SMALL)
    chosen = [layer for layer in chosen if layer.name not in reasons]
    costs: dict[str, Fidelity] = {}
    if compression.limit is not None and chosen:
        few = samples.some()
        costs = measure_layers(reference, chosen, stored, activations, few)
        choice = leave_out(program, reference, chosen, costs, compression.limit, stored, activations, form, few)
        reasons |= dict.fromkeys(choice.left_out, SENSITIVE)
        chosen = [layer for layer in chosen if layer.name not in reasons]
    if not chosen:
        raise ExportError("nothing is left to compress", hint="keep fewer layers, or export without compression")
    built = build(program, chosen, stored, activations, form)
    fidelity = compare(reference, Runner(built.program), samples, "measuring what compression costs")
    left = tuple(_layer(layer, reasons[layer.name]) for layer in layers if layer.name in reasons)
    report = {
        "scheme": scheme.what,
        "calibration": calibration.source,
        "made_up": calibration.made_up,
        "unreadable": list(samples.unreadable),
        "layers": len(layers),
        "compressed": len(chosen),
        "left_out": left,
        "weight_bytes_before": sum(_weight_sizes(program, form).values()),
        "weight_bytes": _stored_bytes(program, chosen, stored, scheme, form),
        "estimate": asdict(fidelity),
        "limit": None if compression.limit is None else str(compression.limit),
        "sensitivity": [
            {**_layer(layer, ""), "psnr_db": costs[layer.name].psnr_db} for layer in layers if layer.name in costs
        ],
    }
    return Compressed(built.program, built.palettes, report, _notes(compression, samples, fidelity))


def _activations(
    reference: Runner,
    layers: Sequence[Candidate],
    scheme: Scheme,
    form: Format,
    samples: Samples,
) -> dict[str, Affine]:
    if not scheme.activations:
        return {}
    nodes = {layer.source for layer in layers if not layer.source_is_constant}
    nodes |= {layer.end for layer in layers if not layer.ends_program}
    ranges = measure_ranges(reference, nodes, samples)
    return {name: affine(low, high, signed=form.signed, half=form.half) for name, (low, high) in ranges.items()}


def _layer(layer: Candidate, why: str) -> dict[str, Any]:
    facts = {"name": layer.name, "kind": layer.kind, "where": layer.where, "line": layer.line}
    return {**facts, "why": why} if why else facts


def _notes(compression: Compression, samples: Samples, fidelity: Fidelity) -> tuple[str, ...]:
    notes, calibration = [], samples.calibration
    if samples.unreadable:
        first = next(iter(samples.unreadable))
        notes.append(f"{len(samples.unreadable)} of {calibration.total} images could not be read: {first}")
    if calibration.made_up:
        what = "ranges of activations and the accuracy cost were" if compression.scheme.activations else "the cost was"
        notes.append(f"no images were given: {what} measured on {calibration.source}; give real ones with --images")
    if compression.limit is not None and not fidelity.meets(compression.limit):
        notes.append(f"layers were chosen on some of the images; on all of them the limit of {compression.limit} fails")
    return tuple(notes)


def _weight_sizes(program: ExportedProgram, form: Format) -> dict[str, int]:
    """Bytes of each stored tensor that the graph reads, as a file without compression holds it."""
    item = 2 if form.half else 4
    sizes = {}
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.users and isinstance(value, torch.Tensor) and node.name not in _inputs(program):
            sizes[node.name] = value.numel() * (item if value.is_floating_point() else value.element_size())
    return sizes


def _inputs(program: ExportedProgram) -> frozenset[str]:
    return frozenset(program.graph_signature.user_inputs)  # type: ignore[arg-type]


def _stored_bytes(
    program: ExportedProgram,
    layers: Sequence[Candidate],
    stored: Mapping[str, Stored],
    scheme: Scheme,
    form: Format,
) -> int:
    sizes = _weight_sizes(program, form)
    for layer in layers:
        weights = stored[layer.name]
        if weights.palette is not None:
            sizes[layer.weight_name] = weights.palette.size_bytes(scheme.bits)
        elif weights.weight is not None:
            scales = weights.weight.scale.numel() * (2 if form.half else 4)
            sizes[layer.weight_name] = math.prod(weights.weight.values.shape) + scales
    return sum(sizes.values())
