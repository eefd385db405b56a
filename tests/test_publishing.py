"""Outputs appear together or not at all, and what a killed run leaves is removed by the next."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx import write
from fxrebasin.storage import placing
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


def test_what_is_left_of_a_folder_that_was_being_removed_is_removed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from fxrebasin.storage.files import publish, together\n"
        "at, folder, unlink = int(sys.argv[1]), Path(sys.argv[2]), os.unlink\n"
        "done = []\n"
        "def until(*given, **options):\n"
        "    unlink(*given, **options)\n"
        "    done.append(1)\n"
        "    if len(done) == at:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.unlink = until\n"
        "with together():\n"
        "    for name in 'abc':\n"
        "        publish(folder / name, b'new', overwrite=True)\n"
    )
    for at in range(1, 30):
        for name in "abc":
            (tmp_path / name).write_bytes(b"old")
        done = subprocess.run([sys.executable, "-c", program, str(at), str(tmp_path)])
        publish(tmp_path / "next", b"whole", overwrite=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "next"], at
        assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
        if not done.returncode:
            break
    assert done.returncode == 0
    assert at > 8


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


# --- runs that are killed between two renames --------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from fxrebasin.storage import files, placing

at, folder = int(sys.argv[1]), Path(sys.argv[2])
put, done = placing._put, []


def until(*arguments):
    if len(done) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    put(*arguments)
    done.append(1)


def keep(*arguments, kept=placing._keep):
    kept(*arguments)
    if len(done) == at:
        os.kill(os.getpid(), signal.SIGKILL)


placing._put = until
if sys.argv[3] == "keep":
    placing._put, placing._keep = put, keep
    at = 0
elsewhere = folder / "elsewhere"
with files.together():
    files.publish(folder / "old.txt", b"new", overwrite=True)
    files.publish(elsewhere / "new.txt", b"new")
    with files.replacing_folder(folder / "model") as draft:
        (draft / "weights").write_bytes(b"new")
    files.publish(folder / "last.txt", b"new")
"""


@pytest.mark.parametrize(("at", "where"), [(1, "put"), (2, "put"), (3, "put"), (0, "keep")])
def test_the_next_run_takes_back_what_a_killed_one_had_begun(
    tmp_path: Path, at: int, where: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "old.txt").write_bytes(b"old")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"old")
    before = content(tmp_path)
    program = [sys.executable, "-c", KILLED, str(at), str(tmp_path), where]
    assert subprocess.run(program).returncode == -signal.SIGKILL
    publish(tmp_path / "elsewhere" / "of-the-next.txt", b"1")
    publish(tmp_path / "of-the-next.txt", b"1")
    (tmp_path / "of-the-next.txt").unlink()
    (tmp_path / "elsewhere" / "of-the-next.txt").unlink()
    assert content(tmp_path) == before


def test_what_was_changed_after_a_killed_run_is_not_taken_back(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    program = [sys.executable, "-c", KILLED, "2", str(tmp_path), "put"]
    assert subprocess.run(program).returncode == -signal.SIGKILL
    (tmp_path / "old.txt").unlink()
    (tmp_path / "old.txt").write_bytes(b"of the user")
    publish(tmp_path / "of-the-next.txt", b"1")
    publish(tmp_path / "elsewhere" / "next.txt", b"1")
    (tmp_path / "elsewhere" / "next.txt").unlink()
    assert content(tmp_path) == {"old.txt": b"of the user", "of-the-next.txt": b"1"}


def test_a_folder_that_something_else_made_meanwhile_stays(tmp_path: Path) -> None:
    def write() -> None:
        with together():
            with replacing_set(tmp_path / "model", overwrite=False) as draft:
                draft.mkdir()
                (draft / "weights").write_bytes(b"new")
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "weights").write_bytes(b"of another run")

    with pytest.raises(InputError, match="model exists already: something else wrote it"):
        write()
    assert content(tmp_path) == {"model/weights": b"of another run"}


