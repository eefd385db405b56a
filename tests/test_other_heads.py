"""Models whose heads, vocabularies or first layers differ: the rest is compared, and recovered."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.merge import align_many, interpolate, merge_many
from fxrebasin.models.checks import StateMismatchError
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.other_heads import (
    HEAD,
    IMAGES,
    TOKENS,
    Classifier,
    Language,
    common,
    copied,
    is_part_of,
    squared,
)
from tests.support.small_nets import unsettled

PAGE = Path(__file__).resolve().parent.parent / "docs" / "matching.md"


def test_the_example_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    section = PAGE.read_text("utf-8").split("## Heads that differ")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert capsys.readouterr().out == "('3.weight', '3.bias')\n"
    assert "# ('3.weight', '3.bias')" in code
    assert [tuple(model[3].weight.shape) for model in names["between"]] == [(10, 16)] * 3
    merged, b = names["merged"], names["b"]
    assert torch.equal(merged[3].bias, b[3].bias)
    assert torch.equal(merged[3].weight.sort(dim=1)[0], b[3].weight.sort(dim=1)[0])


METHODS: dict[str, dict[str, Any]] = {
    "weight": {"restarts": 3},
    "frank_wolfe": {"max_steps": 20, "restarts": 1},
    "sinkhorn": {"steps": 15},
    "activation": {"loader": [IMAGES]},
    "straight_through": {"loader": [IMAGES], "loss": squared, "epochs": 2},
}
REFERENCES = ("module", "state dict", "file")


def as_reference(kind: str, model: nn.Module, folder: Path) -> Any:
    if kind == "module":
        return model
    if kind == "state dict":
        return model.state_dict()
    save_state_dict(folder / "reference.safetensors", model.state_dict())
    return folder / "reference.safetensors"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", REFERENCES)
def test_the_rest_is_recovered_bit_for_bit(kind: str, method: str, tmp_path: Path) -> None:
    a = unsettled(Classifier(10), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    before = [copy.deepcopy(model.state_dict()) for model in (a, b)]
    a.train()
    ref = as_reference(kind, a, tmp_path)
    options = METHODS[method]
    g = fxrebasin.transform(b, ref, IMAGES, method=method, ignore=HEAD, **options)
    assert a.training
    assert is_part_of(common(a.state_dict(), "fc."), g.state_dict())
    assert all(is_part_of(s, m.state_dict()) for s, m in zip(before, (a, b), strict=True))
    report = g.meta["fxrebasin"]
    assert report.equivalence.passed
    assert report.distance_after == 0
    assert report.ignored == ("fc.weight", "fc.bias")
    assert any("not compared" in note and "fc.weight" in note for note in report.notes)
    # The head itself went along.
    torch.testing.assert_close(g(IMAGES), b(IMAGES))


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_without_a_head_is_run_as_it_is(method: str) -> None:
    a = unsettled(Classifier(None), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    found = fxrebasin.match(b, a, IMAGES, method=method, ignore=HEAD, **METHODS[method])
    assert is_part_of(a.state_dict(), found.permute_state_dict(b.state_dict()))


@pytest.mark.parametrize("method", METHODS)
def test_weights_without_a_head_are_enough(method: str) -> None:
    a = unsettled(Classifier(None), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    ref = a.state_dict()
    found = fxrebasin.match(b, ref, IMAGES, method=method, ignore=HEAD, **METHODS[method])
    assert is_part_of(ref, found.permute_state_dict(b.state_dict()))


def test_what_borrowed_tensors_have_a_part_in_is_not_looked_at() -> None:
    a = unsettled(Classifier(10), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    for lacking, seen in (("wide.", ["stem.bias[0]"]), ("stem.", [])):
        ref = common(a.state_dict(), lacking, "fc.")
        options: dict[str, Any] = {"method": "activation", "loader": [IMAGES]}
        g = fxrebasin.transform(b, ref, IMAGES, ignore=[f"{lacking}*", "fc.*"], **options)
        named = [note for note in g.meta["fxrebasin"].notes if "matched by their weights" in note]
        assert all(name not in note for note in named for name in seen)
        assert bool(named) == (lacking == "stem.")
        moved = g.state_dict()
        assert is_part_of(common(ref, "wide." if lacking == "stem." else lacking), moved)


def test_a_base_model_is_the_reference_of_one_with_a_head() -> None:
    a = Base(unsettled(Classifier(None), 1))
    b = Base(copied(unsettled(Classifier(7), 2), a.model, IMAGES))
    for ref in (a.model, a):
        for method in ("weight", "activation"):
            options = METHODS[method]
            p = fxrebasin.match(b, ref, IMAGES, method=method, ignore=["model.fc.*"], **options)
            assert is_part_of(a.state_dict(), p.permute_state_dict(b.state_dict()))


class Base(nn.Module):
    """A model under a prefix."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_of_the_head_alone_stays_as_it_is(method: str) -> None:
    a = unsettled(Classifier(10, hidden=6), 1)
    b = copied(unsettled(Classifier(7, hidden=9), 2), a, IMAGES)
    before = copy.deepcopy(b.state_dict())
    options = METHODS[method]
    g = fxrebasin.transform(b, a, IMAGES, method=method, ignore=HEAD, **options)
    assert is_part_of(before, b.state_dict())
    assert is_part_of(common(a.state_dict(), "fc."), g.state_dict())
    report = g.meta["fxrebasin"]
    (alone,) = (c.name for c in report.certificate.classes if c.size == 9)
    assert (report.certificate.arrays[alone] == range(9)).all()
    assert any("left as they are" in note and alone in note for note in report.notes)


