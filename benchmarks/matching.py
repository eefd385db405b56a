"""How fast and how good is weight matching, beside rebasin and plain git-re-basin?

    python -m benchmarks.matching                         all models, 3 seeds: an hour and more
    python -m benchmarks.matching --models mlp,resnet18 --seeds 1
    python -m benchmarks.matching --no-peers              ours and the floor only

A pair of networks is drawn at random, statistics included. What is timed is solving, from two
states to permutations: our analysis and the peers' building of a graph are in columns of their own.
Each side runs `--repeats` times, in turn, and its fastest run counts; after a round in which one
took over ten seconds there is no other. The floor is the time of the matrix products and the
assignments of our own solve, called bare. With `--clock cpu`, seconds of the processor are counted,
which other work on the machine disturbs less; use it with one thread. Writes `<out>/<set>.csv` and
`.md` after every pair.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import fxrebasin
from benchmarks.support.matching_environment import ensure_rebasin, run_rebasin
from benchmarks.support.matching_models import OWN, build, draw
from benchmarks.support.matching_ours import Pair, peak_bytes, recovered, shared_classes
from benchmarks.support.matching_table import Row, console_table, write_tables
from benchmarks.support.plain_rebasin import NotPlainError, match_plainly, objective, specify
from fxrebasin.blame import first_lines
from fxrebasin.console import output_console, progress_bar
from fxrebasin.symmetry import Symmetry

DEFAULT_MODELS = (
    *("mlp", "resnet22x2", "vgg16_cifar", "resnet18", "mobilenet_v3_large"),
    *("resnet50", "wide_resnet50_2", "vit_b_16"),
)
PLAIN_MODELS = frozenset({"mlp", "resnet22x2", "vgg16_cifar", "resnet18", "resnet50"})
PATIENCE = 10.0
CACHE = Path("~/.cache/fxrebasin-bench/rebasin-0.0.47")


@dataclass(frozen=True)
class Settings:
    """What is the same for all pairs; `peer` is the interpreter that has rebasin, if it runs."""

    repeats: int = 3
    clock: str = "wall"
    peer: Path | None = None
    plain: bool = True
    extras: bool = True

    @property
    def now(self) -> Callable[[], float]:
        """The clock."""
        return time.process_time if self.clock == "cpu" else time.perf_counter


@click.command()
@click.option("--models", default="default", show_default=True, help="default, or a,b,c.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--peers/--no-peers", default=True, help="Run rebasin and plain git-re-basin too.")
@click.option("--extras/--no-extras", default=True, help="Measure noise and memory too.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/matching"),
    show_default=True,
    help="Folder for the tables; those of an earlier run of the same set are replaced.",
)
@click.option("--label", help="Name of the tables; default, or selected.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=CACHE,
    show_default=True,
    help="Folder of the environment that rebasin is installed into, once.",
)
def main(
    models: str,
    seeds: int,
    repeats: int,
    peers: bool,
    extras: bool,
    threads: int,
    clock: str,
    out: Path,
    label: str | None,
    cache: Path,
) -> None:
    """Match pairs of random networks, and say how long that takes beside others."""
    torch.set_num_threads(threads)
    names = list(DEFAULT_MODELS) if models == "default" else _chosen(models)
    label = label or ("default" if models == "default" else "selected")
    peer = ensure_rebasin(cache.expanduser()) if peers else None
    settings = Settings(repeats, clock, peer, peers, extras)
    rows: list[Row] = []
    with progress_bar() as progress:
        task = progress.add_task("matching", total=len(names) * seeds)
        for name in names:
            for seed in range(seeds):
                progress.update(task, description=f"{name}, seed {seed}")
                rows.append(measure(name, seed, settings))
                write_tables(out, label, rows, f"{clock} time")
                progress.advance(task)
    output_console().print(console_table(rows))
    click.echo(f"see {out / label}.csv and .md")


def _chosen(models: str) -> list[str]:
    from benchmarks.support.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torchvision import models as library

    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [n for n in names if n not in OWN and n not in library.list_models(module=library)]
    if unknown or not names:
        raise click.BadParameter(f"no network {', '.join(unknown)!r}", param_hint="--models")
    return names


def measure(name: str, seed: int, settings: Settings) -> Row:
    """All figures of one pair.

    Args:
        name: as `build` knows it.
        seed: of the pair.
        settings: what to measure.
    """
    model, images = build(name)
    state_a, state_b = (draw(model, images, 2 * seed + k) for k in range(2))
    start = settings.now()
    symmetry = fxrebasin.analyze(model, images)
    row = Row(
        name,
        seed,
        parameters=sum(p.numel() for p in model.parameters()),
        classes=len(symmetry.classes),
        analyse_seconds=settings.now() - start,
    )
    del model
    pair = Pair(symmetry, state_a, state_b)
    row = _timed(row, pair, settings)
    if settings.extras:
        row = replace(
            row,
            noise_01=recovered(pair, 0.1, seed),
            noise_03=recovered(pair, 0.3, seed),
            peak_bytes=peak_bytes(name, pair),
            allowed_bytes=pair.allowed_bytes,
        )
    return row


def _timed(row: Row, pair: Pair, settings: Settings) -> Row:
    """Every side in turn, again and again, the fastest of each."""
    best: dict[str, float] = {}
    found: dict[str, Any] = {}
    notes: dict[str, None] = {}

    def keep(key: str, seconds: float) -> None:
        best[key] = min(seconds, best.get(key, seconds))

    for _ in range(settings.repeats):
        if settings.peer is not None:
            try:
                peer = run_rebasin(
                    settings.peer, row.model, pair.state_a, pair.state_b, seed=row.seed
                )
            except subprocess.CalledProcessError as error:
                notes[f"rebasin failed: {first_lines(RuntimeError(error.stderr))}"] = None
            else:
                prefix = "cpu_" if settings.clock == "cpu" else ""
                keep("rebasin_seconds", peer[f"{prefix}seconds"])
                keep("rebasin_graph_seconds", peer["graph_seconds"])
                found |= {f"rebasin_{k}": peer[k] for k in ("sweeps", "objective", "error")}
                shared = shared_classes(pair.symmetry, peer["classes"])
                part = replace(pair, classes=shared)
                keep("shared_seconds", part.solve(settings.now))
                found["shared_classes"] = len(shared)
                if "shared_objective" not in found:
                    found["shared_objective"] = part.match().objective_after
        if settings.plain and row.model in PLAIN_MODELS:
            try:
                plain = _plain(pair.symmetry, pair.state_a, pair.state_b, row.seed, settings)
            except NotPlainError as error:
                notes[str(error)] = None
            else:
                keep("plain_seconds", plain.pop("plain_seconds"))
                found |= plain
        keep("ours_seconds", pair.solve(settings.now))
        keep("floor_seconds", pair.floor(settings.now).seconds)
        start = settings.now()
        result = pair.match()
        keep("match_seconds", settings.now() - start)
        found |= {"ours_sweeps": result.sweeps, "ours_objective": result.objective_after}
        if max(best.values()) > PATIENCE:
            break
    return replace(row, **best, **found, notes="; ".join(notes))


def _plain(
    symmetry: Symmetry,
    state_a: dict[str, Tensor] | Any,
    state_b: dict[str, Tensor] | Any,
    seed: int,
    settings: Settings,
) -> dict[str, Any]:
    names = symmetry.parameters
    specification = specify(symmetry.classes, symmetry.layout, names)
    start = settings.now()
    plain = match_plainly(specification, state_a, state_b, seed)
    return {
        "plain_seconds": settings.now() - start,
        "plain_sweeps": plain.sweeps,
        "plain_objective": objective(specification, plain.arrays, state_a, state_b, names),
    }


if __name__ == "__main__":
    main()
