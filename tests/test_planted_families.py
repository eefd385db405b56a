"""Planted permutations are found bit for bit in models of timm, transformers, diffusers and tasks.

B is A with its units in another order; matched towards A, it is A again. Small models run by
default, the others with `-m slow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("torchvision")

import fxrebasin
from fxrebasin.passes.match.methods import match_states
from tests.support.diffusion_models import DIFFUSION
from tests.support.randomise import randomise
from tests.support.task_models import MODELS as TASKS
from tests.support.text_models import TEXT
from tests.support.timm_models import SMALLEST, build, image_size
from tests.support.vision_models import VISION
from tests.support.vision_operators import without_compiled_operators

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

FITS = 200_000_000
"""Parameters of models of which three copies are held."""

QUICK = (
    *("timm ghostnet", "timm levit", "timm mobilevit", "timm xcit"),
    *("llama", "mixtral", "swin", "whisper", "sd 3", "ssdlite320_mobilenet_v3_large"),
)

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def _of_timm(name: str) -> Case:
    model = build(name)
    shape = image_size(model)
    return model, (torch.zeros(1 if max(shape) > 400 else 2, *shape),), {}


def _by_keywords(make: Callable[[], Any]) -> Case:
    model, inputs = make()
    return model, (), dict(inputs)


def _by_position(make: Callable[[], Any]) -> Case:
    model, inputs = make()
    return model, tuple(inputs), {}


CASES: dict[str, Callable[[], Case]] = {
    **{
        f"timm {module}": partial(_of_timm, name)
        for module, (name, count) in SMALLEST.items()
        if count < FITS
    },
    **{name: partial(_by_keywords, partial(m, "eager")) for name, m in {**TEXT, **VISION}.items()},
    **{name: partial(_by_keywords, make) for name, make in DIFFUSION.items()},
    **{name: partial(_by_position, make) for name, make in TASKS.items()},
}


@pytest.fixture(autouse=True)
def _portable() -> Iterator[None]:
    with without_compiled_operators():
        yield


def test_those_that_run_by_default_are_there() -> None:
    assert set(QUICK) <= set(CASES)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_what_was_planted_is_found(name: str) -> None:
    model, args, kwargs = CASES[name]()
    symmetry = fxrebasin.analyze(model.eval(), args, kwargs)
    state = {n: t.detach() for n, t in randomise(model).state_dict().items()}
    planted = symmetry.random(seed=3)
    moved = planted.permute_state_dict(state)
    assert any(not torch.equal(state[n], moved[n]) for n in state)
    result = match_states(symmetry, moved, state, parameters=symmetry.parameters)
    assert result.distance_after == 0
    back = result.permutation.permute_state_dict(moved)
    assert [n for n in state if not torch.equal(state[n], back[n])] == []
