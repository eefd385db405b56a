"""How fast and how good is weight matching, beside rebasin and plain git-re-basin?

    python -m benchmarks.matching                         all models, 3 seeds: an hour and more
    python -m benchmarks.matching --models mlp,resnet18 --seeds 1
    python -m benchmarks.matching --no-peers              ours and the floor only

A pair of networks is drawn at random, statistics included. What is timed is solving, from two
states to permutations: our analysis and the peers' building of a graph are in columns of their own.
Each side runs in turn, in `--repeats` rounds, and its fastest run counts; after a round in which
one took over ten seconds there is no other. Within a round, what takes less than a second runs
again until a second has passed, except rebasin, which is a process of its own. The floor is the
time of the matrix products and the assignments of our own solve, called bare. With `--clock cpu`,
seconds of the processor are counted, which other work on the machine disturbs less; use it with one
thread. Writes `<out>/<set>.csv` and `.md` after every pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch

import fxrebasin
from benchmarks.support.matching_contest import Contest
from benchmarks.support.matching_environment import ensure_rebasin
from benchmarks.support.matching_models import OWN, build, draw
from benchmarks.support.matching_ours import Pair, peak_bytes, recovered
from benchmarks.support.matching_table import Row, console_table, write_tables
from fxrebasin.terminal import output_console, progress_bar

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
    from fxrebasin.models.torchvision_shim import ensure_torchvision

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
    contest = Contest(name, seed, pair, settings.now)
    for _ in range(settings.repeats):
        contest.round(settings.peer, settings.plain and name in PLAIN_MODELS)
        if contest.longest > PATIENCE:
            break
    row = replace(row, **contest.figures())
    if settings.extras:
        row = replace(
            row,
            noise_01=recovered(pair, 0.1, seed),
            noise_03=recovered(pair, 0.3, seed),
            peak_bytes=peak_bytes(name, pair),
            allowed_bytes=pair.allowed_bytes,
        )
    return row


if __name__ == "__main__":
    main()
