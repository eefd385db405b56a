"""Several processes find, read and write together what one does alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fxrebasin.streaming import dealing
from fxrebasin.streaming.dealing import deal
from fxrebasin.streaming.matching import FileMatch
from fxrebasin.streaming.states import Found
from tests.support.commands import invoke
from tests.support.ranks import ThreadRank, in_threads, start
from tests.support.streamed import IDS, STACK, Case, Counting, Stack, save_shards
from tests.test_streaming_distributed import save_folder
from tests.test_streaming_matching import MODELS, case_of

DEEP = "tests.test_ranks:Deep"


class Deep(Stack):
    """With layers enough for several processes."""

    def __init__(self) -> None:
        super().__init__(layers=12)


def found_by(count: int, case: Case) -> tuple[list[Found], list[int]]:
    """What each of several threads finds, and how many bytes each read."""
    counting = [Counting(case) for _ in range(count)]

    def work(rank: ThreadRank) -> Found:
        mine = counting[rank.number]
        sides = mine.side("a"), mine.side("b")
        return FileMatch(case.problem(), case.schedule(), *sides, ranks=rank).run(100)

    return in_threads(count, work), [sum(c.read.values()) for c in counting]


@pytest.mark.parametrize("name", [*MODELS, "attention"])
def test_what_is_found_does_not_depend_on_how_many_look(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealing, "BLOCK", 1000)  # so that there are parts to be dealt
    case = case_of(name, noise=0.6)
    (alone,), _ = found_by(1, case)
    for count in (2, 3, 5):
        for found in found_by(count, case)[0]:
            assert vars(found) | {"arrays": 0} == vars(alone) | {"arrays": 0}
            for key, array in alone.arrays.items():
                assert np.array_equal(found.arrays[key], array)


def test_streams_whose_first_look_tells_nothing_of_the_scale() -> None:
    case = case_of("stack", noise=0.6)
    for state in (case.a, case.b):
        for name in case.names:  # all that is looked at first
            if name.startswith(("embed", "head")):
                state[name] *= 1e-17
    (alone,), read = found_by(1, case)
    both, _ = found_by(2, case)
    assert read[0] > 2.5 * case.bytes  # once more, for the sums
    for found in both:
        assert found.objective_after == alone.objective_after > 0.9 * alone.objective_before


def test_each_of_two_reads_about_half() -> None:
    case = Case(Deep(), IDS)
    _, (alone,) = found_by(1, case)
    _, both = found_by(2, case)
    assert sum(both) == alone
    assert max(both) <= 0.55 * alone


def test_everything_is_dealt_once_and_visits_that_share_tensors_stay_together() -> None:
    for name in MODELS:
        case = case_of(name)
        problem, schedule = case.problem(), case.schedule()
        (alone,), shares = deal(problem, schedule, 1), deal(problem, schedule, 3)
        assert sorted(n for s in shares for n in s.visits) == list(alone.visits)
        for kind in ("fixed", "pure", "shared"):
            dealt = [part for share in shares for part in getattr(share, kind)]
            assert sorted(map(repr, dealt)) == sorted(map(repr, getattr(alone, kind)))
        roots = [{schedule.visits[n].root for n in s.visits} for s in shares]
        held = [{n for root in mine for n in problem.tensors[root]} for mine in roots]
        local = [mine - set(schedule.shared) for mine in held]
        assert not any(one & two for k, one in enumerate(local) for two in local[:k])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a and b of `Deep`, b in shards; a result of before."""
    monkeypatch.chdir(tmp_path)
    case = Case(Deep(), IDS, noise=0.3)
    save_file(case.a, "a.safetensors", {"format": "pt"})
    save_shards(tmp_path / "b", case.b, 8)
    return tmp_path


def arguments(out: str, *more: str) -> list[str]:
    """Of a command that permutes b."""
    given = [*("transform", DEEP, "--model-b", "b", "--ref", "a.safetensors")]
    return [*given, "--out", out, "--max-memory", "2GiB", *more]


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Of all files in a folder."""
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def as_folders_of_parts(folder: Path) -> None:
    """The same as folders of torch.distributed.checkpoint."""
    shards = sorted(folder.glob("b/*.safetensors"))
    for name, files in {"a": [folder / "a.safetensors"], "b": shards}.items():
        state = {n: t for file in files for n, t in load_file(file).items()}
        for file in files:
            file.unlink()
        save_folder(folder / name, {"model": state})
    (folder / "b" / "net.safetensors.index.json").unlink()
    (folder / "a").rename(folder / "a.safetensors")


def check_processes(count: int, share: float, folder: Path) -> None:
    """Several processes write what one does, and none reads more than a share of it."""
    alone = invoke(*arguments("alone", "--certificate", "one.safetensors", "--json"))
    (read,) = json.loads(alone.stdout)["bytes_read_by_process"]
    certificate = ["--certificate", "several.safetensors", "--json"]
    ends = start([["-m", "fxrebasin", *arguments("c", *certificate)]] * count, folder)
    assert [process.returncode for process, _ in ends] == [0] * count, ends
    first, *rest = (text for _, text in ends)
    assert not any(rest)  # one speaks for all
    said, _ = json.JSONDecoder().raw_decode(first, first.index("{"))
    assert max(said["bytes_read_by_process"]) <= share * read
    assert bytes_in(folder / "c") == bytes_in(folder / "alone")
    assert Path("one.safetensors").read_bytes() == Path("several.safetensors").read_bytes()
    left = {p.name for p in folder.iterdir()}
    assert left == {
        "a.safetensors", "b", "alone", "c", "one.safetensors", "several.safetensors"
    }  # fmt: skip


FORMS: dict[str, Callable[[Path], None]] = {
    "shards": lambda folder: None,
    "parts of processes": as_folders_of_parts,
}


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_write_what_one_does(form: str, folder: Path) -> None:
    FORMS[form](folder)
    check_processes(2, 0.55, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "share"), [(3, 0.45), (4, 0.33)])
@pytest.mark.parametrize("form", FORMS)
def test_more_processes_write_what_one_does(
    form: str, count: int, share: float, folder: Path
) -> None:
    FORMS[form](folder)
    check_processes(count, share, folder)


_DYING = """
import os, sys
from fxrebasin.streaming.reader import Reader
read, left = Reader.read, [int(sys.argv.pop(1))]
def reading(self, place, rows=None):
    left[0] -= 1
    if not left[0]:
        os._exit(9)
    return read(self, place, rows)
