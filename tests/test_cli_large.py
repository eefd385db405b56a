"""Commands on checkpoints that are read and written a tensor at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxrebasin.cli import large
from fxrebasin.permutation import Permutation
from fxrebasin.streaming import making
from tests.support.commands import document, invoke
from tests.support.streamed import IDS, STACK, Case, Stack
from tests.support.streamed_command import SOME, is_a, of, save_case, transform

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Stack(), IDS)


@pytest.fixture
def folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a and b as files of safetensors, and in shards."""
    monkeypatch.chdir(tmp_path)
    save_case(tmp_path, case)
    return tmp_path


def test_a_file_becomes_a_file(folder: Path, case: Case) -> None:
    result = transform("b.safetensors", "c.safetensors", *SOME, "--certificate", "p.safetensors")
    assert "read again" in result.output
    assert is_a(load_file("c.safetensors"), case)
    assert Permutation.load("p.safetensors").inverse() == case.planted
    assert sorted(p.name for p in folder.iterdir()) == [
        "a.safetensors", "b.safetensors", "c.safetensors", "p.safetensors", "shards"
    ]  # fmt: skip


def test_shards_become_the_same_bytes_as_in_memory(folder: Path, case: Case) -> None:
    index = "shards/net.safetensors.index.json"
    transform(index, "c", *SOME)
    transform(index, "d")
    assert is_a(of(Path("c")), case)
    assert sorted(p.name for p in Path("c").iterdir()) == sorted(
        p.name for p in Path("shards").iterdir()
    )
    for file in Path("d").iterdir():
        assert (Path("c") / file.name).read_bytes() == file.read_bytes()


def test_a_folder_keeps_its_other_files(folder: Path, case: Case) -> None:
    (folder / "shards" / "notes.txt").write_text("mine")
    transform("shards", "c", *SOME)
    assert is_a(of(Path("c")), case)
    assert (folder / "c" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_numbers_of_few_bits_become_the_same_bytes_as_in_memory(
    dtype: torch.dtype, folder: Path, case: Case
) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in case.b.items()}, "b.safetensors")
    transform("b.safetensors", "c.safetensors", *SOME)
    transform("b.safetensors", "d.safetensors")
    assert Path("c.safetensors").read_bytes() == Path("d.safetensors").read_bytes()
    found = load_file("c.safetensors")
    assert all(torch.equal(t.float(), case.a[n].to(dtype).float()) for n, t in found.items())


@pytest.mark.parametrize("kind", ["nested", "plain"])
def test_a_pickle_becomes_a_pickle(kind: str, folder: Path, case: Case) -> None:
    state = dict(case.b)
    torch.save({"state_dict": state, "epoch": 7} if kind == "nested" else state, "b.pt")
    transform("b.pt", "c.pt", *SOME)
    found = torch.load("c.pt", weights_only=True)
    if kind == "nested":
        assert found["epoch"] == 7
    assert is_a(found["state_dict"] if kind == "nested" else found, case)
    assert Path("c.pt").stat().st_size < 1.05 * Path("b.pt").stat().st_size
    transform("b.pt", "d.safetensors", *SOME)
    assert is_a(load_file("d.safetensors"), case)


def test_other_copies_in_the_file_come_along(folder: Path, case: Case) -> None:
    both = {**case.b, **{f"ema.{n}": 2 * t for n, t in case.b.items()}}
    save_file(both, "b.safetensors")
    transform("b.safetensors", "c.safetensors", *SOME)
    found = load_file("c.safetensors")
    assert is_a({n: t for n, t in found.items() if not n.startswith("ema.")}, case)
    assert all(torch.equal(found[f"ema.{n}"], 2 * t) for n, t in case.a.items())


def test_a_dry_run_says_what_it_takes_and_reads_nothing(folder: Path, case: Case) -> None:
    given = ("transform", STACK, "--model-b", "b.safetensors", "--ref", "a.safetensors")
    found = document(*given, "--out", "c.safetensors", *SOME, "--dry-run")
    (match,) = found["matches"]
    assert match["bytes_first_sweep"] == 2 * case.bytes
    assert match["streams"] == ["embed.weight[1]"]
    assert 2**29 < found["memory_bytes"] == match["memory_bytes"] < 2**30
    assert found["bytes_written"] == Path("b.safetensors").stat().st_size
    buffers = case.b["scale"].nbytes
    assert [c["bytes_read"] for c in found["checkpoints"]] == [0, buffers]
    assert not Path("c.safetensors").exists()
    text = invoke(*given, "--out", "c.safetensors", *SOME, "--dry-run").output
    assert "in the first sweep" in text


