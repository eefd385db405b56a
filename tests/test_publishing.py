"""Outputs appear together or not at all, and what a killed run leaves is removed by the next."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import InputError
from fxrebasin.storage.files import publish, replacing, replacing_folder, replacing_set, together


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_set_appears_at_its_end(tmp_path: Path) -> None:
    with together():
        publish(tmp_path / "one.txt", b"1")
        with replacing_set(tmp_path / "model", overwrite=False) as draft:
            draft.mkdir()
            (draft / "weights").write_bytes(b"2")
        assert not (tmp_path / "one.txt").exists()
        assert not (tmp_path / "model").exists()
    assert content(tmp_path) == {"one.txt": b"1", "model/weights": b"2"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_set_that_cannot_be_finished_leaves_everything_as_it_was(
    tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "old.txt").write_bytes(b"old")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"old")
    before = content(tmp_path)

    @together()
    def write() -> None:
        publish(tmp_path / "new.txt", b"new")
        if overwrite:
            publish(tmp_path / "old.txt", b"new", overwrite=True)
            with replacing_folder(tmp_path / "model") as draft:
                (draft / "weights").write_bytes(b"new")
        publish(tmp_path / "last.txt", b"new")
        (tmp_path / "last.txt").write_bytes(b"of another run")  # it came first

    with pytest.raises(InputError, match=r"last\.txt exists already: something else wrote it"):
        write()
    (tmp_path / "last.txt").unlink()
    assert content(tmp_path) == before


def test_an_error_inside_a_set_leaves_nothing(tmp_path: Path) -> None:

    @together()
    def write() -> None:
        publish(tmp_path / "new.txt", b"new")
        raise KeyError

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_race_for_a_name_one_fails(tmp_path: Path) -> None:
    place, won, lost = tmp_path / "one.txt", [], []
    start = threading.Barrier(8)

    def run(number: int) -> None:
        start.wait()
        try:
            with replacing(place, overwrite=False) as draft:
                draft.write_bytes(bytes([number]))
            won.append(number)
        except InputError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert place.read_bytes() == bytes(won)
    assert len(lost) == 7
    assert all("one.txt exists already: something else wrote it meanwhile" in text for text in lost)
    assert list(tmp_path.iterdir()) == [place]


def test_a_link_that_leads_nowhere_is_not_replaced_unasked(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to("nowhere.txt")
    with pytest.raises(InputError, match="exists already"):
        publish(link, b"1")
    assert link.is_symlink()
    publish(link, b"1", overwrite=True)
    assert link.read_bytes() == b"1"
    assert not link.is_symlink()


def test_all_files_have_the_mode_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish(tmp_path / "one.txt", b"1")
        with replacing_set(tmp_path / "model", overwrite=False) as draft:
            draft.mkdir()
            (draft / "weights").write_bytes(b"2")
            (draft / "weights").chmod(0o600)
    finally:
        os.umask(before)
    files = [tmp_path / "one.txt", tmp_path / "model" / "weights"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


def test_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, link = os.fsync, os.link

    def noted_sync(number: int) -> None:
        order.append("sync " + Path(f"/proc/self/fd/{number}").readlink().name)
        sync(number)

    def noted_link(source: Path, target: Path, **options: bool) -> None:
        order.append(f"link {Path(target).name}")
        link(source, target, **options)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "link", noted_link)
    publish(tmp_path / "one.txt", b"1")
    assert order == ["sync one.txt", "link one.txt", f"sync {tmp_path.name}"]


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fxrebasin.storage.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as draft:\n"
        "    draft.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "one.txt")])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".fxrebasin-")
    used = tmp_path / ".fxrebasin-in-use"
    used.mkdir()
    (tmp_path / ".other").mkdir()
    with (used / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        publish(tmp_path / "one.txt", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".fxrebasin-in-use", ".other", "one.txt"]
    assert (tmp_path / "one.txt").read_bytes() == b"whole"


# --- on the command line -----------------------------------------------------------------------

SOURCE = """
from torch import nn
def net(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
    def forward(self, x):
        return self.b(self.a(x.reshape(2, 4)).relu())
"""
PAIR = ("--model-b", "b.pt", "--ref", "a.pt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "written_nets", raising=False)
    (tmp_path / "written_nets.py").write_text(SOURCE)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        torch.save(net.state_dict(), f"{name}.pt")
        fixed = {n.replace("0.", "a.").replace("2.", "b."): t for n, t in net.state_dict().items()}
        torch.save(fixed, f"f{name}.pt")
    return tmp_path


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_all_outputs_of_a_command_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("no place for it")

    before = content(folder)
    outputs = ("--out", "o.safetensors", "--certificate", "c.safetensors", "--onnx", "o.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(fxrebasin.permutation.Permutation, "save", fail)
        invoke("transform", "written_nets:net", *PAIR, *outputs, code=2)
    assert {n: d for n, d in content(folder).items() if "__pycache__" not in n} == before
    invoke("transform", "written_nets:net", *PAIR, *outputs)
    assert {"o.safetensors", "c.safetensors", "o.onnx"} < content(folder).keys()
    assert invoke("verify", "written_nets:net", "o.onnx", "--weights", "o.safetensors")


def test_one_place_under_two_names_and_inputs_are_refused(folder: Path) -> None:
    (folder / "s").mkdir()
    same = ("--out", "o.safetensors", "--certificate", "s/../o.safetensors")
    text = invoke("transform", "written_nets:net", *PAIR, *same, code=2).stderr
    assert "s/../o.safetensors is to be written twice; give each file its own name" in text
    (folder / "again.pt").symlink_to("a.pt")
    for out in ("a.pt", "b.pt", "again.pt", "s/../a.pt"):
        text = invoke(
            "transform", "written_nets:net", *PAIR, "--out", out, "--overwrite", code=2
        ).stderr
        assert "is read; choose another place" in text


def test_a_fixed_batch_is_told_by_transform_as_by_export(folder: Path) -> None:
    pair = ("--model-b", "fb.pt", "--ref", "fa.pt")
    outputs = ("--out", "f.safetensors", "--onnx", "f.onnx")
    text = invoke("transform", "written_nets:Fixed", *pair, *outputs).stdout
    assert "fixed" in text
    alone = invoke("export", "written_nets:Fixed", "--weights", "fa.pt", "--out", "g.onnx").stdout
    assert "fixed" in alone
