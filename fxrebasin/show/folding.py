"""Make a data flow small enough to look at: chains become one step, repeated blocks one block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, TypeAlias

from fxrebasin.flow import Flow, Step, StepKind, Stream
from fxrebasin.symmetry import Symmetry

_Block: TypeAlias = tuple[str, tuple[int, ...]]


class _From(Enum):
    """Where a stream into a block comes from."""

    BEFORE = auto()
    """From a step of the block before it."""
    ELSEWHERE = auto()


@dataclass(frozen=True)
class Sketch:
    """What is left of a data flow.

    Attributes:
        steps: by their index in the original flow.
        streams: classes of the tensor that one step hands to another.
        repeats: for the path of a block that stands for several, the paths of all of them.
        alike: for a class of such a block, the classes in its place in all of the blocks.
    """

    steps: Mapping[int, Step]
    streams: Mapping[tuple[int, int], tuple[str, ...]]
    repeats: Mapping[str, tuple[str, ...]]
    alike: Mapping[str, tuple[str, ...]]


def sketch(symmetry: Symmetry) -> Sketch:
    """The data flow of a model with its chains merged and its repeated blocks folded.

    Steps are merged that follow each other inside one module and keep the units as they are, such
    as a convolution and its normalisation. Blocks are folded that are children of one module,
    alike in all their steps, shapes and classes, and run directly one after the other. So are
    blocks that each read all blocks before them, and are alike but for the sizes of what they read.
    """
    folder = _Folder(symmetry, _merge_chains(symmetry.flow))
    for parent in folder.parents():
        folder.fold_children(parent)
    for parent in folder.parents():
        folder.fold_growing(parent)
    return Sketch(folder.steps, folder.streams, folder.repeats, folder.alike)


def parent_of(path: str) -> str:
    """The path of the module that holds a module.

    Example:
        >>> parent_of("layer1.0.conv1")
        'layer1.0'
    """
    return path.rpartition(".")[0]


def is_within(path: str, outer: str) -> bool:
    """Whether a module is another one or lies inside of it.

    Example:
        >>> is_within("layer1.0", "layer1"), is_within("layer10", "layer1")
        (True, False)
    """
    return not outer or path == outer or path.startswith(f"{outer}.")


def _merge_chains(flow: Flow) -> Flow:
    into = list(range(len(flow.steps)))
    merged = list(flow.steps)
    for index, step in enumerate(flow.steps):
        entering = [item for item in flow.streams if item.target == index]
        if len(entering) == 1 and _continues(flow, entering[0]):
            head = into[entering[0].source]
            into[index] = head
            merged[head] = replace(merged[head], parts=merged[head].parts + step.parts)
    # A merged step stays in its place, so that the indices of all others remain valid.
    moved = (Stream(into[s.source], into[s.target], s.classes) for s in flow.streams)
    kept = tuple(item for item in moved if item.source != item.target)
    gone = Step(StepKind.MERGED, (), (), ())
    steps = (s if into[i] == i else gone for i, s in enumerate(merged))
    return Flow(tuple(steps), kept)


def _continues(flow: Flow, stream: Stream) -> bool:
    """Whether the target only goes on with what the source made, with the same units."""
    one, two = flow.steps[stream.source], flow.steps[stream.target]
    return (
        one.kind is two.kind is StepKind.STEP
        and sum(item.source == stream.source for item in flow.streams) == 1
        and not any(part.own for part in one.parts + two.parts)
        and parent_of(one.parts[-1].path) == parent_of(two.parts[0].path)
        and not two.inner
        and bool(two.classes)
        and one.classes == stream.classes == two.classes
    )


@dataclass
class _Folder:
    symmetry: Symmetry
    flow: Flow
    steps: dict[int, Step] = field(default_factory=dict)
    streams: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    repeats: dict[str, tuple[str, ...]] = field(default_factory=dict)
    alike: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = {c.name: c.size for c in self.symmetry.classes}
        self.steps = {i: s for i, s in enumerate(self.flow.steps) if s.kind is not StepKind.MERGED}
        self.streams = {(s.source, s.target): s.classes for s in self.flow.streams}

    def parents(self) -> list[str]:
        """Modules whose children may be alike, the innermost first."""
        found: dict[str, None] = {}
        for step in self.steps.values():
            path = step.parts[0].path if step.parts else ""
            while path:
                path = parent_of(path)
                found.setdefault(path)
        return sorted(found, key=lambda path: -len(path.split(".")) if path else 0)

    def fold_children(self, parent: str) -> None:
        """Fold all runs of blocks that are alike."""
        blocks = self._children(parent)
        start = 0
        while start < len(blocks):
            run = blocks[start : start + 1]
            for block in blocks[start + 1 :]:
                if not self._goes_on(run, block):
                    break
                run.append(block)
            if len(run) > 1:
                self._fold(run)
            start += len(run)

    def fold_growing(self, parent: str) -> None:
        """Fold runs of blocks that read all blocks before them, as densely connected ones do."""
        blocks = self._children(parent)
        start = 0
        while start < len(blocks):
            run = blocks[start : start + 1]
            for block in blocks[start + 1 :]:
                if not self._grows(run, block):
                    break
                run.append(block)
            if len(run) > 2:
                self._fold_growing(run)
            start += len(run)

    def _grows(self, run: Sequence[_Block], block: _Block) -> bool:
        """Whether a block reads all those of a run, and does the same steps."""
        sources = {s for s, t in self.streams if t in block[1]}
        return self._does(run[0]) == self._does(block) and all(
            sources.intersection(members) for _, members in run
        )

    def _does(self, block: _Block) -> tuple[Any, ...]:
        """The steps of a block, whatever the sizes."""
        path, members = block
        return tuple(
            tuple((part.path[len(path) :], part.operators, part.unknown) for part in step.parts)
            for step in (self.steps[index] for index in members)
        )

    def _fold_growing(self, run: Sequence[_Block]) -> None:
        """Let the first block stand for all; the streams between them go."""
        _, first = run[0]
        stands = {i: k for _, members in run for i, k in zip(members, first, strict=True)}
        block_of = {index: path for path, members in run for index in members}
        self._note_alike(run)
        shown_as = {name: one for one, names in self.alike.items() for name in names}
        streams: dict[tuple[int, int], tuple[str, ...]] = {}
        for (s, t), classes in self.streams.items():
            if s in block_of and t in block_of and block_of[s] != block_of[t]:
                continue
            ends = stands.get(s, s), stands.get(t, t)
            shown = (shown_as.get(name, name) for name in classes)
            streams[ends] = tuple(dict.fromkeys([*streams.get(ends, ()), *shown]))
        self.streams = streams
        gone = stands.keys() - set(first)
        self.steps = {
            index: replace(
                step,
                inner=tuple(dict.fromkeys(shown_as.get(name, name) for name in step.inner)),
                classes=tuple(dict.fromkeys(shown_as.get(name, name) for name in step.classes)),
            )
            for index, step in self.steps.items()
            if index not in gone
        }
        self._note_repeats(run)

    def _note_alike(self, run: Sequence[_Block]) -> None:
        """Classes that each block has for itself, in the same place."""
        of_blocks = [
            [self.steps[index].inner + self.steps[index].classes for index in members]
            for _, members in run
        ]
        places = [place for place in zip(*of_blocks, strict=True) if {len(p) for p in place} == {1}]
        for names in dict.fromkeys(tuple(name for (name,) in place) for place in places):
            if len(set(names)) == len(names) and len({self.sizes[name] for name in names}) == 1:
                self.alike[names[0]] = names

    def _children(self, parent: str) -> list[_Block]:
        members: dict[str, list[int]] = {}
        depth = len(parent.split(".")) if parent else 0
        for index, step in self.steps.items():
            names = step.parts[0].path.split(".") if step.parts else []
            if len(names) > depth and is_within(step.parts[0].path, parent):
                members.setdefault(".".join(names[: depth + 1]), []).append(index)
        return [(path, tuple(inside)) for path, inside in members.items()]

    def _goes_on(self, run: Sequence[_Block], block: _Block) -> bool:
        first, last = run[0], run[-1]
        if len(block[1]) < 2 or self._form(first) != self._form(block):
            return False
        leaving = [t for s, t in self.streams if s in last[1] and t not in last[1]]
        if not leaving or not set(leaving) <= set(block[1]):
            return False
        links = self._links(block, last)
        if len(run) > 1 and links != self._links(last, run[-2]):
            return False
        shared = {link for link in links if link[0] is _From.ELSEWHERE}
        own = {target for kind, _, target in self._links(first, last) if kind is _From.ELSEWHERE}
        return (
            shared <= self._links(first, last)
            and own == {target for _, _, target in links}
            and self._alike([*run, block]) is not None
        )

    def _form(self, block: _Block) -> tuple[Any, ...]:
        """What has to be the same in two blocks that are alike, apart from their classes."""
        path, members = block
        place = {index: position for position, index in enumerate(members)}
        steps = tuple(
            tuple(
                (part.path[len(path) :], part.own, part.operators, part.unknown, shapes)
                for part in self.steps[index].parts
                for shapes in [tuple(self.symmetry.shapes[state] for state in part.states)]
            )
            for index in members
        )
        inside = sorted((place[s], place[t]) for s, t in self.streams if s in place and t in place)
        folded = [(p[len(path) :], len(a)) for p, a in self.repeats.items() if is_within(p, path)]
        return steps, inside, folded

    def _links(self, block: _Block, before: _Block) -> set[tuple[_From, int, int]]:
        """Streams into a block: from which step of the block before it, or from elsewhere."""
        place = {index: position for position, index in enumerate(block[1])}
        earlier = {index: position for position, index in enumerate(before[1])}
        return {
            (_From.BEFORE, earlier[s], place[t]) if s in earlier else (_From.ELSEWHERE, s, place[t])
            for s, t in self.streams
            if t in place and s not in place
        }

    def _classes(self, block: _Block) -> Iterator[tuple[str, ...]]:
        """The classes at every place of a block, in an order that is the same in blocks alike."""
        place = {index: position for position, index in enumerate(block[1])}
        for index in block[1]:
            yield self.steps[index].inner
            yield self.steps[index].classes
        inside = [(place[s], place[t], s, t) for s, t in self.streams if s in place and t in place]
        for _, _, s, t in sorted(inside):
            yield self.streams[s, t]
        entering: dict[int, dict[str, None]] = {}
        for (s, t), classes in self.streams.items():
            if t in place and s not in place:
                entering.setdefault(place[t], {}).update(dict.fromkeys(classes))
        for target in sorted(entering):
            yield tuple(entering[target])

    def _alike(self, run: Sequence[_Block]) -> dict[str, tuple[str, ...]] | None:
        """Which classes correspond, if every class is shared by all blocks or stays in its own."""
        found: dict[str, tuple[str, ...]] = {}
        for places in zip(*(self._classes(block) for block in run), strict=True):
            if len({len(place) for place in places}) > 1:
                return None
            for column in zip(*places, strict=True):
                if found.setdefault(column[0], column) != column:
                    return None
                if len({self.sizes[name] for name in column}) > 1:
                    return None
        own = [names for names in found.values() if len(set(names)) > 1]
        flat = [name for names in own for name in names]
        shared = {name for name, names in found.items() if len(set(names)) == 1}
        return found if len(set(flat)) == len(flat) and not shared & set(flat) else None

    def _fold(self, run: Sequence[_Block]) -> None:
        """Let the first block stand for all."""
        for name, names in (self._alike(run) or {}).items():
            if len(set(names)) > 1:
                self.alike[name] = tuple(o for n in names for o in self.alike.get(n, (n,)))
        last = dict(zip(run[-1][1], run[0][1], strict=True))
        gone = {index for _, members in run[1:] for index in members}
        streams = {}
        for (source, target), classes in self.streams.items():
            if target not in gone and (source not in gone or source in last):
                streams[last.get(source, source), target] = classes
        self.streams = streams
        self.steps = {index: step for index, step in self.steps.items() if index not in gone}
        self._note_repeats(run)

    def _note_repeats(self, run: Sequence[_Block]) -> None:
        paths = tuple(path for path, _ in run)
        others = [p for p in self.repeats if any(is_within(p, path) for path in paths[1:])]
        for path in others:
            del self.repeats[path]
        self.repeats[paths[0]] = paths
