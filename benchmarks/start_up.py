"""How long the command takes to say what it can do, and the import of the package beside torch's.

    python -m benchmarks.start_up [--repeats 5]

CPU seconds of whole processes, the least of several runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from rich.table import Table

from fxrebasin.terminal import output_console

_IMPORT_TORCH = ("-c", "import torch")
_MEASURED = {
    "fxrebasin --help": ("-m", "fxrebasin", "--help"),
    "fxrebasin transform --help": ("-m", "fxrebasin", "transform", "--help"),
    "import fxrebasin": ("-c", "import fxrebasin"),
    "import fxrebasin, and transform": ("-c", "import fxrebasin; fxrebasin.transform"),
    "import torch": _IMPORT_TORCH,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch = _seconds(_IMPORT_TORCH, repeats)
    table = Table("", "CPU s", "of torch's")
    for name, arguments in _MEASURED.items():
        seconds = torch if arguments is _IMPORT_TORCH else _seconds(arguments, repeats)
        table.add_row(name, f"{seconds:.2f}", f"{seconds / torch:.2f}")
    output_console().print(table)


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
