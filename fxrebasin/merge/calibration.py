"""Layers whose inputs or outputs are measured over a loader, and corrected one after another.

A correction changes what later layers see, so layers are taken in the order in which they run. Each
is measured in a pass of its own, which ends at that layer. With a single batch one pass is enough,
since a layer can be corrected while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from fxrebasin.errors import FxRebasinError, InputError
from fxrebasin.merge.moments import Moments
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Runner, State, check_loader, runner
from fxrebasin.running.modes import modes_off

# Layers that feed themselves are corrected repeatedly, at most this often.
_MOST_SWEEPS = 20


@dataclass(frozen=True)
class Site:
    """A layer whose units are measured.

    Args:
        name: of the module.
        axis: of the units.
        at_input: measure the input of the layer; otherwise its output.
    """

    name: str
    axis: int
    at_input: bool


@dataclass(frozen=True)
class Survey:
    """What one pass over the loader shows.

    Args:
        calls: of every site that runs, in the order of their first calls; the most in a batch.
        normalised: names of the sites whose output is what a BatchNorm gets.
        batches: their number.
    """

    calls: Mapping[str, int]
    normalised: frozenset[str]
    batches: int


Correct: TypeAlias = Callable[[Site, Moments], float]
"""Corrects a layer and says by how much it was off, relative to its scale."""
Output: TypeAlias = Callable[[Site, torch.Tensor], torch.Tensor]
"""From the output of a layer that has just been corrected to what it would be now."""


class _Measured(FxRebasinError):
    """All that a pass was made for is known; the rest of the model need not run."""


class Data:
    """A loader that gives the same batches in every pass.

    Args:
        loader: of the caller.
        most: number of batches; all when None.

    Raises:
        InputError: the loader can be gone through only once.
    """

    def __init__(self, loader: Iterable[Any], most: int | None) -> None:
        check_loader(loader)
        self._loader, self._most = loader, most

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[tuple[Runner, Iterator[Batch]]]:
        """A runner and the batches of one pass, with the random numbers of every other pass.

        Args:
            model: to run.
        """
        own = getattr(self._loader, "generator", None)
        before = own.get_state() if isinstance(own, torch.Generator) else None
        try:
            with runner(model, 0) as running:
                yield running, running.batches(self._loader, self._most)
        finally:
            if isinstance(own, torch.Generator) and before is not None:
                own.set_state(before)


def survey(model: nn.Module, data: Data, sites: Sequence[Site]) -> Survey:
    """Which sites run, in which order and how often, and which lead into a BatchNorm.

    Args:
        model: to run.
        data: to run it on.
        sites: candidates.

    Raises:
        InputError: the model does not run on the loader.
    """
    most: dict[str, int] = {}
    normalised: set[str] = set()
    batches = 0
    with data.running(model) as (running, pending):
        for batch in pending:
            calls: dict[str, int] = {}
            with _watching(model, sites, calls, normalised):
                running.call({}, batch)
            most.update({name: max(n, most.get(name, 0)) for name, n in calls.items()})
            batches += 1
    return Survey(most, frozenset(normalised), batches)


def measured(
    model: nn.Module, data: Data, sites: Sequence[Site], state: State | None = None
) -> dict[str, Moments]:
    """The moments at sites, pooled over all batches and calls.

    Args:
        model: to run.
        data: to run it on.
        sites: what to measure.
        state: weights to run with; those of the model when left out.
    """
    found: dict[str, Moments] = {}

    def add(site: Site, moments: Moments) -> None:
        found[site.name] = found[site.name].pooled(moments) if site.name in found else moments

    with data.running(model) as (running, batches):
        weights = {} if state is None else running.own(state)
        for batch in batches:
            with _measuring(model, sites, add):
                running.call(weights, batch)
    return found


def correct_in_order(
    model: nn.Module,
    data: Data,
    sites: Sequence[Site],
    known: Survey,
    correct: Correct,
    output: Output | None,
    stage: str,
) -> bool:
    """Measure and correct site after site, each with all before it corrected.

    Args:
        model: to run; the correction changes it.
        data: to run it on.
        sites: in the order in which they run.
        known: from `survey`.
        correct: what corrects a layer.
        output: what a corrected layer returns, needed for sites that are measured at their output.
        stage: for the progress bar.

    Returns:
        Whether all layers settled; those that are called once always do.
    """
    tolerance = 64 * torch.finfo(_dtype(model)).eps
    repeated = any(known.calls[site.name] > 1 for site in sites)
    with closing(LateBar()) as report:
        if known.batches == 1 and not repeated:
            _correct_at_once(model, data, sites, correct, output)
            return True
        for _ in range(_MOST_SWEEPS):
            off = 0.0
            for done, site in enumerate(sites):
                report(stage, done, len(sites))
                moments = _measured_alone(model, data, site, known.calls[site.name])
                off = max(off, correct(site, moments))
            if not repeated or off <= tolerance:
                return True
    return False


def _dtype(model: nn.Module) -> torch.dtype:
    tensors = (tensor for tensor in model.parameters() if tensor.is_floating_point())
    return next(tensors, torch.zeros(())).dtype


def _correct_at_once(
    model: nn.Module,
    data: Data,
    sites: Sequence[Site],
    correct: Correct,
    output: Output | None,
) -> None:
    """One pass over the only batch, in which every layer is corrected as it runs."""

    def mend(site: Site, moments: Moments) -> Callable[[torch.Tensor], torch.Tensor] | None:
        with modes_off():  # else the guard of the model undoes the correction
            correct(site, moments)
        return None if output is None else lambda given: output(site, given)

    with data.running(model) as (running, batches):
        for batch in batches:
            with _measuring(model, sites, mend):
                running.call({}, batch)


def _measured_alone(model: nn.Module, data: Data, site: Site, calls: int) -> Moments:
    """The moments at one site; no batch runs further than there."""
    found: list[Moments] = []
    left = 0

    def add(site: Site, moments: Moments) -> None:
        nonlocal left
        found[:] = [found[0].pooled(moments) if found else moments]
        left -= 1
        if not left:
            raise _Measured

    with data.running(model) as (running, batches):
        for batch in batches:
            left = calls
            with _measuring(model, [site], add):
                try:
                    running.call({}, batch)
                except InputError as error:
                    if not isinstance(error.__cause__, _Measured):
                        raise
    return found[0]


@contextmanager
def _measuring(
    model: nn.Module, sites: Sequence[Site], take: Callable[[Site, Moments], Any]
) -> Iterator[None]:
    """Hand moments at sites to a function; what it returns is applied to the output."""
    with ExitStack() as stack:
        for site in sites:
            stack.callback(_hooked(model.get_submodule(site.name), site, take).remove)
        yield


def _hooked(module: nn.Module, site: Site, take: Callable[[Site, Moments], Any]) -> RemovableHandle:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (value,) = (*args, *kwargs.values())[:1]
        take(site, Moments.of(value, site.axis))

    def after(module: nn.Module, args: tuple[Any, ...], given: torch.Tensor) -> Any:
        change = take(site, Moments.of(given, site.axis))
        return None if change is None else change(given)

    if site.at_input:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


@contextmanager
def _watching(
    model: nn.Module, sites: Sequence[Site], calls: dict[str, int], normalised: set[str]
) -> Iterator[None]:
    """Count calls of sites, and note which of their outputs a BatchNorm gets as they are."""
    given: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def after(name: str, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if isinstance(output, torch.Tensor):
            # Held weakly, so that the address is not used again while the memory may be.
            memory = StorageWeakRef(output.untyped_storage())
            given[memory.cdata] = (memory, output._version, name)

    def into_norm(args: tuple[Any, ...]) -> None:
        for value in args[:1]:
            if isinstance(value, torch.Tensor):
                found = given.get(StorageWeakRef(value.untyped_storage()).cdata)
                if found is not None and found[1] == value._version:
                    normalised.add(found[2])

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                handle = module.register_forward_pre_hook(lambda m, args: into_norm(args))
                stack.callback(handle.remove)
        for site in sites:
            handle = model.get_submodule(site.name).register_forward_hook(
                lambda m, args, output, name=site.name: after(name, output)
            )
            stack.callback(handle.remove)
        yield
