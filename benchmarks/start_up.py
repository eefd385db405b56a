"""How long the command takes to say what it can do, and the import of the package beside torch's.

    python -m benchmarks.start_up [--repeats 5]

CPU seconds of whole processes, the least of several runs. Written to
`benchmarks/results/start_up/start_up.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from fxrebasin.storage.files import publish
from fxrebasin.terminal import output_console

RESULT = Path(__file__).parent / "results" / "start_up" / "start_up.csv"
_IMPORT_TORCH = ("-c", "import torch")
_MEASURED = {
    "fxrebasin --help": ("-m", "fxrebasin", "--help"),
    "fxrebasin transform --help": ("-m", "fxrebasin", "transform", "--help"),
    "import fxrebasin": ("-c", "import fxrebasin"),
    "import fxrebasin, and transform": ("-c", "import fxrebasin; fxrebasin.transform"),
    "import torch": _IMPORT_TORCH,
}


def main() -> None:
    """Print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch = _seconds(_IMPORT_TORCH, repeats)
    table = Table("", "CPU s", "of torch's")
    rows = [["what", "seconds", "of_torch"]]
    for name, arguments in _MEASURED.items():
        seconds = torch if arguments is _IMPORT_TORCH else _seconds(arguments, repeats)
        rows.append([name, f"{seconds:.2f}", f"{seconds / torch:.2f}"])
        table.add_row(*rows[-1])
    output_console().print(table)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    publish(RESULT, text.getvalue().encode(), overwrite=True)


def _seconds(arguments: tuple[str, ...], repeats: int) -> float:
    """CPU time of a run of Python, its own and the system's."""
    found = []
    for _ in range(repeats):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        spent = after.children_user + after.children_system
        found.append(spent - before.children_user - before.children_system)
    return min(found)


if __name__ == "__main__":
    main()
