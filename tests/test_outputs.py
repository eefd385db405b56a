"""What counts as an output: one list for analysis, comparison, tracing and export."""

from __future__ import annotations

import copy
import json
from collections import UserDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch import distributions as D
from torch.nn.utils.rnn import pack_padded_sequence

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import ExportError, InputError, TraceError
from fxrebasin.permutation import Permutation
from fxrebasin.running.outputs import counted
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.randomise import log10_factorial as f

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(7))


class Bag:
    """An object with attributes."""

    def __init__(self, **items: Any) -> None:
        vars(self).update(items)


class Slotted:
    __slots__ = ("__private", "kept", "unset")

    def __init__(self, kept: Any) -> None:
        self.kept, self.__private = None, kept


class Inherited(Slotted):
    __slots__ = ("more",)


class Lazy:
    """What its property computes is nobody's output; what it holds is."""

    def __init__(self, held: Tensor) -> None:
        self._held = held

    @property
    def scaled(self) -> Tensor:
        raise AssertionError("properties are not called")


@dataclass(slots=True)
class Frozen:
    left: Any
    right: Any = None


@dataclass
class Loose:
    left: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Tagged(dict[str, Any]):
    """A mapping with an attribute beside its items."""


def tagged(h: Tensor) -> Tagged:
    made = Tagged(n=1)
    made.hidden = h  # type: ignore[attr-defined]
    return made


def with_field_beside(h: Tensor) -> Loose:
    made = Loose(None)
    made.beside = h  # type: ignore[attr-defined]
    return made


def class_with(h: Tensor) -> Any:
    return type("Local", (), {"hidden": h})()


def cyclic(h: Tensor) -> Bag:
    made = Bag(h=h)
    made.me, made.list = made, [made]
    return made


def labelled(**items: Any) -> Any:
    return namedtuple("Labelled", items)(**items)


PLACES: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "twice": (lambda h: {"a": h, "b": h}, ["a", "b"]),
    "tensor": (lambda h: h, ["output"]),
    "nested": (lambda h: {"a": [None, (h, "text")], 3: {"b": h + 1}}, ["a.1.0", "3.b"]),
    "names that meet": (lambda h: {"a.b": h, "a": {"b": h}, 1: h, "1": h},
                        ["a.b", "a.b_1", "1", "1_1"]),
    "a key": (lambda h: {h: 1}, ["key 0"]),
    "named tuple": (lambda h: Pair(h, (h,)), ["left", "right.0"]),
    "made named tuple": (lambda h: labelled(u=h), ["u"]),
    "deque": (lambda h: deque([h]), ["0"]),
    "set": (lambda h: frozenset([h]), ["{0}"]),
    "values": (lambda h: {"a": h}.values(), ["0"]),
    "user dict": (lambda h: UserDict(a=h), ["a"]),
    "object": (lambda h: Bag(n=3, h=h, inner=Bag(h=h)), ["h", "inner.h"]),
    "namespace": (lambda h: [SimpleNamespace(h=h)], ["0.h"]),
    "slots": (lambda h: Slotted(h), ["_Slotted__private"]),
    "inherited slots": (lambda h: Inherited(h), ["_Slotted__private"]),
    "property": (lambda h: Lazy(h), ["_held"]),
    "slotted dataclass": (lambda h: Frozen(1, h), ["right"]),
    "beside the fields": (with_field_beside, ["beside"]),
    "beside the items": (tagged, ["hidden"]),
    "class attribute": (class_with, ["hidden"]),
    "cycle": (cyclic, ["h"]),
    "slice": (lambda h: slice(h, None), ["start"]),
    "categorical": (lambda h: D.Categorical(logits=h), ["logits"]),
    "independent": (lambda h: D.Independent(D.Normal(h, h.exp()), 1),
                    ["base_dist.loc", "base_dist.scale"]),
    "packed": (lambda h: pack_padded_sequence(h[..., None], torch.tensor([5, 4, 3, 3, 1]), True),
               ["data", "batch_sizes"]),
}  # fmt: skip


