"""Which tensors are read when, and which stay between visits: made from shapes alone.

Most families of classes hold few tensors, those of a layer or two: they are *visited*, one after
the other in the order of the layers, while these tensors are in memory. A family that holds
tensors of many layers, such as the stream of a transformer that all layers read and add to, is a
*stream*: it is held while the layers pass, each adds its share to the stream's matrix of gains, and
at the end of the sweep the stream is solved. Both steps are exact, and each sweep reads the
tensors once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fxrebasin.streaming.problem import FileProblem

OVERHEAD = 2**29
"""Bytes for the interpreter, libraries, and parts of tensors at work."""
BLOCK = 2**25
"""Bytes of one model that are read at once of a tensor that need not be whole."""
_MOST_STREAMS = 64
# Between tensors that stay the allocator holds more than was asked for: a seventh more with 1.9 GiB
# of them, of a pair of 8 GiB.
_HELD = 6
_WIDE = 4
_WHOLE = 8


@dataclass(frozen=True)
class Visit:
    """One family, while its tensors are in memory.

    Args:
        root: the outer class of the family.
        reads: names of tensors that are read for it; others are there from earlier visits.
        settles: names of tensors that no later visit needs.
        bytes: of tensors and matrices in memory.
    """

    root: str
    reads: tuple[str, ...]
    settles: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Schedule:
    """What a sweep over two checkpoints does.

    Args:
        streams: outer classes that are solved at the end of a sweep.
        pure: names of tensors that hold one stream and nothing else; read first, a few rows at a
            time where possible.
        visits: of all other families, in order.
        shared: names of tensors that hold several streams, or one twice; read again for each of
            them at the end of a sweep.
        fixed: names of tensors without units that may move; only compared.
        kept: names of tensors that stay in memory from one sweep to the next, as there is room.
        bytes_first: read in the first sweep.
        bytes_again: read in a later sweep, at most.
        bytes_largest: of the tensors of the largest visited family, of both models.
        bytes_matrix: of the largest matrix of gains of a visited family.
        peak: bytes of memory that are needed.
    """

    streams: tuple[str, ...]
    pure: tuple[str, ...]
    visits: tuple[Visit, ...]
    shared: tuple[str, ...]
    fixed: tuple[str, ...]
    kept: tuple[str, ...]
    bytes_first: int
    bytes_again: int
    bytes_largest: int
    bytes_matrix: int
    peak: int

    def carried(self, visits: Sequence[int]) -> tuple[str, ...]:
        """Names of tensors that are in memory after some visits.

        Args:
            visits: their numbers, in order.
        """
        done = [self.visits[number] for number in visits]
        settled = {name for v in done for name in v.settles}
        return tuple(name for v in done for name in v.reads if name not in settled)


def make_schedule(problem: FileProblem, most: int | None = None) -> Schedule:
    """The schedule that needs the least memory; what is left is for tensors that are read again.

    What is found does not depend on how much memory there is.

    Args:
        problem: shapes, and where units are.
        most: bytes of memory that there are; nothing is kept when left out.

    Returns:
        A schedule whose `peak` is above `most` only if there is none below.
    """
    found = min(
        (_scheduled(problem, streams) for streams in _choices(problem)),
        key=lambda schedule: schedule.peak,
    )
    return found if most is None else _with_kept(problem, found, most)


def _with_kept(problem: FileProblem, schedule: Schedule, most: int) -> Schedule:
    kept: list[str] = []
    peak = schedule.peak
    for name in (name for visit in schedule.visits for name in visit.reads):
        size = problem.bytes_of([name])
        size += size // _HELD
        if peak + size <= most:
            kept.append(name)
            peak += size
    again = schedule.bytes_again - problem.bytes_of(kept)
    return replace(schedule, kept=tuple(kept), peak=peak, bytes_again=again)


def _choices(problem: FileProblem) -> Iterator[tuple[str, ...]]:
    """Ever more streams, those that hold the most first."""
    size = {root: problem.bytes_of(names) for root, names in problem.tensors.items()}
    alone = [root for root, members in problem.roots.items() if members == (root,)]
    largest = sorted(alone, key=lambda root: -size[root])[:_MOST_STREAMS]
    for count in range(len(largest) + 1):
        chosen = set(largest[:count])
        yield tuple(root for root in problem.roots if root in chosen)


def _scheduled(problem: FileProblem, streams: tuple[str, ...]) -> Schedule:
    order = {name: k for k, name in enumerate(problem.sides)}
    local = [root for root in problem.roots if root not in streams]
    local.sort(key=lambda root: min(order[name] for name in problem.tensors[root]))
    visited = dict.fromkeys(name for root in local for name in problem.tensors[root])
    shared = tuple(name for name in problem.sides if _is_shared(problem, name, streams))
    holding = {name for stream in streams for name in problem.tensors[stream]}
    pure = tuple(
        n for n in problem.sides if n in holding and n not in visited and n not in {*shared}
    )
    fixed = tuple(n for n in problem.sides if n not in visited and n not in holding)
    kept, term, apart = _summed(problem, streams)
    visits = [replace(v, bytes=v.bytes + kept) for v in _visits(problem, local, term)]
    ends = kept + term + (apart if shared else 0)
    at_ends = ends + max((_at_once(problem, name) for name in (*pure, *shared, *fixed)), default=0)
    again = _read_at_ends(problem, streams, shared)
    first = problem.bytes_of([*pure, *fixed, *visited]) + again
    first += sum(problem.bytes_of([name]) for name in shared if name not in visited)
    return Schedule(
        streams,
        pure,
        tuple(visits),
        shared,
        fixed,
        kept=(),
        bytes_first=first,
        bytes_again=problem.bytes_of([*pure, *visited]) + again,
        bytes_largest=max((problem.bytes_of(problem.tensors[r]) for r in local), default=0),
        bytes_matrix=max((_gains(problem, root) for root in local), default=0),
        peak=OVERHEAD + max([v.bytes for v in visits] + [at_ends]),
    )


def _summed(problem: FileProblem, streams: Sequence[str]) -> tuple[int, int, int]:
    """Bytes of the gains of all streams, of one term of one of them, and of what two that share a
    tensor need besides: another sum, its matrix, and that of both."""
    gains = [_gains(problem, stream) for stream in streams]
    sums = [max(_rows(problem, stream)) ** 2 * _WHOLE for stream in streams]
    return sum(sums), max(gains, default=0), 2 * max(gains, default=0) + max(sums, default=0)


def _is_shared(problem: FileProblem, name: str, streams: Sequence[str]) -> bool:
    return sum(root in streams for root in problem.held.get(name, ())) > 1


def _read_at_ends(problem: FileProblem, streams: Sequence[str], shared: Sequence[str]) -> int:
    """Bytes that are read at the end of a sweep."""
    times = {name: sum(s in problem.held[name] for s in streams) for name in shared}
    # Where a stream meets itself it is read once more, to see whether the step pays.
    twice = {
        name: sum(problem.held[name].count(stream) > 1 for stream in streams) for name in shared
    }
    return sum(problem.bytes_of([name]) * (times[name] + twice[name]) for name in shared)


def _visits(problem: FileProblem, local: Sequence[str], term: int) -> Iterator[Visit]:
    last = {name: root for root in local for name in problem.tensors[root]}
    inside: dict[str, None] = {}
    seen: set[str] = set()
    for root in local:
        reads = tuple(name for name in problem.tensors[root] if name not in seen)
        seen |= set(reads)
        inside |= dict.fromkeys(reads)
        settles = tuple(name for name in inside if last[name] == root)
        largest = max((problem.sides[name][1].bytes for name in settles), default=0)
        work = max(_all_gains(problem, root), largest + term)
        yield Visit(root, reads, settles, problem.bytes_of(inside) + work)
        for name in settles:
            del inside[name]


def _at_once(problem: FileProblem, name: str) -> int:
    """Bytes of a tensor that are in memory when it is read a few rows at a time."""
    one, two = problem.sides[name]
    whole = one.bytes + 2 * two.bytes
    if not problem.in_rows(name):
        return whole
    return min(whole, 3 * max(BLOCK, one.bytes_of_row, two.bytes_of_row))


def _gains(problem: FileProblem, root: str) -> int:
    """Bytes of the largest matrix of gains of a family."""
    return max(_rows(problem, root)) ** 2 * _width(problem, root)


def _all_gains(problem: FileProblem, root: str) -> int:
    """Bytes of all its matrices; those of units within units are turned, and so there twice."""
    own, *inner = _rows(problem, root)
    return (own**2 + 2 * sum(rows**2 for rows in inner)) * _width(problem, root)


def _rows(problem: FileProblem, root: str) -> list[int]:
    """Rows of the matrix of the outer class, and of those of all units of each inner one."""
    sizes = {c.name: c.size for c in problem.classes}
    inner = [sizes[root] * sizes[name] for name in problem.roots[root] if name != root]
    return [sizes[root] if root in problem.roots[root] else 1, *inner]


def _width(problem: FileProblem, root: str) -> int:
    """Bytes of one gain: four, or eight where a tensor is in double precision."""
    dtypes = [side.dtype for name in problem.tensors[root] for side in problem.sides[name]]
    return max(_WIDE, 8 if any(dtype.itemsize >= 8 for dtype in dtypes) else _WIDE)
