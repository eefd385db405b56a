"""Models on a path through the weights of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fxrebasin.errors import InputError
from fxrebasin.merge.bezier import Bends, check_bends, train_bends
from fxrebasin.merge.curves import (
    DEGREES,
    Weights,
    bezier_weights,
    check_positions,
    nearest_model,
    spline_weights,
)
from fxrebasin.merge.heads import IgnoredFrom, giver_of
from fxrebasin.merge.states import mixture, own_state, states_of, usable, weighted_mean
from fxrebasin.running.batches import State
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.checkpoint import save_state_dict
from fxrebasin.storage.files import refuse_existing
from fxrebasin.storage.reference import ignored_in, patterns_that_fit


@in_own_surroundings
def interpolate(
    a: nn.Module,
    b: Any,
    *others: Any,
    steps: int = 11,
    path: str = "linear",
    positions: Sequence[float] | None = None,
    loader: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
    epochs: int = 10,
    learning_rate: float = 3e-3,
    bends: int = 1,
    save_dir: str | PathLike[str] | None = None,
    overwrite: bool = False,
    ignore: Sequence[str] = (),
    ignored_from: IgnoredFrom = "first",
) -> Iterator[nn.Module]:
    """Models along a path from `a` to the last model, through all others, made one at a time.

    All floating and complex tensors of the state dict are interpolated, parameters and buffers,
    whatever their names; half precision in float32, rounded once. Other tensors come from the
    nearest model. Tied tensors stay tied. The first model has the weights of `a` bit for bit, and
    the last those of the last model in the dtypes of `a`. Models are in the mode that `a` is in.
    Only the model that is handed out takes memory, beside those that were passed in.

    BatchNorm statistics of two models, averaged, describe neither: see `recalibrate`.

    Args:
        a: the model at 0; gives the class of all models on the way. It is never modified.
        b: the next model: a module, a state dict, or the path of a file of weights.
        *others: further models, evenly spaced on the way.
        steps: number of models, evenly spaced, ends included.
        path: `"linear"` (piecewise, through more than two models), `"quadratic"` and `"cubic"`
            (splines of that degree), `"spline"` (the natural cubic spline); the degree is lowered
            where there are too few models for it, so that between two models all these are the
            straight line. `"bezier"` is a Bézier curve between two models whose control points
            are trained to lower the loss on it (Garipov et al. 2018, arXiv:1802.10026; with Adam
            in the place of SGD).
        positions: numbers from 0 to 1, instead of `steps`.
        loader: `"bezier"`: batches of (inputs, targets) that can be gone through again.
        loss: `"bezier"`: a function of outputs and targets.
        seed: `"bezier"`: of the positions drawn for training, and the order of a shuffling loader.
        epochs: `"bezier"`: passes over the loader.
        learning_rate: `"bezier"`: of Adam; it falls to 0 along a straight line.
        bends: `"bezier"`: number of control points.
        save_dir: folder for one safetensors file per model, `000_t0.0000.safetensors` and so on;
            each appears when its model is handed out.
        overwrite: replace files that exist.
        ignore: tensors in which the models differ, by name or pattern (`["fc.*"]`): another
            classifier, another vocabulary. They are not interpolated.
        ignored_from: the model that gives these to all models on the way, ends included: its index,
            0 for `a` and 1 for `b`, or `"first"` for `a`, which gives the class.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors.
        CheckpointError: a file cannot be read or written.
        InputError: a model or an option cannot be used, or a file is in the way.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Linear(2, 1) for _ in "ab")
        >>> middle = [*fxrebasin.interpolate(a, b, steps=3)][1]
        >>> torch.allclose(middle.bias, (a.bias + b.bias) / 2)
        True
    """
    given = {"loader": loader, "loss": loss}
    training = Bends(seed, epochs, learning_rate, bends)
    _check_path(path, len(others), given, training)
    at = check_positions(steps, positions)
    files = _files(save_dir, at, overwrite)
    model = usable(a, "the first model")
    labels = ["the second model", *(f"model {k + 3}" for k in range(len(others)))]
    patterns = patterns_that_fit(ignore, model, [b, *others])
    states = states_of(model, [b, *others], labels, patterns)
    ignored = ignored_in(model, patterns)
    giver = giver_of(model, ignored, states.__getitem__, [0], ignored_from, len(states))
    heads = {name: states[giver][name] for name in ignored}
    states = [{**state, **heads} for state in states]
    if loader is None or loss is None:
        weights = spline_weights(path, len(states))
        _refuse_negative_variances(model, states, weights, at)
        return _models(model, states, weights, at, files, overwrite)
    curve = train_bends(model, (states[0], states[1]), training, loader, loss, ignored)
    return _models(model, curve, bezier_weights(len(curve)), at, files, overwrite)


def _refuse_negative_variances(
    model: nn.Module, states: Sequence[State], weights: Weights, positions: Sequence[float]
) -> None:
    """Splines have weights below 0, with which running variances may get below 0, too."""
    variances = [
        f"{prefix}.running_var" if prefix else "running_var"
        for prefix, layer in model.named_modules()
        if isinstance(layer, _NormBase)
    ]
    for t in positions:
        shares = weights(t)
        for name in variances if min(shares) < 0 else ():
            tensors = [state[name] for state in states if name in state]
            if len(tensors) < len(states) or any((tensor < 0).any() for tensor in tensors):
                continue
            if (weighted_mean(tensors, shares, tensors[0]) < 0).any():
                raise InputError(
                    f"at position {t:g} {name} would be below 0, and the model give NaN: a curve "
                    "goes beyond the models on it. Pass path='linear', or other positions"
                )


def _models(
    model: nn.Module,
    states: Sequence[State],
    weights: Weights,
    positions: Sequence[float],
    files: Sequence[Path | None],
    overwrite: bool,
) -> Iterator[nn.Module]:
    @in_own_surroundings  # each is made when it is asked for
    def made(t: float, file: Path | None) -> nn.Module:
        between = mixture(model, states, weights(t), nearest_model(t, len(states)))
        if file is not None:
            save_state_dict(file, own_state(between), overwrite=overwrite)
        return between

    for t, file in zip(positions, files, strict=True):
        yield made(t, file)


def _check_path(path: str, more: int, given: Mapping[str, object], training: Bends) -> None:
    """Refuse a path that does not exist, and options that do not fit it."""
    if path not in (*DEGREES, "bezier"):
        raise InputError(f"no path {path!r}; there are: {', '.join((*DEGREES, 'bezier'))}")
    if path != "bezier":
        needless = [name for name, value in given.items() if value is not None]
        if needless:
            raise InputError(f"path {path!r} is not trained and takes no {' and '.join(needless)}")
        return
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise InputError(
            f"path 'bezier' is trained and needs {' and '.join(missing)}; pass loader=..., batches "
            "of (inputs, targets), and loss=..., a function of (outputs, targets)"
        )
    if more:
        raise InputError(f"path 'bezier' is between two models; {more + 2} were passed")
    check_bends(training)


def _files(
    save_dir: str | PathLike[str] | None, positions: Sequence[float], overwrite: bool
) -> list[Path | None]:
    """Where the models are saved; nothing may be in the way."""
    if save_dir is None:
        return [None] * len(positions)
    folder = Path(save_dir)
    files = [folder / f"{k:03d}_t{t:.4f}.safetensors" for k, t in enumerate(positions)]
    refuse_existing(files, overwrite=overwrite)
    return [*files]
