"""Leave it running: `python -m tests.fuzz_kinds --seconds 600 --seed 1`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence

import torch

from tests.fuzz_kinds.check import WRONG, Verdict, check, drawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw networks and print what is wrong of them; 1 if there is anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_kinds", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    parser.add_argument("--networks", type=int, help="stop after so many")
    parser.add_argument("--less", action="store_true", help="print also where less was found")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    shown = (*WRONG, *((Verdict.LESS,) if options.less else ()))
    tally: Counter[Verdict] = Counter()
    end, index = time.monotonic() + options.seconds, 0
    while time.monotonic() < end and index != options.networks:
        found = check(drawn(options.seed, index))
        tally[found.verdict] += 1
        if found.verdict in shown:
            sys.stdout.write(f"{index}: {found.text()}\n")
            sys.stdout.flush()
        index += 1
    counts = ", ".join(f"{tally[verdict]} {verdict.value}" for verdict in Verdict if tally[verdict])
    sys.stdout.write(f"{index} networks: {counts}\n")
    return 1 if any(tally[verdict] for verdict in WRONG) else 0


if __name__ == "__main__":
    sys.exit(main())
