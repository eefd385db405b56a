"""What counts as an output: one list for analysis, comparison, tracing and export."""

from __future__ import annotations

import copy
from collections import UserDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributions as D
from torch.nn.utils.rnn import pack_padded_sequence

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.outputs import counted
from fxrebasin.permutation import Permutation

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