def test_a_run_reads_each_model_little_more_than_twice(folder: Path, case: Case) -> None:
    given = ("transform", STACK, "--model-b", "b.safetensors", "--ref", "a.safetensors")
    found = document(*given, "--out", "c.safetensors", *SOME)
    assert found["sweeps"] == 1
    read = found["ref"]["bytes_read"] + found["model_b"]["bytes_read"]
    assert read <= 2.2 * 2 * case.bytes
    assert found["distance_after"] == 0


def test_too_little_memory_is_refused_before_any_work(folder: Path) -> None:
    result = transform("b.safetensors", "c.safetensors", "--max-memory", "100MB", code=2)
    assert "of memory are needed" in result.output
    assert "--max-memory" in result.output
    assert sorted(p.name for p in folder.iterdir()) == ["a.safetensors", "b.safetensors", "shards"]


@pytest.mark.parametrize("text", ["much", "0", "-1GiB", "3XB"])
def test_a_size_that_is_none_is_refused(text: str, folder: Path) -> None:
    transform("b.safetensors", "c.safetensors", f"--max-memory={text}", code=2)


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "sinkhorn"),
        ("--restarts", "3"),
        ("--onnx", "x.onnx"),
        ("--symmetry", "signed"),
    ],
)
def test_what_needs_whole_models_is_refused(more: tuple[str, ...], folder: Path) -> None:
    result = transform("b.safetensors", "c.safetensors", *SOME, *more, code=2)
    assert more[0] in result.output
    assert "a tensor at a time" in result.output


def test_large_checkpoints_are_streamed_unasked(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "available_memory", lambda: 100_000)
    result = transform("b.safetensors", "c.safetensors")
    assert "read again" in result.output
    assert is_a(load_file("c.safetensors"), case)
    transform("b.safetensors", "e.safetensors", "--method", "sinkhorn")
    assert Path("e.safetensors").exists()
    monkeypatch.setattr(large, "available_memory", lambda: None)
    assert "read again" not in transform("b.safetensors", "d.safetensors").output


def test_what_needs_all_of_a_file_is_done_in_memory_unless_asked_for(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"state_dict": dict(case.b), "ema": {n: 2 * t for n, t in case.b.items()}}
    torch.save(both, "b.pt")
    assert "other copies" in transform("b.pt", "c.pt", *SOME, code=2).output
    monkeypatch.setattr(large, "available_memory", lambda: 100_000)
    transform("b.pt", "c.pt")
    found = torch.load("c.pt", weights_only=True)
    assert is_a(found["state_dict"], case)
    assert all(torch.equal(found["ema"][n], 2 * t) for n, t in case.a.items())


