"""The picture of how alike the units of two checkpoints are, for commands that align them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fxrebasin.alignment import Certificate
from fxrebasin.cli.options import AS_THEY_ARE, HowToMatch
from fxrebasin.errors import InputError
from fxrebasin.merge.pictures import plot_alignment
from fxrebasin.running.batches import State
from fxrebasin.wording import presentable


class Weights(Protocol):
    """Weights that were read."""

    @property
    def path(self) -> Path:
        """From where."""

    @property
    def state(self) -> State:
        """Tensors by name."""


@dataclass(frozen=True)
class WeightsOfFile:
    """Weights in an ONNX file.

    Args:
        path: of the file.
        state: tensors by name.
    """

    path: Path
    state: State


def check_units_picture(picture: Path | None, matching: HowToMatch) -> None:
    """Refuse a picture of units that nothing aligns, before any work.

    Args:
        picture: its file, if it is asked for.
        matching: how units are matched.

    Raises:
        InputError: they are not.
    """
    if picture is not None and matching.method == AS_THEY_ARE:
        raise InputError(
            "--picture draws units before and after aligning, which "
            f"--method {AS_THEY_ARE} does not do: leave one of them out"
        )


def draw_units(
    picture: Path | None,
    pair: tuple[Weights, Weights],
    certificate: Certificate | None,
    *,
    overwrite: bool,
) -> list[Path]:
    """Draw the units of two checkpoints.

    Args:
        picture: its file, if it is asked for.
        pair: the reference, and the checkpoint that was aligned with it.
        certificate: that aligned it.
        overwrite: replace a file that exists.

    Returns:
        The files that were written.
    """
    if picture is None or certificate is None:
        return []
    a, b = pair
    names = f"A: {presentable(a.path.name)}   B: {presentable(b.path.name)}"
    title = f"How alike the units of A and B are\n{names}"
    return [
        plot_alignment(a.state, b.state, certificate, picture, title=title, overwrite=overwrite)
    ]


def draw_units_of_files(
    picture: Path | None, ref: Path, moved: Path, certificate: Certificate, *, overwrite: bool
) -> list[Path]:
    """Draw the units of two ONNX files.

    Args:
        picture: its file, if it is asked for.
        ref: the reference.
        moved: the file that was aligned with it, as it was.
        certificate: that aligned it.
        overwrite: replace a file that exists.

    Returns:
        The files that were written.
    """
    if picture is None:
        return []
    from fxrebasin.importers.onnx.matching import compared_weights

    a, b = compared_weights(moved, ref)
    pair = WeightsOfFile(ref, a), WeightsOfFile(moved, b)
    return draw_units(picture, pair, certificate, overwrite=overwrite)
