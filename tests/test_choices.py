"""What a caller chooses is checked before any work, and reaches every call that takes it."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxrebasin
from fxrebasin.choices import FoundWith
from fxrebasin.cli import main
from fxrebasin.errors import ArchitectureMismatchError, EquivalenceError, InputError
from fxrebasin.permutation import Permutation
from fxrebasin.storage.checkpoint import load_state_dict, save_state_dict
from tests.support.randomise import log10_factorial as f

VECTORS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Signed(nn.Module):
    """Units whose sign a buffer holds, once for those that leave and once for those that enter."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("first_sign", torch.tensor([1, -1, 2, -2, 3, -3]))
        self.register_buffer("next_sign", torch.tensor([3, 1, 2, -1, -3, 2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave((self.enter(x) * self.first_sign).relu() * self.next_sign)


def signed(seed: int = 0) -> Signed:
    torch.manual_seed(seed)
    return Signed()


CALLS: dict[str, Callable[..., Any]] = {
    "analyze": lambda a, b, **options: fxrebasin.analyze(b, VECTORS, **options),
    "match": lambda a, b, **options: fxrebasin.match(b, a, VECTORS, **options),
    "apply": lambda a, b, **options: fxrebasin.apply(
        b, fxrebasin.analyze(b, VECTORS).identity(), VECTORS, **options
    ),
    "transform": lambda a, b, **options: fxrebasin.transform(b, a, VECTORS, **options),
    "verify": lambda a, b, **options: fxrebasin.verify(a, a, VECTORS, **options),
    "export_onnx": lambda a, b, **options: fxrebasin.export_onnx(b, "b.onnx", VECTORS, **options),
    "align_many": lambda a, b, **options: fxrebasin.align_many(
        [a, b], example_inputs=VECTORS, **options
    ),
    "merge_many": lambda a, b, **options: fxrebasin.merge_many(
        [a, b], "merge_many", example_inputs=VECTORS, **options
    ),
    "merge_stats": lambda a, b, **options: fxrebasin.merge_stats(
        a, b, b.state_dict(), example_inputs=VECTORS, **options
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_pattern_that_fits_nothing_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no buffer 'sign'.*first_sign, next_sign"):
        CALLS[name](signed(), signed(1), state_buffers=["*_sign", "sign"])
    with pytest.raises(InputError, match="pass a list"):
        CALLS[name](signed(), signed(1), state_buffers="*_sign")
    CALLS[name](signed(), signed(1), state_buffers=["*_sign"])


class Telling(Signed):
    """One that returns the units whose signs the buffers hold, too."""

    def forward(self, x: Tensor) -> Any:
        h = (self.enter(x) * self.first_sign).relu() * self.next_sign
        return {"logits": self.leave(h), "hidden": h}


def telling(seed: int = 0) -> Telling:
    torch.manual_seed(seed)
    return Telling()


CHOSEN: dict[str, Any] = {"state_buffers": ["*_sign"], "outputs": ["logits"]}
FOUND_WITH = FoundWith(("first_sign", "next_sign"), ("logits",))


def test_every_call_that_runs_a_model_takes_both_choices() -> None:
    callables = {name: getattr(fxrebasin, name) for name in fxrebasin.__all__}
    taking = {
        name: inspect.signature(call).parameters
        for name, call in callables.items()
        if inspect.isfunction(call) and "example_inputs" in inspect.signature(call).parameters
    }
    for name in ("onnx_transform", "onnx_apply"):  # a file does not tell buffers from parameters
        del taking[name]
    assert set(taking) == set(CALLS)
    assert all({"outputs", "state_buffers"} <= set(parameters) for parameters in taking.values())


# What each call has to show for it that units move which either choice alone leaves where they are.
SHOWN: dict[str, Callable[[Any], Any]] = {
    "analyze": lambda symmetry: symmetry.random(0),
    "match": lambda permutation: permutation,
    "transform": lambda graph: graph.meta["fxrebasin"].certificate,
    "align_many": lambda permutations: permutations[1],
}


@pytest.mark.parametrize("name", SHOWN)
def test_both_choices_reach_the_analysis_and_are_kept(name: str) -> None:
    a, b = telling(), telling(1)
    found = SHOWN[name](CALLS[name](a, b, **CHOSEN))
    assert [c.size for c in found.classes] == [6]
    assert found.found_with == found.inverse().found_with == FOUND_WITH
    for left_out in CHOSEN:
        some = {key: value for key, value in CHOSEN.items() if key != left_out}
        assert not SHOWN[name](CALLS[name](a, b, **some)).classes


def test_both_choices_reach_what_is_measured_and_compared() -> None:
    a = telling()
    order = fxrebasin.analyze(a, VECTORS, **CHOSEN).random(1)
    b = copy.deepcopy(a)
    b.load_state_dict(order.permute_state_dict(a.state_dict()))
    stats = fxrebasin.merge_stats(a, b, a.state_dict(), example_inputs=VECTORS, **CHOSEN)
    assert [(c.size, c.after) for c in stats.classes] == [(6, pytest.approx(1))]
    merged = CALLS["merge_many"](a, b, **CHOSEN).state_dict()
    assert all(torch.equal(t, merged[name]) for name, t in a.state_dict().items())
    assert fxrebasin.verify(a, b, VECTORS, outputs=["logits"]).passed
    assert not fxrebasin.verify(a, b, VECTORS).passed
    for some in ({"outputs": ["logits"]}, {"state_buffers": ["*_sign"]}):
        assert not fxrebasin.merge_stats(a, b, b, example_inputs=VECTORS, **some).classes
        kept = CALLS["merge_many"](a, b, **some).state_dict()
        assert not torch.equal(kept["enter.weight"], a.enter.weight)


def test_a_certificate_is_applied_with_the_choices_that_it_was_found_with(tmp_path: Path) -> None:
    a, b = telling(), telling(1)
    fxrebasin.match(b, a, VECTORS, **CHOSEN).save(tmp_path / "p.safetensors")
    loaded = Permutation.load(tmp_path / "p.safetensors")
    assert loaded.found_with == FOUND_WITH
    graph = fxrebasin.apply(b, loaded, VECTORS)
    torch.testing.assert_close(graph(VECTORS)["logits"], b(VECTORS)["logits"])
    assert graph(VECTORS)["hidden"] is None
    with pytest.raises(EquivalenceError):
        fxrebasin.apply(b, loaded, VECTORS, outputs=["hidden"])
    other = telling(2)  # with other constants, if the buffers were constants
    with torch.no_grad():
        other.first_sign.mul_(2)
    torch.testing.assert_close(
        fxrebasin.apply(other, loaded, VECTORS)(VECTORS)["logits"], other(VECTORS)["logits"]
    )


def logits(returned: Any) -> Any:
    return returned["logits"]


def test_a_function_is_kept_by_name_and_has_to_be_passed_again(tmp_path: Path) -> None:
    a, b = telling(), telling(1)
    chosen = {"state_buffers": ["*_sign"], "outputs": logits}
    p = fxrebasin.match(b, a, VECTORS, **chosen)
    p.save(tmp_path / "p.safetensors")
    for found in (p, Permutation.load(tmp_path / "p.safetensors"), pickle.loads(pickle.dumps(p))):
        assert found.found_with == FoundWith(("first_sign", "next_sign"), function="logits")
        with pytest.raises(InputError, match=r"function logits for outputs=.* pass that function"):
            fxrebasin.apply(b, found, VECTORS)
        graph = fxrebasin.apply(b, found, VECTORS, outputs=logits)
        torch.testing.assert_close(graph(VECTORS), b(VECTORS)["logits"])


def test_the_constants_of_another_model_are_looked_at_with_the_same_choices() -> None:
    """The model has other constants than were relied on, and the same symmetry if asked alike."""
    model = Telling()
    model.register_buffer("table", torch.tensor([2, 0, 1]))
    model.forward = lambda x: Telling.forward(model, x[:, model.table])  # type: ignore[method-assign]
    p = fxrebasin.analyze(model, VECTORS, **CHOSEN).random(1)
    assert "table" in p.relies_on
    with torch.no_grad():
        model.table.copy_(torch.tensor([0, 2, 1]))
    assert fxrebasin.apply(model, p, VECTORS) is not None
    with pytest.raises(ArchitectureMismatchError, match="table"):
        fxrebasin.apply(model, p.relying_on(p.relies_on, FoundWith()), VECTORS)


def test_composing_keeps_what_holds_of_both() -> None:
    model = telling()
    both, other = fxrebasin.analyze(model, VECTORS, **CHOSEN).random(1), ["hidden"]
    everything = both.relying_on(both.relies_on, FoundWith())
    assert both.compose(everything).found_with == FOUND_WITH
    assert everything.compose(both).found_with == FOUND_WITH
    assert everything.compose(everything).found_with == FoundWith()
    unlike = both.relying_on(both.relies_on, FoundWith(outputs=tuple(other)))
    for one, two in ((unlike, both), (both, unlike)):
        with pytest.raises(InputError, match="other outputs as they are"):
            one.compose(two)


def test_declared_buffers_move_with_their_units() -> None:
    a = signed()
    assert fxrebasin.analyze(a, VECTORS).classes == ()
    found = fxrebasin.analyze(a, VECTORS, state_buffers=["*_sign"])
    assert found.log10_order() == pytest.approx(f(6))
    b = signed()
    b.load_state_dict(found.random(1).permute_state_dict(a.state_dict()))
    p = fxrebasin.match(b, a, VECTORS, state_buffers=["first_sign", "next_sign"])
    moved = p.permute_state_dict(b.state_dict())
    assert all(torch.equal(tensor, a.state_dict()[name]) for name, tensor in moved.items())
    report = fxrebasin.transform(b, a, VECTORS, state_buffers=["*_sign"]).meta["fxrebasin"]
    assert report.distance_before > 1
    assert report.distance_after == 0
    merged = fxrebasin.merge_many(
        [a, b], "merge_many", example_inputs=VECTORS, state_buffers=["*_sign"]
    )
    assert all(torch.equal(t, a.state_dict()[name]) for name, t in merged.state_dict().items())


def test_the_command_line_takes_patterns(tmp_path: Path) -> None:
    model = "tests.test_choices:signed"
    found = fxrebasin.analyze(signed(), VECTORS, state_buffers=["*_sign"])
    save_state_dict(tmp_path / "a.pt", signed().state_dict())
    save_state_dict(tmp_path / "b.pt", found.random(1).permute_state_dict(signed().state_dict()))
    common = ["--input-shape", "4,3", "--state-buffers", "first*", "--state-buffers", "next_sign"]
    inspected = CliRunner().invoke(main, ["inspect", model, "--json", *common])
    assert json.loads(inspected.output)["log10_order"] == pytest.approx(f(6), abs=1e-3)
    out = tmp_path / "out.safetensors"
    files = [f"--model-b={tmp_path / 'b.pt'}", f"--ref={tmp_path / 'a.pt'}", f"--out={out}"]
    done = CliRunner().invoke(main, ["transform", model, *files, *common])
    assert done.exit_code == 0, done.output
    written = load_state_dict(out)
    assert all(torch.equal(t, written[name]) for name, t in signed().state_dict().items())
    refused = CliRunner().invoke(main, ["inspect", model, "--state-buffers", "signs"])
    assert refused.exit_code == 2
    assert "no buffer 'signs'" in refused.output
