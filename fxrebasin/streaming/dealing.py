"""Which process does what of a sweep: the same steps, however many processes share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import BLOCK, Schedule

_BUNDLE = 2**20
"""Bytes of small tensors that are worked on at once."""


@dataclass(frozen=True)
class Part:
    """What is read at once of tensors that need not be whole, or several small ones.

    Args:
        names: of the tensors.
        rows: a range of those of the one tensor; None for all.
        bytes: of both models.
    """

    names: tuple[str, ...]
    rows: slice | None
    bytes: int

    def label(self, name: str) -> str:
        """What tells it from other parts of the same tensor.

        Args:
            name: of the tensor.
        """
        return name if self.rows is None else f"{name}[{self.rows.start}]"


@dataclass(frozen=True)
class Share:
    """What one process does of a sweep.

    Args:
        fixed: parts of tensors that are only compared.
        pure: parts of tensors that hold one stream and nothing else.
        visits: their numbers.
        shared: parts of tensors that are read at the end of a sweep.
    """

    fixed: tuple[Part, ...]
    pure: tuple[Part, ...]
    visits: tuple[int, ...]
    shared: tuple[Part, ...]


def parts_of(problem: FileProblem, names: Iterable[str]) -> Iterator[Part]:
    """Tensors in parts: large ones a few rows at a time, small ones together.

    Args:
        problem: shapes, and where units are.
        names: of the tensors.
    """
    small: list[str] = []
    for name in names:
        if problem.bytes_of([*small, name]) <= min(_BUNDLE, BLOCK):
            small.append(name)
            continue
        if small:
            yield Part(tuple(small), None, problem.bytes_of(small))
        small = []
        yield from _rows_of(problem, name)
    if small:
        yield Part(tuple(small), None, problem.bytes_of(small))


def _rows_of(problem: FileProblem, name: str) -> Iterator[Part]:
    one, two = problem.sides[name]
    if max(one.bytes, two.bytes) <= BLOCK or not problem.in_rows(name):
        yield Part((name,), None, problem.bytes_of([name]))
        return
    count = two.shape[0]
    step = max(1, BLOCK // max(one.bytes_of_row, two.bytes_of_row))
    for start in range(0, count, step):
        stop = min(start + step, count)
        size = (stop - start) * (one.bytes_of_row + two.bytes_of_row)
        yield Part((name,), slice(start, stop), size)


def deal(problem: FileProblem, schedule: Schedule, count: int) -> list[Share]:
    """What each of some processes does; each is given the largest piece that is left when it has
    least.

    Visits that share tensors stay together, since each depends on what the others decided.

    Args:
        problem: shapes, and where units are.
        schedule: of a sweep.
        count: of the processes.
    """
    visits = _together(problem, schedule)
    fixed, pure = (tuple(parts_of(problem, names)) for names in (schedule.fixed, schedule.pure))
    shared = tuple(part for name in schedule.shared for part in parts_of(problem, [name]))
    sizes = [_bytes(problem, schedule, group) for group in visits]
    parts = [part.bytes for kind in (fixed, pure, shared) for part in kind]
    owners = _owners(sizes, parts, count, _looks(problem, schedule))
    shares = []
    for rank in range(count):
        mine = [k for k, owner in enumerate(owners) if owner == rank]
        numbers = sorted(n for k in mine if k < len(visits) for n in visits[k])
        kinds = []
        start = len(visits)
        for kind in (fixed, pure, shared):
            kinds.append(tuple(part for k, part in enumerate(kind, start) if owners[k] == rank))
            start += len(kind)
        shares.append(Share(kinds[0], kinds[1], tuple(numbers), kinds[2]))
    return shares


def _looks(problem: FileProblem, schedule: Schedule) -> int:
    """Bytes that the first process reads for a first look at the streams."""
    found = 0
    for stream in schedule.streams:
        look = first_look(problem, schedule, stream)
        found += 0 if look is None else look.bytes
    return found


def first_look(problem: FileProblem, schedule: Schedule, stream: str) -> Part | None:
    """A part of the largest tensor that holds a stream alone; of one that is read in parts, no more
    rows than the stream has units, since all processes wait for what is seen in it.

    Args:
        problem: shapes, and where units are.
        schedule: of a sweep.
        stream: the class.
    """
    names = [name for name in schedule.pure if stream in problem.held[name]]
    if not names:
        return None
    largest = max(names, key=lambda name: problem.bytes_of([name]))
    part = next(parts_of(problem, [largest]))
    if part.rows is None:
        return part
    size = next(c.size for c in problem.classes if c.name == stream)
    stop = min(part.rows.stop, size)
    return Part(part.names, slice(0, stop), part.bytes * stop // part.rows.stop)


def _owners(
    visits: Sequence[int], parts: Sequence[int], count: int, first_has: int = 0
) -> list[int]:
    """Who does what, from bytes; visits first, since they are made at a time of their own."""
    order = [*visits, *parts]
    first = sorted(range(len(visits)), key=lambda k: (-order[k], k))
    then = sorted(range(len(visits), len(order)), key=lambda k: (-order[k], k))
    loads = [first_has] + [0] * (count - 1)
    owners = [0] * len(order)
    for k in (*first, *then):
        owners[k] = min(range(count), key=lambda rank: (loads[rank], rank))
        loads[owners[k]] += order[k]
    return owners


def spread(sizes: Sequence[int], count: int) -> list[int]:
    """Which of some processes does each of several things.

    Args:
        sizes: of the things.
        count: of the processes.

    Example:
        >>> spread([1, 5, 3], 2)
        [1, 0, 1]
    """
    return _owners(sizes, [], count)


def _together(problem: FileProblem, schedule: Schedule) -> list[list[int]]:
    """Numbers of visits that share tensors, directly or by way of others."""
    group = list(range(len(schedule.visits)))

    def first(k: int) -> int:
        while group[k] != k:
            k = group[k]
        return k

    held: dict[str, int] = {}
    for k, visit in enumerate(schedule.visits):
        for name in problem.tensors[visit.root]:
            one, two = sorted((first(held.setdefault(name, k)), first(k)))
            group[two] = one
    found: dict[int, list[int]] = {}
    for k in range(len(schedule.visits)):
        found.setdefault(first(k), []).append(k)
    return list(found.values())


def _bytes(problem: FileProblem, schedule: Schedule, visits: Sequence[int]) -> int:
    return problem.bytes_of(name for k in visits for name in schedule.visits[k].reads)