@pytest.mark.parametrize("method", ["weight", "activation"])
@pytest.mark.parametrize("tied", [True, False])
def test_vocabularies_of_other_sizes(tied: bool, method: str) -> None:
    a = unsettled(Language(13, tied=tied), 1)
    b = copied(unsettled(Language(11, tied=tied), 2), a, TOKENS)
    names = ("tokens.weight", "head.weight")
    options = METHODS[method] | ({"loader": [TOKENS]} if method == "activation" else {})
    if method == "activation":  # what a token means has to be the same
        with torch.no_grad():
            order = fxrebasin.match(b, a, TOKENS, ignore=names)
            own = order.inverse().permute_tensor("tokens.weight", a.tokens.weight[:11])
            b.tokens.weight.copy_(own)
    g = fxrebasin.transform(b, a, TOKENS, method=method, ignore=names, **options)
    assert is_part_of(common(a.state_dict(), *names), g.state_dict())
    assert (g.tokens.weight is g.head.weight) == tied
    assert g.tokens.weight.shape == (11, 16)


def test_a_tied_tensor_is_compared_under_the_name_that_is_not_ignored() -> None:
    a, b = unsettled(Language(11, tied=False), 1), unsettled(Language(11), 2)
    with torch.no_grad():
        b.tokens.weight.copy_(a.tokens.weight)
    b = copied(b, Headless(a), TOKENS)
    g = fxrebasin.transform(b, a, TOKENS, ignore=["head.*"])
    assert torch.equal(g.tokens.weight, a.tokens.weight)
    report = g.meta["fxrebasin"]
    assert report.ignored == ()
    assert any("head.weight was not ignored" in note for note in report.notes)
    with pytest.raises(StateMismatchError) as told:
        fxrebasin.match(b, unsettled(Language(12), 1), TOKENS, ignore=["head.*"])
    assert {d.name for d in told.value.differences} == {"tokens.weight"}


