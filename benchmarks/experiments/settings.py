"""What is the same for all experiments: the command line's options."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from benchmarks.experiments.report import Report
from benchmarks.experiments.store import Store
from fxrebasin.errors import FxRebasinError

RESULTS = Path("benchmarks/results/experiments")
BUILD = Path("build/experiments")
_PLACES = frozenset({"output", "cache", "environment", "keep", "threads"})

Value = TypeVar("Value")


@dataclass(frozen=True)
class Settings:
    """The options of a run.

    Args:
        name: of the experiment.
        quick: seconds instead of minutes, and what is robust is asserted.
        data_dir: folder of a data set; embedded data when None.
        seeds: number of pairs; each is trained from seeds of its own.
        folder: for tables, pictures and the page.
        store: of trained networks.
        width: of the networks; each experiment's own when None.
        epochs: of training; each experiment's own when None.
        command: that the page says it was made by.
    """

    name: str
    quick: bool
    data_dir: Path | None
    seeds: int
    folder: Path
    store: Store
    width: int | None
    epochs: int | None
    command: str

    def pick(self, full: Value, quick: Value) -> Value:
        """One of two sizes.

        Args:
            full: of the experiment.
            quick: of its quick form.
        """
        return quick if self.quick else full

    def report(self, title: str, data: str) -> Report:
        """An empty page.

        Args:
            title: of the page.
            data: in words.
        """
        return Report(self.folder, self.name, title, self.command, data)


def seed_of(pair: int, model: int) -> int:
    """The seed of a network: no two of an experiment share one, for up to 100 in a group.

    Args:
        pair: number of the group.
        model: number in the group.
    """
    return 100 * pair + model


_OPTIONS = (
    click.option("--quick", is_flag=True, help="Tiny and fast; asserts what is robust."),
    click.option(
        "--data-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of a data set as it is distributed; embedded data when left out.",
    ),
    click.option("--seeds", type=click.IntRange(min=1), help="Pairs; 3, or 1 with --quick."),
    click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help=f"Folder for the results; {RESULTS}, or {BUILD} with --quick. What an earlier run "
        "of the same experiment wrote there is replaced.",
    ),
    click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help=f"Folder where trained networks are kept; {BUILD / 'trained'} when left out.",
    ),
    click.option("--width", type=click.IntRange(min=1), help="Of the networks."),
    click.option("--epochs", type=click.IntRange(min=1), help="Of training."),
    click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True),
)


def experiment(run: Callable[..., Path]) -> Callable[..., None]:
    """Turn a function of settings (and options of its own) into a command.

    Args:
        run: returns the path of its page.
    """

    @functools.wraps(run)
    @click.pass_context
    def command(
        context: click.Context,
        quick: bool,
        data_dir: Path | None,
        seeds: int | None,
        output: Path | None,
        cache: Path | None,
        width: int | None,
        epochs: int | None,
        threads: int,
        **own: Any,
    ) -> None:
        torch.set_num_threads(threads)
        name = str(context.info_name)
        output = output or (BUILD if quick else RESULTS)
        settings = Settings(
            name=name,
            quick=quick,
            data_dir=data_dir,
            seeds=seeds or (1 if quick else 3),
            folder=output / name,
            store=Store(cache or BUILD / "trained"),
            width=width,
            epochs=epochs,
            command=_command_line(context, name),
        )
        try:
            page = run(settings, **own)
        except FxRebasinError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"see {page}")

    # What the function says of its arguments is for readers of the code.
    command.__doc__ = str(run.__doc__).partition("\n")[0]
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _command_line(context: click.Context, name: str) -> str:
    """The command with the options that were given, apart from those that only name places."""
    words = ["python -m benchmarks.experiments", name]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in _PLACES or value in (None, False, parameter.default):
            continue
        words.append(parameter.opts[0])
        if value is not True:
            words.append(shlex.quote(str(value)))
    return " ".join(words)
