"""REPAIR: units of a model between two others vary as much as the units of both do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxrebasin.errors import InputError
from fxrebasin.merge.calibration import correct_in_order, measured
from fxrebasin.merge.data import Data
from fxrebasin.merge.moments import Moments
from fxrebasin.merge.recalibration import norms_with_statistics, set_statistics, warn_unsettled
from fxrebasin.merge.sites import Site
from fxrebasin.merge.states import copy_of, states_of, usable
from fxrebasin.merge.survey import survey
from fxrebasin.options import check_count
from fxrebasin.running.batches import State
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.reference import ignored_in, patterns_that_fit

# Where the units are in what such a layer gives.
_AXES: Mapping[type[nn.Module], int] = {
    nn.Linear: -1,
    nn.Conv1d: -2,
    nn.Conv2d: -3,
    nn.Conv3d: -4,
    nn.ConvTranspose1d: -2,
    nn.ConvTranspose2d: -3,
    nn.ConvTranspose3d: -4,
}
_ROWS = ("weight", "bias", "running_mean", "running_var")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class _Target:
    """What a layer's units should do: float64 of shape (units,)."""

    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True)
class _Correction:
    """What is done to a layer's output: `output · scale + shift`, float64 of shape (units,)."""

    scale: torch.Tensor
    shift: torch.Tensor


@in_own_surroundings
def repair(
    model: nn.Module,
    a: Any,
    b: Any,
    loader: Iterable[Any],
    t: float = 0.5,
    *,
    max_batches: int | None = None,
    ignore: Sequence[str] = (),
) -> nn.Module:
    """REPAIR (Jordan et al. 2022, arXiv:2211.08403): a copy whose units are rescaled to the ends'.

    On the way from one model to another the activations vary less than at either end. Afterwards
    each unit has the mean `(1 − t)·mean in a + t·mean in b` over the loader, and the same mixture
    of the standard deviations, exactly up to the rounding of the model's dtype. What a unit is:

    - a channel of a BatchNorm, at its output. Its statistics are recomputed (with the divisor
      n − 1, as BatchNorm keeps them), and its affine parameters set to the target;
    - an output of a Linear, Conv or ConvTranspose layer that does not lead straight into a
      BatchNorm, the last layer's included. Scale and shift are folded into weight and bias.

    Layers are corrected in the order in which they run, each after all those before it. A layer
    that is called several times has the moments of all its calls taken together. Units that are
    constant on the loader (in the model, not at the ends) get the mean and keep their scale.

    Layers without bias get one, and BatchNorm without affine parameters gets these, so that the
    state dict has keys that it did not have. Left as they are: layers that no batch runs; layers
    whose parameters are shared with others (a head tied to an embedding) or computed
    (parametrizations, weight norm) or which are not floating; subclasses with a `forward` of their
    own, except of BatchNorm; and what `nn.MultiheadAttention` computes, as it does not call its
    projections as layers.

    Time, memory and passes over the loader are as in `recalibrate`, with one pass more, in which
    both ends run.

    Args:
        model: the model at `t`, as `interpolate` makes it; any module or GraphModule with such
            layers. Never modified.
        a: the model at 0: a module, a state dict, or the path of a file of weights.
        b: the model at 1, as it was interpolated: already rebased.
        loader: batches of inputs, or of (inputs, targets), that can be gone through again: a list
            or a DataLoader. A shuffling one gives the same order in every pass.
        t: position of the model, from 0 to 1.
        max_batches: the most batches to use; all when left out.
        ignore: tensors in which the models differ, by name or pattern (`["fc.*"]`); see
            `interpolate`. Both ends run with those of `model` in their place, and layers that have
            such tensors are left as they are.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors.
        CheckpointError: a file cannot be read.
        InputError: a model, the loader or an option cannot be used, or no layer can be repaired.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1)) for _ in "ab")
        >>> x = torch.randn(64, 2)
        >>> middle = [*fxrebasin.interpolate(a, b, steps=3)][1]
        >>> repaired = fxrebasin.repair(middle, a, b, [x])
        >>> torch.allclose(repaired(x).std(), (a(x).std() + b(x).std()) / 2)
        True
    """
    if max_batches is not None:
        check_count("max_batches", max_batches)
    if isinstance(t, bool) or not 0 <= t <= 1:
        raise InputError(f"t is {t!r}; it has to be a number from 0 (the model a) to 1 (b)")
    data = Data(loader, max_batches)
    result = copy_of(usable(model))
    patterns = patterns_that_fit(ignore, result, [a, b])
    own, *ends = states_of(result, [a, b], ["a", "b"], patterns)
    heads = {name: own[name] for name in ignored_in(result, patterns)}
    ends = [{**end, **heads} for end in ends]
    differing = {name.rpartition(".")[0] for name in heads}
    candidates = {n: site for n, site in _candidates(result).items() if n not in differing}
    known = survey(result, data, [*candidates.values()])
    kept = [n for n in known.calls if n not in known.normalised or _is_norm(result, n)]
    sites = [candidates[name] for name in kept]
    if not sites:
        raise InputError(
            "the model has no layer that can be repaired: no Linear, Conv, ConvTranspose or "
            "BatchNorm module runs on the loader with parameters of its own. A graph from "
            "torch.export has operators in their place; pass the module that it was made from."
        )
    targets = _targets(result, data, sites, ends, t)
    _complete(result, sites)
    mending = _Mending(result, targets)
    settled = correct_in_order(
        result, data, sites, known, mending.correct, mending.output, "repairing"
    )
    if not settled:
        warn_unsettled("repair")
    for name, layer in norms_with_statistics(result).items():
        if name in targets and layer.num_batches_tracked is not None:
            layer.get_buffer("num_batches_tracked").fill_(known.batches)
    return result


