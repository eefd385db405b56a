"""Leave it running: `python -m tests.fuzz --seconds 600 --seed 1`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from unittest import mock

import torch

from fxrebasin.passes.propagate.propagator import Propagator
from tests.fuzz.generate import ALL
from tests.fuzz.hunt import Tally, hunt
from tests.support.invariants import checked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the hunt and print what it finds; 1 if there is anything."""
    options = _options(arguments)
    words = ALL.without(options.without)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tally, found = Tally(), 0
    causes: dict[tuple[object, ...], int] = {}
    watch = _progress(options.seconds)
    with mock.patch.object(Propagator, "_apply", checked(Propagator._apply)):
        for item in hunt(options.seed, options.seconds, tally, options.programs, words, watch):
            found += 1
            causes[item.cause] = causes.get(item.cause, 0) + 1
            if causes[item.cause] == 1:
                _say("\n" + item.text(options.seed))
    _say(_summary(tally, causes, options.seed))
    return 1 if found else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    parser.add_argument("--seed", type=int, default=0, help="of the programs")
    parser.add_argument("--programs", type=int, help="stop after so many")
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        metavar="STEP",
        help="steps not to use: causes known already",
    )
    return parser.parse_args(arguments)


def _summary(tally: Tally, causes: dict[tuple[object, ...], int], seed: int) -> str:
    lines = [
        "",
        f"{tally.tried} programs, {tally.free} with a class, {sum(causes.values())} wrong "
        f"in {len(causes)} kinds, {sum(tally.refused.values())} refused, "
        f"{len(tally.lost)} with more freedom than was found.",
    ]
    lines += [f"refused {number} times: {text}" for text, number in tally.refused.most_common(10)]
    worst = sorted(tally.lost.items(), key=lambda item: -item[1])[:10]
    if worst:
        lines.append(
            "lost: " + ", ".join(f"program {index} ({times} times)" for index, times in worst)
        )
    return "\n".join(lines)


def _progress(seconds: float) -> Callable[[Tally], None]:
    """Shows how far it is, on a terminal."""
    if not sys.stderr.isatty():
        return lambda tally: None
    start = time.monotonic()

    def show(tally: Tally) -> None:
        passed = time.monotonic() - start
        sys.stderr.write(
            f"\r{passed:.0f} of {seconds:.0f} s, {tally.tried} programs, {tally.free} with a class "
        )
        sys.stderr.flush()

    return show


if __name__ == "__main__":
    sys.exit(main())
