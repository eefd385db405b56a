"""What holds for every test: no network, no display, one thread, the same random numbers."""

from __future__ import annotations

import os
import signal

# Read when the libraries are imported, so these come before everything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import pytest
import torch

from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.passes.propagate.propagator import Propagator
from tests.support.invariants import checked

# A shell starts what it runs in the background with interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Results must not depend on how a machine splits a sum between its cores.
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
ensure_torchvision()
# A new process draws other numbers each time. This is for layers that test modules construct.
torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def seeded_module() -> None:
    """Give the layers that are constructed once for a module's tests the same weights."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give the layers that a test constructs the same weights in every run and order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def invariants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at what every rule gives back."""
    monkeypatch.setattr(Propagator, "_apply", checked(Propagator._apply))


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for a test that draws numbers."""
    return torch.Generator().manual_seed(0)
