"""How commands end: the code, the message, and what is on which output."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
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
from fxrebasin.cli.options import Talk
from fxrebasin.cli.streams import results_apart, use_standard_streams
from fxrebasin.cli.talking import say

SOURCE = r"""
import os, signal, sys
from torch import nn

print("on import")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        print("in forward")
        return self.second(self.first(x).relu())

class Raw(Net):
    def forward(self, x):
        os.write(1, b"noise")
        return super().forward(x)

class Leaving(Net):
    def forward(self, x):
        sys.exit(0)

def leave():
    sys.exit("done\x1b[2J")

def stop():
    raise KeyboardInterrupt

def fail():
    raise ValueError("of the \x1b[2Jmodel")

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

def full():
    raise MemoryError("all of it")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model of which two checkpoints are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud_nets.py").write_text(SOURCE)
    (tmp_path / "script.py").write_text(
        "import sys, loud_nets\nbuild = loud_nets.Net\nsys.exit()\n"
    )
    net = nn.ModuleDict({"first": nn.Linear(3, 6), "second": nn.Linear(6, 2)})
    torch.save(net.state_dict(), "a.pt")
    for name in ("loud_nets", "script"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def invoke(*arguments: str, code: int) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    return result


def test_a_model_whose_module_ends_the_process_is_no_success(folder: Path) -> None:
    text = invoke("verify", "script:build", "a.pt", code=2).stderr
    assert text == (
        f"Error: {folder}/script.py:3 ended the process with sys.exit(), so that nothing was done. "
        "Code that is to run only as a program belongs under `if __name__ == '__main__':`.\n"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Leaving", "loud_nets.py:23 ended the process with sys.exit(0), so that nothing was done"),
        ("leave", r"loud_nets.py:26 ended the process with sys.exit('done\x1b[2J'), so that"),
        ("stop", "loud_nets.py:29 ended the process with KeyboardInterrupt, so that nothing"),
        ("fail", r"loud_nets.py:32 raised ValueError: of the \x1b[2Jmodel"),
        ("full", "loud_nets.py:41 raised MemoryError: all of it"),
    ],
)
def test_what_code_of_the_user_raises_is_told_apart(folder: Path, name: str, said: str) -> None:
    text = invoke("verify", f"loud_nets:{name}", "a.pt", code=2).stderr
    assert said in text
    assert "Traceback" not in text
    shown = invoke("--debug", "verify", f"loud_nets:{name}", "a.pt", code=2).stderr
    assert "Traceback (most recent call last)" in shown


def test_an_interrupt_from_outside_exits_with_130(folder: Path) -> None:
    text = invoke("inspect", "loud_nets:interrupt", code=130).stderr
    assert text == "Interrupted; nothing was left half written.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_terminated_command_cleans_up(folder: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    text = invoke("inspect", "loud_nets:terminate", code=143).stderr
    assert text == "Terminated; nothing was left half written.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_commands_run_in_other_threads_where_signals_are_not_theirs(folder: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(
            CliRunner().invoke(main, ["inspect", "loud_nets:Net"]).exit_code
        )
    )
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (AssertionError("of ours"), 3, "Error: AssertionError: of ours\nThis is a fault of fxr"),
        (RecursionError("deep"), 3, "Error: RecursionError: deep\nThis is a fault of fxrebasin,"),
        (MemoryError("8 GiB"), 2, "Error: there is not enough memory (MemoryError: 8 GiB); see"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            ),
            2,
            "Error: there is not enough memory (RuntimeError: [enforce fail at",
        ),
        (OSError(28, "No space left"), 2, "Error: the system refused: OSError: [Errno 28] No sp"),
    ],
)
def test_faults_of_ours_say_where_to_report_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    monkeypatch.setattr(fxrebasin, "analyze", _raising(error))
    assert invoke("inspect", "loud_nets:Net", code=code).stderr.startswith(said)


def _raising(error: Exception):  # type: ignore[no-untyped-def]
    """A function whose code is in no file, and so is not taken for that of a user."""
    names = {"error": error}
    exec(compile("def fail(*_, **__):\n    raise error", "<made>", "exec"), names)
    return names["fail"]


def test_json_is_alone_on_standard_output(folder: Path) -> None:
    result = invoke("verify", "loud_nets:Net", "a.pt", "--weights", "a.pt", "--json", code=0)
    assert json.loads(result.stdout)["passed"] is True
    assert "on import\n" in result.stderr
    assert "in forward\n" in result.stderr
    assert "in forward\n" in invoke("inspect", "loud_nets:Net", code=0).stdout


