"""The methods that `peers` compares: ours, plain git-re-basin, and `rebasin`."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxrebasin
from benchmarks.experiments.data.source import Batches, Data
from benchmarks.experiments.measure import example_of, permuted, rebase
from benchmarks.experiments.training import Subject, fresh, loss_of
from benchmarks.support.plain_rebasin import NotPlainError, match_plainly, specify

NOTHING, PLAIN_PORT, REBASIN = "no matching", "plain git-re-basin", "rebasin"
OTHERS = (NOTHING, PLAIN_PORT, REBASIN)
_CHANGED = 1e-4  # relative, float32: above this the function is another one
_LONGEST = 240  # seconds that rebasin may take
_CODE = Path(__file__).with_name("rebasin_process.py")


@dataclass(frozen=True)
class Pair:
    """Two trained networks.

    Args:
        setting: what they are, in words.
        seed: of the pair.
        subject: the network.
        data: that it was trained on.
        a: the reference.
        b: the one that is permuted.
        calibration: batches for statistics, and for methods that look at data.
    """

    setting: str
    seed: int
    subject: Subject
    data: Data
    a: nn.Module
    b: nn.Module
    calibration: Batches


@dataclass(frozen=True)
class Outcome:
    """What a method made of B.

    Args:
        model: B, permuted; None where the method could not.
        seconds: of the processor, that matching took.
        note: why there is no model, or how far its function was changed.
    """

    model: nn.Module | None
    seconds: float = 0.0
    note: str = ""


Method = Callable[[Pair], Outcome]


def _ours(method: str, needs: str = "", **options: Any) -> Method:
    def solve(pair: Pair) -> Outcome:
        more: dict[str, Any] = dict(options)
        if needs:
            more["loader"] = pair.calibration
        if needs == "loss":
            more["loss"] = loss_of
        found = rebase(pair.b, pair.a, pair.data, method=method, seed=pair.seed, **more)
        return Outcome(found.model, found.seconds)

    return solve


OURS: Mapping[str, Method] = {
    "weight": _ours("weight"),
    "weight, restarts=20": _ours("weight", restarts=20),
    "frank_wolfe": _ours("frank_wolfe"),
    "sinkhorn": _ours("sinkhorn"),
    "activation": _ours("activation", "loader"),
    "straight_through": _ours("straight_through", "loss"),
    "sinkhorn with a loss": _ours("sinkhorn", "loss"),
}
"""By the name that tables give them; what needs data gets that of the pair."""


def nothing(pair: Pair) -> Outcome:
    """B as it is."""
    return Outcome(pair.b)


def plain_port(pair: Pair) -> Outcome:
    """Git Re-Basin as published, with the specification that one would write by hand."""
    subject = replace(pair.subject, settings=_plain_settings(pair))
    network = fresh(subject, pair.data.train, pair.seed).eval()
    symmetry = fxrebasin.analyze(network, example_of(pair.data))
    state_a, state_b = pair.a.state_dict(), pair.b.state_dict()
    start = time.process_time()
    try:
        specification = specify(symmetry.classes, symmetry.layout, symmetry.parameters)
        found = match_plainly(specification, state_a, state_b, pair.seed)
    except NotPlainError as error:
        return Outcome(None, note=str(error))
    seconds = time.process_time() - start
    permutation = fxrebasin.Permutation(symmetry.classes, found.arrays, symmetry.layout)
    return Outcome(permuted(pair.b, permutation.permute_state_dict(state_b)), seconds)


def _plain_settings(pair: Pair) -> dict[str, Any]:
    """Of the same network for those who look at the class of a layer, or permute whole axes only.

    Filters of `SameConv2d` have taps that nothing reads, which we leave where they are.
    """
    plain = {"plain": True} if pair.subject.kind == "resnet" else {}
    return {**pair.subject.settings, **plain}


def rebasin(python: Path) -> Method:
    """The library `rebasin`, in its own environment.

    Args:
        python: the interpreter of that environment.
    """

    def solve(pair: Pair) -> Outcome:
        request = {
            "kind": pair.subject.kind,
            "settings": _plain_settings(pair),
            "a": pair.a.state_dict(),
            "b": pair.b.state_dict(),
            "inputs": example_of(pair.data),
            "seed": pair.seed,
        }
        try:
            found = _run(python, request)
        except subprocess.TimeoutExpired:
            return Outcome(None, note=f"not done after {_LONGEST} seconds")
        except subprocess.CalledProcessError as error:
            lines = str(error.stderr).strip().splitlines() or ["no message"]
            return Outcome(None, note=f"failed: {lines[-1][:160]}")
        note = f"outputs changed by {found['error']:.0e}" if found["error"] > _CHANGED else ""
        if not found["classes"]:
            note = "finds nothing that it could permute"
        return Outcome(permuted(pair.b, found["b"]), found["cpu_seconds"], note)

    return solve


def _run(python: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("request.pt", "result.pt")]
        torch.save(dict(request), paths[0])
        command = [str(python), str(_CODE), *map(str, paths), str(torch.get_num_threads())]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LONGEST)
        found: dict[str, Any] = torch.load(paths[1])
    return found
