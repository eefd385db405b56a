"""Outputs of the model: the user sees them, so that none of their axes may move."""

from __future__ import annotations

from dataclasses import dataclass

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.joining import give_up
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.propagate.record import Entry
from fxrebasin.passes.propagate.tracks import Track


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """An output, by its name for the user and by that of the operator that made it."""

    name: str
    value: Value
    made: Entry
    base: Track | None

    def pin(self, ledger: Ledger) -> Value:
        """None of its axes may move; returns the value that says so."""
        ledger.origins.append(Origin("output", self.name, is_output=True))
        return give_up(ledger, self.value, "model output")

    def names(self) -> set[str]:
        """Under which names operators read it, or what it is a view of."""
        found = {self.made[0]}
        track = self.base
        while track is not None:
            found.add(track.name)
            track = track.base
        return found
