"""A weight that two layers share is one tensor in some files, in others two of the same numbers.

So are those of language models: PyTorch's exporters fold the transposition of the head's, keep both
names, or one, and read the weight by either.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError
from tests.support.randomise import permuted, randomise

IDS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(4))
OTHERS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(5))


class Text(nn.Module):
    """A table of tokens, a layer, and a head that may have the table's weight."""

    def __init__(self, tied: bool, width: int = 6) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 9), nn.Linear(9, width)
        self.head = nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


def text(seed: int, *, tied: bool = True, width: int = 6) -> nn.Module:
    return randomise(Text(tied, width), seed).eval()


def exported(net: nn.Module, form: str, path: Path) -> Path:
    """A file that has the tie in one of the forms."""
    if form == "both names":
        fxrebasin.export_onnx(net, path, IDS)
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamo, folding = form == "one name, and folded", form != "one tensor"
        torch.onnx.export(
            *(net, (IDS,), path), dynamo=dynamo, do_constant_folding=folding, verbose=False
        )
    return path


FORMS = ("one tensor", "both names", "folded", "one name, and folded")
PAIRS = [(one, two) for one in FORMS for two in FORMS if one != two]


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def computed(path: Path, ids: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    return torch.from_numpy(found)


@pytest.mark.parametrize(
    ("mine", "theirs", "width"),
    [(*pair, 6) for pair in PAIRS] + [(*pair, 11) for pair in PAIRS if "one tensor" in pair],
)
def test_planted_orders_are_found(mine: str, theirs: str, width: int, tmp_path: Path) -> None:
    net = text(1, width=width)
    moved = permuted(net, fxrebasin.analyze(net, IDS).random(3))
    a, b = exported(moved, theirs, tmp_path / "a.onnx"), exported(net, mine, tmp_path / "b.onnx")
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    assert report.distance_before > 1e-3
    assert report.distance_after == 0
    wanted = tensors_of(exported(moved, mine, tmp_path / "wanted.onnx"))
    found = tensors_of(tmp_path / "out.onnx")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_means_are_those_of_the_models(first: str, second: str, tmp_path: Path) -> None:
    nets = text(1), text(2)
    files = [
        exported(net, form, tmp_path / f"{at}.onnx")
        for at, (net, form) in enumerate(zip(nets, (first, second), strict=True))
    ]
    fxrebasin.onnx_merge(files, tmp_path / "mean.onnx", weights=(0.75, 0.25))
    mean = copy.deepcopy(nets[0])
    states = [net.state_dict() for net in nets]
    mean.load_state_dict({n: 0.75 * states[0][n] + 0.25 * states[1][n] for n in states[0]})
    for ids in (IDS, OTHERS):
        torch.testing.assert_close(
            computed(tmp_path / "mean.onnx", ids), mean(ids).detach(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("form", ["both names", "folded", "one name, and folded"])
@pytest.mark.parametrize("tied_first", [True, False])
def test_a_tie_and_two_weights_do_not_go_together(
    form: str, tied_first: bool, tmp_path: Path
) -> None:
    tied = exported(text(1), "one tensor", tmp_path / "tied.onnx")
    untied = exported(text(2, tied=False), form, tmp_path / "untied.onnx")
    b, a = (tied, untied) if tied_first else (untied, tied)
    with pytest.raises(ArchitectureMismatchError, match="share"):
        fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    with pytest.raises(ArchitectureMismatchError, match="share"):
        fxrebasin.onnx_merge([b, a], tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
