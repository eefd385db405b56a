"""What was recorded of one of each parts that are alike, in a ledger of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fxrebasin.passes.fields.constraints import Pin
from fxrebasin.passes.fields.labels import NONE
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints, memory
from fxrebasin.passes.group.parts import Entry, Kind, Part, without_repeats
from fxrebasin.passes.group.relations import compact


@dataclass(eq=False)
class Single:
    """One of each parts that are alike: their units, numbered anew in the same order.

    Attributes:
        ledger: what was recorded of them but relations; no reasons for pins.
        relations: made small.
        sources: for each relation, and then for each edge, the entry that it is from.
        pins: how many there are at first.
    """

    ledger: Ledger
    relations: list[list[Ints]] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    pins: int = 0


def single(ledger: Ledger, entries: Sequence[Entry], groups: Sequence[Sequence[Part]]) -> Single:
    """What was recorded of the first part of each group.

    Args:
        ledger: with all units.
        entries: all that was recorded.
        groups: of parts that are alike.
    """
    found = Single(Ledger(origins=ledger.origins))
    number = np.full(ledger.size, NONE, np.int64)
    for birth in sorted(birth for group in groups for birth in group[0].births):
        start, end = ledger.births[birth]
        number[start:end] = found.ledger.fresh(end - start).numpy()
    labels = _Renumbered(number)
    kept = sorted(index for group in groups for index in group[0].entries)
    of_edges = []
    for index in kept:
        item = entries[index]
        columns = [labels.of(values) for values in item.arrays]
        if item.kind in (Kind.MET, Kind.TUPLES):
            small = compact(columns) if item.kind is Kind.MET else [columns]
            found.relations += small
            found.sources += [index] * len(small)
        else:
            _record(found.ledger, item.kind, columns)
            of_edges += [index] if item.kind is Kind.EDGE else []
    found.sources += of_edges
    found.pins = len(found.ledger.pins)
    return found


def _record(ledger: Ledger, kind: Kind, columns: Sequence[Ints]) -> None:
    if kind is Kind.EDGE:
        ledger.nest(columns[0], columns[1])
    elif kind is Kind.TIE:
        ledger.ties.append((columns[0], columns[1]))
    elif kind is Kind.TIED:
        ledger.tie(columns[0], columns[1])
    elif kind is Kind.SELECTION:
        ledger.members.append(torch.from_numpy(np.array(columns[0])))
    elif kind is Kind.PIN:
        ledger.pins.append(Pin(columns[0], "", ledger.origin))


class _Renumbered:
    """Arrays of labels with other numbers of units; arrays that are the same stay so."""

    def __init__(self, number: Ints) -> None:
        self._number = number
        self._known: dict[object, Ints] = {}

    def of(self, labels: Ints) -> Ints:
        """The same labels, with the new numbers."""
        key = memory(labels)
        if key not in self._known:
            few = without_repeats(labels)
            if few.size and few.min() >= 0:
                new = self._number[few]
            else:
                new = np.where(few >= 0, self._number[np.maximum(few, 0)], few)
            self._known[key] = np.broadcast_to(new, labels.shape) if few is not labels else new
        return self._known[key]
