"""Models whose heads, vocabularies or first layers differ: the rest is compared, and recovered."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.merge import align_many, interpolate, merge_many
from fxrebasin.models.checks import StateMismatchError
from fxrebasin.storage.checkpoint import load_state_dict, save_state_dict
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


class Classifier(nn.Module):
    """Convolutions with statistics and groups; the head may be missing, or have a hidden layer."""

    def __init__(self, classes: int | None, *, hidden: int = 0, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.wide = nn.Linear(8, 12)
        self.fc: nn.Module = nn.Identity()
        if classes is not None:
            self.fc = nn.Linear(12, classes)
            if hidden:
                norm = nn.BatchNorm1d(hidden)
                last = nn.Linear(hidden, classes)
                self.fc = nn.Sequential(nn.Linear(12, hidden), norm, nn.ReLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        return self.fc(F.relu(self.wide((x + F.relu(self.grouped(x))).mean((2, 3)))))


class Language(nn.Module):
    """Token embeddings, a block with heads, and a head that may be the embeddings themselves."""

    def __init__(self, words: int, *, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(words, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.head = nn.Linear(16, words, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(batch, length, 16)))


IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(10, (4, 7), generator=torch.Generator().manual_seed(0))
HEAD = ("fc.*",)


def copied(model: nn.Module, reference: nn.Module, inputs: Tensor, seed: int = 1) -> nn.Module:
    """The model with all tensors of the reference that fit, its units in another order."""
    theirs = reference.state_dict()
    own = model.state_dict()
    fitting = {n: theirs[n] for n, t in own.items() if n in theirs and t.shape == theirs[n].shape}
    model.load_state_dict({**own, **fitting})
    planted = fxrebasin.analyze(model, inputs).random(seed)
    model.load_state_dict(planted.permute_state_dict(model.state_dict()))
    return model.eval()


def common(state: Mapping[str, Tensor], *heads: str) -> dict[str, Tensor]:
    """A state without what begins in such a way."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(heads)}


