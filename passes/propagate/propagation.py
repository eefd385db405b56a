"""What a run of a model has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.propagate.model_output import ModelOutput
from fxrebasin.passes.propagate.model_state import Held
from fxrebasin.passes.propagate.record import Record
from fxrebasin.passes.propagate.relied import Relied


@dataclass
class Propagation:
    """The result of running a model: constraints, records, and what had no rule."""

    ledger: Ledger = field(default_factory=Ledger)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    passing: Passing | None = None
    held: list[Held] = field(default_factory=list)
    recognised: dict[str, Held] = field(default_factory=dict)
    relied: Relied = field(default_factory=Relied)
    looked_at_data: bool = False

    def fork(self) -> Propagation:
        """A copy that constraints can be added to without adding them here."""
        return replace(self, ledger=self.ledger.fork())


@dataclass(frozen=True, eq=False)
class Passing:
    """Outputs that the model itself goes on with, and what was found before these were pinned."""

    outputs: tuple[ModelOutput, ...]
    without: Propagation

    def pinning(self, outputs: Sequence[ModelOutput]) -> Passing:
        """The same, with some more of the outputs pinned."""
        without = self.without.fork()
        for item in outputs:
            item.pin(without.ledger)
        return replace(self, without=without)
