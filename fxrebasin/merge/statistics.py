"""What rebasing a pair did: distance, agreement of every class, and the barrier."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from rich.table import Table
from torch import fx, nn

from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import Choices, choices_for
from fxrebasin.counted import counted_state
from fxrebasin.facts import Brief
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.merge.barriers import BarrierCurve, Evaluate, barrier
from fxrebasin.merge.states import is_number, states_of, usable
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.permutation import Permutation
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.running.batches import State
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.surroundings import own_surroundings
from fxrebasin.solvers.pairs import view_of_reals
from fxrebasin.storage.reference import ignored_in, patterns_that_fit

_Products: TypeAlias = dict[str, tuple[float, float, float, float]]
"""By name of a parameter: inner product, both squared lengths, squared distance."""


@dataclass(frozen=True)
class ClassAgreement:
    """How similar two models are in the parameters that hold units of one class.

    Args:
        name: of the class.
        size: its number of units, in each copy.
        count: number of copies.
        parameters: number of tensors that hold its units.
        before: cosine of the angle between both models' values of these tensors.
        after: the same with the rebased model.
    """

    name: str
    size: int
    count: int
    parameters: int
    before: float
    after: float


@dataclass(frozen=True, repr=False)
class MergeStats(Brief):
    """What rebasing a pair did.

    Args:
        distance_before: Euclidean distance of the parameters of both models.
        distance_after: the same with the rebased model.
        cosine_before: cosine of the angle between all parameters of both models.
        cosine_after: the same with the rebased model.
        classes: the same class by class.
        barrier_before: the way between both models; None if nothing was evaluated.
        barrier_after: the way to the rebased model.
    """

    distance_before: float
    distance_after: float
    cosine_before: float
    cosine_after: float
    classes: tuple[ClassAgreement, ...]
    barrier_before: BarrierCurve | None = None
    barrier_after: BarrierCurve | None = None

    def table(self) -> Table:
        """Everything, for `rich` to print.

        Example:
            >>> MergeStats(2.0, 1.0, 0.0, 0.5, ()).table().row_count
            2
        """
        table = Table(title="A and B: before → after rebasing B")
        table.add_column("")
        table.add_column("units", justify="right")
        for heading in ("before", "after"):
            table.add_column(heading, justify="right")
        table.add_row("distance", "", f"{self.distance_before:.4g}", f"{self.distance_after:.4g}")
        for label, before, after in self._barrier_rows():
            table.add_row(label, "", before, after)
        table.add_row("cosine", "", f"{self.cosine_before:.4f}", f"{self.cosine_after:.4f}")
        if self.classes:
            table.add_section()
        for c in self.classes:
            units = str(c.size) if c.count == 1 else f"{c.count} × {c.size}"
            table.add_row(f"cosine, {c.name}", units, f"{c.before:.4f}", f"{c.after:.4f}")
        return table

    def _facts(self) -> list[tuple[str, str]]:
        rows = [(name, f"{before} → {after}") for name, before, after in self._barrier_rows()]
        return [
            ("distance", f"{self.distance_before:.6g} → {self.distance_after:.6g}"),
            ("cosine", f"{self.cosine_before:.4f} → {self.cosine_after:.4f}"),
            ("classes", str(len(self.classes))),
            *rows,
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        curves = {"barrier_before": self.barrier_before, "barrier_after": self.barrier_after}
        return {
            "distance_before": self.distance_before,
            "distance_after": self.distance_after,
            "cosine_before": self.cosine_before,
            "cosine_after": self.cosine_after,
            "classes": [asdict(c) for c in self.classes],
            **{name: None if c is None else c.as_dict() for name, c in curves.items()},
        }

    def to_json(self) -> str:
        """Everything as JSON text.

        Example:
            >>> json.loads(MergeStats(2.0, 1.0, 0.0, 0.5, ()).to_json())["distance_after"]
            1.0
        """
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def _barrier_rows(self) -> list[tuple[str, str, str]]:
        before, after = self.barrier_before, self.barrier_after
        if before is None or after is None:
            return []
        rows = [
            ("barrier", f"{before.barrier:.4f}", f"{after.barrier:.4f}"),
            ("loss half way", f"{before.midpoint[0]:.4f}", f"{after.midpoint[0]:.4f}"),
        ]
        if before.midpoint[1] is not None and after.midpoint[1] is not None:
            accuracies = f"{before.midpoint[1]:.2%}", f"{after.midpoint[1]:.2%}"
            rows.append(("accuracy half way", *accuracies))
        return rows


def merge_stats(
    a: nn.Module,
    b: Any,
    rebased: Permutation | Any,
    *,
    evaluate: Evaluate | None = None,
    steps: int = 11,
    prepare: Callable[[nn.Module], nn.Module] | None = None,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
    ignore: Sequence[str] = (),
) -> MergeStats:
    """Distance, agreement and barrier of two models, before and after rebasing.

    Parameters count, tied ones once; buffers do not. Sums are in float64.

    Args:
        a: the reference; never modified.
        b: the model as it was: a module, a state dict, or the path of a file of weights.
        rebased: the permutation that rebases it, or the rebased model in one of these forms.
        evaluate: from a model to its loss, or to its loss and accuracy; without it no barrier is
            measured.
        steps: number of models on the way.
        prepare: what is done to every model before it is evaluated; see `barrier`.
        example_inputs: used to find the classes where `rebased` does not hold them; a tensor, or a
            tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        state_buffers: those that `rebased` was found with, where it does not hold them; see
            `analyze`.
        outputs: the same; see `analyze`.
        ignore: tensors in which the models differ, by name or pattern (`["fc.*"]`), which do not
            count; see `match`. Models on the way have those of `a`.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors, or
            the permutation belongs to another model.
        CheckpointError: a file cannot be read.
        InputError: a model, inputs or an option cannot be used.

    Example:
        >>> import fxrebasin
        >>> a, b = (nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in "ab")
        >>> stats = fxrebasin.merge_stats(a, b, fxrebasin.match(b, ref=a))
        >>> stats.distance_after <= stats.distance_before, len(stats.classes)
        (True, 1)
    """
    with own_surroundings():
        model = usable(a, "a")
        choices = choices_for(model, state_buffers=state_buffers, outputs=outputs)
        others = [b] if isinstance(rebased, Permutation) else [b, rebased]
        patterns = patterns_that_fit(ignore, model, others)
        states = states_of(model, others, ["b", "rebased b"][: len(others)], patterns)
        ignored = ignored_in(model, patterns)
        # Where models differ, all have what the first has.
        heads = {name: states[0][name] for name in ignored}
        states = [{**state, **heads} for state in states]
        if isinstance(rebased, Permutation):
            moved = rebased.permute_state_dict(states[1])
            states.append({**moved, **heads})
        numbers = [name for name, parameter in model.named_parameters() if is_number(parameter)]
        names = [name for name in numbers if name not in ignored]
        classes, layout = _known(model, rebased, (example_inputs, example_kwargs), choices)
        seen = [counted_state({n: state[n] for n in names}, layout) for state in states]
        products = [_products(names, seen[0], other) for other in seen[1:]]
    curves = [  # what the caller evaluates with runs in the modes of the caller
        None if evaluate is None else barrier(model, other, evaluate, steps=steps, prepare=prepare)
        for other in states[1:]
    ]
    return MergeStats(
        distance_before=_distance(products[0], names),
        distance_after=_distance(products[1], names),
        cosine_before=_cosine(products[0], names),
        cosine_after=_cosine(products[1], names),
        classes=tuple(_agreement(c, names, products) for c in classes),
        barrier_before=curves[0],
        barrier_after=curves[1],
    )


def _known(
    model: nn.Module,
    rebased: Any,
    inputs: tuple[Any, Mapping[str, Any] | None],
    choices: Choices,
) -> tuple[Sequence[PermutationClass], Layout]:
    """Classes and their layout, from what holds them already, if anything does."""
    if isinstance(rebased, Permutation):
        return rebased.classes, rebased.layout
    report = rebased.meta.get("fxrebasin") if isinstance(rebased, fx.GraphModule) else None
    if isinstance(report, RebasinReport):
        certificate = report.certificate
        permuted = certificate if isinstance(certificate, Permutation) else certificate.permutation
        return certificate.classes, permuted.layout
    args, kwargs = normalise_inputs(model, *inputs, check=False)
    symmetry = symmetry_of(model, args, kwargs, choices)
    return symmetry.classes, symmetry.layout


def _products(names: Sequence[str], state_a: State, state_b: State) -> _Products:
    found: _Products = {}
    for name in names:
        a, b = (
            view_of_reals(state[name].detach()).to("cpu", torch.float64).flatten()
            for state in (state_a, state_b)
        )
        found[name] = (
            float(a @ b),
            float(a @ a),
            float(b @ b),
            float((a - b).square().sum()),
        )
    return found


def _distance(products: _Products, names: Sequence[str]) -> float:
    return math.sqrt(sum(products[name][3] for name in names))


def _cosine(products: _Products, names: Sequence[str]) -> float:
    """0 where one side has no length."""
    inner, a, b = (sum(products[name][k] for name in names) for k in range(3))
    return inner / math.sqrt(a * b) if a * b > 0 else 0.0


def _agreement(
    c: PermutationClass,
    names: Sequence[str],
    products: Sequence[_Products],
) -> ClassAgreement:
    held = {name for name, _ in c.axes}
    own = [name for name in names if name in held]
    before, after = (_cosine(found, own) for found in products)
    return ClassAgreement(c.name, c.size, c.count, len(own), before, after)
