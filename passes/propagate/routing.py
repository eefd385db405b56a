"""Models that look at data: what they may do with their values on other paths.

A look is an operator whose answer is a Python number or has a shape that depends on data. What a
model does next may then differ between inputs. Runs on other inputs, on more rows and with the
answers of yes-or-no looks turned round reach what they can; state that none of them reads may meet
everything that is alive at a look or made after it, unless all paths were taken from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from dis import opmap
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxrebasin.errors import FxRebasinError
from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.joining import give_up
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.propagate.tracks import Track, refresh
from fxrebasin.wording import listed

_TURNED_AT_MOST = 16
"""How many answers of one look are turned round in a run; few, so that loops end."""

_FOLLOWED = 3
"""How many of a run's first looks are followed both ways, in up to two to this power runs."""

_WIDER = 3

_ELEMENTS_AT_MOST = 1 << 20
"""The most elements of an input with more rows."""


@dataclass
class _Stage:
    """What follows after some looks that were followed both ways: lines that look, and values."""

    lines: dict[str, None] = field(default_factory=dict)
    values: list[Value | Track] = field(default_factory=list)


class Looks:
    """The looks of a model at data, over several runs.

    The first looks of a run are followed both ways, as long as they ask for yes or no. Whatever the
    data are, a model comes to the look after these by a path that was taken: only what is alive
    there, or made later, may meet something that no run has seen.

    Attributes:
        sources: for each line that looked, whether it asked for yes or no.
        numbers: the lines that looked at numbers with a fraction.
        masks_turned: whether masks choose the rows that they leave out.
    """

    def __init__(self) -> None:
        self.sources: dict[str, bool] = {}
        self._stages = [_Stage() for _ in range(_FOLLOWED + 1)]
        self._followed = 0
        self._most = -1
        self._stage = -1
        self.numbers: dict[str, None] = {}
        self.masks_turned = False
        self._none: set[tuple[str, int]] = set()
        self._some: set[tuple[str, int]] = set()
        self._chosen: Counter[str] = Counter()
        self._turned: str | None = None
        self._far = 0
        self._left = 0
        self._given: tuple[bool, ...] = ()
        self._answers: list[bool] = []

    def begin_run(
        self,
        turned: str | None = None,
        answers: Sequence[bool] = (),
        far: int = 0,
        masks: bool = False,
    ) -> None:
        """Start a run in which some answers differ from what the data say.

        Args:
            turned: a line whose answers are turned round; an empty text for code that was not
                read from a file.
            answers: to the first looks, which all ask for yes or no.
            far: 1 or -1 where the line gets larger numbers, or smaller ones, than the data have.
            masks: whether masks choose the rows that they leave out.
        """
        self._stage, self.masks_turned = -1, masks
        self._turned, self._far, self._left = turned, far, _TURNED_AT_MOST
        self._given, self._answers = tuple(answers), []
        self._chosen.clear()

    def look(self, source: str, answer: Any, alive: Iterable[Value]) -> Any:
        """The answer to a look, or the opposite.

        Args:
            source: where the model looks.
            answer: what it finds.
            alive: all values that exist then; only asked for at the first looks of a run.
        """
        yes_or_no = isinstance(answer, bool)
        self.sources[source] = yes_or_no and self.sources.get(source, True)
        before, self._stage = self._stage, min(self._stage + 1, _FOLLOWED)
        if not yes_or_no:
            self._stage = _FOLLOWED
        stage = self._stages[self._stage]
        stage.lines.setdefault(source)
        if self._stage > before:
            stage.values += alive
        if self._stage < len(self._given):
            answer = self._given[self._stage]
        elif yes_or_no and source == self._turned and self._left:
            self._left -= 1
            answer = not answer
        elif isinstance(answer, float):
            self.numbers.setdefault(source)
            if self._far and source == self._turned and self._left:
                self._left -= 1
                answer = self._far * (2 * abs(answer) + 1)
        if self._stage < _FOLLOWED:
            self._answers.append(answer)
        return answer

    def chose(self, source: str, some: bool) -> None:
        """Data chose rows at a line, or none; a line may be run several times, for each expert."""
        self._chosen[source] += 1
        (self._some if some else self._none).add((source, self._chosen[source]))

    @property
    def chose_nothing(self) -> bool:
        """Whether there are times at a line at which data never chose any rows."""
        return bool(self._none - self._some)

    def made(self, values: Iterable[Value | Track]) -> None:
        """Values that an operator made, or their tracks while they are not looked up."""
        if self._stage >= 0:
            self._stages[self._stage].values += values

    # Paths ------------------------------------------------------------------------------------

    def other_paths(self) -> list[tuple[bool, ...]]:
        """Answers that lead off the path of this run, each at a look that it was first to reach."""
        taken = self._answers
        return [(*taken[:index], not taken[index]) for index in range(len(self._given), len(taken))]

    def follow(
        self, take: Callable[[tuple[bool, ...]], bool], paths: list[tuple[bool, ...]]
    ) -> None:
        """Take all paths that start with the first looks.

        Args:
            take: makes a run with given answers; whether it came to the end of the path.
            paths: those that lead off that of the first run.
        """
        self._followed = _FOLLOWED
        while paths:
            path = paths.pop()
            if not take(path):
                self.lose(len(path) - 1)
            paths += self.other_paths()
            self._most = max(self._most, self._stage)

    def lose(self, look: int = 0) -> None:
        """What follows after a look was not seen to its end."""
        self._followed = min(self._followed, look)

    def compare_rows(self) -> None:
        """After a run on more rows: if there are more looks, paths were taken for few rows only."""
        if self._stage > self._most:
            self.lose()

    def may_follow(self) -> bool:
        """Whether there are few looks in this run, all of which ask for yes or no."""
        return self._stage < _FOLLOWED

    @property
    def lines(self) -> list[str]:
        """Lines that look, and after which not all paths were taken."""
        return list(dict.fromkeys(line for stage in self._doubtful for line in stage.lines))

    @property
    def _doubtful(self) -> list[_Stage]:
        return self._stages[self._followed :]

    def pin_doubtful(self, ledger: Ledger) -> None:
        """Give up all freedom of whatever unread state may meet."""
        reason = "may meet state that was not read, where the model looks at data"
        ledger.origins.append(Origin("look", "routing", next(iter(self.lines), "")))
        for item in (item for stage in self._doubtful for item in stage.values):
            value = refresh(item, ledger) if isinstance(item, Track) else item
            value = value if value.when_read is None else value.when_read()
            give_up(ledger, value, reason)

    def notes(self, unread: Sequence[str]) -> list[str]:
        """What there is to say about a model that looks at data."""
        if not self.lines:
            return []
        first, *others = self.lines
        more = f" and {len(others)} more line{'s' * (len(others) > 1)}" if others else ""
        place = f"{first or 'a line that is not known'}{more}"
        found = [
            f"the model looks at data at {place}: what it does on paths that none of the "
            "inputs tried took was not seen"
        ]
        if unread:
            found.append(
                f"{listed(unread, 5)} were not read, or not all of them, by any input that was "
                "tried: what is alive where the model looks at data, or made after that, is pinned"
            )
        return found


