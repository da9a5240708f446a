"""`lint`: what an accelerator makes of a model before and after the rewrites, or of a file as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import CheckFailed, UsageError
from mobilec.export.subject import is_artefact, resolve_subject
from mobilec.passes.lint.judge import Finding, LintReport, OpRecord

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from mobilec.passes.lint.targets import Vocabulary
    from mobilec.passes.rule import Rule

# a backend's operators, in the words of ``mobilec.passes.lint.targets``
VOCABULARIES = {"onnx": "onnx", "coreml": "mil"}
PREFERRED = {"ane": "coreml"}  # which backend reaches a target best; ONNX for all others
FILES = {".onnx": "onnx", ".mlpackage": "coreml", ".mlmodel": "coreml"}

Progress = Callable[[str], None]
Key = tuple[str, str]  # node and constraint


@dataclass(frozen=True)
class RuleEffect:
    """A rule that rewrote something. ``fixed``: findings of the model as written that it did away with."""

    rule: str
    rewritten: int
    fixed: int
    approximation: str


@dataclass(frozen=True)
class Lint:
    """What `lint` found, as plain data.

    Attributes:
        subject: the model's name or the file. kind: ``model``, ``artefact`` or ``file``.
        target: whose facts. backend: in whose operators (``onnx`` or ``coreml``).
        report: of the model as captured, or of the file.
        after: of the model after the rewrites; None for files, and where no rewriting was asked for.
        rules: what the rewrites did, those that rewrote nothing left out.
        fixed_by: for each finding of ``report``, the rule that did away with it, or empty.
        refused: why rules that a finding of ``after`` names left its place alone; by node, for those that said so.
        pipeline: names of the rules that ran.
    """

    subject: str
    kind: str
    target: str
    backend: str
    report: LintReport
    after: LintReport | None
    rules: tuple[RuleEffect, ...]
    fixed_by: tuple[str, ...]
    refused: Mapping[str, str]
    pipeline: tuple[str, ...]

    @property
    def final(self) -> LintReport:
        """What ships: after the rewrites where there were any."""
        return self.after or self.report

    @property
    def left(self) -> tuple[Finding, ...]:
        """Findings for which an operator leaves the accelerator; advice is not among them."""
        return tuple(finding for finding in self.final.findings if finding.leaves)

    def raise_if_left(self) -> None:
        """Raises CheckFailed where operators would leave the accelerator."""
        if not self.left:
            return
        ops = Counter(finding.op for finding in {finding.node: finding for finding in self.left}.values())
        total = sum(ops.values())
        told = ", ".join(f"{count} {op}" for op, count in ops.most_common(4)) + (", ..." if len(ops) > 4 else "")
        raise CheckFailed(
            f"{self.subject}: {total} of {self.final.ops} operators would leave {self.target} ({told})",
            detail="\n".join(f"{finding.op} in {finding.where}: {finding.constraint}" for finding in self.left),
        )


def lint(
    subject: nn.Module | str | Path,
    *,
    target: str | None = None,
    to: str | None = None,
    after_rewrite: bool = True,
    input_size: int | tuple[int, int] | None = None,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    dynamic_batch: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    replace_head: bool = False,
    pretrained: bool = False,
    skip_rules: Sequence[str] = (),
    only_rules: Sequence[str] = (),
    rule_files: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Lint:
    """Which operators would leave an accelerator, why, and what helps.

    Args:
        subject: a model as ``compile`` takes it, an artefact folder, or an ``.onnx``, ``.mlpackage`` or ``.mlmodel``
            file.
        target: ``ane``, ``nnapi`` ...; an artefact's own by default, ``ane`` for Core ML.
        to: ``onnx`` or ``coreml``: in whose operators a model is judged; ONNX's but for ``ane``.
        after_rewrite: judge a model after the target's rewrites too. They are applied without their proofs.
        others: as ``compile`` takes them; for models only.

    Raises UsageError, and what ``compile`` raises until it writes; ArtifactError for a file that cannot be read.
    """
    tell = progress or (lambda stage: None)
    if isinstance(subject, str | Path):
        path = Path(subject)
        if path.suffix.lower() in FILES:
            return _lint_file(path, target, to, tell)
        if is_artefact(str(subject)):
            return _lint_artefact(path, target, to, tell)
    if target is None and to != "coreml":
        raise UsageError("which accelerator? no target is given", hint=_targets_hint())
    aim = target or "ane"
    backend = to or PREFERRED.get(aim, "onnx")
    vocabulary = _facts(aim, backend)
    from mobilec.export.inputs import example_inputs
    from mobilec.export.plan import chosen_rules
    from mobilec.export.quiet import quiet
    from mobilec.passes.capture import capture

    rules, _ = chosen_rules(aim, skip_rules, only_rules, rule_files)
    tell("building the model")
    model = str(subject) if isinstance(subject, Path) else subject
    module, provenance = resolve_subject(model, checkpoint, num_classes, replace_head, pretrained)
    examples = example_inputs(module, input_size=input_size, input_shapes=input_shapes)
    tell("capturing")
    with quiet():
        program = capture(module, examples, dynamic_batch=dynamic_batch)
    tell(f"judging {provenance.model} as written")
    report = _judge(program, vocabulary, provenance.model)
    done = _rewritten(program, rules, vocabulary, report, tell) if after_rewrite else _Rewrites()
    return Lint(
        subject=provenance.model,
        kind="model",
        target=aim,
        backend=backend,
        report=report,
        after=done.report,
        rules=done.effects,
        fixed_by=tuple(done.fixed.get(_key(finding), "") for finding in report.findings),
        refused=done.refused,
        pipeline=tuple(rule.name for rule in rules) if after_rewrite else (),
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _lint_artefact(path: Path, target: str | None, to: str | None, tell: Progress) -> Lint:
    from mobilec.export.artifact import open_artifact

    artifact = open_artifact(path.parent if path.name == "manifest.json" else path)
    manifest = artifact.manifest
    if manifest.backend not in VOCABULARIES:
        raise UsageError(
            f"{path} is for {manifest.backend}, whose operators the linter does not read",
            hint=f"it reads {' and '.join(VOCABULARIES)}: export the model to one of them, or lint the model itself",
        )
    _check_backend(path, manifest.backend, to)
    return _judge_file(str(path), "artefact", artifact.model_path, target or manifest.target, manifest.backend, tell)


def _lint_file(path: Path, target: str | None, to: str | None, tell: Progress) -> Lint:
    backend = FILES[path.suffix.lower()]
    _check_backend(path, backend, to)
    if target is None and backend != "coreml":
        raise UsageError(f"{path}: which accelerator? no target is given", hint=_targets_hint())
    return _judge_file(str(path), "file", path, target or "ane", backend, tell)


def _check_backend(path: Path, backend: str, to: str | None) -> None:
    if to not in (None, backend):
        raise UsageError(f"{path} is {backend}, so it cannot be judged as {to}", hint="leave --to out")


def _judge_file(subject: str, kind: str, path: Path, target: str, backend: str, tell: Progress) -> Lint:
    from mobilec.export.lint_coreml import coreml_records
    from mobilec.export.lint_onnx import onnx_records
    from mobilec.passes.lint.judge import lint as judge

    vocabulary = _facts(target, backend)
    tell(f"reading {path.name}")
    records = onnx_records(path) if backend == "onnx" else coreml_records(path)
    report = judge(records, vocabulary, subject)
    return Lint(subject, kind, target, backend, report, None, (), ("",) * len(report.findings), {}, ())


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rewrites:
    report: LintReport | None = None
    effects: tuple[RuleEffect, ...] = ()
    fixed: Mapping[Key, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def _rewritten(
    program: ExportedProgram, rules: Sequence[Rule], vocabulary: Vocabulary, before: LintReport, tell: Progress
) -> _Rewrites:
    """Takes the rules one by one, so that what each does away with is seen."""
    from mobilec.passes.rewrite import rewrite

    report = before
    effects = []
    fixed: dict[Key, str] = {}
    refusals: dict[tuple[str, str], str] = {}
    pending = {_key(finding): _key(finding) for finding in before.findings}  # as it stands now -> as written
    for rule in rules:
        anchors = set(rule.anchors)
        if anchors and not any(node.target in anchors for node in program.graph.nodes):
            continue  # it would find nothing
        tell(f"applying {rule.name}")
        done = rewrite(program, [rule], proof=False)
        (record,) = done.evidence
        refusals |= {(rule.name, refusal.node): refusal.reason for refusal in record.refusals}
        if not record.rewritten:
            continue
        program = done.program
        was, report = report, _judge(program, vocabulary, before.subject)
        pending, gone = _carried_on(pending, was.findings, report.findings)
        fixed |= dict.fromkeys(gone, rule.name)
        effects.append(RuleEffect(rule.name, record.rewritten, len(gone), rule.approximation))
    refused = {
        finding.node: refusals[finding.fix, _node(finding)]
        for finding in report.findings
        if (finding.fix, _node(finding)) in refusals
    }
    return _Rewrites(report, tuple(effects), fixed, refused)


def _carried_on(
    pending: Mapping[Key, Key], was: Sequence[Finding], now: Sequence[Finding]
) -> tuple[dict[Key, Key], list[Key]]:
    """Findings as written that are still there, under their present keys, and those that are gone.

    A rule that rebuilds an operator gives it a new name. So a new finding of the same constraint in the same module
    stands for one that vanished there.
    """
    old, new = {_key(finding) for finding in was}, {_key(finding) for finding in now}
    arrived: dict[tuple[str, str, str], list[Key]] = {}
    for finding in now:
        if _key(finding) not in old:
            arrived.setdefault((finding.op, finding.constraint, finding.where), []).append(_key(finding))
    left, gone = {}, []
    for finding in was:
        key = _key(finding)
        if key not in pending:
            continue
        stand_ins = arrived.get((finding.op, finding.constraint, finding.where))
        if key in new:
            left[key] = pending[key]
        elif stand_ins:
            left[stand_ins.pop()] = pending[key]
        else:
            gone.append(pending[key])
    return left, gone


def _node(finding: Finding) -> str:
    """The node of the graph: an operator that becomes several has a number behind its name."""
    return finding.node.partition(".")[0]


def _key(finding: Finding) -> Key:
    return finding.node, finding.constraint


def _judge(program: ExportedProgram, vocabulary: Vocabulary, subject: str) -> LintReport:
    from mobilec.passes.lint.judge import lint as judge
    from mobilec.passes.lint.program import program_records

    records: Sequence[OpRecord] = program_records(program, vocabulary.name)
    return judge(records, vocabulary, subject)


def _facts(target: str, backend: str) -> Vocabulary:
    from mobilec.passes.lint.targets import facts

    if backend not in VOCABULARIES:
        raise UsageError(f"unknown backend {backend!r} to lint for, expected one of {', '.join(VOCABULARIES)}")
    return facts(target, VOCABULARIES[backend])


def _targets_hint() -> str:
    from mobilec.passes.lint.targets import vocabularies

    return f"give --target {'|'.join(dict.fromkeys(name for name, _ in vocabularies()))}"
