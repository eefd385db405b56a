"""Run a model on inputs, in its own precision and in float64, leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.exporters.verify.activity import Activity
from fxrebasin.exporters.verify.float64 import TrueFloat64, float64_copy, widened
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.exporters.verify.pages import Pages
from fxrebasin.exporters.verify.state_reads import StateReads, forget_computed
from fxrebasin.running.freed import give_back_memory
from fxrebasin.running.given import Given, remade
from fxrebasin.running.messages import describe_call, first_lines
from fxrebasin.running.outputs import Wanted, counted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.running.switches import no_warnings
from fxrebasin.running.watching import OperatorMode
from fxrebasin.wording import spoken

# Of float64 weights, which are kept from run to run where they take no more.
_KEPT_BYTES = 1 << 30
_LITTLE_BYTES = 1 << 24

Tensors: TypeAlias = dict[str, torch.Tensor]


class MadeWhenAsked(Mapping[str, torch.Tensor]):
    """A state of which each tensor is made when it is asked for, so that few exist at a time.

    Args:
        given: what they are made of, by name.
        make: from a name and a tensor to a tensor of the same shape; the same each time.
    """

    def __init__(
        self,
        given: Mapping[str, torch.Tensor],
        make: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> None:
        self.given, self.make = given, make

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.make(name, self.given[name])

    def __contains__(self, name: object) -> bool:
        return name in self.given

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


@dataclass(frozen=True)
class Subject:
    """What is run: a module, with its own weights or with others.

    Attributes:
        model: left as it is.
        state: parameters and buffers by name; what it lacks is the model's own.
        label: what messages call it.
        wanted: which of its outputs count; see `fxrebasin.running.outputs`.
        strict: whether names that fit no output are refused.
    """

    model: nn.Module
    state: Mapping[str, torch.Tensor] | None = None
    label: str = "the model"
    wanted: Wanted = None
    strict: bool = True


class Float64Run:
    """Runs a float64 copy; every run starts from the same state, whatever came before.

    Args:
        subject: what is run.
        twin: its copy.
        pages: give the copy its numbers.
    """

    def __init__(self, subject: Subject, twin: nn.Module, pages: Pages) -> None:
        self._subject, self._twin, self._pages = subject, twin, pages

    def reads(self) -> StateReads:
        """A mode that notes reads of the copy's parameters, to be passed to calls."""
        return StateReads(dict(self._twin.named_parameters()))

    def activity(self) -> Activity:
        """A mode that notes which units meet the copy's parameters, to be passed to calls."""
        return Activity(dict(self._twin.named_parameters()))

    def __call__(
        self, inputs: InputSet, reads: StateReads | None = None, *watching: OperatorMode
    ) -> Tensors | Exception:
        """The outputs that count, or what was raised.

        Args:
            inputs: of the call.
            reads: notes what is read.
            *watching: further modes.
        """
        return _attempt(
            self._subject, self._twin, inputs, widened, reads, watching, pages=self._pages
        )


class NativeRun:
    """Runs a model in its own precision, and watches it.

    Args:
        subject: what is run; left as it is.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def reads(self) -> StateReads:
        """A mode that notes reads of the model's parameters, to be passed to calls."""
        return StateReads(dict(self._subject.model.named_parameters()))

    def activity(self) -> Activity:
        """A mode that notes which units meet the model's parameters, to be passed to calls."""
        return Activity(dict(self._subject.model.named_parameters()))

    def __call__(
        self, inputs: InputSet, reads: StateReads | None = None, *watching: OperatorMode
    ) -> Tensors | Exception:
        """As for `Float64Run`."""
        model = self._subject.model
        try:
            return _attempt(self._subject, model, inputs, _cloned, reads, watching)
        finally:
            forget_computed(chain(model.parameters(), model.buffers()))


