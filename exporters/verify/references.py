"""What the reference of a comparison returns, on inputs that are worth comparing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxrebasin.exporters.verify.activity import Activity
from fxrebasin.exporters.verify.effort import Effort, portions, takes_long
from fxrebasin.exporters.verify.input_sets import (
    InputSet,
    example_set,
    first_rows,
    further_sets,
    other_sets,
    wide_sets,
)
from fxrebasin.exporters.verify.noise import Noise
from fxrebasin.exporters.verify.runs import (
    Float64Run,
    NativeRun,
    Subject,
    Tensors,
    fault_of,
    in_float64,
    tensors_of,
)
from fxrebasin.exporters.verify.state_reads import StateReads
from fxrebasin.exporters.verify.weak_outputs import blind_outputs
from fxrebasin.models.redraw import Manner
from fxrebasin.running.freed import give_back_memory
from fxrebasin.wording import listed

_MOST_WIDE = 4  # sets for a model that may take one of several paths
_ROWS = 16  # of such a set
_ROWS_TO_FIND_WAYS = 64  # if the model is known to choose
_MANNERS = (Manner.BEYOND, Manner.FAR, Manner.WIDE, Manner.FREE)  # of many rows
_FEW = 2  # rows of an example, at most; the next set has three
_SHOWN = 5  # names in a note


@dataclass(frozen=True)
class References:
    """The reference on the sets of inputs that it takes.

    Attributes:
        subject: what was run.
        sets: the example, and if the model takes others at least one more.
        runs: the tensors of each set by name, in float64 unless `native`.
        notes: sets that were left out and why, and what no run has read, in words.
        noise: rounding errors of what was run, for all who compare with it.
        native: whether the runs are in the precision of the model.
    """

    subject: Subject
    sets: tuple[InputSet, ...]
    runs: tuple[Tensors, ...]
    notes: tuple[str, ...]
    noise: Noise
    native: bool = False


def reference_runs(
    subject: Subject,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    any_batch: bool = True,
    rows: int = 0,
    few: int = 0,
    further: Sequence[InputSet] = (),
    little_memory: bool = False,
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
        rows: how many rows there are to be in all, for two models whose relation is not known;
            fewer where a row takes long, and then there is a note. Units that none of them shows
            are noted, too, and that no output depends on the parameters.
        few: so many rows of the example will do, one or two, if the model takes them; all if 0.
            For what is proved otherwise as well.
        further: sets that are run as well; those that are required have to be taken.
        little_memory: see `in_float64`.

    Raises:
        InputError: the reference does not run on the example, or on one of the further sets.
    """
    example = example_set(args, kwargs)
    with in_float64(subject, little_memory=little_memory) as run:
        explorer = _Explorer(subject, run, run.reads(), run.activity() if rows else None)
        example = explorer.start(example, few if any_batch else 0)
        other = explorer.first_taken(example, any_batch)
        explorer.extend(example, other, further, rows)
        found = explorer.found()
    blind = blind_outputs(subject, found.sets, found.runs) if rows else []
    return replace(found, notes=(*found.notes, *blind))


def native_runs(
    subject: Subject,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    any_batch: bool = True,
    further: Sequence[InputSet] = (),
) -> References:
    """Run the reference of a comparison in its own precision; otherwise as `reference_runs` does.

    If any number of rows will do, one row of the example is a set as well. Where it shows that the
    whole example takes long, it stands for that, and the next set has three rows at most.

    Args:
        subject: the reference.
        args: positional inputs.
        kwargs: keyword inputs.
        any_batch: False if the candidate is known to take the batch size of the example only.
        further: sets that have to be run as well.

    Raises:
        InputError: the reference does not run on the example, or on one of the further sets.
    """
    example = example_set(args, kwargs)
    run = NativeRun(subject)
    explorer = _Explorer(subject, run, run.reads(), native=True)
    row = explorer.row_of(example) if any_batch else None
    alone = row is not None and takes_long(row.effort, example.rows)
    if row is not None and alone:
        explorer.keep(row.inputs, row.found)
    else:
        explorer.require(example)
    other = explorer.first_taken(example, any_batch, few=alone)
    explorer.extend(example, other, further)
    if row is not None and not alone:
        explorer.keep(row.inputs, row.found)
    give_back_memory()
    return explorer.found()


@dataclass(frozen=True)
class _Row:
    """One row of the example that the model takes, what it returns, and the work of that."""

    inputs: InputSet
    found: Tensors
    effort: Effort