class Returning(nn.Module):
    """Returns hidden units wherever a function puts them."""

    def __init__(self, put: Callable[[Tensor], Any], head: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.put = put
        self.head = head

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(torch.tanh(self.body(x)))
        return (self.put(h), self.out(h)) if self.head else self.put(h)


def sizes(symmetry: fxrebasin.Symmetry) -> list[int]:
    return [c.size for c in symmetry.classes]


def rolled(symmetry: fxrebasin.Symmetry) -> Permutation:
    """An element that moves every unit."""
    arrays = {name: np.roll(a, 1, -1) for name, a in symmetry.identity().arrays.items()}
    return Permutation(symmetry.classes, arrays, symmetry.layout)


@pytest.mark.parametrize("case", PLACES.values(), ids=PLACES)
def test_tensors_count_wherever_they_are(case: tuple[Callable[[Tensor], Any], list[str]]):
    put, names = case
    model = Returning(put)
    assert list(counted(put(X))) == names
    symmetry = fxrebasin.analyze(model, X)
    assert sizes(symmetry) == [6]
    moved = copy.deepcopy(model)
    moved.load_state_dict(rolled(symmetry).permute_state_dict(model.state_dict()))
    report = fxrebasin.verify(model, moved, X)
    assert report.passed
    assert [output.name for output in report.outputs] == names
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.hidden.bias.copy_(other.hidden.bias.roll(1))
    assert not fxrebasin.verify(model, other, X).passed


def later(h: Tensor) -> Any:
    yield h


class Iterable:
    def __init__(self, h: Tensor) -> None:
        self.h = h

    def __iter__(self) -> Iterable:
        return self

    def __next__(self) -> Tensor:
        raise StopIteration


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "generator": (lambda h: {"a": later(h)}, "'0.a'.*generator"),
    "map": (lambda h: map(abs, [h]), "map has nothing"),
    "own iterator": (lambda h: Iterable(h), "Iterable has nothing"),
    "closure": (lambda h: [lambda: h], "'0.0'.*'h'"),
    "default": (lambda h: lambda h=h: h, "__defaults__"),
    "bound method": (lambda h: Lazy(h).__repr__, "_held"),
    "method of a tensor": (lambda h: h.sum, "__self__"),
    "partial": (lambda h: partial(torch.add, h), "'args.0'"),
    "module": (lambda h: Bag(head=nn.Linear(2, 2)), "'0.head'.*Linear computes later"),
    "array": (lambda h: Bag(a=np.ones(2)), "numpy"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_looked_into_is_refused_unless_it_does_not_count(
    case: tuple[Callable[[Tensor], Any], str],
):
    put, words = case
    model = Returning(put, head=True)
    for call in (
        lambda **options: fxrebasin.analyze(model, X, **options),
        lambda **options: fxrebasin.match(model, model, X, **options),
        lambda **options: fxrebasin.verify(model, model, X, **options),
    ):
        with pytest.raises(InputError, match=words):
            call()
        call(outputs=["1"])
    assert sizes(fxrebasin.analyze(model, X, outputs=lambda returned: returned[1])) == [6, 8]


def test_functions_and_modules_that_hold_no_tensor_are_passed():
    model = Returning(lambda h: (h, len, nn.ReLU(), Bag, torch.float32, Bag(f=lambda x: x + 1)))
    assert [output.name for output in fxrebasin.verify(model, model, X).outputs] == ["0"]


# --- what was passed in --------------------------------------------------------------------------


class Writing(nn.Module):
    """Returns little, and writes hidden units into what it was given."""

    def __init__(self, write: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.write = write

    def forward(self, x: Tensor, given: Any) -> Tensor:
        h = self.hidden(torch.tanh(self.body(x)))
        self.write(given, h)
        return self.out(h)


def set_attribute(given: Bag, h: Tensor) -> None:
    given.h = h


def set_item(given: Tensor, h: Tensor) -> None:
    given[:, 1:] = h


WRITTEN: dict[str, tuple[Any, Callable[[Any, Tensor], Any], str]] = {
    "copy": (torch.zeros(5, 8), lambda given, h: given.copy_(h), "inputs.1"),
    "item": (torch.zeros(5, 9), set_item, "inputs.1"),
    "view": (torch.zeros(8, 5), lambda given, h: given.t().copy_(h), "inputs.1"),
    "inside": ([{"a": torch.zeros(5, 8)}], lambda given, h: given[0]["a"].copy_(h), "inputs.1.0.a"),
    "dict": ({"n": 1}, lambda given, h: given.update(h=h), "inputs.1.h"),
    "list": ([], lambda given, h: given.append({"h": h}), "inputs.1.0.h"),
    "attribute": (Bag(), set_attribute, "inputs.1.h"),
    "tensor of an object": (
        Bag(t=torch.ones(5, 8)),
        lambda given, h: given.t.copy_(h),
        "inputs.1.t",
    ),
}


@pytest.mark.parametrize("case", WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_into_inputs_counts(case: tuple[Any, Callable[[Any, Tensor], Any], str]):
    given, write, name = case
    before = copy.deepcopy(given)
    model = Writing(write)
    symmetry = fxrebasin.analyze(model, (X, given))
    assert sizes(symmetry) == [6]
    moved = copy.deepcopy(model)
    moved.load_state_dict(rolled(symmetry).permute_state_dict(model.state_dict()))
    report = fxrebasin.verify(model, moved, (X, given))
    assert report.passed
    assert [output.name for output in report.outputs] == ["output", name]
    free = fxrebasin.analyze(model, (X, given), outputs=["output"])
    assert sizes(free) == [6, 8]
    moved.load_state_dict(rolled(free).permute_state_dict(model.state_dict()))
    assert not fxrebasin.verify(model, moved, (X, given)).passed
    assert fxrebasin.verify(model, moved, (X, given), outputs=["output"]).passed
    assert repr(vars(given) if isinstance(given, Bag) else given) == repr(
        vars(before) if isinstance(before, Bag) else before
    )


def test_what_an_operator_writes_into_an_input_counts():
    model, given = Writing(lambda given, h: torch.mul(h, 2, out=given)), torch.zeros(5, 8)
    assert sizes(fxrebasin.analyze(model, (X, given))) == [6]
    names = [output.name for output in fxrebasin.verify(model, model, (X, given)).outputs]
    assert names == ["output", "inputs.1"]


# --- what the caller chooses ----------------------------------------------------------------------


class Actor(nn.Module):
    """A policy and a value: a distribution over actions that are not to be permuted."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.pi, self.v = nn.Linear(4, 16), nn.Linear(16, 5), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[D.Categorical, Tensor]:
        h = torch.tanh(self.body(x))
        return D.Categorical(logits=self.pi(h)), self.v(h)


def test_actions_stay_in_their_order(tmp_path: Path):
    a, b = Actor(0), Actor(1)
    p = fxrebasin.match(b, a, X)
    second = fxrebasin.align_many([a, b], example_inputs=X)[1]
    assert set(p.arrays) == set(second.arrays) == {"body.weight[0]"}
    graph = fxrebasin.transform(b, a, X)
    assert list(graph(X)) == ["0.logits", "1"]
    torch.testing.assert_close(graph(X)["0.logits"], b(X)[0].logits)
    assert any("Categorical" in note for note in graph.meta["fxrebasin"].notes)
    assert fxrebasin.verify(b, graph, X).passed
    assert fxrebasin.export_onnx(b, tmp_path / "b.onnx", X).passed
    assert fxrebasin.verify(graph, tmp_path / "b.onnx", X).passed


def moves_hidden(permutation: Permutation) -> bool:
    return "hidden.weight[0]" in permutation.arrays


CHOICES: dict[str, Any] = {
    "names": ["1"],
    "pattern": ["[1]"],
    "function": lambda returned: returned[1],
    "derived": lambda returned: {"chosen": returned[1].exp(), "n": 2},
}


@pytest.mark.parametrize("outputs", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("put", [lambda h: h, lambda h: Bag(h=h)], ids=["tensor", "object"])
def test_a_choice_reaches_every_call(
    put: Callable[[Tensor], Any], outputs: Any, tmp_path: Path
) -> None:
    a, b = Returning(put, head=True), Returning(put, head=True)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(torch.randn_like(parameter))
    symmetry = fxrebasin.analyze(a, X, outputs=outputs)
    assert sizes(symmetry) == [6, 8]
    assert "others may change" in symmetry.notes[-1]
    assert moves_hidden(fxrebasin.match(b, a, X, outputs=outputs))
    assert not moves_hidden(fxrebasin.match(b, a, X))
    assert moves_hidden(fxrebasin.align_many([a, b], example_inputs=X, outputs=outputs)[1])
    moved = copy.deepcopy(a)
    moved.load_state_dict(rolled(symmetry).permute_state_dict(a.state_dict()))
    merged = fxrebasin.merge_many([a, moved], "merge_many", example_inputs=X, outputs=outputs)
    assert torch.equal(merged.hidden.weight, a.hidden.weight)
    assert fxrebasin.verify(a, moved, X, outputs=outputs).passed
    assert not fxrebasin.verify(a, moved, X).passed
    for graph in (
        fxrebasin.transform(b, a, X, outputs=outputs),
        fxrebasin.apply(b, rolled(symmetry), X, outputs=outputs),
    ):
        report = fxrebasin.verify(b, graph, X, outputs=outputs)
        assert report.passed
        assert len(report.outputs) == len(counted(graph(X))) == 1
        assert fxrebasin.verify(graph, graph, X).passed
    assert (
        "others may change"
        in fxrebasin.transform(b, a, X, outputs=outputs).meta["fxrebasin"].notes[-1]
    )


@pytest.mark.parametrize("outputs", [["1"], CHOICES["derived"]], ids=["names", "derived"])
def test_a_file_has_just_the_chosen_outputs(outputs: Any, tmp_path: Path) -> None:
    model = Returning(lambda h: Bag(h=h), head=True)
    path = tmp_path / "model.onnx"
    names = [o.name for o in fxrebasin.export_onnx(model, path, X, outputs=outputs).outputs]
    assert [port.name for port in onnx.load(path).graph.output] == names
    assert len(names) == 1
    assert fxrebasin.verify(model, path, X, outputs=outputs).passed
    assert fxrebasin.verify(model, path, X).failures


def test_a_file_may_have_more_outputs_than_are_compared(tmp_path: Path) -> None:
    model = Returning(lambda h: h, head=True)
    fxrebasin.export_onnx(model, tmp_path / "model.onnx", X)
    report = fxrebasin.verify(model, tmp_path / "model.onnx", X, outputs=["1"])
    assert report.passed
    assert [output.name for output in report.outputs] == ["1"]


def fails(returned: Any) -> Any:
    return returned.logits


BAD: dict[str, tuple[Any, str]] = {
    "unknown": (["1", "logits"], r"no output 'logits'. Its outputs are: 0, 1"),
    "one name": ("1", "pass a list"),
    "none": ([], "pass a list"),
    "numbers": ([1], "pass a list"),
    "a type": (Bag, "pass a list"),
    "function": (fails, "outputs= raised AttributeError"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_choices_that_do_not_fit_are_refused(case: tuple[Any, str], tmp_path: Path) -> None:
    outputs, words = case
    model = Returning(lambda h: h, head=True)
    identity = fxrebasin.analyze(model, X).identity()
    for call in (
        lambda: fxrebasin.analyze(model, X, outputs=outputs),
        lambda: fxrebasin.match(model, model, X, outputs=outputs),
        lambda: fxrebasin.apply(model, identity, X, outputs=outputs),
        lambda: fxrebasin.transform(model, model, X, outputs=outputs),
        lambda: fxrebasin.verify(model, model, X, outputs=outputs),
        lambda: fxrebasin.export_onnx(model, tmp_path / "m.onnx", X, outputs=outputs),
        lambda: fxrebasin.align_many([model, model], example_inputs=X, outputs=outputs),
    ):
        with pytest.raises((InputError, ExportError), match=words):
            call()


def test_members_of_a_set_are_compared_by_value_and_chosen_together() -> None:
    model = Returning(lambda h: {h, h + 1}, head=True)
    assert sizes(fxrebasin.analyze(model, X)) == [6]
    report = fxrebasin.verify(model, copy.deepcopy(model), X)
    assert report.passed
    assert len(report.outputs) == 3
    (name,) = [o.name for o in report.outputs if o.name == "0.{1}"]
    chosen = fxrebasin.verify(model, model, X, outputs=[name]).outputs
    assert [output.name for output in chosen] == ["0.{0}", "0.{1}"]


def picked(returned: tuple[Tensor, Tensor]) -> Tensor:
    return returned[1] if float(returned[0][0, 3]) < 1e9 else returned[0]


def test_a_function_may_look_at_values() -> None:
    model = Returning(lambda h: h, head=True)
    assert sizes(fxrebasin.analyze(model, X, outputs=picked)) == [6, 7]


# --- outputs that the model goes on with ----------------------------------------------------------


class Stages(nn.Module):
    """Returns the states on its way; only the first two of them are read again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        first = torch.relu(self.a(x))
        second = self.b(first)
        last = self.c(torch.relu(second).view(-1, 7))
        return {
            "last": last,
            "steps": [first[None], second, second.new_ones(2)],
            "doubled": last * 2,
        }


def test_notes_say_which_outputs_on_the_way_cost_what() -> None:
    symmetry = fxrebasin.analyze(Stages(), X)
    assert sizes(symmetry) == []
    (note,) = symmetry.notes
    assert "outputs steps.0, steps.1, and" in note
    assert f"{f(6) + f(7):.4f} instead of 0.0000" in note
    one = fxrebasin.analyze(Stages(), X, outputs=["last", "steps.1"])
    assert sizes(one) == [6]
    assert f"{f(6) + f(7):.4f} instead of {f(6):.4f}" in one.notes[-1]
    assert len(fxrebasin.analyze(Stages(), X, outputs=["last", "doubled"]).notes) == 1
    assert fxrebasin.analyze(Returning(lambda h: h), X).notes == ()


# --- inputs and the command line ------------------------------------------------------------------


def refilled(given: deque[Any], h: Tensor) -> None:
    kept = given.pop()
    given.appendleft(h)
    given.append([kept])


def replaced(given: list[Any], h: Tensor) -> None:
    given[0], given[1:] = given[1] + h.sum(), [given[0], h]


def nested_in_tensors(given: dict[str, Any], h: Tensor) -> None:
    given["deep"][0]["list"].append(h * given["scale"])
    given["scale"] = given["scale"] + 1


class Holder:
    __slots__ = ("inner",)

    def __init__(self) -> None:
        self.inner = {"kept": [1]}

    def __repr__(self) -> str:
        return f"Holder({self.inner})"


def slots(given: Holder, h: Tensor) -> None:
    given.inner["kept"].append(h)
    given.inner = {"before": given.inner}


FILLED: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any]]] = {
    "dict": (lambda: {"n": 1}, lambda given, h: given.update(h=h, also=(h, {"more": h * 2}), n=2)),
    "other mapping": (UserDict, lambda given, h: given.setdefault("h", h)),
    "list": (list, lambda given, h: given.extend([3, h])),
    "deque": (lambda: deque([1, torch.ones(2)], 3), refilled),
    "set": (lambda: {1}, lambda given, h: given.add(h)),
    "places that change": (lambda: [torch.ones(8), torch.zeros(8)], replaced),
    "beside tensors": (
        lambda: {"scale": torch.ones(8), "deep": [{"list": [], "n": 1}]}, nested_in_tensors
    ),
    "in a tuple": (lambda: (1, [[]]), lambda given, h: given[1][0].insert(0, h)),
    "attributes": (lambda: Bag(inner=Bag()), lambda given, h: set_attribute(given.inner, h)),
    "slots": (Holder, slots),
    "what holds itself": (lambda: (lambda bag: (setattr(bag, "me", bag), bag)[1])(Bag()),
                          set_attribute),
}  # fmt: skip


def held(given: Any) -> dict[str, Any]:
    return counted([given])


@pytest.mark.parametrize("case", FILLED.values(), ids=FILLED)
def test_graphs_fill_what_was_passed_in(
    case: tuple[Callable[[], Any], Callable[[Any, Tensor], Any]],
) -> None:
    make, write = case
    model, own, graphs, given = Writing(write), make(), make(), make()
    before = held(given)
    graph = fxrebasin.transform(model, Writing(write), (X, given))
    assert graph.meta["fxrebasin"].certificate.classes
    assert list(held(given)) == list(before)
    torch.testing.assert_close(graph(X, graphs), model(X, own))
    assert list(held(graphs)) == list(held(own)) != list(before)
    for name, tensor in held(own).items():
        torch.testing.assert_close(held(graphs)[name], tensor)


def test_graphs_fill_only_what_counts(tmp_path: Path) -> None:
    model = Writing(lambda given, h: given.update(h=h, s=h.sum(1), own=Bag(h=h)))
    for names, filled in (["output"], []), (["inputs.1.s", "output"], ["s"]):
        graph, given = fxrebasin.transform(model, model, (X, {}), outputs=names), {}
        assert torch.equal(graph(X, given), model(X, {}))
        assert list(given) == filled
        for each in (graph, model):
            path = tmp_path / "net.onnx"
            report = fxrebasin.export_onnx(each, path, (X, {}), outputs=names, overwrite=True)
            assert sorted(item.name for item in report.outputs) == sorted(names)


class AsksShapes(Writing):
    """One that torch.fx cannot trace."""

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return super().forward(x, given) if x.shape[0] > 1 else x


def test_filling_that_no_graph_does_is_refused_with_what_to_do() -> None:
    model = AsksShapes(WRITTEN["dict"][1])
    with pytest.raises(
        TraceError, match=r"do not fill .*inputs\.1\.h\).* forward return .*outputs="
    ):
        fxrebasin.transform(model, model, (X, {}))
    assert fxrebasin.transform(model, model, (X, {}), outputs=["output"]).meta["fxrebasin"]


@pytest.mark.parametrize("name", ["copy", "view", "inside", "item"])
def test_graphs_write_into_inputs_as_their_models_do(name: str, tmp_path: Path) -> None:
    given, write, output = WRITTEN[name]
    model = Writing(write)
    graph = fxrebasin.transform(model, Writing(write), (X, given))
    names = [o.name for o in graph.meta["fxrebasin"].equivalence.outputs]
    assert names == ["output", output]


def test_a_dict_that_is_filled_is_exported(tmp_path: Path) -> None:
    given, write, output = WRITTEN["dict"]
    report = fxrebasin.export_onnx(Writing(write), tmp_path / "model.onnx", (X, given))
    assert [o.name for o in report.outputs] == ["output", output]


def staged() -> Stages:
    return Stages()


def test_the_command_line_takes_outputs(tmp_path: Path) -> None:
    model, common = "tests.test_outputs:staged", ["--input-shape", "4,4", "--outputs", "last,dou*"]
    symmetry = fxrebasin.analyze(staged(), X, outputs=["last"])
    save_state_dict(tmp_path / "a.pt", staged().state_dict())
    moved = rolled(symmetry).permute_state_dict(staged().state_dict())
    save_state_dict(tmp_path / "b.pt", moved)
    files = [f"--model-b={tmp_path / 'b.pt'}", f"--ref={tmp_path / 'a.pt'}"]
    made = [f"--out={tmp_path / 'o.safetensors'}", f"--onnx={tmp_path / 'o.onnx'}"]
    weights = f"--weights={tmp_path / 'a.pt'}"
    exported = ["export", model, weights, f"--out={tmp_path / 'e.onnx'}"]
    run = CliRunner().invoke
    for arguments in (
        ["transform", model, *files, *made],
        ["verify", model, str(tmp_path / "b.pt"), weights],
        exported,
    ):
        done = run(main, [*arguments, *common])
        assert done.exit_code == 0, done.output
    assert run(main, ["verify", model, str(tmp_path / "b.pt"), weights]).exit_code == 1
    for path in (tmp_path / "o.onnx", tmp_path / "e.onnx"):
        assert [port.name for port in onnx.load(path).graph.output] == ["last", "doubled"]
    inspected = run(main, ["inspect", model, "--json", *common])
    assert json.loads(inspected.output)["log10_order"] == pytest.approx(f(6) + f(7), abs=1e-3)
    refused = run(main, ["inspect", model, "--outputs", "first"])
    assert refused.exit_code == 2
    assert "no output 'first'" in refused.output
