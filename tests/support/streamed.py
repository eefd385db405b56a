"""Networks and checkpoints for what passes through memory, and a reader that counts."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import fxrebasin
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.storage.safetensors_header import settle
from fxrebasin.streaming.matching import FileMatch
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import Schedule, make_schedule
from fxrebasin.streaming.states import Found, Progress
from fxrebasin.streaming.stored import Stored
from fxrebasin.symmetry import Symmetry
from tests.support.randomise import randomise

STACK = "tests.support.streamed:Stack"
IDS = torch.arange(12).view(2, 6) % 90


class Stack(nn.Module):
    """A stream of 24 numbers that layers read and add to."""

    def __init__(self, layers: int = 3, width: int = 24, hidden: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(90, width)
        self.up = nn.ModuleList(nn.Linear(width, hidden) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(hidden, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 90)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.embed(ids) * self.scale
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return self.head(self.norm(x))


class Computing(Stack):
    """Asks its parameters for a number when it is built, and keeps what it makes of another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale.fill_(1 + 0 * float(self.head.weight.std()))


class Remembering(Stack):
    """Has a buffer that is made of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("made", self.head.weight.detach().mean(0) * 0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits, masked by what was made."""
        return super().forward(ids) + self.made.sum()


class Meeting(nn.Module):
    """Two streams that meet themselves and each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 24)
        self.one = nn.ModuleList(nn.Linear(24, 24) for _ in range(6))
        self.between = nn.Linear(24, 30)
        self.two = nn.ModuleList(nn.Linear(30, 30) for _ in range(5))
        self.last = nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Four numbers."""
        x = self.first(x)
        for layer in self.one:
            x = x + torch.relu(layer(x))
        x = self.between(x)
        for layer in self.two:
            x = x + torch.relu(layer(x))
        return self.last(x)


def chain(width: int = 20, depth: int = 6) -> nn.Module:
    """Layers, each of which is tied to the next and to nothing else."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 5))


class Case:
    """A model, a reference, and their symmetry.

    Args:
        model: whose parameters are drawn anew.
        inputs: of it.
        noise: how much of other weights is in the model that moves.
        dtype: of both.
    """

    def __init__(
        self, model: nn.Module, inputs: torch.Tensor, noise: float = 0, dtype: Any = torch.float32
    ) -> None:
        self.model = randomise(model, 1).eval()
        self.symmetry: Symmetry = fxrebasin.analyze(model, inputs)
        self.a = {n: t.detach().clone().to(dtype) for n, t in model.state_dict().items()}
        other = {n: t.detach().clone() for n, t in randomise(model, 5).state_dict().items()}
        mixed = {n: t + noise * other[n].to(dtype) if noise else t for n, t in self.a.items()}
        self.planted = self.symmetry.random(3)
        self.b = self.planted.permute_state_dict(mixed, check_constants=False)
        self.names = [name for name, _ in model.named_parameters()]

    @property
    def bytes(self) -> int:
        """Of the parameters of one model."""
        return sum(self.a[name].nbytes for name in self.names)

    def problem(self) -> FileProblem:
        """What is known before anything is read."""
        sides = {
            n: tuple(Stored(tuple(s[n].shape), s[n].dtype) for s in (self.a, self.b))
            for n in self.names
        }
        classes = self.symmetry.classes
        return FileProblem(
            classes,
            self.symmetry.layout,
            sides,
            tuple(c.name for c in classes),  # type: ignore[arg-type]
        )

    def schedule(self, most: int | None = None) -> Schedule:
        """Of a sweep."""
        return make_schedule(self.problem(), most)

    def in_memory(self) -> MatchingProblem:
        """The same problem for the solvers that have all of it."""
        return MatchingProblem(self.symmetry, self.b, self.a, self.names)


class Counting:
    """Readers of both sides, which count what was read, and how much of it is alive at once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.read = {"a": 0, "b": 0}
        self.alive = self.most_alive = 0

    def side(self, name: str) -> Any:
        """A reader of one side."""
        state = self.case.a if name == "a" else self.case.b

        def read(tensor: str, rows: slice | None) -> torch.Tensor:
            made = (state[tensor] if rows is None else state[tensor][rows]).clone()
            self.read[name] += made.nbytes
            self.alive += made.nbytes
            self.most_alive = max(self.most_alive, self.alive)
            weakref.finalize(made.untyped_storage(), self._gone, made.nbytes)
            return made

        return read

    def _gone(self, count: int) -> None:
        self.alive -= count


def matched(
    case: Case,
    schedule: Schedule | None = None,
    keep: Any = lambda progress: None,
    since: Progress | None = None,
) -> tuple[Found, Counting]:
    """What a match finds, and what it read."""
    counting = Counting(case)
    match = FileMatch(
        case.problem(),
        schedule or case.schedule(),
        counting.side("a"),
        counting.side("b"),
        keep,
        since,
    )
    return match.run(100), counting


def save_shards(folder: Path, state: Mapping[str, torch.Tensor], count: int) -> Path:
    """A checkpoint in shards, with metadata of its own; returns the path of its index."""
    folder.mkdir()
    names = list(state)
    parts: Sequence[list[str]] = [names[k::count] for k in range(count)]
    where = {}
    for k, part in enumerate(parts):
        file = f"net-{k + 1:05d}-of-{count:05d}.safetensors"
        tensors = {name: state[name].contiguous() for name in part}
        save_file(tensors, folder / file, {"format": "pt", "made": "by hand"})
        settle(folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / "net.safetensors.index.json"
    size = sum(tensor.nbytes for tensor in state.values())
    document = {"metadata": {"total_size": size, "note": 1}, "weight_map": where}
    index.write_text(json.dumps(document, indent=2) + "\n")
    return index