def raised_by_python(error: BaseException) -> bool:
    """Whether a `raise` or an `assert` made an exception: then a path ends there for all data.

    What an operator raises may depend on data which do not fit answers that were turned round.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or isinstance(error, FxRebasinError):
        return False
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == opmap["RAISE_VARARGS"]


def unread_state(ledger: Ledger, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """State tensors of several elements of which not all were read."""
    return [
        name
        for name, shape in shapes.items()
        if torch.Size(shape).numel() > 1 and not _all_read(ledger, name, torch.Size(shape).numel())
    ]


def _all_read(ledger: Ledger, name: str, count: int) -> bool:
    views = [item.view for item in ledger.impositions.get(name, [])]
    views += [item.view for item in ledger.used_parts if item.state == name]
    if any(view.numel() == count and view.is_contiguous() for view in views):
        return True
    read = torch.zeros(count, dtype=torch.bool)
    for view in views:
        places = torch.arange(count).as_strided(view.shape, view.stride(), view.storage_offset())
        read[places.reshape(-1)] = True
    return bool(read.all())


def with_more_rows(values: Any, factor: int) -> Any:
    """Inputs whose first axes, if of one size, are `factor` times as long; None if they are not."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    rows = {tuple(tensor.shape[:1]) for tensor in tensors}
    too_many = any(tensor.numel() * factor > _ELEMENTS_AT_MOST for tensor in tensors)
    if len(rows) != 1 or rows == {()} or too_many:
        return None
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor.repeat(factor, *[1] * (tensor.ndim - 1)), values
    )


def with_twos(values: Any) -> list[Any]:
    """Inputs in which one of the masks of whole numbers holds a 2 here and there."""
    leaves, tree = pytree.tree_flatten(values)
    return [
        pytree.tree_unflatten([*leaves[:at], _with_some_twos(leaf), *leaves[at + 1 :]], tree)
        for at, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and _is_mask(leaf)
    ]


def _is_mask(tensor: Tensor) -> bool:
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    mask = whole and tensor.dtype != torch.bool and tensor.numel() > 0
    return mask and bool(((tensor == 0) | (tensor == 1)).all())


def _with_some_twos(tensor: Tensor) -> Tensor:
    here = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape) % 4 == 0
    return tensor.masked_fill(here, 2)


def wider(values: Any) -> Any:
    """Inputs whose floating-point tensors vary more, to reach what usual inputs seldom do."""

    def stretched(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        mean = tensor.mean()
        return mean + _WIDER * (tensor - mean)

    return pytree.tree_map_only(Tensor, stretched, values)
