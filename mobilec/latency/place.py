"""Where measuring processes run, as far as a measurement needs to know."""

from __future__ import annotations

from typing import Protocol

from mobilec.latency.machine import read_facts, read_state
from mobilec.latency.samples import MachineFacts, MachineState


class Place(Protocol):
    """``name``: as the user writes it."""

    name: str

    def facts(self) -> MachineFacts:
        """What does not change while measuring."""
        ...

    def state(self) -> MachineState:
        """What does."""
        ...


class Here:
    """This machine."""

    name = "local"

    def facts(self) -> MachineFacts:
        return read_facts()

    def state(self) -> MachineState:
        return read_state()
