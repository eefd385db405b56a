"""What the reference of a comparison returns, on inputs that are worth comparing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxrebasin.exporters.verify.input_sets import InputSet, example_set, other_sets, wide_sets
from fxrebasin.exporters.verify.runs import (
    Float64Run,
    Subject,
    Tensors,
    fault_of,
    in_float64,
    tensors_of,
)
from fxrebasin.exporters.verify.state_reads import StateReads
from fxrebasin.wording import listed

_MOST_WIDE = 4  # sets for a model that may take one of several paths
_ROWS = 16  # of such a set
_ROWS_TO_FIND_WAYS = 64  # if the model is known to choose
_SHOWN = 5  # names in a note


@dataclass(frozen=True)
class References:
    """The reference on the sets of inputs that it takes.

    Attributes:
        subject: what was run.
        sets: the example, and if the model takes others at least one more.
        runs: the float64 tensors of each set, by name.
        notes: sets that were left out and why, and what no run has read, in words.
    """

    subject: Subject
    sets: tuple[InputSet, ...]
    runs: tuple[Tensors, ...]
    notes: tuple[str, ...]

    @property
    def other_batch(self) -> bool:
        """Whether there is a set with another batch size than that of the example."""
        return any(one.batch != self.sets[0].batch for one in self.sets)


def reference_runs(
    subject: Subject,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    any_batch: bool = True,
    thorough: bool = False,
    further: Sequence[InputSet] = (),
) -> References:
    """Run the reference of a comparison in float64 on the example and on other inputs.

    Besides the example there is one set with other values and, if the model takes it, another
    number of rows. A model that looks at what it computed, or that has parameters which were not
    read, may take other paths for other inputs: it is run on further sets of many rows with values
    far apart, as long as these read something new.

    Args:
        subject: the reference.
        args: positional inputs.
        kwargs: keyword inputs.
        any_batch: False if the candidate is known to take the batch size of the example only.
        thorough: run a set of many rows whatever the model does.
        further: sets that have to be run as well.

    Raises:
        InputError: the reference does not run on the example, or on one of the further sets.
    """
    example = example_set(args, kwargs)
    with in_float64(subject) as run:
        reads = run.reads()
        explorer = _Explorer(subject, run, reads)
        explorer.require(example)
        other = explorer.first_taken(example, any_batch)
        if other is not None:
            explorer.explore(example, other, thorough)
        for one in further:
            explorer.require(one)
        notes = (*explorer.notes, *_unread_notes(reads))
    return References(subject, tuple(explorer.sets), tuple(explorer.runs), notes)


class _Explorer:
    """Collects the sets that a model takes, and notes about those that it does not take."""

    def __init__(self, subject: Subject, run: Float64Run, reads: StateReads) -> None:
        self._subject, self._run, self._reads = subject, run, reads
        self.sets: list[InputSet] = []
        self.runs: list[Tensors] = []
        self.notes: list[str] = []

    def require(self, one: InputSet) -> None:
        self._keep(one, tensors_of(self._subject, one, self._run(one, self._reads)))

    def first_taken(self, example: InputSet, any_batch: bool) -> InputSet | None:
        """Keep the first set besides the example that the model takes."""
        refused: dict[str, str] = {}
        for one in other_sets(example, any_batch=any_batch):
            fault = self._try(one)
            if fault is None:
                self.notes += _refusals(refused, example, one)
                return one
            refused.setdefault(one.label, fault)
        what = "; ".join(f"{label}: {fault}" for label, fault in refused.items())
        why = f"the model refuses others ({what})" if refused else "they have no other values"
        self.notes.append(f"only the example inputs were compared: {why}")
        return None

    def explore(self, example: InputSet, like: InputSet, thorough: bool) -> None:
        """Keep further sets, as long as they make the model read what it has not read."""
        chooses = self._reads.looked
        least = 2 if chooses else int(thorough or bool(self._reads.untouched()))
        rows = _ROWS_TO_FIND_WAYS if chooses else _ROWS
        known, found_more, refused = len(self.sets), False, 0
        for one in wide_sets(example, like, rows, _MOST_WIDE):
            if refused == 2 or (len(self.sets) - known >= least and not found_more):
                break
            before = self._reads.unread()
            fault = self._try(one)
            if fault is not None:
                refused += 1
                self.notes.append(f"inputs left out ({one.label}): {fault}")
            found_more = self._reads.unread() != before

    def _try(self, one: InputSet) -> str | None:
        """Keep a set, or say why the model does not take it."""
        run = self._run(one, self._reads)
        fault = fault_of(run)
        if fault is None:
            self._keep(one, tensors_of(self._subject, one, run))
        return fault

    def _keep(self, one: InputSet, run: Tensors) -> None:
        self.sets.append(one)
        self.runs.append(run)


def _refusals(refused: Mapping[str, str], example: InputSet, taken: InputSet) -> list[str]:
    """Notes about the sets that were refused before one was taken."""
    if not refused:
        return []
    if example.batch != taken.batch or all(label == taken.label for label in refused):
        return [f"inputs left out ({label}): {fault}" for label, fault in refused.items()]
    what = "; ".join(f"{label}: {fault}" for label, fault in refused.items())
    return [f"no other batch size than {example.batch} was compared: the model refuses ({what})"]


def _unread_notes(reads: StateReads) -> list[str]:
    """What was not read does not change what was returned, whatever it is."""
    untouched = reads.untouched()
    # Where values chose no path, a part is unread because the inputs are short: positions, say.
    partly = [n for n in reads.unread() if n not in untouched] if reads.looked else []
    notes = []
    if untouched:
        notes.append(f"no run read {_count(untouched)}, so that nothing is proved about them")
    if partly:
        notes.append(f"no run read all of {_count(partly)}: nothing is proved about the rest")
    return notes


def _count(names: Sequence[str]) -> str:
    """The number of parameters and the first names."""
    kind = "parameter" if len(names) == 1 else "parameters"
    return f"{len(names)} {kind} ({listed(names, _SHOWN)})"