def test_wrong_options_after_json_leave_the_outputs_as_they_were(folder: Path) -> None:
    before = sys.stdout
    invoke("inspect", "loud_nets:Net", "--json", "--nonsense", code=2)
    assert sys.stdout is before


def test_whatever_a_process_prints_is_kept_apart(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from fxrebasin.cli.streams import results_apart\n"
        "kept = sys.stdout\n"
        "with results_apart() as results:\n"
        "    print('print'); print('kept', file=kept); print('own', file=sys.__stdout__)\n"
        "    os.write(1, b'raw\\n'); os.system('echo child')\n"
        "    print('result', file=results)\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "result\nafter\n"
    assert sorted(done.stderr.split()) == ["child", "kept", "own", "print", "raw"]


def test_a_stream_in_memory_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with results_apart() as results:
        sys.stdout.write("noise\n")
        results.write("result\n")
    assert (out.getvalue(), err.getvalue()) == ("result\n", "noise\n")
    assert sys.stdout is out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_output_cannot_encode_is_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    use_standard_streams()
    sys.stdout.write("1.0 → 0")
    sys.stdout.flush()
    assert raw.getvalue() == b"1.0 ? 0"


def test_an_output_that_nobody_reads_is_no_failed_check(folder: Path) -> None:
    """`| head -1` closes the output; 1 would say that a check failed."""
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "fxrebasin", "inspect", "torchvision:alexnet"]
    done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


TRANSFORM = ("transform", "loud_nets:Net", "--model-b", "a.pt", "--ref", "a.pt", "--out", "o.pt")
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


class Full(io.StringIO):
    """An output of which the disk is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (TRANSFORM, "; complete and in their places are: o.pt"),
        (("inspect", "loud_nets:Net"), ""),
    ],
    ids=["with files", "without"],
)
def test_what_cannot_be_printed_is_told_from_what_was_not_done(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    net = "\n".join(line for line in SOURCE.splitlines() if "print" not in line)
    (folder / "loud_nets.py").write_text(net)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 2
    wanted = f"Error: the result cannot be printed: No space left on device{said}\n"
    assert capsys.readouterr().err == wanted
    if said:
        assert torch.load("o.pt").keys() == torch.load("a.pt").keys()


@FULL
def test_a_document_that_cannot_be_printed_ends_without_a_traceback(folder: Path) -> None:
    program = [sys.executable, "-m", "fxrebasin", *TRANSFORM, "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "Error: the result cannot be printed: No space left on device; complete and in their "
        "places are: o.pt\n"
    )
    assert "Traceback" not in done.stderr
    assert Path("o.pt").exists()


def test_an_error_that_cannot_be_printed_keeps_its_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "loud_nets:fail"])
    assert ended.value.code == 2


def test_outputs_that_are_closed_do_not_get_into_files(folder: Path) -> None:
    """The next file that is opened would get their numbers."""
    given = [word.replace("Net", "Raw") for word in TRANSFORM]
    words = " ".join([sys.executable, "-m", "fxrebasin", *given])
    done = subprocess.run(["sh", "-c", f"{words} <&- >&- 2>&-"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert torch.load("o.pt").keys() == torch.load("a.pt").keys()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text_are_written_as_escapes(folder: Path) -> None:
    odd, out = (os.fsdecode(b"%s\xff.pt" % name) for name in (b"b", b"o"))
    Path("a.pt").rename(odd)
    merge = ("merge", "loud_nets:Net", odd, odd, "--out")
    found = json.loads(invoke(*merge, out, "--json", code=0).stdout)
    assert Path(out).exists()
    assert found["command"] == "merge"
    assert r"b\udcff.pt" in next(folder.glob("o*.md")).read_text("utf-8")
    assert r"b\udcff.pt" in next(folder.glob("o*.json")).read_text("utf-8")
    picture = ("transform", *merge[1:2], "--model-b", odd, "--ref", odd, "--picture", "u.svg")
    invoke(*picture, "--out", "t.pt", code=0)
    assert r"b\udcff.pt" in Path("u.svg").read_text("utf-8")
    onnx = os.fsdecode(b"m\xff.onnx")
    text = invoke("export", *merge[1:2], "--weights", odd, "--out", onnx, code=2).stderr
    said = r"Error: the name m\udcff.onnx is not in UTF-8, and the libraries of ONNX take no other"
    assert text.startswith(said)


def test_a_name_of_two_lines_is_told_on_one(folder: Path, capsys: pytest.CaptureFixture) -> None:
    say(Talk(as_json=False, dry_run=False), "wrote a\nwrote b\x1b[2J")
    assert capsys.readouterr().out == "wrote a\\nwrote b\\x1b[2J\n"
