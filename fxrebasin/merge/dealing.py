"""Models that are dealt to the processes of a group: each works on some, with one result for all.

What goes from model to model, such as a mean, is handed from one process to the next, so that it
comes to the same bytes however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch

from fxrebasin.errors import FxRebasinError, InputError
from fxrebasin.ranks import ALONE, Alone, RankLostError, Together
from fxrebasin.running.messages import attempt

T = TypeVar("T")

Team: TypeAlias = Alone | Together


def team_of(group: Any) -> Team:
    """The processes of a group.

    Args:
        group: of torch.distributed, of which this process is one; None for this process alone.

    Raises:
        InputError: it is no such group.

    Example:
        >>> team_of(None).count
        1
    """
    if group is None:
        return ALONE
    is_there = torch.distributed.is_available() and torch.distributed.is_initialized()
    if is_there and group == torch.distributed.GroupMember.NON_GROUP_MEMBER:
        raise InputError("this process does not belong to the group; call from those that do")
    if not is_there or not isinstance(group, torch.distributed.ProcessGroup):
        raise InputError(
            f"group is a {type(group).__name__}; pass a group of torch.distributed that was "
            "initialised, such as torch.distributed.group.WORLD"
        )
    number, count = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    return Together(number, count, group) if count > 1 else ALONE


def dealt(count: int, team: Team) -> range:
    """The indices of the models that this process works on, which follow each other.

    Args:
        count: of all models.
        team: the processes.

    Example:
        >>> dealt(5, Together(number=1, count=2))
        range(2, 5)
    """
    return range(count * team.number // team.count, count * (team.number + 1) // team.count)


def check_alike(team: Team, call: Any) -> None:
    """Refuse a call that is not the same in all processes.

    Args:
        team: the processes.
        call: what tells calls apart, short enough to be shown.

    Raises:
        InputError: another process was asked for something else.
    """
    every = team.every(call)
    for number, other in enumerate(every):
        if other != every[0]:
            raise InputError(
                f"all processes of group= have to make the same call; that of process 0 is for "
                f"{every[0]}, that of process {number} for {other}"
            )


def agreed(team: Team, work: Callable[[], T]) -> T:
    """What some work comes to here, once all processes have done theirs.

    Args:
        team: the processes.
        work: of this one.

    Raises:
        RankLostError: another process could not do its part; this one raises what the work raises.
    """
    found, fault = _attempted(work)
    faults = team.every(None if fault is None else f"{type(fault).__name__}: {fault}")
    if fault is not None:
        raise fault
    for number, other in enumerate(faults):
        if other is not None:
            raise _stopped(f"process {number}: {other}")
    return found[0]


def gathered(team: Team, work: Callable[[], Mapping[int, T]]) -> dict[int, T]:
    """What the work of all processes comes to, in the order of the processes.

    Args:
        team: the processes.
        work: of this one, by the index of the model.

    Raises:
        RankLostError: see `agreed`.
    """
    every = team.every(agreed(team, work))
    return {index: found for part in every for index, found in part.items()}


def handed_on(
    team: Team,
    work: Callable[[dict[str, torch.Tensor]], None],
    like: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Tensors that one process after the other changes; all have those of the last in the end.

    Args:
        team: the processes.
        work: of this one; changes what those before it left, which is nothing for the first.
        like: tensors on the devices where those of the same names belong.

    Raises:
        RankLostError: see `agreed`.
    """
    if isinstance(team, Alone):
        found: dict[str, torch.Tensor] = {}
        work(found)
        return found
    last, fault = team.count - 1, None
    found, stop = _taken(team, like) if team.number else ({}, None)
    if stop is None:
        _, fault = _attempted(lambda: work(found))
        stop = None if fault is None else f"process {team.number}: {type(fault).__name__}: {fault}"
    if team.number < last:
        _give(found, stop, lambda value: team.hand(value, team.number + 1))
    names, stop = team.tell(([*found], stop), last)
    if fault is not None:
        raise fault
    if stop is not None:
        raise _stopped(stop)
    there = team.number == last
    return {n: team.tell(found[n].cpu() if there else None, last).to(like[n].device) for n in names}


def _give(
    tensors: Mapping[str, torch.Tensor], stop: str | None, hand: Callable[[object], None]
) -> None:
    """Hand on tensors one at a time, or why there are none."""
    hand(([] if stop else [*tensors], stop))
    for tensor in () if stop else tensors.values():
        hand(tensor.cpu())


def _taken(
    team: Together, like: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str | None]:
    names, stop = team.take(team.number - 1)
    found = {name: team.take(team.number - 1).to(like[name].device) for name in names}
    return found, stop


def _attempted(work: Callable[[], T]) -> tuple[list[T], Exception | None]:
    """What work comes to, in a list; or what it raises, which others have to be told first."""
    found: list[T] = []
    return found, attempt(lambda: found.append(work()))


def _stopped(fault: str) -> FxRebasinError:
    return RankLostError(f"another process of the group could not do its part: {fault}")
