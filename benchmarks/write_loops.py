"""How does the time to find the symmetry grow with the steps of a loop that writes its results?

    python -m benchmarks.write_loops
    python -m benchmarks.write_loops --steps 64,128,1024 --rounds 5

Sequence models write `out[:, t] = ...` once per step, which is a view and a write into what all
steps share. Each loop is timed on one thread in CPU seconds, as the best of some rounds after a
first. The exponent is the slope between the shortest and the longest loop on logarithmic axes: 1 if
seconds grow as steps do, 2 if with their square. Writes `<out>/write_loops.csv` and `.md`.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.storage.files import publish

BATCH, INPUTS, WIDTH, OUTPUTS = 2, 4, 16, 3


class Loop(nn.Module):
    """Layers around a loop over the steps of a sequence.

    Args:
        run: from the module and what enters the loop, of shape (batch, steps, width), to what
            leaves it.
    """

    def __init__(self, run: Callable[[Loop, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)
        self.step, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """Sequences of shape (batch, steps, inputs)."""
        return self.leave(self.run(self, self.enter(x)))


def each_by_itself(net: Loop, h: Tensor) -> Tensor:
    """Steps that know nothing of each other."""
    out = torch.empty_like(h)
    for t in range(h.shape[1]):
        out[:, t] = net.step(h[:, t]).relu()
    return out


def recurrent(net: Loop, h: Tensor) -> Tensor:
    """A state that goes from step to step beside what is written."""
    out, state = torch.zeros_like(h), h.new_zeros(h.shape[0], h.shape[2])
    for t in range(h.shape[1]):
        state = torch.tanh(net.step(state) + h[:, t])
        out[:, t] = state
    return out


def reads_back(net: Loop, h: Tensor) -> Tensor:
    """Each step reads what the one before has written."""
    out = torch.zeros_like(h)
    out[:, 0] = h[:, 0]
    for t in range(1, h.shape[1]):
        out[:, t] = torch.tanh(net.step(out[:, t - 1])) + h[:, t]
    return out


def weighted(net: Loop, h: Tensor) -> Tensor:
    """Two sums that decay, as in RWKV, and their quotient."""
    out, top, bottom = torch.zeros_like(h), torch.zeros_like(h[:, 0]), torch.zeros_like(h[:, 0])
    for t in range(h.shape[1]):
        key = net.gate(h[:, t]).exp()
        top, bottom = top * 0.9 + key * net.step(h[:, t]), bottom * 0.9 + key
        out[:, t] = top / bottom
    return out


LOOPS = (each_by_itself, recurrent, reads_back, weighted)


@dataclass(frozen=True)
class Row:
    """One loop of some number of steps."""

    loop: str
    steps: int
    operators: int
    log10_order: float
    analysis_seconds: float


@click.command()
@click.option("--steps", default="64,128,256,512", show_default=True, help="Numbers, ascending.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results/write_loops"),
    show_default=True,
    help="Folder for the tables; those of an earlier run are replaced.",
)
def main(steps: str, rounds: int, out: Path) -> None:
    """Time the analysis of loops that write their results step by step."""
    torch.set_num_threads(1)
    counts = [int(number) for number in steps.split(",")]
    rows = [measure(run, count, rounds) for run in LOOPS for count in counts]
    publish(out / "write_loops.csv", _csv(rows).encode(), overwrite=True)
    page = markdown(rows, f"python -m benchmarks.write_loops --steps {steps} --rounds {rounds}")
    publish(out / "write_loops.md", page.encode(), overwrite=True)
    click.echo(page)


def measure(run: Callable[[Loop, Tensor], Tensor], steps: int, rounds: int) -> Row:
    """Analyse a loop of some number of steps, and time it.

    Args:
        run: the loop.
        steps: how many it makes.
        rounds: how often it is timed; the least counts.
    """
    model, x = Loop(run).eval(), torch.randn(BATCH, steps, INPUTS)
    symmetry = fxrebasin.analyze(model, x)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        fxrebasin.analyze(model, x)
        seconds.append(time.process_time() - start)
    operators = sum(symmetry.operators.values())
    return Row(run.__name__, steps, operators, symmetry.log10_order(), min(seconds))


def exponent(rows: Sequence[Row]) -> float:
    """By which power of the steps the seconds of one loop grow, from the shortest to the longest.

    Args:
        rows: of one loop.
    """
    ends = sorted(rows, key=lambda row: row.steps)
    first, last = ends[0], ends[-1]
    growth = math.log(last.analysis_seconds / first.analysis_seconds)
    return growth / math.log(last.steps / first.steps)


def markdown(rows: Sequence[Row], command: str) -> str:
    """A table of all loops, a line each.

    Args:
        rows: of all loops.
        command: that makes them.
    """
    counts = sorted({row.steps for row in rows})
    lines = [
        "# Time to find the symmetry of loops that write their results",
        "",
        "CPU seconds on one thread by number of steps, and the exponent of their growth;",
        f"torch {torch.__version__}; `{command}`.",
        "",
        f"| loop | {' | '.join(map(str, counts))} | exponent |",
        f"|{' --- |' * (len(counts) + 2)}",
    ]
    for name in dict.fromkeys(row.loop for row in rows):
        own = [row for row in rows if row.loop == name]
        cells = [f"{row.analysis_seconds:.3f}" for row in own]
        lines.append(f"| {name} | {' | '.join(cells)} | {exponent(own):.2f} |")
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
