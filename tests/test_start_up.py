"""Commands and imports load what they need: help needs no torch, and importing no pictures."""

from __future__ import annotations

import ast
import os
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import fxrebasin
from fxrebasin.cli import main

HEAVY = ("torch", "numpy", "scipy", "networkx", "matplotlib", "onnx", "onnxruntime", "rich")
LATER = ("matplotlib", "networkx", "onnx", "onnxruntime", "scipy")
"""What importing the package leaves to those who use it."""


def loaded_by(*arguments: str, **environment: str) -> tuple[set[str], str]:
    """The top-level modules that a run of Python imports, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    return {module.partition(".")[0] for module in modules}, done.stdout


@pytest.mark.parametrize("command", ["", *main.commands])
def test_help_needs_no_torch(command: str) -> None:
    loaded, text = loaded_by("-m", "fxrebasin", *command.split(), "--help")
    assert "Usage" in text
    assert "click" in loaded
    assert not loaded & set(HEAVY)


def test_completion_needs_no_torch() -> None:
    typed = {"COMP_WORDS": "fxrebasin inspect --sv", "COMP_CWORD": "2"}
    loaded, text = loaded_by("-m", "fxrebasin", _FXREBASIN_COMPLETE="bash_complete", **typed)
    assert text == "plain,--svg\n"
    assert not loaded & set(HEAVY)


def test_importing_loads_nothing_that_is_not_needed() -> None:
    loaded, _ = loaded_by("-c", "import fxrebasin")
    assert "fxrebasin" in loaded
    assert not loaded & set(LATER)


def test_a_name_loads_what_it_needs_and_no_pictures() -> None:
    loaded, _ = loaded_by("-c", "import fxrebasin; fxrebasin.transform")
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "onnx", "onnx_ir"}


def test_names_are_there_before_they_are_loaded() -> None:
    code = """
import fxrebasin
assert set(fxrebasin.__all__) <= set(dir(fxrebasin))
assert fxrebasin.errors.InputError is fxrebasin.InputError
assert fxrebasin.passes.__name__ == "fxrebasin.passes"
assert fxrebasin.exporters.__name__ == "fxrebasin.exporters"
assert not hasattr(fxrebasin, "nothing_of_this_name")
from fxrebasin import *
assert transform is fxrebasin.transform and verify.__module__.startswith("fxrebasin.importers")
"""
    loaded_by("-c", code)


def test_every_public_name_is_that_of_the_import_that_checkers_read() -> None:
    """The table of names and the imports for type checkers are two texts that have to agree."""
    tree = ast.parse(Path(fxrebasin.__file__).read_text(encoding="utf-8"))
    imports = [
        (item.name, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for item in node.names
    ]
    read = {name: module for name, module in imports if str(module).startswith("fxrebasin.")}
    assert {*read, "__version__"} == set(fxrebasin.__all__)
    for name, module in read.items():
        assert getattr(fxrebasin, name) is getattr(sys.modules[str(module)], name), name


def test_public_objects_pickle_and_have_help() -> None:
    for value in (fxrebasin.transform, fxrebasin.Symmetry, fxrebasin.barrier):
        assert pickle.loads(pickle.dumps(value)) is value
    text = pydoc.render_doc(fxrebasin, renderer=pydoc.plaintext)
    assert "transform(" in text
    assert "class Symmetry" in text


_DRAWS = """
import random, numpy, torch, fxrebasin
from torch import nn
net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(2, 2)
states = lambda: (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist())
before = states()
fxrebasin.transform(net, net, x)
print(states() == before)
"""


def test_what_the_first_call_loads_draws_no_numbers() -> None:
    assert loaded_by("-c", _DRAWS)[1].strip() == "True"
