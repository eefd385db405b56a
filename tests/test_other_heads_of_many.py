"""Many models whose heads, vocabularies or first layers differ: merged, and on the way between."""

from __future__ import annotations

import copy
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
from tests.support.other_heads import (
    HEAD,
    IMAGES,
    Classifier,
    common,
    copied,
    is_part_of,
    squared,
)
from tests.support.small_nets import unsettled

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