def test_sets_of_two_runs_that_replace_the_same_files_do_not_mix(tmp_path: Path) -> None:
    start = threading.Barrier(6)
    names = [f"{number}.txt" for number in range(12)]

    def run(number: int) -> None:
        start.wait()
        for _ in range(5):
            with together():
                for name in names:
                    publish(tmp_path / name, bytes([number]), overwrite=True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(content(tmp_path).values())) == 1
    assert sorted(content(tmp_path)) == sorted(names)


def test_what_the_disk_refuses_at_the_end_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(Path, "symlink_to", full)
    (tmp_path / "elsewhere").mkdir()

    @together()
    def write_both() -> None:
        publish(tmp_path / "one.txt", b"1")
        publish(tmp_path / "elsewhere" / "two.txt", b"2")

    with pytest.raises(InputError, match=r"two\.txt cannot be written: .*No space left on device"):
        write_both()
    assert content(tmp_path) == {}


# --- models whose weights are in a second file -------------------------------------------------


def onnx_pair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Two models, and a limit that puts their weights into a second file."""
    monkeypatch.setattr(write, "EMBEDDED_BYTES", 100)
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)))
    fxrebasin.export_onnx(models[0], folder / "m.onnx", torch.randn(2, 20))
    return models


def test_an_overwrite_that_is_killed_leaves_the_model_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = onnx_pair(tmp_path, monkeypatch)
    before = content(tmp_path)
    put = placing._put

    def killed(item: placing.Draft, move: placing._Move) -> None:
        if item.place.suffix == ".onnx":
            os.kill(os.getpid(), signal.SIGKILL)
        put(item, move)

    monkeypatch.setattr(placing, "_put", killed)
    child = os.fork()
    if not child:
        fxrebasin.export_onnx(b, tmp_path / "m.onnx", torch.randn(2, 20), overwrite=True)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob("m.onnx.*.data"))) == 2
    assert fxrebasin.verify(a, tmp_path / "m.onnx", torch.randn(2, 20)).passed
    monkeypatch.setattr(placing, "_put", put)
    publish(tmp_path / "next.txt", b"1")
    (tmp_path / "next.txt").unlink()
    assert content(tmp_path) == before
    fxrebasin.export_onnx(b, tmp_path / "m.onnx", torch.randn(2, 20), overwrite=True)
    assert fxrebasin.verify(b, tmp_path / "m.onnx", torch.randn(2, 20)).passed
    (data,) = tmp_path.glob("m.onnx.*.data")
    assert data.name not in before


@pytest.mark.parametrize("how", ["transform", "apply", "merge"])
def test_data_of_files_that_are_written_back_have_names_of_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    _, b = onnx_pair(tmp_path, monkeypatch)
    other, out = tmp_path / "other", tmp_path / "other" / "m.onnx"
    other.mkdir()
    fxrebasin.export_onnx(b, tmp_path / "b.onnx", torch.randn(2, 20))
    (other / "m.onnx.data").write_bytes(b"of the user")
    (other / "x.m.onnx.0123456789abcdef.data").write_bytes(b"of x.m.onnx")
    for source in ("b.onnx", "m.onnx"):
        path = tmp_path / source
        if how == "transform":
            fxrebasin.onnx_transform(path, ref=tmp_path / "m.onnx", out=out, overwrite=True)
        elif how == "apply":
            order = fxrebasin.analyze(path).random(1)
            fxrebasin.onnx_apply(path, order, out, overwrite=True)
        else:
            fxrebasin.onnx_merge([path, tmp_path / "m.onnx"], out, overwrite=True)
        (data,) = other.glob("m.onnx.*.data")
        assert data.name == f"m.onnx.{hashlib.sha256(data.read_bytes()).hexdigest()[:16]}.data"
        stored = onnx.load(out, load_external_data=False).graph.initializer
        places = {e.value for t in stored for e in t.external_data if e.key == "location"}
        assert places == {data.name}
    assert (other / "m.onnx.data").read_bytes() == b"of the user"
    assert (other / "x.m.onnx.0123456789abcdef.data").is_file()
