"""The choices of an export, checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilec.errors import UsageError, did_you_mean
from mobilec.export.clock import export_time
from mobilec.export.keep_fp32 import AUTO, check_keep_fp32
from mobilec.export.user_rules import RuleFile, load_rule_files
from mobilec.export.writers import WRITERS, Writer

if TYPE_CHECKING:
    from mobilec.export.compress.schemes import Compression
    from mobilec.passes.rule import Rule


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        rules: the target's rewrites, then those of ``rule_files``; without the ``skipped`` ones, or ``only`` those.
        cpu: what native kernels are for, None for this machine. executable: write a static executable too.
        tuning: record of measured tiles for it.
        deployment_target: in coremltools' spelling, None for the writer's default.
        labels: class names by index. created: UTC, ISO 8601.
        compression: None for a plain export. images: to calibrate on, none for built-in probes.
        keep_fp32: names of what an fp16 file computes in float32, or ``auto`` alone.
    """

    writer: Writer
    precision: str
    target: str
    rules: tuple[Rule, ...]
    skipped: tuple[str, ...]
    only: tuple[str, ...]
    rule_files: tuple[RuleFile, ...]
    dynamic_batch: bool
    deployment_target: str | None
    cpu: str | None
    image_input: bool
    labels: tuple[str, ...] | None
    created: str
    compression: Compression | None = None
    images: tuple[str | Path, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    executable: bool = False
    tuning: Path | None = None

    @property
    def stored_precision(self) -> str:
        """``fp32`` or ``fp16``: of all that is not compressed."""
        if self.precision == "int8" and self.writer.int8 is not None:
            return self.writer.int8.precisions[0]
        return self.precision


def make_plan(
    writer: Writer,
    *,
    precision: str | None,
    target: str | None,
    skip_rules: Sequence[str],
    only_rules: Sequence[str],
    rule_files: Sequence[str | Path],
    dynamic_batch: bool,
    deployment_target: str | None,
    cpu: str | None,
    image_input: bool,
    labels: Sequence[str] | None,
    compress: str | None = None,
    keep: Sequence[str] = (),
    sensitivity: float | str | None = None,
    images: Sequence[str | Path] | str | Path = (),
    keep_fp32: Sequence[str] | str = (),
    executable: bool = False,
    tuning: str | Path | None = None,
) -> Plan:
    """Choices with their defaults filled in.

    Raises UsageError for those that mean nothing or do not go together, RewriteError for a rule file that breaks.
    """
    from mobilec.export.compress.choose import choose
    from mobilec.passes.pipelines import DEFAULT_TARGET, TARGETS

    chosen = _precision(writer, precision or writer.default_precision)
    aim = _one_of("target", target or DEFAULT_TARGET[writer.name], list(TARGETS))
    rules, own = chosen_rules(aim, skip_rules, only_rules, rule_files)
    if dynamic_batch and not writer.dynamic_batch:
        raise UsageError(
            f"a dynamic batch is not for {writer.title}, where every shape is fixed",
            hint="fix another batch with --input-shape, or export --to onnx",
        )
    if image_input and not writer.image_input:
        raise UsageError(
            f"an image input is not for {writer.title}, where numbers come in normalised",
            hint="leave --image-input out",
        )
    if cpu is not None and not writer.takes_cpu:
        raise UsageError(f"a CPU is not for {writer.title}", hint="leave --cpu out")
    if executable and not writer.takes_cpu:
        raise UsageError(f"an executable is not for {writer.title}", hint="leave --executable out, or export --to tvm")
    if tuning is not None and not writer.takes_cpu:
        raise UsageError(f"a tuning record is not for {writer.title}", hint="leave --tuning out, or export --to tvm")
    if tuning is not None and not Path(tuning).exists():
        raise UsageError(f"there is no tuning record at {tuning}", hint="`mobilec tune` writes one")
    writer.check(cpu, executable)
    if deployment_target is not None:
        if not writer.deployment_targets:
            raise UsageError(f"a deployment target is not for {writer.title}", hint="leave --deployment-target out")
        exact = {name.lower(): name for name in writer.deployment_targets}.get(deployment_target.lower())
        deployment_target = _one_of("deployment target", exact or deployment_target, writer.deployment_targets)
    rest = writer.int8.precisions[0] if chosen == "int8" and writer.int8 is not None else chosen
    kept = check_keep_fp32(keep_fp32, backend=writer.name, precision=rest)
    compression = choose(
        writer,
        precision=chosen,
        compress=compress,
        keep=keep,
        sensitivity=sensitivity,
        images=bool(images) and kept != (AUTO,),
        deployment_target=deployment_target,
    )
    return Plan(
        writer=writer,
        precision=chosen,
        target=aim,
        rules=rules,
        skipped=tuple(skip_rules),
        only=tuple(only_rules),
        rule_files=own,
        dynamic_batch=dynamic_batch,
        deployment_target=deployment_target,
        cpu=cpu,
        image_input=image_input,
        labels=_checked_labels(labels),
        created=export_time().strftime("%Y-%m-%dT%H:%M:%SZ"),
        compression=compression,
        images=(images,) if isinstance(images, str | Path) else tuple(images),
        keep_fp32=kept,
        executable=executable,
        tuning=None if tuning is None else Path(tuning),
    )


def chosen_rules(
    target: str, skip_rules: Sequence[str], only_rules: Sequence[str], rule_files: Sequence[str | Path]
) -> tuple[tuple[Rule, ...], tuple[RuleFile, ...]]:
    """The rules that will run, in order, and the user's files among them. Raises UsageError, RewriteError."""
    from mobilec.passes.pipelines import pipeline, rule_names, select

    for option, names in (("skip_rules", skip_rules), ("only_rules", only_rules), ("rule_files", rule_files)):
        if isinstance(names, str | Path):
            raise UsageError(f"{option} is the text {str(names)!r}, expected a list")
    rules = pipeline(target)
    own = load_rule_files(rule_files, rule_names())
    return select((*rules, *(rule for file in own for rule in file.rules)), skip_rules, only_rules), own


def _precision(writer: Writer, precision: str) -> str:
    """The precision if the writer has it. Raises UsageError."""
    having = [each.title for each in WRITERS if precision in each.precisions]
    if having and writer.title not in having:
        raise UsageError(
            f"precision {precision} is not for {writer.title}, where it is {' or '.join(writer.precisions)}",
            hint=f"leave --precision out; {precision} is for {' and '.join(having)}",
        )
    return _one_of("precision", precision, writer.precisions, f" for {writer.title}")


def _one_of(what: str, value: str, known: Sequence[str], whose: str = "") -> str:
    if value not in known:
        raise UsageError(
            f"unknown {what} {value!r}{whose}, expected one of {', '.join(known)}", hint=did_you_mean(value, known)
        )
    return value


def _checked_labels(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError("class labels must be a list of texts")
    if not labels:
        raise UsageError("the list of class labels is empty")
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        if not label.strip():
            raise UsageError(f"class label {index} is empty")
        if label in seen:
            raise UsageError(f"class labels {seen[label]} and {index} are both {label!r}", hint="make them different")
        seen[label] = index
    return tuple(labels)
