"""What an experiment writes: tables as CSV, pictures, and a page of Markdown."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.figures import Drawing
from fxrebasin.errors import FxRebasinError
from fxrebasin.storage.files import publish


class ExperimentError(FxRebasinError):
    """An experiment found what must not be."""


def require(holds: bool, what: str) -> None:
    """Stop an experiment that found what must not be.

    Args:
        holds: whether it is as it must be.
        what: was to be, and what was found.

    Raises:
        ExperimentError: it does not hold.
    """
    if not holds:
        raise ExperimentError(f"the experiment failed: {what}")


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is for words, the others for figures.

    Example:
        >>> print(markdown_table(["a", "b"], [["x", "1"]]))
        | a | b |
        | --- | ---: |
        | x | 1 |
    """
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass
class Report:
    """The outcome of one experiment, written to a folder; what an earlier run left is replaced.

    Args:
        folder: of the files.
        name: of the experiment.
        title: of the page.
        command: that makes it.
        data: in words.
    """

    folder: Path
    name: str
    title: str
    command: str
    data: str
    _blocks: list[str] = field(default_factory=list)
    _tables: list[str] = field(default_factory=list)

    def say(self, *sentences: str) -> None:
        """Add a paragraph; empty sentences are left out."""
        words = " ".join(sentence for sentence in sentences if sentence)
        if words:
            self._blocks.append(words)

    def head(self, title: str) -> None:
        """Add a heading."""
        self._blocks.append(f"## {title}")

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        self._blocks.append(markdown_table(titles, rows))

    def rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `<folder>/<name>.csv`, which the page has a link to.

        Args:
            name: of the file.
            rows: with the same keys.
        """
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        publish(self.folder / f"{name}.csv", buffer.getvalue().encode(), overwrite=True)
        self._tables.append(f"[{name}.csv]({name}.csv)")

    def picture(self, name: str, drawing: Drawing, words: str) -> None:
        """Write `<folder>/<name>.png` and show it, and `<name>.json`, from which it is drawn again.

        Args:
            name: of the files.
            drawing: what is on it.
            words: for those who do not see it.
        """
        publish(self.folder / f"{name}.json", drawing.stored(), overwrite=True)
        publish(self.folder / f"{name}.png", drawing.rendered(), overwrite=True)
        self._blocks.append(f"![{words}]({name}.png)")

    def write(self, seconds: float) -> Path:
        """Write `<folder>/<name>.md`.

        Args:
            seconds: of the processor that the experiment took.

        Returns:
            Its path.
        """
        made = (
            f"Made by `{self.command}` in {seconds / 60:.1f} minutes of processor time "
            f"(networks that were trained before are read from files). {self.data}. {environment()}"
        )
        tables = [f"Whole tables: {', '.join(self._tables)}."] if self._tables else []
        page = "\n\n".join([f"# {self.title}", made, *self._blocks, *tables]) + "\n"
        path = self.folder / f"{self.name}.md"
        publish(path, page.encode(), overwrite=True)
        return path


def environment() -> str:
    """Versions, threads and cores, in a sentence."""
    names = ("torch", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{versions}, {torch.get_num_threads()} of {os.cpu_count()} cores."
