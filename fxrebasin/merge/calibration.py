"""Layers whose inputs or outputs are measured over a loader, and corrected one after another.

A correction changes what later layers see, so layers are taken in the order in which they run. All
batches go through the model side by side: they stop at a layer until every one of them is there, it
is corrected, and they go on. What they hold meanwhile is in memory, and beyond that in a temporary
file. Batches for which there is no room, and those of models that cannot wait there, run anew for
each layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import nn

from fxrebasin.errors import FxRebasinWarning
from fxrebasin.merge.data import Data
from fxrebasin.merge.lanes import NotAbreastError
from fxrebasin.merge.moments import Moments
from fxrebasin.merge.sites import Site, measuring
from fxrebasin.merge.survey import Survey
from fxrebasin.merge.sweeps import Correct, Output, Sweep
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import State
from fxrebasin.wording import escaped

# Layers that feed themselves are corrected repeatedly, at most this often.
_MOST_SWEEPS = 20


def measured(
    model: nn.Module, data: Data, sites: Sequence[Site], states: Sequence[State]
) -> list[dict[str, Moments]]:
    """The moments at sites with each of several weights, pooled over all batches and calls.

    Args:
        model: to run.
        data: to run it on, once for all weights.
        sites: what to measure.
        states: weights to run with.
    """
    found: list[dict[str, Moments]] = [{} for _ in states]

    def adding(to: dict[str, Moments]) -> Callable[[Site, Moments], None]:
        def add(site: Site, moments: Moments) -> None:
            to[site.name] = to[site.name].pooled(moments) if site.name in to else moments

        return add

    with data.running(model) as (running, batches):
        weights = [running.own(state) for state in states]
        for batch in batches:
            for own, moments in zip(weights, found, strict=True):
                with measuring(model, sites, adding(moments)):
                    running.call(own, batch)
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
    known = known.along(sites)
    told = False
    with closing(LateBar()) as report:
        for _ in range(_MOST_SWEEPS):
            sweep = Sweep(model, data, sites, known, correct, output)
            if sweep.missing and not told:
                told = True
                _warn_of_room(stage, sweep.missing)
            try:
                sweep.run(lambda done: report(stage, done, len(sites)))
            except NotAbreastError as error:
                known = replace(known, one_by_one=True)
                sweep = Sweep(model, data, sites, known, correct, output)
                sweep.run(lambda done: report(stage, done, len(sites)))
                _warn(stage, error)
            if sweep.exact or sweep.off <= tolerance:
                return True
    return False


def _warn(stage: str, error: NotAbreastError) -> None:
    """Say why it took more passes; what was found is the same."""
    warnings.warn(
        f"{stage}: batches could not wait for each other inside of the model ({escaped(error, 200)}"
        "), so that they ran one after the other, once for every layer",
        category=FxRebasinWarning,
        stacklevel=5,
    )


def _warn_of_room(stage: str, missing: int) -> None:
    """Say why it will take more passes."""
    warnings.warn(
        f"{stage}: what batches hold while they wait for each other takes {missing / 2**30:.1f} GiB"
        " of a temporary file, for which there is no room (the environment variable TMPDIR names "
        "the folder); those that have none run anew for each layer",
        category=FxRebasinWarning,
        stacklevel=5,
    )


def _dtype(model: nn.Module) -> torch.dtype:
    tensors = (tensor for tensor in model.parameters() if tensor.is_floating_point())
    return next(tensors, torch.zeros(())).dtype
