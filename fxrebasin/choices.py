"""What a user decides about an analysis, besides the model and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fxrebasin.architecture import Architecture
from fxrebasin.errors import InputError
from fxrebasin.kinds import Kinds
from fxrebasin.running.outputs import Outputs, Wanted
from fxrebasin.wording import listed, spoken

_LISTED = 20


@dataclass(frozen=True)
class Choices:
    """What counts, after it has been checked against a model.

    Args:
        state_buffers: names of buffers that are state, besides those whose use shows it.
        outputs: which outputs have to stay as they are; see `fxrebasin.running.outputs`.
    """

    state_buffers: tuple[str, ...] = ()
    outputs: Wanted = None

    def kept(self) -> FoundWith:
        """The same, as a permutation and its file keep it."""
        if callable(self.outputs):
            name = getattr(self.outputs, "__qualname__", type(self.outputs).__qualname__)
            return FoundWith(self.state_buffers, function=name)
        return FoundWith(self.state_buffers, self.outputs)

    def or_those_of(self, found: FoundWith) -> Choices:
        """The same, and what a permutation was found with where nothing was chosen.

        Args:
            found: kept by the permutation.

        Raises:
            InputError: it was found with a function, and no outputs are chosen.
        """
        if self.outputs is None and found.function is not None:
            raise InputError(
                f"the permutation was found with the function {found.function} for "
                f"{spoken('outputs=', 'the outputs')}, which it does not hold: "
                + spoken(
                    "pass that function again, or other outputs to be compared",
                    "name those that are to be compared with --outputs",
                )
            )
        outputs = found.outputs if self.outputs is None else self.outputs
        return Choices(self.state_buffers or found.state_buffers, outputs)


@dataclass(frozen=True)
class FoundWith:
    """The choices that a permutation was found with, as far as a file can hold them.

    Args:
        state_buffers: names of buffers that were declared to be state.
        outputs: names and patterns of the outputs that stay as they are; None for all, or if a
            function chose.
        function: the name of the function that chose the outputs, if one did.
        architecture: of the model; None if that is not known. It makes no two of these unequal.
        states: digests of what it was made from, `"model"` and `"reference"`, if it was made from
            data; they make no two of these unequal either.
    """

    state_buffers: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    function: str | None = None
    architecture: Architecture | None = field(default=None, compare=False, repr=False)
    states: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def everything(self) -> bool:
        """Whether all outputs stay as they are."""
        return self.outputs is None and self.function is None

    def after(self, earlier: FoundWith) -> FoundWith | None:
        """The choices that hold for a permutation and an earlier one together; None if there are
        none.

        Args:
            earlier: what the permutation that acts before was found with.
        """
        buffers = tuple(dict.fromkeys((*earlier.state_buffers, *self.state_buffers)))
        fewer = earlier if self.everything else self
        if not earlier.everything and (earlier.outputs, earlier.function) != (
            fewer.outputs,
            fewer.function,
        ):
            return None
        ends = {"model": earlier.states.get("model"), "reference": self.states.get("reference")}
        states = {name: digest for name, digest in ends.items() if digest is not None}
        return FoundWith(
            buffers,
            fewer.outputs,
            fewer.function,
            self.architecture or earlier.architecture,
            states if len(states) == len(ends) else {},
        )


def choices_for(
    model: nn.Module, *, state_buffers: Sequence[str] = (), outputs: Outputs = None
) -> Choices:
    """Check the choices of a caller against a model, before any work.

    Args:
        model: unwrapped.
        state_buffers: names of buffers, or patterns of names as file names have them.
        outputs: names or patterns of outputs, a function of what the model returns, or None.
            Whether there are such outputs shows when the model is run.

    Raises:
        InputError: a name or pattern fits no buffer, or a choice is of the wrong kind.

    Example:
        >>> choices_for(nn.BatchNorm1d(3), state_buffers=["running_*"]).state_buffers
        ('running_mean', 'running_var')
    """
    return Choices(_buffers(model, state_buffers), _outputs(outputs))


def kinds_named(symmetry: str) -> Kinds:
    """Which groups are looked for.

    Args:
        symmetry: a value of `Kinds`.

    Raises:
        InputError: it is none of them.
    """
    known = [kind.value for kind in Kinds]
    if symmetry not in known:
        raise InputError(f"symmetry={symmetry!r} is none of {', '.join(map(repr, known))}")
    return Kinds(symmetry)


def _outputs(wanted: Any) -> Wanted:
    if wanted is None:
        return None
    if callable(wanted) and not isinstance(wanted, type):
        function: Callable[[Any], Any] = wanted
        return function
    names = isinstance(wanted, Iterable) and not isinstance(wanted, str | Mapping)
    patterns: tuple[Any, ...] = tuple(wanted) if names else ()
    if not patterns or not all(isinstance(item, str) for item in patterns):
        raise InputError(
            f"outputs is {wanted!r}; pass a list of names or patterns as `verify` prints them, "
            'such as ["logits"], a function of what the model returns, or None for all outputs'
        )
    return patterns


def _buffers(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of buffers that some pattern fits, in the order of the model."""
    if isinstance(patterns, str) or not all(isinstance(item, str) for item in patterns):
        raise InputError(
            f"state_buffers is {patterns!r}; pass a list of names or patterns, such as "
            '["*.weight_u"]'
        )
    names = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    fits = {p: {n for n in names if n == p or fnmatchcase(n, p)} for p in patterns}
    unfit = [pattern for pattern, found in fits.items() if not found]
    if unfit:
        raise InputError(
            f"state_buffers: the model has no buffer {', '.join(map(repr, unfit))}. "
            f"Its buffers are: {listed(names, _LISTED) or 'none'}."
        )
    chosen = set().union(*fits.values())
    return tuple(name for name in names if name in chosen)