def is_part_of(part: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of a part are those of the whole, bit for bit."""
    return bool(part) and all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def squared(outputs: Tensor, targets: Tensor | None) -> Tensor:
    return outputs.square().mean()


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


ALIGNERS = ("merge_many", "cycle_consistent")


@pytest.mark.parametrize("method", ALIGNERS)
@pytest.mark.parametrize("files", [False, True])
def test_many_models_are_aligned_and_merged(method: str, files: bool, tmp_path: Path) -> None:
    a = unsettled(Classifier(10), 1)
    others = [copied(unsettled(Classifier(c), c), a, IMAGES, seed=c) for c in (7, 5)]
    models: list[Any] = [a, *others]
    if files:
        for k, model in enumerate(others):
            save_state_dict(tmp_path / f"{k}.safetensors", model.state_dict())
        models = [a, *(tmp_path / f"{k}.safetensors" for k in range(len(others)))]
    options = {"max_steps": 5} if method == "cycle_consistent" else {}
    orders = align_many(models, method, example_inputs=IMAGES, ignore=HEAD, **options)
    assert orders[0].is_identity
    for order, model in zip(orders[1:], others, strict=True):
        moved = order.permute_state_dict(model.state_dict())
        assert is_part_of(common(a.state_dict(), "fc."), moved)
        twin = copy.deepcopy(model)
        twin.load_state_dict(moved)
        torch.testing.assert_close(twin(IMAGES), model(IMAGES))
    merged = merge_many(models, method, example_inputs=IMAGES, ignore=HEAD, **options)
    assert is_part_of(a.state_dict(), merged.state_dict())
    merged = merge_many(
        models,
        method,
        model=Classifier(5).eval(),
        example_inputs=IMAGES,
        ignore=HEAD,
        ignored_from=2,
        **options,
    )
    assert is_part_of(common(a.state_dict(), "fc."), merged.state_dict())
    torch.testing.assert_close(merged(IMAGES), others[1](IMAGES))


def test_the_mean_takes_what_is_ignored_from_one_model() -> None:
    a, b, c = (unsettled(Classifier(n), n) for n in (10, 7, 7))
    merged = merge_many([a, b, c], ignore=HEAD)
    assert is_part_of(
        {n: t for n, t in a.state_dict().items() if n[:2] == "fc"}, merged.state_dict()
    )
    torch.testing.assert_close(
        merged.stem.weight, (a.stem.weight + b.stem.weight + c.stem.weight) / 3
    )
    merged = merge_many([a, b, c], model=b, ignore=HEAD)
    assert torch.equal(merged.fc.weight, b.fc.weight)
    merged = merge_many([a, b, c], model=b, ignore=HEAD, ignored_from=2)
    assert torch.equal(merged.fc.bias, c.fc.bias)
    # Also where all models have such tensors: they are not averaged.
    merged = merge_many([b, c], ignore=["fc.weight"])
    assert torch.equal(merged.fc.weight, b.fc.weight)
    torch.testing.assert_close(merged.fc.bias, (b.fc.bias + c.fc.bias) / 2)
    with pytest.raises(InputError, match=r"model 1 has fc\.weight of shape \(7, 12\), not \(10,"):
        merge_many([a, b], ignore=HEAD, ignored_from=1)
    with pytest.raises(InputError, match=r"model 0 has no fc\.weight, no fc\.bias"):
        merge_many([Classifier(None).eval(), b], model=b, ignore=HEAD, ignored_from=0)
    for wrong in (3, -1, True, "b"):
        with pytest.raises(InputError, match="ignored_from is"):
            merge_many([a, b, c], ignore=HEAD, ignored_from=wrong)  # type: ignore[arg-type]


def test_each_model_is_permuted_as_its_own_head_needs_it() -> None:
    a = unsettled(Classifier(10, hidden=6), 1)
    b = copied(unsettled(Classifier(7, hidden=9), 2), a, IMAGES)
    c = copied(unsettled(Classifier(4), 3), a, IMAGES, seed=2)
    orders = align_many([a, b, c], example_inputs=IMAGES, ignore=HEAD)
    for order, model in zip(orders, (a, b, c), strict=True):
        twin = copy.deepcopy(model)
        twin.load_state_dict(order.permute_state_dict(model.state_dict()))
        assert is_part_of(common(a.state_dict(), "fc."), twin.state_dict())
        torch.testing.assert_close(twin(IMAGES), model(IMAGES))
    merged = merge_many([a, b, c], "merge_many", example_inputs=IMAGES, ignore=HEAD)
    assert is_part_of(a.state_dict(), merged.state_dict())


def test_a_model_whose_units_are_its_outputs_is_not_permuted() -> None:
    a = unsettled(Classifier(10), 1)
    bare = unsettled(Classifier(None), 2)
    with pytest.raises(ArchitectureMismatchError, match=r"models\[1\] has another symmetry"):
        align_many([a, bare], example_inputs=IMAGES, ignore=HEAD)
    # As a part of a merged model it may be: that has the other's head.
    bare.load_state_dict(common(copied(Classifier(10).eval(), a, IMAGES).state_dict(), "fc."))
    merged = merge_many([a, bare], "merge_many", example_inputs=IMAGES, ignore=HEAD)
    assert is_part_of(a.state_dict(), merged.state_dict())


def test_weights_of_a_head_that_nothing_is_known_of_are_not_permuted(tmp_path: Path) -> None:
    a = unsettled(Classifier(10), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES).state_dict()
    strange = {f"top{name[2:]}" if name.startswith("fc") else name: t for name, t in b.items()}
    for other in (strange, {**b, "fc.weight": torch.randn(7, 48)}):
        save_state_dict(tmp_path / "b.safetensors", other, overwrite=True)
        models = [a, tmp_path / "b.safetensors"]
        patterns = ["fc.*", "top.*"] if "top.weight" in other else HEAD
        with pytest.raises(ArchitectureMismatchError, match="nothing shows where models"):
            align_many(models, example_inputs=IMAGES, ignore=patterns)
        merged = merge_many(models, "merge_many", example_inputs=IMAGES, ignore=patterns)
        assert is_part_of(a.state_dict(), merged.state_dict())


def test_another_first_convolution_of_many() -> None:
    a = unsettled(Classifier(7), 1)
    b = unsettled(Classifier(7, channels=9), 2)
    own = b.state_dict()
    b.load_state_dict({**a.state_dict(), "stem.weight": own["stem.weight"]})
    planted = fxrebasin.analyze(b, torch.randn(2, 9, 6, 6)).random(3)
    b.load_state_dict(planted.permute_state_dict(b.state_dict()))
    names = ["stem.weight"]
    _, order = align_many([a, b], example_inputs=IMAGES, ignore=names)
    assert order == planted.inverse()
    merged = merge_many([a, b], "merge_many", example_inputs=IMAGES, ignore=names)
    assert is_part_of(a.state_dict(), merged.state_dict())


def test_models_between_others_have_the_head_of_one() -> None:
    a = unsettled(Classifier(10), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    aligned = fxrebasin.transform(b, a, IMAGES, ignore=HEAD)
    for model in interpolate(a, aligned, steps=3, ignore=HEAD):
        assert is_part_of(a.state_dict(), model.state_dict())
    bare = common(b.state_dict(), "fc.")
    *_, last = interpolate(a, bare, steps=2, ignore=HEAD)
    assert is_part_of(bare, last.state_dict())
    assert torch.equal(last.fc.weight, a.fc.weight)
    c = unsettled(Classifier(10), 3)
    for model in interpolate(a, b, c, steps=3, path="quadratic", ignore=HEAD, ignored_from=2):
        assert torch.equal(model.fc.weight, c.fc.weight)
    loader = [(IMAGES, torch.arange(6))]
    for model in interpolate(
        a, b, steps=3, path="bezier", loader=loader, loss=F.cross_entropy, epochs=2, ignore=HEAD
    ):
        assert torch.equal(model.fc.bias, a.fc.bias)
    with pytest.raises(InputError, match=r"model 1 has fc\.weight of shape \(7, 12\)"):
        interpolate(a, b, ignore=HEAD, ignored_from=1)
    curve = fxrebasin.barrier(a, b, lambda m: squared(m(IMAGES), None), steps=3, ignore=HEAD)
    assert len(curve.losses) == 3


def test_distances_leave_out_what_is_ignored() -> None:
    a = unsettled(Classifier(10), 1)
    b = copied(unsettled(Classifier(7), 2), a, IMAGES)
    order = fxrebasin.match(b, a, IMAGES, ignore=HEAD)
    for rebased in (order, fxrebasin.transform(b, a, IMAGES, ignore=HEAD)):
        stats = fxrebasin.merge_stats(
            a, b, rebased, evaluate=lambda m: squared(m(IMAGES), None), steps=3, ignore=HEAD
        )
        assert stats.distance_after == 0 < stats.distance_before
        assert stats.barrier_after is not None
        assert stats.barrier_after.barrier == pytest.approx(0, abs=1e-6)
    with pytest.raises(StateMismatchError, match="fits with ignore="):
        fxrebasin.merge_stats(a, b, order)


def test_layers_are_repaired_but_those_that_differ() -> None:
    a = unsettled(Classifier(10), 1)
    b = unsettled(Classifier(7), 2)
    middle = [*interpolate(a, b, steps=3, ignore=HEAD)][1]
    mended = fxrebasin.repair(middle, a, b, [IMAGES], ignore=HEAD)
    assert torch.equal(mended.fc.weight, a.fc.weight)

    def spread(model: nn.Module) -> Tensor:
        seen = []
        handle = model.wide.register_forward_hook(lambda module, args, output: seen.append(output))
        model(IMAGES)
        handle.remove()
        return seen[0].detach().std(dim=0)

    wanted = (spread(a) + spread(b)) / 2
    torch.testing.assert_close(spread(mended), wanted, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(spread(middle), wanted, rtol=1e-2)


def pooled(classes: int = 7, size: int = 1) -> nn.Module:
    """A net whose head sees so many positions of an image."""
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * size * size, classes))


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_commands_ignore_tensors(tmp_path: Path) -> None:
    a, image = unsettled(pooled(10), 1), torch.randn(2, 3, 6, 6)
    b = copied(unsettled(pooled(7), 2), a, image)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors"]
    for path, model in zip(paths, (a, b, unsettled(pooled(7, size=2), 3)), strict=True):
        save_state_dict(path, model.state_dict())
    name = f"{__name__}:pooled"
    inputs = ("--input-shape", "2,3,6,6", "--ignore", "5.*")
    out = tmp_path / "out.safetensors"
    told = ran("transform", name, "--model-b", paths[1], "--ref", paths[0], "--out", out, *inputs)
    assert told.exit_code == 0, told.output
    moved = load_state_dict(out)
    assert is_part_of(common(a.state_dict(), "5."), moved)
    b.load_state_dict(moved)
    for first, model in ((0, a), (1, b)):
        merged = tmp_path / f"merged{first}.safetensors"
        pair = (paths[0], out) if first == 0 else (out, paths[0])
        told = ran("merge", name, *pair, "--out", merged, *inputs)
        assert told.exit_code == 0, told.output
        assert is_part_of(model.state_dict(), load_state_dict(merged))
    # Where the head has units cannot be seen: it is not of the model's shape.
    wrong = tmp_path / "wrong.safetensors"
    told = ran("transform", name, "--model-b", paths[2], "--ref", paths[0], "--out", wrong, *inputs)
    assert told.exit_code == 2
    assert "nothing shows where" in told.output
    assert not wrong.exists()
