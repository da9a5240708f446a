"""`ranges`: the activations of a model as it would be exported, what half precision does to them, and what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilec.errors import CheckFailed, UsageError
from mobilec.export.calibration import Calibration, calibration
from mobilec.export.keep_fp32 import BACKENDS, inputs_of
from mobilec.export.manifest import InputSpec
from mobilec.export.subject import resolve_subject
from mobilec.mobile.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from mobilec.passes.ranges.judge import Verdict
    from mobilec.passes.ranges.keep import Kept
    from mobilec.passes.ranges.run import Agreement, NodeRanges
    from mobilec.passes.rule import Rule

Progress = Callable[[str], None]
ASSUMPTION = (
    "Simulated on the CPU: each tensor of the file rounded to half precision, weights too, sums and the insides of one "
    "operator in float32. 'may break' is what changes where an engine does those in half precision, or flushes "
    "subnormal numbers; only the device tells."
)


@dataclass(frozen=True)
class Remedy:
    """What helps against a verdict.

    Attributes:
        rule: a rewrite that takes the operator and holds in half precision; empty where there is none. ``in_pipeline``:
            whether the target runs it.
        keep: what to name behind ``--keep-fp32``.
    """

    rule: str
    in_pipeline: bool
    keep: str


@dataclass(frozen=True)
class RangesReport:
    """What `ranges` found, as plain data.

    Attributes:
        subject / weights: what was measured. backend / target: for which file, after whose rewrites; ``rewritten`` is
            False for the model as written. measured_on: the inputs in words; made_up: whether they are built in.
        unreadable: messages on images that could not be read.
        verdicts: worst first. nodes: the ranges by node. remedies: by node, for those that are not fine.
        half: agreement of the outputs with float32. kept: what ``--keep-fp32 auto`` would keep, None where no set of
            operators would do.
    """

    subject: str
    weights: str
    backend: str
    target: str
    rewritten: bool
    measured_on: str
    made_up: bool
    unreadable: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    nodes: Mapping[str, NodeRanges]
    remedies: Mapping[str, Remedy]
    half: Agreement
    holds: bool
    kept: Kept | None
    assumption: str = ASSUMPTION

    @property
    def counts(self) -> Mapping[str, int]:
        return Counter(verdict.level for verdict in self.verdicts)

    def raise_if_breaks(self) -> None:
        """Raises CheckFailed where something will break, or the outputs leave the gates of an fp16 artefact."""
        from mobilec.passes.ranges.judge import BREAKS

        broken = [verdict for verdict in self.verdicts if verdict.level == BREAKS]
        if broken:
            first = broken[0]
            raise CheckFailed(
                f"{self.subject}: {len(broken)} operators break in half precision, {first.op} ({first.node}) in "
                f"{first.where or 'the model itself'} first: {first.what}",
                hint="export with --keep-fp32 auto",
                detail="\n".join(f"{v.op} ({v.node}) in {v.where}: {v.what}" for v in broken),
            )
        if self.half.undefined:
            raise CheckFailed(
                f"{self.subject}: {self.half.undefined} numbers of the outputs are NaN or infinite in float32 already",
                hint="check weights and preprocessing",
            )
        if not self.holds:
            raise CheckFailed(
                f"{self.subject}: the outputs keep {self.half.psnr_db:.1f} dB in half precision, a cosine of "
                f"{self.half.cosine:.5f}",
                hint="export with --keep-fp32 auto",
            )


def ranges_of_model(
    model: nn.Module | str,
    *,
    images: Sequence[str | Path] | str | Path = (),
    target: str | None = None,
    to: str | None = None,
    after_rewrite: bool = True,
    input_size: int | tuple[int, int] | None = None,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    replace_head: bool = False,
    pretrained: bool = False,
    preprocessing: Preprocessing | None = None,
    skip_rules: Sequence[str] = (),
    only_rules: Sequence[str] = (),
    rule_files: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> RangesReport:
    """Runs a model on images and foretells what half precision does to each operator.

    Args:
        model: as ``compile`` takes it. images: files, folders or patterns; without any, built-in pictures.
        target: whose rewrites are applied first; by default ``ane`` for Core ML and ``cpu`` for ONNX.
        to: ``coreml`` or ``onnx``, in whose file the operators are; ONNX for ``target`` other than ``ane``.
        after_rewrite: False for the model as written.
        others: as ``compile`` takes them.

    Raises UsageError, DataError, and what ``compile`` raises until it writes.
    """
    tell = progress or (lambda stage: None)
    from mobilec.export.inputs import example_inputs
    from mobilec.export.plan import chosen_rules
    from mobilec.export.quiet import quiet
    from mobilec.passes.capture import capture, input_specs

    backend, aim = _aim(to, target)
    rules, _ = chosen_rules(aim, skip_rules, only_rules, rule_files)
    tell("building the model")
    module, provenance = resolve_subject(model, checkpoint, num_classes, replace_head, pretrained)
    image = preprocessing or provenance.preprocessing
    examples = example_inputs(module, input_size=input_size, input_shapes=input_shapes)
    tell("capturing")
    with quiet():
        program = capture(module, examples)
    specs = tuple(
        InputSpec(s.name, s.shape, s.dtype, **_meaning(s.shape, s.dtype, image)) for s in input_specs(program)
    )
    return ranges_of(
        program,
        calibration(specs, images),
        rules if after_rewrite else None,
        subject=provenance.model,
        weights=provenance.weights.summary,
        backend=backend,
        target=aim,
        progress=tell,
    )


def _meaning(shape: Sequence[int | str], dtype: str, image: Preprocessing) -> dict[str, Any]:
    is_image = len(shape) == 4 and shape[1] == 3 and dtype == "float32"
    return {"layout": "NCHW", "preprocessing": image.to_dict()} if is_image else {}


def _aim(to: str | None, target: str | None) -> tuple[str, str]:
    from mobilec.passes.pipelines import DEFAULT_TARGET

    if to not in (None, *BACKENDS):
        raise UsageError(f"unknown backend {to!r}, expected one of {', '.join(BACKENDS)}")
    backend = to or ("coreml" if target in (None, "ane") else "onnx")
    return backend, target or DEFAULT_TARGET[backend]


def ranges_of(
    program: ExportedProgram,
    inputs: Calibration,
    rules: Sequence[Rule] | None,
    *,
    subject: str,
    weights: str,
    backend: str,
    target: str,
    rewritten: bool = False,
    already: Collection[str] = (),
    progress: Progress = lambda stage: None,
) -> RangesReport:
    """``ranges_of_model`` for a program.

    Args:
        rules: applied first, without their proofs; None where the program stays as it is.
        rewritten: by the target's rules before. already: names of nodes that are in float32 anyway.
    """
    from mobilec.errors import ExportError
    from mobilec.passes.pipelines import rule_names
    from mobilec.passes.ranges.judge import FINE, judge
    from mobilec.passes.ranges.keep import holds, keep_enough
    from mobilec.passes.ranges.run import Runner
    from mobilec.passes.rewrite import rewrite

    if rules is not None:
        program = rewrite(program, rules, proof=False, progress=lambda rule: progress(f"applying {rule}")).program
    runner = Runner(program, backend)  # type: ignore[arg-type]
    unreadable: list[str] = []

    def read(*, report: bool = False) -> Any:
        return inputs_of(inputs, unreadable if report else None)

    progress("measuring activations")
    measured = runner.measure(
        read(report=True), lambda done: progress(f"measuring activations ({done} of {inputs.total})")
    )
    if already:
        measured = replace(measured, half=runner.agreement(read(), measured.outputs, frozenset(already)))
    verdicts = tuple(verdict for verdict in judge(measured) if verdict.node not in already)
    progress("choosing what to keep in float32")
    try:
        kept = keep_enough(runner, measured, read, verdicts, already=already)
    except ExportError:
        kept = None
    wrong = [verdict for verdict in verdicts if verdict.level != FINE]
    return RangesReport(
        subject=subject,
        weights=weights,
        backend=backend,
        target=target,
        rewritten=rewritten or rules is not None,
        measured_on=inputs.source,
        made_up=inputs.made_up,
        unreadable=tuple(unreadable),
        verdicts=verdicts,
        nodes={node.name: node for node in measured.nodes},
        remedies=_remedies(program, wrong, rule_names(target) if rewritten or rules is not None else ()),
        half=measured.half,
        holds=holds(measured.half),
        kept=kept,
    )


def _remedies(program: ExportedProgram, verdicts: Sequence[Verdict], pipeline: Sequence[str]) -> dict[str, Remedy]:
    """For each verdict a rule that takes its operator, tried on the program, and what to keep."""
    from mobilec.passes.ranges.judge import RULES_THAT_HELP
    from mobilec.passes.rewrite import rewrite
    from mobilec.passes.rules.table import RULES

    takes: dict[str, set[str]] = {}  # rule -> nodes that are gone after it
    for rule in dict.fromkeys(rule for verdict in verdicts for rule in RULES_THAT_HELP.get(verdict.op, ())):
        after = rewrite(program, [RULES[rule]], proof=False).program
        takes[rule] = {node.name for node in program.graph.nodes} - {node.name for node in after.graph.nodes}
    remedies = {}
    for verdict in verdicts:
        rule = next((r for r in RULES_THAT_HELP.get(verdict.op, ()) if verdict.node in takes[r]), "")
        remedies[verdict.node] = Remedy(rule, rule in pipeline, verdict.node)
    return remedies
