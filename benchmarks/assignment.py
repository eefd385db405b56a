"""Which solver is the fastest on the linear assignments that weight matching really meets?

    python -m benchmarks.assignment                       five networks, about five minutes
    python -m benchmarks.assignment --models resnet18

Matches a pair of random networks, keeps the gains of every assignment with the prices known at that
time, and solves each again with scipy's and lapx's solvers: as they are, and reduced by prices
(`fxrebasin/solvers/scaling.py`), the time to find these included. All have to collect the same, up
to rounding. Processor seconds, one thread. Writes `<out>/assignment.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import lap
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import fxrebasin
from benchmarks.support.matching_models import build, draw
from benchmarks.support.matching_ours import Pair
from fxrebasin.solvers import assignment
from fxrebasin.solvers.scaling import Gains, Prices, easy_costs
from fxrebasin.storage.files import publish
from fxrebasin.terminal import progress_bar

MODELS = "mlp,resnet22x2,resnet18,mobilenet_v3_large,vit_b_16"
ROUNDING = 1e-5
# From this size on, prices are tried too.
PRICED = 32

Met = tuple[Gains, Prices]

SOLVERS: dict[str, Callable[[Gains], Any]] = {
    "scipy": lambda costs: linear_sum_assignment(costs)[1],
    "lapjv": lambda costs: lap.lapjv(costs, return_cost=False)[0],
    "lapjvx": lambda costs: lap.lapjvx(costs, return_cost=False)[1],
    "lapjvs": lambda costs: lap.lapjvs(costs, return_cost=False)[1],
    "lapjvh": lambda costs: lap.lapjvh(costs, return_cost=False)[1],
    "lapjvr": lambda costs: lap.lapjvr(costs, return_cost=False)[1],
}


@click.command()
@click.option("--models", default=MODELS, show_default=True, help="As in benchmarks.matching.")
@click.option("--repeats", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/assignment"),
    show_default=True,
    help="Folder for the table; that of an earlier run is replaced.",
)
def main(models: str, repeats: int, out: Path) -> None:
    """Solve the assignments that matching meets with every solver, and say how long each takes."""
    torch.set_num_threads(1)
    met = [item for name in models.split(",") for item in assignments(name.strip())]
    seconds: dict[int, dict[str, float]] = {}
    with progress_bar() as progress:
        for gains, prices in progress.track(met, description="solving"):
            row = seconds.setdefault(len(gains), {"matrices": 0})
            row["matrices"] += 1
            for name, taken in timed(gains, prices, repeats).items():
                row[name] = row.get(name, 0.0) + taken
    text = table(models, seconds)
    publish(out / "assignment.md", text.encode(), overwrite=True)
    click.echo(text)


def assignments(name: str) -> list[Met]:
    """Gains and known prices of all assignments of one weight matching.

    Args:
        name: of a network, as `build` knows it.
    """
    model, images = build(name)
    states = [draw(model, images, seed) for seed in range(2)]
    pair = Pair(fxrebasin.analyze(model, images), *states)
    with recorded() as met:
        pair.solve()
    return met


@contextmanager
def recorded() -> Iterator[list[Met]]:
    """Keep what the solver is asked for."""
    met: list[Met] = []
    solved, each = assignment._solved, assignment._solved_each

    def keep(gains: Gains, prices: Prices | None) -> Any:
        met.append((gains.copy(), np.zeros(len(gains)) if prices is None else prices.copy()))
        return solved(gains, prices)

    def keep_each(gains: Gains) -> Any:
        if gains.shape[-1] < assignment._PRICES_FROM:
            met.extend((own.copy(), np.zeros(len(own))) for own in gains)
        return each(gains)

    with (
        patch.object(assignment, "_solved", keep),
        patch.object(assignment, "_solved_each", keep_each),
    ):
        yield met


def timed(gains: Gains, prices: Prices, repeats: int) -> dict[str, float]:
    """Seconds of every solver, the fastest of some runs.

    Args:
        gains: of shape (n, n).
        prices: that were known.
        repeats: runs.

    Raises:
        ValueError: a solver collects less than another one.
    """

    def with_prices(solver: Callable[[Gains], Any]) -> Callable[[], Any]:
        def solve() -> Any:
            return solver(easy_costs(gains, prices.copy()))

        return solve

    runs: dict[str, Callable[[], Any]] = {
        name: lambda solver=solver: solver(-gains) for name, solver in SOLVERS.items()
    }
    if len(gains) >= PRICED:
        runs |= {f"prices, {name}": with_prices(solver) for name, solver in SOLVERS.items()}
    seconds, collected = {}, {}
    for name, run in runs.items():
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            chosen = run()
            taken.append(time.process_time() - start)
        seconds[name] = min(taken)
        collected[name] = float(gains[np.arange(len(gains)), chosen].sum(dtype=np.float64))
    slack = ROUNDING * float(np.abs(gains).max(axis=1).sum())
    if max(collected.values()) - min(collected.values()) > slack:
        raise ValueError(f"solvers disagree on a matrix of {len(gains)}: {collected}")
    return seconds


def table(models: str, seconds: dict[int, dict[str, float]]) -> str:
    """The figures in Markdown: milliseconds a matrix by size.

    Args:
        models: that were matched.
        seconds: of all matrices of a size, by solver; and how many matrices there are.
    """
    made_with = ", ".join(f"{name} {version(name)}" for name in ("lapx", "scipy", "numpy"))
    names = [*SOLVERS, *(f"prices, {name}" for name in SOLVERS)]
    lines = [
        "# Solvers of linear assignments, on what weight matching meets",
        "",
        f"Processor milliseconds a matrix, one thread, on the matrices of matching {models}. "
        "`prices`: reduced by prices first, the time to find them included. Matching takes "
        f"lapjvr, from {assignment._PRICES_FROM} units on with prices. Made by "
        f"`python -m benchmarks.assignment` with {made_with}.",
        "",
        f"| units | matrices | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for size, row in sorted(seconds.items()):
        cells = [f"{1e3 * row[n] / row['matrices']:.3f}" if n in row else "–" for n in names]
        lines.append(f"| {size} | {row['matrices']:.0f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
