"""One process beside two of one thread each: how long, what each reads, and what is sent.

    python -m benchmarks.ranks --gib 0.25
    python -m benchmarks.ranks --bandwidth 256     what gloo sums up per second, in MiB of int64

The pair of checkpoints is that of `benchmarks.streaming`. Both runs have to write the same bytes.
Seconds of wall time depend on what else the machine does. Beside them stand seconds of the
processor: what the busiest process took in all, and the critical path, which is what the run takes
if each process has a core for itself: between any two exchanges the longest of all processes, and
for each exchange the most that it took of the processor. Waiting counts in neither. What is sent is
what passed over the loopback device meanwhile, which other programs use as well. Rows are added to
`<out>/ranks.csv`; the table is written anew from there.
"""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click

from benchmarks.streaming import layers_for, same, write_pair
from fxrebasin.storage.files import publish

_MIB = 2**20
_TIMED = """
import json, os, sys, time
from pathlib import Path
from fxrebasin.streaming.joining import joined
import fxrebasin.cli.large as large
import contextlib
marks = []
class Timed:
    def __init__(self, ranks):
        self._ranks, self.number, self.count = ranks, ranks.number, ranks.count
    def _mark(self, call, value):
        began = time.process_time()
        try:
            return call(value)
        finally:
            marks.append((began, time.process_time()))
    def add_up(self, numbers):
        return self._mark(self._ranks.add_up, numbers)
    def every(self, value):
        return self._mark(self._ranks.every, value)
if int(os.environ["WORLD_SIZE"]) > 1:
    @contextlib.contextmanager
    def timed():
        with joined() as ranks:
            yield Timed(ranks)
    large.joined = timed
out = Path(sys.argv.pop(1))
from fxrebasin.cli import main
try:
    main()
finally:
    marks.append((time.process_time(),) * 2)
    (out / f"marks-{os.environ['RANK']}.json").write_text(json.dumps(marks))
"""
_SUMMING = """
import os, sys, time, torch
from fxrebasin.streaming.joining import joined
with joined() as ranks:
    numbers = torch.ones(int(sys.argv[1]) * 2**17, dtype=torch.int64)
    ranks.add_up(numbers[:2**17])
    began = time.perf_counter()
    ranks.add_up(numbers)
    if not ranks.number:
        print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Row:
    """One run; sizes in MiB, seconds of wall time but for those of the processor."""

    gib: float
    layers: int
    processes: int
    load: float
    seconds: float
    matching: float
    busiest: float
    path: float
    read_most: float
    read_all: float
    sent: float
    recovered: bool


@dataclass(frozen=True)
class Ended:
    """What processes of one run came to."""

    said: str
    seconds: float
    busiest: float
    sent: float


def run_together(command: Sequence[str], count: int, said: Path) -> Ended:
    """Run a command in several processes of one thread each.

    Args:
        command: for the interpreter.
        count: of the processes.
        said: file for what the first one prints.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    began, before = time.perf_counter(), _over_loopback()
    with said.open("wb") as out:
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=out if rank == 0 else subprocess.DEVNULL,
            )
            for rank in range(count)
        ]
        ends = [os.wait4(process.pid, 0) for process in processes]
    for process, (_, status, _) in zip(processes, ends, strict=True):
        process.returncode = os.waitstatus_to_exitcode(status)
    failed = [process.returncode for process in processes if process.returncode]
    if failed:
        raise click.ClickException(f"a process ended with {failed[0]}")
    busiest = max(usage.ru_utime + usage.ru_stime for _, _, usage in ends)
    sent = (_over_loopback() - before) / count
    return Ended(said.read_text(), time.perf_counter() - began, busiest, sent)


def _over_loopback() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    (own,) = (line.split(":", 1)[1] for line in lines if line.strip().startswith("lo:"))
    return int(own.split()[8])


