"""The section on how it was done: machine, versions, warnings, and the commands to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from mobilec.cli import render
from mobilec.cli.html.cells import short_name, word
from mobilec.cli.html.page import Block, Cell, Listing, Note, Section, Table
from mobilec.cli.html.results import Made, Results
from mobilec.latency.samples import MachineFacts, MachineState, ProfileReport, Settings


def section(results: Results) -> Section:
    blocks: list[Block] = [Note(text, "warn") for text in _warnings(results)]
    commands = tuple(dict.fromkeys([*_commands(results), _report_command(results)]))
    blocks.append(Note("The commands behind this report, with the options that the results remember:", "dim"))
    blocks.append(Listing(commands, "The commands behind this report"))
    machines = [row for number, report in enumerate(results.profiles, 1) for row in _machine(report, number, results)]
    if machines:
        names = ("measurement", "what", "value")
        spare = frozenset({0} if len(results.profiles) == 1 else ())
        blocks.append(Table("machine", "Where and how it was timed", names, tuple(machines), spare=spare))
    tools = [
        (word(short_name(made.path)), word(name), word(version))
        for made in results.made
        for name, version in made.manifest.tools.items()
    ]
    if tools:
        names = ("artefact", "package", "version")
        blocks.append(Table("tools", "What the artefacts were made with", names, tuple(tools), folded="Made with"))
    sources = tuple((word(source, code=True),) for source in results.sources)
    blocks.append(Table("sources", "Files of this report", ("file",), sources, folded="Files of this report"))
    return Section("again", "To do it again", "", tuple(blocks), "Again")


def _warnings(results: Results) -> list[str]:
    several = len(results.profiles) > 1
    found = []
    for report in results.profiles:
        where = f"{report.device}: " if several and report.device != "local" else ""
        found += [f"{where}{warning}" for warning in report.warnings]
    return list(dict.fromkeys(found))


def _commands(results: Results) -> list[str]:
    found = [_export(made) for made in results.made]
    for linted in results.lints:
        found.append(shlex.join(["mobilec", "lint", linted.subject, "--target", linted.target]))
    for validation in results.validations:
        words = ["mobilec", "validate", validation.artefact]
        if validation.accuracy is not None:
            words += ["--data", validation.accuracy.data]
        found.append(shlex.join(words))
    found += [shlex.join(["mobilec", "validate", stages.artefact, "--stages"]) for stages in results.stages]
    found += [_profile(report) for report in results.profiles]
    return found


def _export(made: Made) -> str:
    """The export, as far as the manifest tells: what names a file of the user's is not in it."""
    manifest = made.manifest
    words = ["mobilec", "export", manifest.model, "--to", manifest.backend, "-o", made.path]
    if manifest.weights.get("path"):
        words += ["--checkpoint", str(manifest.weights["path"])]
    words += ["--precision", manifest.precision, "--target", manifest.target]
    images = [spec for spec in manifest.inputs if spec.preprocessing is not None and len(spec.shape) == 4]
    if images:
        height, width = images[0].shape[1:3] if images[0].layout == "NHWC" else images[0].shape[2:]
        words += ["--input-size", f"{height}" if height == width else f"{height}x{width}"]
    if manifest.config.get("num_classes") is not None and manifest.weights.get("path"):
        words += ["--num-classes", str(manifest.config["num_classes"])]
    return shlex.join(words)


def _profile(report: ProfileReport) -> str:
    settings = report.settings
    words = ["mobilec", "profile", *(item.path for item in report.artifacts)]
    if report.device != "local":
        words += ["--device", report.device]
    if settings.threads is not None:
        words += ["--threads", str(settings.threads)]
    words += ["--num-runs", str(settings.num_runs), "--min-secs", f"{settings.min_secs:g}"]
    words += ["--warmup-runs", str(settings.warmup_runs), "--launches", str(settings.launches)]
    if any(item.ops is not None and item.ops.ceiling is not None for item in report.artifacts):
        words.append("--roofline")
    if settings.sustained_secs:
        words += ["--sustained", f"{settings.sustained_secs / 60:g}"]
    return shlex.join(words)


def _report_command(results: Results) -> str:
    return shlex.join(["mobilec", "report", *results.sources])


def _machine(report: ProfileReport, number: int, results: Results) -> list[tuple[Cell, ...]]:
    name = str(number) if len(results.profiles) > 1 else short_name(report.device)
    facts = (
        *_hardware(report.machine),
        *_moment(report.before, report.after),
        *_measuring(report.settings),
    )
    return [(word(name), word(what, tone="dim"), word(value)) for what, value in facts if value]


def _hardware(facts: MachineFacts) -> Sequence[tuple[str, str]]:
    cores = ""
    if facts.logical_cores:
        usable = f"{len(facts.usable_cores)} of " if facts.usable_cores else ""
        cores = f"{usable}{facts.logical_cores} logical cores"
    quota = f"{facts.cpu_quota:g} cores' worth of CPU time" if facts.cpu_quota is not None else ""
    return (
        ("processor", ", ".join(part for part in (facts.cpu, facts.architecture) if part)),
        ("cores", cores),
        ("limit", quota),
        ("frequency governor", ", ".join(facts.governors)),
        ("memory", render.size(facts.memory_bytes) if facts.memory_bytes else ""),
        ("system", ", ".join((facts.os, *facts.virtualised))),
        ("software", ", ".join(f"{name} {version}" for name, version in facts.versions.items())),
    )


def _moment(before: MachineState, after: MachineState) -> Sequence[tuple[str, str]]:
    def change(first: float | None, last: float | None, unit: str) -> str:
        if first is None or last is None:
            return ""
        told = list(dict.fromkeys((render.digits(first), render.digits(last))))
        return f"{' to '.join(told)}{unit}"

    return (
        ("time", before.time),
        ("load average", change(before.load_1min, after.load_1min, "")),
        ("clock", change(before.cpu_mhz, after.cpu_mhz, " MHz")),
        ("temperature", change(before.temperature_c, after.temperature_c, " °C")),
    )


def _measuring(settings: Settings) -> Sequence[tuple[str, str]]:
    runs = f"at least {settings.num_runs} and {settings.min_secs:g} s, in {render.plural(settings.launches, 'process')}"
    warmup = f"at least {settings.warmup_runs} runs and {settings.warmup_secs:g} s in each"
    if settings.warmup_limit_secs:
        warmup += f", up to {settings.warmup_limit_secs:g} s while still becoming faster"
    return (
        ("timed runs", runs.replace("processs", "processes")),
        ("warm-up", warmup),
        ("seed", str(settings.seed)),
    )
