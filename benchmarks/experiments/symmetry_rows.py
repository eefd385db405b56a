"""Rows of the table of symmetries, and the folder where they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fxrebasin.storage.files import publish

UNTOUCHED = "untouched"


@dataclass(frozen=True)
class Row:
    """What one way of aligning makes of one pair.

    Args:
        network: in words.
        pair: the two seeds.
        way: of aligning.
        barrier: held-out, in nats.
        midpoint_loss: held-out, in nats.
        midpoint_accuracy: 0 to 1.
        seconds: of the processor, for aligning and its proof.
        error: relative, in float64, of the aligned model against B; -1 where that was not measured.
        note: of the way.
    """

    network: str
    pair: str
    way: str
    barrier: float
    midpoint_loss: float
    midpoint_accuracy: float
    seconds: float
    error: float = -1.0
    note: str = ""

    @property
    def is_joint(self) -> bool:
        """Whether it is of more than two networks."""
        return self.pair.count("-") > 1


@dataclass(frozen=True)
class Kept:
    """Where rows are kept.

    Args:
        folder: None to keep none.
        only: make no row that is not kept.
    """

    folder: Path | None
    only: bool

    def row(self, names: tuple[str, str, str], make: Callable[[], Row]) -> Row | None:
        """A row from its file, or made and kept now; None if it may not be made.

        Args:
            names: of the network, the pair and the way.
            make: the row.
        """
        path = None
        if self.folder is not None:
            path = self.folder / f"{'-'.join(names)}.json".replace(" ", "_")
            if path.is_file():
                return Row(**json.loads(path.read_text()))
        if self.only:
            return None
        row = make()
        if path is not None:
            publish(path, json.dumps(asdict(row)).encode(), overwrite=True)
        return row