def critical_path(marks: Sequence[Sequence[Sequence[float]]]) -> float:
    """Seconds that a run takes if each process has a core for itself.

    Args:
        marks: of each process, by its own clock of the processor: when it came to each exchange,
            and when it left; and its end.

    Example:
        >>> critical_path([[(1, 2), (5, 5)], [(3, 3.5), (4, 4)]])
        7.0
    """
    total = 0.0
    left = [0.0] * len(marks)
    for every in zip(*marks, strict=True):
        total += max(came - before for (came, _), before in zip(every, left, strict=True))
        total += max(gone - came for came, gone in every)
        left = [gone for _, gone in every]
    return float(total)


def measured(gib: float, room: Path | None) -> list[Row]:
    """The same pair by one process, and by two."""
    layers = layers_for(gib)
    rows = []
    with tempfile.TemporaryDirectory(dir=room) as name:
        folder = Path(name)
        write_pair(folder, layers)
        for count in (1, 2):
            out = folder / f"out-{count}"
            command = ["-c", _TIMED, name, "transform", str(folder / "b"), "--ref"]
            command += [str(folder / "a"), "--out", str(out), "--json", "--max-memory", "1GiB"]
            load = os.getloadavg()[0]
            ended = run_together(command, count, folder / "said.json")
            found = json.loads(ended.said)
            read = found["bytes_read_by_process"]
            marks = [json.loads((folder / f"marks-{k}.json").read_text()) for k in range(count)]
            row = Row(
                gib,
                layers,
                count,
                round(load, 1),
                round(ended.seconds, 1),
                round(found["seconds"]["match"], 1),
                round(ended.busiest, 1),
                round(critical_path(marks), 1),
                round(max(read) / _MIB, 1),
                round(sum(read) / _MIB, 1),
                round(ended.sent / _MIB, 1),
                same(folder / "a", out),
            )
            click.echo(row)
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows for people."""
    lines = [
        "# One process beside two, of one thread each",
        "",
        "A pair of Llama-shaped checkpoints in bfloat16, one a planted permutation of the other.",
        "Sizes in MiB; `load` is what the machine had to do before each run, on 2 cores.",
        "`busiest`: seconds of the processor that the busiest process took; `path`: what the run",
        "takes if each process has a core for itself. Sent is per process, over the loopback",
        "device.",
        "",
        "| GiB each | layers | processes | load | seconds | of that matching | busiest | path "
        "| speed-up | by busiest | by path | most read by one | of all "
        "| sent | recovered bit for bit |",
        "| --- " * 15 + "|",
    ]
    alone = {row["gib"]: row for row in rows if row["processes"] == "1"}
    for row in rows:
        one = alone[row["gib"]]
        ratios = [f"{float(one[n]) / float(row[n]):.2f}" for n in ("seconds", "busiest", "path")]
        share = f"{float(row['read_most']) / float(row['read_all']):.2f}"
        cells = [row[n] for n in ("gib", "layers", "processes", "load", "seconds", "matching")]
        cells += [
            row["busiest"],
            row["path"],
            *ratios,
            row["read_most"],
            share,
            row["sent"],
            row["recovered"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--gib", type=float, help="Size of each checkpoint of a pair.")
@click.option("--bandwidth", type=int, metavar="MIB", help="Time a sum over two processes.")
@click.option("--room", type=click.Path(path_type=Path), help="Folder for the checkpoints.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/ranks"))
def main(gib: float | None, bandwidth: int | None, room: Path | None, out: Path) -> None:
    """Measure, print, and write the table."""
    if bandwidth is not None:
        with tempfile.TemporaryDirectory() as folder:
            command = ["-c", _SUMMING, str(bandwidth)]
            took = float(run_together(command, 2, Path(folder) / "said").said)
        click.echo(f"{bandwidth} MiB in {took:.3f} s: {bandwidth / took:.0f} MiB/s")
    if gib is None:
        return
    file = out / "ranks.csv"
    earlier = list(csv.DictReader(io.StringIO(file.read_text()))) if file.exists() else []
    made = [{k: str(v) for k, v in asdict(row).items()} for row in measured(gib, room)]
    rows = [row for row in earlier if row["gib"] != str(gib)] + made
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    publish(file, text.getvalue().encode(), overwrite=True)
    publish(out / "ranks.md", table(rows).encode(), overwrite=True)
    click.echo(table(rows))


if __name__ == "__main__":
    main()
