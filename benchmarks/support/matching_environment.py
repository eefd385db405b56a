"""`rebasin` in an environment of its own, which shares torch with the one that is running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PINS = ("rebasin==0.0.47", "torchview==0.2.7", "graphviz==0.21", "tqdm==4.70.1")


def ensure_rebasin(folder: Path) -> Path:
    """The interpreter of an environment with the peer; it is made if it is not there.

    Packages that are not the peer's own come from the environment that is running, so that both
    sides use the same build of torch.

    Args:
        folder: of the environment.

    Raises:
        subprocess.CalledProcessError: pip cannot install the peer.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / ".ready"
    if stamp.exists() and stamp.read_text() == " ".join(PINS):
        return python
    venv.create(folder, with_pip=False, clear=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    site = Path(found.stdout.strip())
    (site / "_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", *PINS], check=True)
    stamp.write_text(" ".join(PINS))
    return python


def run_rebasin(
    python: Path,
    name: str,
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    seed: int,
) -> dict[str, Any]:
    """Solve one pair with the peer.

    Args:
        python: the interpreter to run it with.
        name: of the network.
        state_a: of the reference.
        state_b: of the model that is permuted.
        seed: of the peer's order of classes.

    Returns:
        What `matching_peer` prints.

    Raises:
        subprocess.CalledProcessError: the peer failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.pt"
        torch.save((dict(state_a), dict(state_b)), path)
        script = Path(__file__).with_name("matching_peer.py")
        threads = str(torch.get_num_threads())
        command = [str(python), str(script), name, str(path), str(seed), threads]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
