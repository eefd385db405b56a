"""Many checkpoints are aligned with their mean, round after round, by one process or several."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxrebasin
from fxrebasin.cli import large_alignment
from tests.support.commands import invoke
from tests.support.ranks import start
from tests.support.streamed import IDS, STACK, Case, Stack
from tests.test_ranks import bytes_in

COUNT = 5


def merging(out: str, *more: str, method: str = "rounds") -> list[str]:
    names = [f"m{k}.safetensors" for k in range(COUNT)]
    return ["merge", STACK, *names, "--out", out, "--method", method, *more]


def save_models(noise: float) -> Case:
    """A model and others that are near it, each with its units in an order of its own."""
    case = Case(Stack(), IDS)
    generator = torch.Generator().manual_seed(0)
    for k in range(COUNT):
        state = {
            n: t + noise * t.std() * torch.randn(t.shape, generator=generator) if t.ndim else t
            for n, t in case.a.items()
        }
        if k:
            moved = case.symmetry.random(k)
            state = moved.permute_state_dict(state, check_constants=False)
        save_file(dict(state), f"m{k}.safetensors", {"format": "pt"})
    return case


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def length(path: str) -> float:
    """Squared, of the mean: it grows with the agreement of all pairs."""
    return sum(float(t.double().square().sum()) for t in load_file(path).values())


def own_length(state: Mapping[str, torch.Tensor], case: Case) -> float:
    """Squared, of what units are in."""
    names = [name for name, _ in case.model.named_parameters() if name in case.symmetry.layout]
    return sum(float(state[name].double().square().sum()) for name in names)


def test_copies_in_other_orders_merge_back(folder: Path) -> None:
    case = save_models(0.0)
    invoke(*merging("c.safetensors"))
    found = load_file("c.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in case.a.items())


def test_rounds_agree_more_than_matching_with_the_first(folder: Path) -> None:
    save_models(1.0)
    invoke(*merging("weight.safetensors", "--max-memory", "2GiB", method="weight"))
    invoke(*merging("c.safetensors"))
    assert length("c.safetensors") > length("weight.safetensors")
    said = json.loads(Path("c.json").read_text())
    assert said["method"] == "rounds"
    assert not list(folder.rglob("mean-*"))
    first, *others = said["alignments"]
    assert first is None
    assert all(one["distance_after"] < one["distance_before"] for one in others)


def test_the_command_finds_what_the_call_finds(folder: Path) -> None:
    case = save_models(3.0)  # so unlike that what a model has in the mean would keep it in place
    invoke(*merging("c.safetensors", "--no-report"))
    paths = [f"m{k}.safetensors" for k in range(COUNT)]
    merged = fxrebasin.merge_many(paths, "rounds", model=Stack(), example_inputs=IDS)
    found = own_length(load_file("c.safetensors"), case)
    # Each match may find another optimum where a whole model is searched from several starts.
    assert found == pytest.approx(own_length(merged.state_dict(), case), rel=2e-3)
    invoke(*merging("weight.safetensors", "--max-memory", "2GiB", method="weight"))
    assert found > 1.05 * own_length(load_file("weight.safetensors"), case)


def test_a_run_that_was_interrupted_goes_on_with_the_matches_that_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_models(3.0)
    matched: list[str] = []
    found_in = large_alignment.found_in

    def interrupted(*given: Any) -> Any:
        if len(matched) == 9:  # four with the first, two turns, and one of the third
            signal.raise_signal(signal.SIGINT)
        matched.append("")
        return found_in(*given)

    with monkeypatch.context() as patch:
        patch.setattr(large_alignment, "found_in", interrupted)
        invoke(*merging("c.safetensors", "--no-report"), code=130)
    assert not Path("c.safetensors").exists()
    invoke(*merging("c.safetensors", "--no-report", "--resume"))
    invoke(*merging("whole.safetensors", "--no-report"))
    assert Path("c.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not list(folder.rglob(".*unfinished"))


def test_rounds_can_be_too_few(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_models(1.0)
    monkeypatch.setattr(large_alignment, "_MOST_ROUNDS", 1)
    assert "after 1 round," in invoke(*merging("c.safetensors")).output


def test_what_needs_whole_models_is_refused(folder: Path) -> None:
    save_models(0.0)
    result = invoke(*merging("c.safetensors", "--recalibrate", "a:b"), code=2)
    assert "leave out --method rounds, or these" in result.output


def check_processes(count: int, folder: Path) -> None:
    save_models(1.0)
    Path("one").mkdir()
    Path("several").mkdir()
    invoke(*merging("one/c.safetensors", "--no-report"))
    given = merging("several/c.safetensors", "--json")
    ends = start([["-m", "fxrebasin", *given]] * count, folder)
    assert [process.returncode for process, _ in ends] == [0] * count, ends
    assert (
        bytes_in(folder / "one")["c.safetensors"] == bytes_in(folder / "several")["c.safetensors"]
    )
    assert not list(folder.rglob(".*unfinished"))
    read = json.loads(Path("several/c.json").read_text())["bytes_read_by_process"]
    assert len(read) == count
    assert max(read) <= 0.75 * sum(read)  # five models, of which the first stays


def test_two_processes_merge_what_one_does(folder: Path) -> None:
    check_processes(2, folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4])
def test_more_processes_merge_what_one_does(count: int, folder: Path) -> None:
    check_processes(count, folder)