@contextmanager
def in_float64(subject: Subject, *, little_memory: bool = False) -> Iterator[Float64Run]:
    """A float64 copy of what is to be run, in eval mode; its weights take memory when read.

    Args:
        subject: what is to be run.
        little_memory: give most of it back between operators, so that a run takes a part of the
            memory of a copy. Otherwise only a large copy does so.
    """
    pages = Pages(_LITTLE_BYTES if little_memory else _KEPT_BYTES)
    with preserve(subject.model):
        state = subject.state or {}
        numbers = state.given if isinstance(state, MadeWhenAsked) else state
        twin = float64_copy(subject.model, pages, numbers)
        if subject.state is not None:
            for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
                if name in subject.state:
                    _replace(tensor, subject.state, name, pages)
        if little_memory:
            give_back_memory()
        try:
            yield Float64Run(subject, twin, pages)
        finally:
            pages.empty()  # whatever refers to the copy in cycles
            if little_memory:
                give_back_memory()


def _replace(
    tensor: torch.Tensor, state: Mapping[str, torch.Tensor], name: str, pages: Pages
) -> None:
    """Give a tensor of a copy the numbers of a state."""
    if isinstance(state, MadeWhenAsked):
        replaced = pages.replace(tensor, state.given[name], partial(state.make, name))
    else:
        replaced = pages.replace(tensor, state[name])
    if not replaced:
        tensor.data = widened(state[name]).to(tensor)


def run_float64(
    subject: Subject, sets: Sequence[InputSet], *, little_memory: bool = False
) -> list[Tensors | Exception]:
    """The outputs on each set in float64 throughout, or what was raised. Nothing is modified.

    Args:
        subject: what is run.
        sets: inputs of each run.
        little_memory: see `in_float64`.
    """
    with in_float64(subject, little_memory=little_memory) as run:
        return [run(one) for one in sets]


def run_native(subject: Subject, sets: Sequence[InputSet]) -> list[Tensors | Exception]:
    """The outputs on each set in the model's precision, or what is raised. It is not modified."""
    return [_attempt(subject, subject.model, one, _cloned) for one in sets]


def _attempt(
    subject: Subject,
    model: nn.Module,
    inputs: InputSet,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    reads: StateReads | None = None,
    watching: Sequence[OperatorMode] = (),
    *,
    pages: Pages | None = None,
) -> Tensors | Exception:
    """The outputs that count of a call, or what it raises; the model is as before."""
    wide = prepare is widened
    args, kwargs = remade((inputs.args, dict(inputs.kwargs)), prepare)
    given = Given(args, kwargs, values=True)
    if reads is not None:
        given.each(reads.count_as_computed)
    with preserve(model), pages or nullcontext(), no_warnings():
        try:
            with ExitStack() as modes:
                for mode in (
                    *([TrueFloat64()] if wide else []),
                    *watching,
                    *([reads] if reads else []),
                ):
                    modes.enter_context(mode)
                returned = reduced(model, call_quietly(model, args, kwargs), subject.wanted)
        except Exception as error:  # noqa: BLE001 - a model's forward may raise anything
            return error
        found = counted(returned, subject.wanted, given, strict=subject.strict)
        return {name: tensor.detach().clone() for name, tensor in found.items()}


def call_quietly(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a module; a GraphModule would print on stderr where in its code an exception passed."""
    return nn.Module.__call__(model, *args, **kwargs)


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of an input: models write to their inputs."""
    return tensor.detach().clone()


def fault_of(run: Tensors | Exception) -> str | None:
    """Why a run says nothing about equivalence, in words; None if it does."""
    if isinstance(run, Exception):
        return first_lines(run, 1)
    return "an output is NaN" if any(t.isnan().any() for t in run.values()) else None


def tensors_of(subject: Subject, inputs: InputSet, run: Tensors | Exception) -> Tensors:
    """The tensors of a run, or the error that says why there are none.

    Raises:
        InputError: the subject raised.
    """
    if isinstance(run, Exception):
        exact = spoken('verify="exact"', "--exact")
        raise InputError(
            f"{subject.label} does not run on the inputs ({inputs.label}): "
            f"{describe_call(subject.model, inputs.args, inputs.kwargs)} raised "
            f"{first_lines(run)}\n"
            "Both models have to take the same inputs, in their own precision and in float64; "
            f"where one computes in its own only, {exact} compares bits and runs nothing."
        ) from run
    return run
