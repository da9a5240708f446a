"""Whether a device computes what it should, before its times count: `validate`'s gates, over the device itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mobilec.errors import BackendError, CheckFailed
from mobilec.latency.channel import Channel
from mobilec.latency.packing import pack, unpack
from mobilec.latency.samples import Checked
from mobilec.passes.evidence import TensorSpec
from mobilec.runtime.session import Session

if TYPE_CHECKING:
    from mobilec.export.artifact import Artifact
    from mobilec.runtime.sides import Side

SAMPLES = 4  # built-in pictures, or tensors of several kinds


class _OverChannel(Session):
    """The session of a measuring process, run from here."""

    def __init__(self, channel: Channel, engine: str, outputs: tuple[TensorSpec, ...]) -> None:
        self.backend = engine
        self.threads: int | None = None
        self.inputs = ()
        self.outputs = outputs
        self._channel = channel

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = {"do": "infer", "feeds": {name: pack(array) for name, array in feeds.items()}}
        answer = self._channel.ask(request, stage="while its outputs are checked")
        missing = [spec.name for spec in self.outputs if spec.name not in answer]
        if missing:
            raise BackendError(f"{self._channel.label}: its output {missing[0]!r} did not come back")
        return {spec.name: unpack(answer[spec.name]) for spec in self.outputs}

    def close(self) -> None:
        pass  # the channel is the measurement's


def check_outputs(channel: Channel, artifact: Artifact, engine: str, place: str) -> Checked:
    """Compare what the loaded model computes behind ``channel`` with the artefact's reference.

    A file in fewer bits is compared with itself, run on this machine: that it is rougher than its reference is known,
    and is `validate`'s to judge.

    Raises CheckFailed when a gate does not hold.
    """
    from mobilec.runtime.contest import gather
    from mobilec.runtime.gates import failures, policy_for
    from mobilec.runtime.pairing import pair

    with closing(_OverChannel(channel, engine, artifact.manifest.outputs)) as session:
        tested, reference = _sides(artifact, session)
        with closing(reference.session):
            rough = tested.inexact or reference.inexact
            policy = policy_for(tested.precision, approximate=rough)
            pairing = pair(tested, reference, same_capture=True)
            (contest,) = gather([(tested, reference, pairing, policy)])
            cases = sum(1 for _ in islice(contest.compare_probes(), SAMPLES))
            comparison = contest.entries[0].comparison
    broken = failures(comparison.gates())
    if broken:
        told = "; ".join(
            f"{gate.name} {_figure(gate.value)}, expected {gate.relation} {gate.limit:g}" for gate in broken
        )
        raise CheckFailed(
            f"{channel.label}: {place} computes something else than {reference.title}: {told}",
            hint="nothing was timed; `mobilec validate` tells whether the file itself is right",
            detail="\n".join(gate.detail for gate in broken),
        )
    summaries = comparison.summaries()
    return Checked(
        against=reference.title,
        samples=cases,
        max_abs=max((each.metrics.max_abs or 0.0 for each in summaries), default=0.0),
        psnr_db=min((each.metrics.psnr_db for each in summaries if each.metrics.psnr_db is not None), default=None),
    )


def _sides(artifact: Artifact, session: Session) -> tuple[Side, Side]:
    from mobilec.runtime.sides import Running, open_artefact, open_captured, side_of

    tested = side_of(artifact, session, ())
    lossy = artifact.manifest.precision == "int8" or bool(artifact.manifest.options.get("compress"))
    if lossy:
        return tested, open_artefact(artifact, Running(), ())
    return tested, open_captured(artifact, Running(), ())


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:g}"