def test_a_model_that_needs_its_values_is_built_with_them_unless_asked_for(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("transform", STACK.replace("Stack", "Computing"), "--model-b", "b.safetensors")
    given = (*given, "--ref", "a.safetensors", "--out", "c.safetensors")
    assert "cannot be built without values" in invoke(*given, *SOME, code=2).output
    monkeypatch.setattr(large, "available_memory", lambda: 100_000)
    invoke(*given)
    assert is_a(load_file("c.safetensors"), case)


def test_values_that_are_not_finite_leave_nothing(folder: Path, case: Case) -> None:
    broken = {n: t.clone() for n, t in case.b.items()}
    broken["down.1.weight"][2, 3] = float("nan")
    save_file(broken, "b.safetensors")
    result = transform("b.safetensors", "c.safetensors", *SOME, code=2)
    assert (
        "down.1.weight holds values that are not finite (the model), or too large" in result.output
    )
    assert sorted(p.name for p in folder.iterdir()) == ["a.safetensors", "b.safetensors", "shards"]


def test_what_exists_is_not_replaced_unasked(folder: Path, case: Case) -> None:
    Path("c").mkdir()
    (folder / "c" / "mine.txt").write_text("mine")
    transform("shards", "c", *SOME, code=2)
    assert [p.name for p in Path("c").iterdir()] == ["mine.txt"]
    transform("shards", "c", *SOME, "--overwrite")
    assert is_a(of(Path("c")), case)
    assert (folder / "c" / "mine.txt").read_text() == "mine"


class _Interrupted:
    """Interrupts when files are written, after some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self._write, self._left = making.write_rows, after
        monkeypatch.setattr(making, "write_rows", self)

    def __call__(self, file: Any, start: int, tensor: torch.Tensor) -> None:
        if self._left == 0:
            signal.raise_signal(signal.SIGINT)
        self._left -= 1
        self._write(file, start, tensor)


def test_an_interrupted_run_goes_on(folder: Path, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _Interrupted(patch, after=6)
        transform("shards", "c", *SOME, code=130)
    assert not Path("c").exists()
    kept = folder / ".c.unfinished" / "result-0"
    done = {p.name: p.stat().st_mtime_ns for p in kept.glob("net*")}
    assert len(done) == 1
    refused = transform("shards", "c", *SOME, code=2)
    assert "--resume" in refused.output
    other = transform("shards", "c", *SOME, "--dtype", "bfloat16", "--resume", code=2)
    assert "other inputs or options" in other.output
    found = transform("shards", "c", *SOME, "--resume")
    assert "wrote c" in found.output
    assert is_a(of(Path("c")), case)
    for name, at in done.items():
        assert (folder / "c" / name).stat().st_mtime_ns == at
    assert not (folder / ".c.unfinished").exists()


def test_it_does_not_go_on_with_other_files(folder: Path, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _Interrupted(patch, after=6)
        transform("shards", "c", *SOME, code=130)
    save_file({n: t + 1 for n, t in case.a.items()}, "a.safetensors", {"format": "pt"})
    assert "other inputs" in transform("shards", "c", *SOME, "--resume", code=2).output
    assert not Path("c").exists()


def test_files_that_change_meanwhile_are_refused(folder: Path) -> None:
    write = making.write_rows

    def wrong(file: Any, start: int, tensor: torch.Tensor) -> None:
        os.utime("b.safetensors", (1, 1))
        write(file, start, tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "write_rows", wrong)
        result = transform("b.safetensors", "c.safetensors", *SOME, code=2)
    assert "changed while it was read" in result.output
    assert not Path("c.safetensors").exists()


def merge(*arguments: object, code: int = 0) -> Any:
    return invoke("merge", STACK, *arguments, code=code)


COMBINATIONS: dict[str, tuple[object, ...]] = {
    "mean": ("--weights", "0.3,0.7", "--weights", "up.*=1,3"),
    "slerp": ("--combine", "slerp", "--t", "0.4"),
    "task_arithmetic": ("--combine", "task_arithmetic", "--base", "base.safetensors"),
    "ties": ("--combine", "ties", "--base", "base.safetensors", "--density", "0.5"),
    "dare": ("--combine", "dare", "--base", "base.safetensors", "--density", "0.5"),
    "as they are": ("--method", "none"),
}


@pytest.fixture
def noisy(folder: Path, case: Case) -> Path:
    """b is not quite a in another order, and base is near both."""
    generator = torch.Generator().manual_seed(0)
    for name, state in {"b": case.b, "base": case.a}.items():
        noise = {
            n: t + 0.05 * torch.randn(t.shape, generator=generator) if t.ndim else t
            for n, t in state.items()
        }
        save_file(noise, f"{name}.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", COMBINATIONS)
def test_merges_are_those_of_models_in_memory(
    name: str, noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("a.safetensors", "b.safetensors", *COMBINATIONS[name], "--no-report")
    merge(*given, "--out", "whole.safetensors")
    monkeypatch.setattr(making, "BLOCK", 1000)
    result = merge(*given, "--out", "parts.safetensors", *SOME)
    assert "what was computed" in result.output
    assert Path("parts.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_three_are_merged_with_the_first(noisy: Path) -> None:
    given = ("a.safetensors", "b.safetensors", "base.safetensors")
    refused = merge(*given, "--out", "x.safetensors", *SOME, code=2)
    assert "merge_many" in refused.output
    merge(*given, "--out", "parts.safetensors", "--method", "weight", *SOME)
    merge(*given, "--out", "whole.safetensors", "--method", "weight")
    assert Path("parts.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert Path("parts.json").exists()
    assert Path("parts.md").exists()


def test_shards_are_merged_shard_by_shard(folder: Path, case: Case) -> None:
    index = "shards/net.safetensors.index.json"
    merge(index, "a.safetensors", "--out", "c", *SOME)
    found = of(Path("c"))
    assert all(torch.equal(found[n], t) for n, t in case.b.items())
    assert sorted(p.name for p in Path("c").glob("net*")) == sorted(
        p.name for p in Path("shards").iterdir()
    )


def test_models_on_the_line_are_those_in_memory(noisy: Path) -> None:
    given = ("interpolate", STACK, "a.safetensors", "b.safetensors", "--t", "0,0.25,1")
    invoke(*given, "--out", "whole-{t}.safetensors")
    invoke(*given, "--out", "parts-{t}.safetensors", *SOME)
    for t in ("0", "0.25", "1"):
        whole, parts = (Path(f"{way}-{t}.safetensors") for way in ("whole", "parts"))
        assert parts.read_bytes() == whole.read_bytes()


def test_an_interrupted_merge_goes_on(noisy: Path) -> None:
    given = ("shards", "a.safetensors", "--out", "c", *SOME)
    with pytest.MonkeyPatch.context() as patch:
        _Interrupted(patch, after=6)
        merge(*given, code=130)
    assert not Path("c").exists()
    merge(*given, "--resume")
    merge("shards", "a.safetensors", "--out", "d", *SOME)
    assert of(Path("c")).keys() == of(Path("d")).keys()
    assert all(torch.equal(t, of(Path("d"))[n]) for n, t in of(Path("c")).items())


@pytest.mark.parametrize("option", ["--recalibrate", "--repair", "--evaluate"])
def test_merges_that_run_models_are_refused(option: str, folder: Path) -> None:
    given = ("a.safetensors", "b.safetensors", "--out", "c.safetensors", option, "nets:loader")
    result = merge(*given, *SOME, code=2)
    assert option in result.output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_at_any_moment_nothing_half_written_counts(folder: Path, case: Case) -> None:
    command = [
        *(sys.executable, "-m", "fxrebasin", "transform", STACK, "--model-b", "shards"),
        *("--ref", "a.safetensors", "--out", "c", *SOME, "--resume"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for wait in (3.0, 4.0, 4.5, 5.0, 5.5):
        process = subprocess.Popen(command, env=environment)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not Path("c").exists() or is_a(of(Path("c")), case)
        if Path("c").exists():
            break
    if not Path("c").exists():
        subprocess.run(command, env=environment, check=True)
    assert is_a(of(Path("c")), case)
    assert sorted(p.name for p in folder.iterdir()) == [
        "a.safetensors", "b.safetensors", "c", "shards"
    ]  # fmt: skip


def test_a_certificate_knows_both_states_as_one_made_in_memory_does(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the dtypes of the model, whatever those of the file are, and a part at a time."""
    monkeypatch.setattr(making, "BLOCK", 64)
    halves = {name: t.half() if t.is_floating_point() else t for name, t in case.b.items()}
    torch.save(halves, "half.pt")
    for b, out in (("shards", ""), ("half.pt", ".pt")):
        transform(b, f"c{out}", *SOME, "--certificate", "p.safetensors", "--overwrite")
        transform(b, f"d{out}", "--certificate", "q.safetensors", "--overwrite")
        streamed, whole = (Permutation.load(f"{name}.safetensors") for name in "pq")
        assert streamed.found_with.states == whole.found_with.states
        assert streamed.found_with.states.keys() == {"model", "reference"}
        for path, same in ((b, True), ("a.safetensors", False)):
            given = ("apply", STACK, "p.safetensors", "--weights", path, "--out", "e.safetensors")
            assert document(*given, "--overwrite")["made_from_these_weights"] is same


@pytest.mark.usefixtures("folder")
def test_the_state_of_an_optimiser_is_named_as_in_memory(case: Case) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    torch.save({"model": case.b, "optim": moments}, "b.pt")
    for limit in (SOME, ()):
        output = transform("b.pt", f"c{len(limit)}.pt", *limit).output
        assert "The state of the optimiser (optim) is not written again" in " ".join(output.split())
