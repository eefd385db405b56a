"""The data flow between the modules of a model, with the permutation classes that flow along it.

Operators that one module calls in a row are one step. A step that neither reads state nor joins
tensors of several steps is passed over: what it returns counts as its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from fxrebasin.flow import Flow, Part, Step, StepKind, Stream
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.passes.explain.unit_classes import UnitClasses
from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.origin import CONSTANT, INPUT
from fxrebasin.passes.group.state_fields import StateField
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.passes.propagate.record import Record

_Names: TypeAlias = tuple[str, ...]


def data_flow(
    propagation: Propagation,
    fields: Mapping[str, Sequence[StateField]],
    classes: Sequence[PermutationClass],
    layout: Layout,
) -> Flow:
    """Steps and streams of the recorded forward pass."""
    reader = UnitClasses(propagation, fields, classes, layout)
    builder = _Builder(propagation, reader)
    calls = builder.calls()
    for _, run in groupby(calls, key=lambda call: call.run):
        builder.add(list(run))
    return Flow(tuple(builder.steps), tuple(builder.streams))


@dataclass(frozen=True, eq=False)
class _Call:
    """An operator call; calls with the same `run` that follow each other are one step."""

    record: Record
    path: str
    own: bool
    states: _Names
    tensors: tuple[tuple[str, Value], ...]
    run: tuple[str, int]


@dataclass
class _Builder:
    propagation: Propagation
    reader: UnitClasses
    steps: list[Step] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    made_by: dict[str, int | None] = field(default_factory=dict)

    def calls(self) -> list[_Call]:
        """The operator calls that handle more than a view of one state tensor."""
        records = self.propagation.records
        paths = [self._path(record) for record in records]
        containers = _containers(paths)
        states: dict[str, _Names] = {name: (name,) for name in self.propagation.shapes}
        found: list[_Call] = []
        for record, path in zip(records, paths, strict=True):
            inputs = {name: value for name, value in record.inputs if name not in ("", CONSTANT)}
            read = tuple(dict.fromkeys(s for name in inputs for s in states.get(name, ())))
            tensors = tuple((n, v) for n, v in inputs.items() if n not in states)
            if not tensors and len(inputs) == 1 and len(read) <= 1:
                states.update((name, read) for name, _ in record.outputs)
                continue
            for name, _ in record.outputs:
                states.pop(name, None)
            own = path in containers
            # What a container does with its own parameters is worth a step of its own.
            number = len(found) if own and read else -1
            found.append(_Call(record, path, own, read, tensors, (path, number)))
        return found

    def _path(self, record: Record) -> str:
        origin = self.propagation.ledger.origins[record.origin]
        return "output" if origin.is_output else origin.module

    def add(self, run: list[_Call]) -> None:
        """Add a step, unless all it does is to change one tensor in passing."""
        made = {name for call in run for name, _ in call.record.outputs}
        outside = {n: v for call in run for n, v in call.tensors if n not in made}
        sources = {name: self._source(name, value) for name, value in outside.items()}
        known = list(dict.fromkeys(source for source in sources.values() if source is not None))
        states = tuple(dict.fromkeys(state for call in run for state in call.states))
        origins = [self.propagation.ledger.origins[call.record.origin] for call in run]
        is_output = origins[0].is_output
        if not states and len(known) <= 1 and not is_output:
            self.made_by.update(dict.fromkeys(made, known[0] if known else None))
            return
        index = len(self.steps)
        entering: dict[int, dict[str, None]] = {source: {} for source in known}
        for name, source in sources.items():
            if source is not None:
                entering[source].update(dict.fromkeys(self.reader.of_value(outside[name])))
        self.streams += [Stream(s, index, tuple(names)) for s, names in entering.items()]
        leaving = () if is_output else self.reader.of_value(run[-1].record.outputs[0][1])
        around = {*leaving, *(name for names in entering.values() for name in names)}
        inner = [name for name in self.reader.of_states(states) if name not in around]
        part = Part(
            run[0].path,
            run[0].own,
            states,
            _operators(run, self.propagation),
            any(o.operator in self.propagation.unknown for o in origins),
        )
        kind = StepKind.OUTPUT if is_output else StepKind.STEP
        self.steps.append(Step(kind, (part,), tuple(inner), leaving))
        self.made_by.update(dict.fromkeys(made, index))

    def _source(self, name: str, value: Value) -> int | None:
        if name == INPUT and name not in self.made_by:
            self.made_by[name] = len(self.steps)
            self.steps.append(Step(StepKind.INPUT, (), (), self.reader.of_value(value)))
        return self.made_by.get(name)


def _containers(paths: Iterable[str]) -> set[str]:
    """Paths of modules that run others; the model itself is always one."""
    found = {""}
    for path in set(paths):
        while "." in path:
            path = path.rpartition(".")[0]
            found.add(path)
    return found


def _operators(run: Sequence[_Call], propagation: Propagation) -> _Names:
    decisive = [call for call in run if call.states or len(call.tensors) > 1] or list(run)
    called = [propagation.ledger.origins[call.record.origin].op for call in decisive]
    return tuple(dict.fromkeys(op.overloadpacket.__name__ for op in called if op is not None))
