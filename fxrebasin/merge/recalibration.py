"""BatchNorm statistics of a model, taken anew from data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxrebasin.errors import FxRebasinWarning, InputError
from fxrebasin.merge.calibration import correct_in_order
from fxrebasin.merge.data import Data
from fxrebasin.merge.moments import Moments
from fxrebasin.merge.other_norms import instance_norms, warn_left
from fxrebasin.merge.sites import Site
from fxrebasin.merge.states import copy_of, usable
from fxrebasin.merge.survey import survey
from fxrebasin.options import check_count
from fxrebasin.running.surroundings import in_own_surroundings


@in_own_surroundings
def recalibrate(
    model: nn.Module, loader: Iterable[Any], *, max_batches: int | None = None
) -> nn.Module:
    """A copy of a model whose BatchNorm statistics are those of the data.

    Interpolated statistics do not describe an interpolated network: its activations vary less
    than those of either end. All batches count by their size, and every layer sees what the layers
    before it give with their new statistics, so that the result is, whatever the batches, what one
    pass in training mode over a single batch of all the data leaves (with momentum None): means,
    and variances with the divisor n − 1. A layer that is called several times gets the statistics
    of all its calls taken together. Nothing else changes; the copy is in the mode of the model.
    Sums are in float64. Running statistics that are read without such a layer, in graphs from
    torch.export for one, stay as they are, with a warning.

    The loader is gone through twice. The second time all batches stop at each layer until the last
    one is there. What a model holds between two layers, of all batches together, is kept in memory
    up to 4 GiB, and beyond that in a temporary file, which is gone however the call ends (TMPDIR
    names the folder). Where that has no room, where there are thousands of batches, and where a
    model keeps something from one batch for the next, holds a lock, or runs in the caller's thread
    only, batches run anew for each layer: the same result in more passes.

    Args:
        model: any module or GraphModule; without BatchNorm the result is a plain copy.
        loader: batches of inputs, or of (inputs, targets), that can be gone through again: a list
            or a DataLoader. A shuffling one gives the same order in every pass.
        max_batches: the most batches to use; all when left out.

    Raises:
        InputError: model, loader or option cannot be used, or the data are a single value per
            channel.

    Example:
        >>> import fxrebasin, torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> batches = [torch.randn(8, 2), torch.randn(5, 2)]
        >>> norm = fxrebasin.recalibrate(net, batches)[1]
        >>> torch.allclose(norm.running_mean, net[0](torch.cat(batches)).mean(0), atol=1e-6)
        True
    """
    if max_batches is not None:
        check_count("max_batches", max_batches)
    data = Data(loader, max_batches)
    result = copy_of(usable(model))
    layers = norms_with_statistics(result)
    kept = [*layers, *instance_norms(result)]
    known = survey(result, data, [Site(name, 1, at_input=True) for name in kept])
    warn_left(result, known.means_read, known.calls)
    sites = [Site(name, 1, at_input=True) for name in known.calls if name in layers]
    found: dict[str, Moments] = {}

    def correct(site: Site, moments: Moments) -> float:
        if moments.count < 2:
            raise InputError(
                f"{site.name} gets a single value per channel from the loader, which has no "
                "variance; pass more data"
            )
        found[site.name] = moments
        return set_statistics(layers[site.name], moments)

    settled = correct_in_order(result, data, sites, known, correct, None, "recalibrating")
    if not settled:
        warn_unsettled("recalibrate")
    for name, moments in found.items():
        set_statistics(layers[name], moments, unbiased=True)
        if layers[name].num_batches_tracked is not None:
            layers[name].get_buffer("num_batches_tracked").fill_(known.batches)
    return result


@torch.no_grad()
def set_statistics(layer: _BatchNorm, moments: Moments, *, unbiased: bool = False) -> float:
    """Give a BatchNorm the statistics of its input, in place.

    Args:
        layer: that keeps statistics.
        moments: of its input.
        unbiased: as it keeps them; without, as it uses them in training mode.

    Returns:
        The largest change, relative to the standard deviation.
    """
    mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    found = moments.variance(unbiased=unbiased)
    scale = (found + layer.eps).sqrt()
    change = max(
        float(((mean.to(scale) - moments.mean) / scale).abs().max()),
        float(((variance.to(scale) + layer.eps).sqrt() / scale - 1).abs().max()),
    )
    mean.copy_(moments.mean)
    variance.copy_(found)
    return change


def norms_with_statistics(model: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that keep statistics, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def warn_unsettled(what: str) -> None:
    """Warn that layers which feed themselves did not settle.

    Args:
        what: the function that was called.
    """
    warnings.warn(
        f"{what}: layers that run several times in a model and feed themselves did not "
        "settle; their statistics are close to what they should be, not equal",
        category=FxRebasinWarning,
        stacklevel=4,
    )
