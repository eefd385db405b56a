"""What `transform` did: the report in `g.meta["fxrebasin"]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fxrebasin.alignment import Alignment, Certificate
from fxrebasin.facts import Brief, counted
from fxrebasin.permutation import Permutation
from fxrebasin.reports.equivalence import EquivalenceReport


@dataclass(frozen=True, repr=False)
class RebasinReport(Brief):
    """The report of one `transform`; its fields can also be read as keys.

    Attributes:
        method: the matching method.
        objective_before: sum over parameters of the inner product of reference and model.
        objective_after: the same with the permuted model.
        distance_before: Euclidean distance of the parameters of reference and model.
        distance_after: the same with the permuted model.
        sweeps: of the solver over the classes, until nothing changed.
        seconds: wall time by stage: trace, analyze, match, rewrite, and verify if it was asked for.
        tracer: what made the graph: `"fx"`, `"export"`, or `"given"` for a GraphModule; None where
            no graph was made.
        notes: what a user of the graph should know, in words.
        equivalence: the float64 comparison with the model, None with `verify=False`,
            and where no unit moved and no graph was made.
        certificate: the permutation, or the alignment.
        log10_order: of the group that was searched.
        unknown_operators: operators without a rule, whose axes were pinned.
        rounding: of the model and of the result in their own precision, each against the model in
            float64: the largest relative error of an output. None where nothing was rounded, or
            with `verify=False`.
        ignored: tensors that were not compared with the reference, as the caller asked.
    """

    method: str
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    seconds: Mapping[str, float]
    tracer: str | None
    notes: tuple[str, ...]
    equivalence: EquivalenceReport | None
    certificate: Certificate
    log10_order: float
    unknown_operators: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    rounding: tuple[float, float] | None = None

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(f"the report has no {key!r}; it has {', '.join(self.keys())}")
        return getattr(self, key)

    @property
    def permutation(self) -> Permutation:
        """The order of the units; of an alignment, what comes before its elements."""
        found = self.certificate
        return found.permutation if isinstance(found, Alignment) else found

    @property
    def groups(self) -> str | None:
        """How many classes have which group, in words; None where all are only permuted."""
        found = self.certificate
        return found.groups_text() if isinstance(found, Alignment) else None

    def _facts(self) -> list[tuple[str, str]]:
        permutation = self.certificate
        facts = [
            ("method", self.method),
            *(() if self.groups is None else (("groups", self.groups),)),
            (
                "moved",
                f"{permutation.units_moved} of {counted(permutation.units, 'unit')}",
            ),
            ("distance", f"{self.distance_before:.6g} → {self.distance_after:.6g}"),
            ("agreement", f"{self.objective_before:.6g} → {self.objective_after:.6g}"),
            ("checked", "none" if self.equivalence is None else str(self.equivalence)),
            ("seconds", f"{sum(self.seconds.values()):.2f}"),
        ]
        return [*facts, *(("note", note) for note in self.notes[:2])]

    def keys(self) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(item.name for item in fields(self))