class _Mending:
    """Corrects the layers of a model, in place.

    Args:
        model: whose layers have all the parameters that a correction needs.
        targets: by the names of the layers.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, _Target]) -> None:
        self._model, self._targets = model, targets
        self._last: dict[str, _Correction] = {}

    @torch.no_grad()
    def correct(self, site: Site, moments: Moments) -> float:
        """Correct a layer; returns by how much it was off.

        Args:
            site: the layer.
            moments: measured there.
        """
        layer, target = self._model.get_submodule(site.name), self._targets[site.name]
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        moved = 0.0
        if isinstance(layer, _BatchNorm) and site.at_input:
            if moments.count > 1:
                moved = set_statistics(layer, moments, unbiased=True)
            moments = _after(moments, layer, _rows(layer))
        found = moments.deviation(_resolution(weight))
        scale = torch.where(found > 0, target.deviation / found, 1.0)
        shift = target.mean - moments.mean * scale
        self._last[site.name] = _Correction(scale, shift)
        weight.copy_(weight.to(scale) * _shaped(layer, scale, weight))
        bias.copy_(bias.to(scale) * scale + shift)
        size = torch.maximum(target.deviation, target.mean.abs()).clamp_min(1e-30)
        off = (scale - 1).abs().maximum((moments.mean - target.mean).abs() / size)
        return max(moved, float(off.max()))

    def output(self, site: Site, given: torch.Tensor) -> torch.Tensor:
        """What the layer that was corrected last would return now.

        Args:
            site: the layer.
            given: what it returned before it was corrected.
        """
        last = self._last[site.name]
        last_axis = given.movedim(site.axis, -1).to(last.scale)
        return (last_axis * last.scale + last.shift).movedim(-1, site.axis).to(given)


def _candidates(model: nn.Module) -> dict[str, Site]:
    """The layers that a correction can be folded into."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    found = {}
    for name, module in model.named_modules():
        own = [module._parameters.get(key) for key in ("weight", "bias")]
        shared = any(p is not None and len(owners[id(p)]) > 1 for p in own)
        site = None if shared else _site(name, module)
        if site is not None:
            found[name] = site
    return found