class _Explorer:
    """Collects the sets that a model takes, and notes about those that it does not take."""

    def __init__(
        self,
        subject: Subject,
        run: Float64Run | NativeRun,
        reads: StateReads,
        activity: Activity | None = None,
        *,
        native: bool = False,
    ) -> None:
        self._subject, self._run, self._reads, self._activity = subject, run, reads, activity
        self._native = native
        self._counted: tuple[Effort, int] | None = None  # work of a call, and its rows
        self.sets: list[InputSet] = []
        self.runs: list[Tensors] = []
        self.notes: list[str] = []

    def start(self, example: InputSet, few: int) -> InputSet:
        """Keep the example, or as few of its rows as the model takes; what others are made of.

        That has two rows, where the example has: of one row, tensors that have no batch axis, but a
        first axis of size 1, could not be told from those that have one.
        """
        for rows in range(few, _FEW + 1) if few else ():
            if (example.batch or 0) > rows and self._try(first_rows(example, rows)) is None:
                return first_rows(example, _FEW)
        self.require(example)
        return example

    def row_of(self, example: InputSet) -> _Row | None:
        """Run one row of an example that has more; None if the model does not take it."""
        if (example.batch or 0) < 2:
            return None
        effort = Effort()
        one = first_rows(example, 1)
        run = self._run(one, self._reads, effort)
        if fault_of(run) is not None:
            return None
        return _Row(one, tensors_of(self._subject, one, run), effort)

    def require(self, one: InputSet) -> None:
        """Keep a set that the model has to take."""
        self.keep(one, tensors_of(self._subject, one, self._watched(one)))

    def first_taken(
        self, example: InputSet, any_batch: bool, *, few: bool = False
    ) -> InputSet | None:
        """Keep the first set besides the example that the model takes."""
        refused: dict[str, str] = {}
        for one in other_sets(example, any_batch=any_batch, few=few):
            fault = self._try(one)
            if fault is None:
                self.notes += _refusals(refused, example, one)
                return one
            refused.setdefault(one.label, fault)
        what = "; ".join(f"{label}: {fault}" for label, fault in refused.items())
        why = f"the model refuses others ({what})" if refused else "they have no other values"
        self.notes.append(f"only the example inputs were compared: {why}")
        return None

    def extend(
        self,
        example: InputSet,
        other: InputSet | None,
        further: Sequence[InputSet],
        rows: int = 0,
    ) -> None:
        """Keep what is required besides, and more if the model took another set."""
        if other is not None:
            self.explore(example, other)
        for one in further:
            if one.required:
                self.require(one)
            else:
                self._try(one)
        if other is not None:
            self.fill(example, other, rows)

    def found(self) -> References:
        """What was kept, and notes about what was not."""
        notes = (*self.notes, *self.unseen())
        sets, runs = tuple(self.sets), tuple(self.runs)
        noise = Noise(self._subject) if self._native else Noise(self._subject, sets, runs)
        return References(self._subject, sets, runs, notes, noise, native=self._native)

    def explore(self, example: InputSet, like: InputSet) -> None:
        """Keep further sets, as long as they make the model read what it has not read."""
        chooses = self._reads.looked
        least = 2 if chooses else int(bool(self._reads.untouched()))
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

    def fill(self, example: InputSet, like: InputSet, rows: int) -> None:
        """Keep further sets until there are so many rows, or as many as are affordable."""
        missing = rows - self._rows()
        if missing <= 0 or self._counted is None:
            return
        free = like.batch != example.batch
        effort, ran = self._counted
        plan = portions(effort, ran, missing, of_size=None if free else example.rows)
        batch = plan.rows if free else example.batch
        kinds = [
            further_sets(example, batch, manner)
            for manner in dict.fromkeys((*_MANNERS, like.manner))
        ]
        for _ in range(plan.calls):
            while kinds and (fault := self._try(one := next(kinds[0]))) is not None:
                self.notes.append(f"inputs left out ({one.label}): {fault}")
                del kinds[0]
            kinds = kinds[1:] + kinds[:1]
        if self._rows() < rows:
            self.notes.append(_few(self._rows(), rows, bool(kinds)))

    def unseen(self) -> list[str]:
        """Notes about what no run has shown."""
        notes = _unread_notes(self._reads)
        if self._activity is None:
            return notes
        return [*notes, *_unlooked_notes(self._reads), *self._activity.notes()]

    def _rows(self) -> int:
        return sum(one.rows for one in self.sets)

    def _watched(self, one: InputSet) -> Tensors | Exception:
        """A run with all that watches it; the first one's effort is counted."""
        watching = [] if self._activity is None else [self._activity]
        if self._activity is None or self._counted is not None:
            return self._run(one, self._reads, *watching)
        effort = Effort()
        run = self._run(one, self._reads, *watching, effort)
        self._counted = effort, one.rows
        return run

    def _try(self, one: InputSet) -> str | None:
        """Keep a set, or say why the model does not take it."""
        run = self._watched(one)
        fault = fault_of(run)
        if fault is None:
            self.keep(one, tensors_of(self._subject, one, run))
        return fault

    def keep(self, one: InputSet, run: Tensors) -> None:
        """Have a set among those that are compared."""
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


def _few(rows: int, wanted: int, taken: bool) -> str:
    if taken:
        return f"only {rows} rows were compared, not {wanted}: a row of this model takes long"
    return f"only {rows} rows were compared, not {wanted}: the model refuses others"


def _unread_notes(reads: StateReads) -> list[str]:
    """What was not read does not change what was returned, whatever it is."""
    untouched = reads.untouched()
    # Where values chose no path, a part is unread because the inputs are short: positions, say.
    partly = [n for n in reads.unread() if n not in untouched] if reads.looked else []
    notes = []
    if untouched:
        notes.append(f"no run read {_count(untouched)}, so that nothing is known about them")
    if partly:
        notes.append(f"no run read all of {_count(partly)}: nothing is known about the rest")
    return notes


def _unlooked_notes(reads: StateReads) -> list[str]:
    """Rows of tables that no input named, and parts that no input was long enough for."""
    rows = [f"{count} of {name}" for name, count in reads.unlooked().items()]
    if not rows:
        return []
    return [f"no input names all rows: nothing is known about {listed(rows, _SHOWN)}"]


def _count(names: Sequence[str]) -> str:
    """The number of parameters and the first names."""
    kind = "parameter" if len(names) == 1 else "parameters"
    return f"{len(names)} {kind} ({listed(names, _SHOWN)})"