Reader.read = reading
from fxrebasin.cli import main
main()
"""


def test_a_process_that_dies_ends_the_run_of_all(folder: Path) -> None:
    invoke(*arguments("c"))
    before = bytes_in(folder)
    given = arguments("c", "--overwrite")
    ends = start([["-m", "fxrebasin", *given], ["-c", _DYING, "9", *given]], folder)
    assert [process.returncode for process, _ in ends] == [2, 9], ends
    assert "another process of this run has ended" in ends[0][1]
    found = {n: b for n, b in bytes_in(folder).items() if n in before}
    assert found == before
    assert {p.name for p in (folder / "c").iterdir()} == {p.name for p in (folder / "b").iterdir()}


ROUNDS = ("merge", DEEP, "b", "a.safetensors", "d.safetensors", "--method", "rounds")


@pytest.mark.slow
@pytest.mark.parametrize("after", [40, 60])
@pytest.mark.parametrize("command", ["transform", "rounds"])
def test_it_is_so_wherever_it_dies_and_with_folders_of_parts(
    command: str, after: int, folder: Path
) -> None:
    as_folders_of_parts(folder)
    shutil.copytree("a.safetensors", "d.safetensors")

    def given_for(out: str) -> list[str]:
        return arguments(out) if command == "transform" else [*ROUNDS, "--no-report", "--out", out]

    given = given_for("c")
    before = bytes_in(folder)
    ends = start([["-m", "fxrebasin", *given], ["-c", _DYING, str(after), *given]], folder)
    assert [process.returncode for process, _ in ends] == [2, 9], ends
    assert not Path("c").exists()
    assert {n: b for n, b in bytes_in(folder).items() if n in before} == before
    ends = start([["-m", "fxrebasin", *given, "--resume"]] * 2, folder)
    assert [process.returncode for process, _ in ends] == [0, 0], ends
    invoke(*given_for("whole"))
    assert bytes_in(folder / "c") == bytes_in(folder / "whole")


@pytest.mark.slow
def test_what_a_process_left_that_died_is_gone_on_with(folder: Path) -> None:
    invoke(*arguments("alone"))
    start([["-m", "fxrebasin", *arguments("c")], ["-c", _DYING, "9", *arguments("c")]], folder)
    assert not Path("c").exists()
    again = arguments("c", "--resume")
    ends = start([["-m", "fxrebasin", *again]] * 2, folder)
    assert [process.returncode for process, _ in ends] == [0, 0], ends
    assert bytes_in(folder / "c") == bytes_in(folder / "alone")


def merging(out: str, *more: str) -> list[str]:
    """Of a command that merges a, b and a permutation of it."""
    given = ["merge", DEEP, "a.safetensors", "b/net.safetensors.index.json", "d.safetensors"]
    return [*given, "--out", out, "--method", "weight", "--max-memory", "2GiB", *more]


def interpolating(out: str, *more: str) -> list[str]:
    """Of a command that writes a model between a and b."""
    given = ["interpolate", DEEP, "b/net.safetensors.index.json", "a.safetensors", "--t", "0.3"]
    return [*given, "--out", out, "--max-memory", "2GiB", *more]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("given", [merging, interpolating])
def test_several_merge_what_one_does(given: Any, count: int, folder: Path) -> None:
    state = load_file("a.safetensors")
    moved = Case(Deep(), IDS).planted.permute_state_dict(state, check_constants=False)
    save_file(dict(moved), "d.safetensors", {"format": "pt"})
    name = "c.safetensors" if given is merging else "c"
    Path("one").mkdir()
    Path("several").mkdir()
    invoke(*given(f"one/{name}"))
    ends = start([["-m", "fxrebasin", *given(f"several/{name}")]] * count, folder)
    assert [process.returncode for process, _ in ends] == [0] * count, ends
    one, several = (
        {n: b for n, b in bytes_in(folder / side).items() if n.endswith(".safetensors")}
        for side in ("one", "several")
    )
    assert one
    assert one == several
    assert not list(folder.rglob(".*unfinished"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("inspect", STACK), "inspect is not for several processes"),
        (("transform", "a.onnx", "--ref", "b.onnx", "--out", "c.onnx"), "torchrun"),
        ((*("transform", STACK, "--ref", "a.safetensors", "--out", "c.safetensors"),
          *("--model-b", "a.safetensors", "--method", "activation")), "leave out torchrun"),
    ],
)  # fmt: skip
def test_what_several_cannot_share_is_refused(
    command: Any, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.onnx", "b.onnx"):
        Path(name).write_bytes(b"")
    ours = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in ours.items():
        monkeypatch.setitem(os.environ, name, value)
    assert said in invoke(*command, code=2).output
    assert not Path("c.onnx").exists()


def test_how_to_find_the_others_has_to_be_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setitem(os.environ, name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delitem(os.environ, name, raising=False)
    assert "MASTER_ADDR, MASTER_PORT" in invoke(*arguments("c"), code=2).output