def _site(name: str, module: nn.Module) -> Site | None:
    """Where the units of a layer are; None if its output is not what its kind gives."""
    if isinstance(module, _BatchNorm):
        at_input = module.running_mean is not None
        plain = type(module).forward is _BatchNorm.forward
        computed = module.affine and module._parameters.get("weight") is None
        return None if computed or not (at_input or plain) else Site(name, 1, at_input)
    for kind, axis in _AXES.items():
        if isinstance(module, kind):
            plain = all(
                getattr(type(module), method, None) is getattr(kind, method, None)
                for method in ("forward", "_conv_forward")
            )
            weight = module._parameters.get("weight")
            usable = plain and weight is not None and weight.is_floating_point()
            return Site(name, axis, at_input=False) if usable else None
    return None


def _targets(
    model: nn.Module, data: Data, sites: Sequence[Site], ends: Sequence[State], t: float
) -> dict[str, _Target]:
    """The moments of both ends on the loader, mixed."""
    sides = []
    for end, found in zip(ends, measured(model, data, sites, ends), strict=True):
        for site in sites:
            layer = model.get_submodule(site.name)
            if isinstance(layer, _BatchNorm) and site.at_input:
                prefix = f"{site.name}." if site.name else ""
                own = {key: end[prefix + key] for key in _rows(layer)}
                found[site.name] = _after(found[site.name], layer, own)
        sides.append(found)
    return {
        site.name: _Target(
            torch.lerp(sides[0][site.name].mean, sides[1][site.name].mean, t),
            torch.lerp(
                sides[0][site.name].variance().sqrt(), sides[1][site.name].variance().sqrt(), t
            ),
        )
        for site in sites
    }


def _after(moments: Moments, layer: _BatchNorm, state: State) -> Moments:
    """The moments of a BatchNorm's output, from those of its input."""
    rows = {key: tensor.detach().to(moments.mean) for key, tensor in state.items()}
    slope = (rows["running_var"] + layer.eps).rsqrt()
    slope = slope * rows["weight"] if "weight" in rows else slope
    mean = (moments.mean - rows["running_mean"]) * slope
    mean = mean + rows["bias"] if "bias" in rows else mean
    return Moments(moments.count, mean, moments.squares * slope.square())


def _rows(layer: _BatchNorm) -> dict[str, torch.Tensor]:
    """What a BatchNorm has per unit."""
    held = {**layer._parameters, **layer._buffers}
    rows = {key: held.get(key) for key in _ROWS}
    return {key: row for key, row in rows.items() if row is not None}


def _complete(model: nn.Module, sites: Sequence[Site]) -> None:
    """Give layers the parameters that they lack and a correction needs."""
    for site in sites:
        layer = model.get_submodule(site.name)
        if isinstance(layer, _BatchNorm) and layer._parameters.get("weight") is None:
            tensors = (*layer.buffers(), *model.parameters(), torch.zeros(()))
            like = next(tensor for tensor in tensors if tensor.is_floating_point())
            layer.weight = nn.Parameter(like.detach().new_ones(layer.num_features))
        if layer._parameters.get("bias") is None:
            weight = layer.get_parameter("weight")
            units = layer.out_channels if isinstance(layer, _TRANSPOSED) else len(weight)
            bias = nn.Parameter(weight.detach().new_zeros(units), weight.requires_grad)
            layer.register_parameter("bias", bias)


def _shaped(layer: nn.Module, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The scale of every output, in a shape that multiplies the weight."""
    if not isinstance(layer, _TRANSPOSED):
        return scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    # (inputs, outputs of a group, ...), the inputs of one group after those of the other.
    inputs = weight.shape[0] // layer.groups
    rows = scale.reshape(layer.groups, -1).repeat_interleave(inputs, dim=0)
    return rows.reshape(*rows.shape, *(1 for _ in weight.shape[2:]))


def _is_norm(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), _BatchNorm)


def _resolution(weight: torch.Tensor) -> float:
    return float(torch.finfo(weight.dtype).eps)