class Headless(nn.Module):
    """A model under its own names, without its head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._state = common(model.state_dict(), "head.")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self._state


def test_another_first_convolution() -> None:
    a = unsettled(Classifier(7, channels=9), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    with pytest.raises(StateMismatchError) as told:
        fxrebasin.match(b, a, IMAGES)
    assert told.value.remedy is not None
    assert told.value.remedy.values == ("stem.weight",)
    found = fxrebasin.match(b, a, IMAGES, ignore=told.value.remedy.values)
    moved = found.permute_state_dict(b.state_dict())
    assert is_part_of(common(a.state_dict(), "stem.weight"), moved)
    assert not torch.equal(moved["stem.weight"], b.stem.weight)
    with pytest.raises(InputError, match="the reference does not run on batch 0"):
        fxrebasin.match(b, a, IMAGES, method="activation", loader=[IMAGES], ignore=["stem.weight"])


def test_a_reference_with_more_tensors() -> None:
    a = unsettled(Classifier(7), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    more = {**a.state_dict(), "aux.weight": torch.randn(3, 8), "aux.bias": torch.randn(3)}
    with pytest.raises(StateMismatchError, match=r"fits with ignore=\('aux\.\*',\)"):
        fxrebasin.match(b, more, IMAGES)
    found = fxrebasin.match(b, more, IMAGES, ignore=["aux.*"])
    assert is_part_of(a.state_dict(), found.permute_state_dict(b.state_dict()))
    wrapped = {f"module.{name}": tensor for name, tensor in more.items()}
    assert fxrebasin.match(b, wrapped, IMAGES, ignore=["aux.*"]) == found


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: (Classifier(10), Classifier(7)), IMAGES),
        (lambda: (Classifier(10, hidden=5), Classifier(10, hidden=6)), IMAGES),
        (lambda: (Language(13), Language(11)), TOKENS),
        (lambda: (Classifier(None), Classifier(7)), IMAGES),
        (lambda: (Classifier(7, channels=9), Classifier(8)), IMAGES),
    ],
)
def test_what_a_mismatch_proposes_works(build: Any, inputs: Tensor) -> None:
    a, b = (unsettled(model, seed) for seed, model in enumerate(build()))
    with pytest.raises(StateMismatchError, match="What is left fits with ignore=") as told:
        fxrebasin.match(b, a, inputs)
    assert told.value.remedy is not None
    fxrebasin.match(b, a, inputs, ignore=told.value.remedy.values)


def test_a_proposal_keeps_what_is_ignored_already() -> None:
    a, b = unsettled(Classifier(10, channels=9), 1), unsettled(Classifier(7), 2)
    with pytest.raises(StateMismatchError, match=r"ignore=\('fc\.\*', 'stem\.weight'\)"):
        fxrebasin.match(b, a, IMAGES, ignore=HEAD)


def test_patterns_that_fit_nothing_are_refused_with_the_nearest() -> None:
    a, b = unsettled(Classifier(10), 1), unsettled(Classifier(7), 2)
    calls = (
        lambda ignore: fxrebasin.match(b, a, IMAGES, ignore=ignore),
        lambda ignore: fxrebasin.transform(b, a.state_dict(), IMAGES, ignore=ignore),
        lambda ignore: align_many([b, a], example_inputs=IMAGES, ignore=ignore),
        lambda ignore: merge_many([b, a], ignore=ignore),
        lambda ignore: interpolate(a, b, ignore=ignore),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"'fx\.\*' fits no tensor; the nearest is 'fc\.\*'"):
            call(["fx.*"])
        with pytest.raises(InputError, match=r"'fc\.wieght' .* nearest is 'fc\.weight'"):
            call(["fc.wieght", "fc.*"])
        with pytest.raises(InputError, match=r"'fc' .* nearest is 'fc\.\*'"):
            call(["fc"])
        with pytest.raises(InputError, match=r"ignore is 'fc\.\*'; pass a list"):
            call("fc.*")


def test_a_tensor_that_is_ignored_is_not_compared_whatever_its_shape_and_values() -> None:
    a = unsettled(Classifier(7), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    broken = {**a.state_dict(), "fc.weight": torch.full((7, 12), torch.nan)}
    found = fxrebasin.match(b, broken, IMAGES, ignore=HEAD)
    moved = found.permute_state_dict(b.state_dict())
    assert is_part_of(a.state_dict(), moved)


def test_a_loss_is_that_of_the_models_own_head_and_its_buffers_stay() -> None:
    a = unsettled(Classifier(10, hidden=5), 1)
    b = unsettled(Classifier(7, hidden=6), 2)
    before = copy.deepcopy(b.state_dict())
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(tuple(outputs.shape))
        return F.cross_entropy(outputs, targets)

    loader = [(IMAGES, torch.arange(6))]
    for method, ref in (("straight_through", a), ("sinkhorn", common(a.state_dict(), "fc."))):
        g = fxrebasin.transform(
            b, ref, IMAGES, method=method, loader=loader, loss=loss, epochs=2, ignore=HEAD
        )
        assert g.meta["fxrebasin"].equivalence.passed
    assert set(seen) == {(6, 7)}
    assert is_part_of(before, b.state_dict())


def test_graphs_with_other_heads() -> None:
    a, b = unsettled(Classifier(10), 1), unsettled(Classifier(7), 2)
    graphs = [torch.fx.symbolic_trace(model) for model in (b, a)]
    g = fxrebasin.transform(*graphs, IMAGES, ignore=HEAD)
    assert g.meta["fxrebasin"].equivalence.passed
