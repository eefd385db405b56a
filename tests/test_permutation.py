"""The group: composing, undoing, storing, and moving tensors bit for bit."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.layout import AxisGroup, PermutationClass, Piece, Slot
from fxrebasin.permutation import Permutation
from tests.support.synthetic import (
    ZOO,
    Synthetic,
    attention,
    equal,
    grouped_conv,
    mlp,
    one_axis,
    tied,
)

State = dict[str, torch.Tensor]


def slow(p: Permutation, state: State) -> State:
    """The definition, position by position."""
    result = {}
    for name, tensor in state.items():
        moved = tensor.clone()
        for group in p.layout.get(name, ()):
            front = tuple(range(len(group.axes)))
            shape = tuple(tensor.shape[axis] for axis in group.axes)
            old, new = moved.clone().movedim(group.axes, front), moved.movedim(group.axes, front)
            for piece in group.pieces:
                for at in itertools.product(*(range(slot.size) for slot in piece.slots)):
                    source = source_of(p, piece, at)
                    to = np.unravel_index(piece.positions[at], shape)
                    new[to] = old[np.unravel_index(piece.positions[source], shape)]
        result[name] = moved
    return result


def source_of(p: Permutation, piece: Piece, at: tuple[int, ...]) -> tuple[int, ...]:
    """Where slot coordinates come from."""
    return tuple(
        i
        if slot.class_name is None
        else int(p.arrays[slot.class_name][(*(at[w] for w in slot.within), i)])
        for slot, i in zip(piece.slots, at, strict=True)
    )


@pytest.mark.parametrize("name", ZOO)
def test_it_moves_what_the_definition_says(name: str) -> None:
    model = ZOO[name]()
    p, state = model.random(1), model.state(0)
    assert equal(p.permute_state_dict(state), slow(p, state))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_a_group_that_acts(name: str, seed: int) -> None:
    model = ZOO[name]()
    p, q, r = (model.random(10 * seed + k) for k in range(3))
    state = model.state(seed)
    assert equal(
        p.compose(q).permute_state_dict(state), p.permute_state_dict(q.permute_state_dict(state))
    )
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    assert p.compose(p.inverse()) == p.inverse().compose(p) == model.identity()
    assert p.compose(model.identity()) == p == model.identity().compose(p)
    assert equal(p.inverse().permute_state_dict(p.permute_state_dict(state)), state)


def test_the_identity_moves_nothing_and_copies() -> None:
    model = mlp(3, 5, 2)
    state = model.state(0)
    moved = model.identity().permute_state_dict(state)
    assert model.identity().is_identity
    assert equal(moved, state)
    assert moved["layers.1.weight"].data_ptr() != state["layers.1.weight"].data_ptr()


def test_a_permuted_network_computes_the_same() -> None:
    model = mlp(4, 7, 6, 3)
    state = model.state(0, torch.float64)
    moved = model.random(3).permute_state_dict(state)
    x = torch.randn(5, 4, dtype=torch.float64)

    def run(s: State) -> torch.Tensor:
        h = x
        for k in (1, 2, 3):
            h = torch.tanh(h @ s[f"layers.{k}.weight"].T + s[f"layers.{k}.bias"])
        return h

    torch.testing.assert_close(run(moved), run(state), rtol=1e-12, atol=1e-12)


def test_a_permuted_attention_computes_the_same() -> None:
    model = attention(width=12, heads=3, dim=4, blocks=1)
    state = model.state(0, torch.float64)
    moved = model.random(3).permute_state_dict(state)
    assert not torch.equal(moved["b0.qkv.weight"], state["b0.qkv.weight"])

    def run(s: State) -> torch.Tensor:
        h = s["embed"][:9]
        q, k, v = (h @ s["b0.qkv.weight"].T + s["b0.qkv.bias"]).view(9, 3, 3, 4).unbind(1)
        scores = torch.einsum("nhd,mhd->hnm", q, k) + s["b0.bias_table"].T[:, :, None]
        mixed = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).reshape(9, 12)
        h = h + mixed @ s["b0.o.weight"].T + s["b0.o.bias"]
        h = h + (h @ s["b0.up.weight"].T + s["b0.up.bias"]).relu() @ s["b0.down.weight"].T
        return (h * s["norm"]).sum(1)

    torch.testing.assert_close(run(moved), run(state), rtol=1e-12, atol=1e-12)


def test_a_permuted_grouped_convolution_computes_the_same() -> None:
    model = grouped_conv(width=6, groups=3, inner=2, blocks=1)
    state = model.state(0, torch.float64)
    moved = model.random(3).permute_state_dict(state)
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)

    def run(s: State) -> torch.Tensor:
        conv = torch.nn.functional.conv2d
        h = conv(x, s["stem.weight"], s["stem.bias"])
        i = conv(h, s["b0.reduce.weight"], s["b0.reduce.bias"]).relu()
        i = conv(i, s["b0.conv.weight"], s["b0.conv.bias"], padding=1, groups=3).relu()
        h = h + conv(i, s["b0.expand.weight"], s["b0.expand.bias"])
        return conv(h.mean((2, 3), keepdim=True), s["head.weight"][..., None, None])

    torch.testing.assert_close(run(moved), run(state), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.complex128,
    ],
)
def test_every_dtype_moves_bit_for_bit(dtype: torch.dtype, generator: torch.Generator) -> None:
    model = one_axis(64)
    p = model.random(2)
    size = torch.empty((), dtype=dtype).element_size()
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (64, size), generator=generator)
    bits = bits.to(torch.uint8)
    moved = p.permute_state_dict({"w": bits.view(dtype)[:, 0]})["w"]
    assert moved.dtype == dtype
    assert torch.equal(moved.view(torch.uint8).view(64, size), bits[p.arrays["c"]])


def test_lazy_conjugates_move_as_values() -> None:
    model = one_axis(8)
    z = torch.randn(8, dtype=torch.complex64)
    p = model.random(0)
    for lazy in (z.conj(), z.conj().imag):
        moved = p.permute_state_dict({"w": lazy})["w"]
        assert not moved.is_conj()
        assert not moved.is_neg()
        assert torch.equal(moved, lazy.resolve_conj().resolve_neg()[p.arrays["c"]])


def test_strides_are_kept() -> None:
    s = Synthetic()
    s.declare("o", 6)
    s.declare("i", 4)
    s.add("w", (6, 4, 3, 3), s.axis(0, "o"), s.axis(1, "i"))
    p = s.random(0)
    plain = torch.randn(6, 4, 3, 3)
    expected = plain[p.arrays["o"]][:, p.arrays["i"]]
    with_gaps = torch.zeros(6, 4, 3, 5)[..., :3].copy_(plain)
    last = plain.to(memory_format=torch.channels_last)
    turned = plain.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for weight in (plain, last, turned, with_gaps):
        moved = p.permute_state_dict({"w": weight})["w"]
        assert moved.stride() == weight.stride()
        assert torch.equal(moved, expected)


def test_expanded_tensors_get_memory_of_their_own() -> None:
    s = Synthetic()
    s.declare("o", 6)
    s.add("w", (6, 4), s.axis(0, "o"))
    column = torch.randn(6, 1)
    moved = s.random(0).permute_state_dict({"w": column.expand(6, 4)})["w"]
    assert torch.equal(moved, column[s.random(0).arrays["o"]].expand(6, 4))
    moved[0, 0] += 1
    assert moved[0, 0] != moved[0, 1]


def test_ties_stay_and_the_input_is_not_changed() -> None:
    model = tied()
    state = model.state(0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    moved = model.random(1).permute_state_dict(state)
    assert moved["embed"] is moved["unembed"]
    assert moved["embed"].data_ptr() != state["embed"].data_ptr()
    assert equal(state, before)


def test_tensors_that_share_memory_by_chance_are_moved_each_in_its_way() -> None:
    s = Synthetic()
    s.declare("a", 8)
    s.declare("b", 8)
    s.add("first", (8,), s.axis(0, "a"))
    s.add("second", (8,), s.axis(0, "b"))
    shared, p = torch.arange(8.0), s.random(0)
    moved = p.permute_state_dict({"first": shared, "second": shared})
    assert torch.equal(moved["first"], shared[p.arrays["a"]])
    assert torch.equal(moved["second"], shared[p.arrays["b"]])


def test_other_keys_pass_and_the_order_is_kept() -> None:
    model = mlp(3, 5, 2)
    state = {"step": torch.tensor(3), **model.state(0), "extra": torch.randn(5)}
    moved = model.random(1).permute_state_dict(state)
    assert list(moved) == list(state)
    assert moved["step"] is state["step"]
    assert moved["extra"] is state["extra"]


def test_parameters_come_back_as_plain_tensors() -> None:
    model = one_axis(5)
    moved = model.random(1).permute_state_dict({"w": torch.nn.Parameter(torch.randn(5))})["w"]
    assert type(moved) is torch.Tensor
    assert not moved.requires_grad


def test_a_single_tensor_moves_as_in_the_state() -> None:
    model = grouped_conv()
    p, state = model.random(1), model.state(0)
    moved = p.permute_state_dict(state)
    assert all(torch.equal(p.permute_tensor(n, t), moved[n]) for n, t in state.items())
    assert p.permute_tensor("other", state["head.bias"]) is state["head.bias"]
    with pytest.raises(ArchitectureMismatchError, match=r"head.weight .*no axis 1"):
        p.permute_tensor("head.weight", torch.zeros(3))


def test_a_state_that_does_not_fit_is_refused_with_all_that_is_wrong() -> None:
    model = mlp(3, 5, 2)
    state = model.state(0)
    del state["layers.1.bias"]
    state["layers.1.weight"] = state["layers.1.weight"][:4]
    state["layers.2.weight"] = state["layers.2.weight"][:, 0]
    with pytest.raises(ArchitectureMismatchError) as caught:
        model.random(1).permute_state_dict(state)
    text = str(caught.value)
    assert "layers.1.bias: missing" in text
    assert "layers.1.weight: has shape (4, 3); axes (0,) need 5 positions" in text
    assert "layers.2.weight: has shape (2,), no axis 1" in text


def test_random_elements_are_repeatable_and_cover_all_copies() -> None:
    model = attention()
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (only to see that it stays)
    p = model.random(4)
    assert p == model.random(4)
    assert p != model.random(5)
    copies = p.arrays["b0.v"]
    assert copies.shape == (4, 8)
    assert len({tuple(row) for row in copies}) == 4
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_random_elements_are_uniform() -> None:
    model = one_axis(3)
    counts = np.zeros(6)
    orders = list(itertools.permutations(range(3)))
    for seed in range(1200):
        counts[orders.index(tuple(model.random(seed).arrays["c"]))] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # chi-squared, 5 degrees, 1 in 1000


def test_equality_and_text() -> None:
    model, other = mlp(3, 5, 2), mlp(3, 6, 2)
    p = model.random(1)
    assert p != model.identity()
    assert p != other.identity()
    assert p != "p"
    assert repr(model.identity()) == "Permutation(1 class, 0 of 5 units moved)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(p)


def test_it_can_be_copied_and_pickled_and_its_arrays_are_its_own() -> None:
    model = attention()
    p = model.random(1)
    assert copy.deepcopy(p) == p == pickle.loads(pickle.dumps(p))
    array = np.arange(5)[::-1].copy()
    q = Permutation(mlp(3, 5, 2).classes, {"h1": array}, {})
    array[:] = 0
    assert list(q.arrays["h1"]) == [4, 3, 2, 1, 0]


def test_composing_across_models_is_refused() -> None:
    with pytest.raises(InputError, match=r"different symmetry groups: 'h1' \(5, \(\)\) and \(6"):
        mlp(3, 5, 2).random(0).compose(mlp(3, 6, 2).random(0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "class 'c' has no array"),
        (np.arange(4), r"class 'c' needs integers of shape \(5,\), got int64 \(4,\)"),
        (np.arange(5.0), "class 'c' needs integers"),
        (np.array([0, 1, 2, 3, 3]), "the array of class 'c' is not a permutation of 0 to 4"),
        (np.array([1, 2, 3, 4, 5]), "the array of class 'c' is not a permutation"),
    ],
)
def test_arrays_that_are_no_permutation_are_refused(array: object, message: str) -> None:
    model = one_axis(5)
    with pytest.raises(InputError, match=message):
        Permutation(model.classes, {} if array is None else {"c": array}, model.layout)


def test_arrays_of_unknown_classes_are_refused() -> None:
    model = one_axis(5)
    with pytest.raises(InputError, match="classes that do not exist: d"):
        Permutation(model.classes, {"c": np.arange(5), "d": np.arange(5)}, model.layout)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((PermutationClass("a", 2), PermutationClass("a", 3)), "two permutation classes"),
        ((PermutationClass("a", 2, ("b",)),), "within 'b', which does not exist"),
        ((PermutationClass("a", 2, ("a",)),), "each must be named once"),
        (
            (
                PermutationClass("a", 2),
                PermutationClass("b", 2, ("a",)),
                PermutationClass("c", 2, ("b",)),
            ),
            "each must be named once, with the classes that it is within itself",
        ),
    ],
)
def test_classes_that_contradict_each_other_are_refused(
    classes: tuple[PermutationClass, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Permutation.identity(classes, {})


@pytest.mark.parametrize(
    ("slots", "shape", "message"),
    [
        ((Slot("c", 5),), (4,), r"positions of shape \(4,\)"),
        ((Slot("c", 4),), (4,), "a slot of size 4 does not fit class 'c'"),
        ((Slot("x", 5),), (5,), "class 'x' does not exist"),
        ((Slot("c", 5, (0,)),), (5,), "does not fit class 'c'"),
        ((Slot("c", 5, (3,)),), (5,), "of 1 slots"),
    ],
)
def test_layouts_that_do_not_fit_the_classes_are_refused(
    slots: tuple[Slot, ...], shape: tuple[int, ...], message: str
) -> None:
    layout = {"w": (AxisGroup((0,), (Piece(slots, np.arange(np.prod(shape)).reshape(shape)),)),)}
    with pytest.raises(InputError, match=rf"layout of 'w', axes \(0,\): .*{message}"):
        Permutation.identity((PermutationClass("c", 5),), layout)
