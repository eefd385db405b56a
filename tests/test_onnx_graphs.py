"""What is found of ONNX graphs: control flow, constants, sizes, tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import fxrebasin
from fxrebasin.analysis import symmetry_of
from fxrebasin.choices import choices_for
from fxrebasin.importers.onnx import finding
from fxrebasin.importers.onnx.finding import find
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.module import OnnxModule
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, model, planted
from tests.support.onnx_proofs import assert_a_file_is_recovered
from tests.support.randomise import log10_factorial


def log(*sizes: int) -> float:
    return sum(math.log10(math.factorial(size)) for size in sizes)


def order(text: str, weights: dict[str, Any], tmp_path: Path | None = None) -> float:
    """The order of a graph; with a folder, also a planted permutation is recovered."""
    made = model(text, weights)
    found = find(read(made)).symmetry.log10_order()
    if tmp_path is not None:
        onnx.save(made, tmp_path / "b.onnx")
        planted(tmp_path / "b.onnx", tmp_path / "a.onnx")
        report = fxrebasin.onnx_transform(
            tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "out.onnx"
        )
        assert report.distance_before > 0 == report.distance_after
    return found


# On two rows the branch pins the units of one layer, on more rows those of another.
SIZES = """ g (float[n,3] x) => (float[n,2] y, float[m] z) {
    a = MatMul(x, w1)  h = Relu(a)  b = MatMul(x, w2)  k = Relu(b)  d = MatMul(x, w3) l = Relu(d)
    n = Shape<start = 0, end = 1>(x)  e = Equal(n, two)  c = Squeeze(e)
    z = If(c) <then_branch = one () => (float[m] t) { p = ReduceSum<keepdims = 0>(h, rows)
                                                      t = Identity(p) },
               else_branch = two () => (float[m] t) { p = ReduceSum<keepdims = 0>(k, rows)
                                                      t = Identity(p) }>
    u = MatMul(h, v1)  v = MatMul(k, v2)  w = MatMul(l, v3)  y = Sum(u, v, w) }"""
OF_SIZES = {
    **{"w1": (3, 5), "w2": (3, 5), "w3": (3, 4), "v1": (5, 2), "v2": (5, 2), "v3": (4, 2)},
    **{"two": np.array([2]), "rows": np.array([0])},
}


def test_what_holds_at_all_sizes_counts_where_neither_group_contains_the_other(
    tmp_path: Path,
) -> None:
    source = read(model(SIZES, OF_SIZES))
    found = find(source)
    assert {len(item["x"]) == 2 for item in found.runs.inputs} == {True, False}
    alone = [find(source, {"x": item["x"]}).symmetry.log10_order() for item in found.runs.inputs]
    assert alone == pytest.approx([log(5, 4), log(5, 4)])
    assert order(SIZES, OF_SIZES, tmp_path) == pytest.approx(log(4))
    assert any("inputs of several sizes" in note for note in found.symmetry.notes)
    chosen = find(source, choices=choices_for(source.module(), outputs=["y"])).symmetry
    assert chosen.log10_order() == pytest.approx(log(5, 5, 4))


TWO_LAYERS = {"w1": (3, 8), "w2": (8, 8), "w3": (8, 2)}
BRANCHES = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  h = Relu(a)  b = MatMul(h, w2)  k = Relu(b)
    CONDITION
    z = If(c) <then_branch = one () => (float[n,8] t) { t = Relu(k) },
               else_branch = two () => (float[n,8] t) { t = Add(h, k) }>
    y = MatMul(z, w3) }"""


def test_both_branches_count_where_data_choose(tmp_path: Path) -> None:
    text = BRANCHES.replace("CONDITION", "s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero)")
    weights = {**TWO_LAYERS, "zero": np.float32(0)}
    assert order(text, weights, tmp_path) == pytest.approx(log(8))


@pytest.mark.parametrize(("condition", "expected"), [(True, log(8, 8)), (False, log(8))])
def test_one_branch_counts_where_a_constant_chooses(
    condition: bool, expected: float, tmp_path: Path
) -> None:
    text = BRANCHES.replace("CONDITION", "c = Identity(chosen)")
    weights = {**TWO_LAYERS, "chosen": np.bool_(condition)}
    assert order(text, weights, tmp_path) == pytest.approx(expected)


def test_a_mask_that_was_folded_is_no_weight(tmp_path: Path) -> None:
    """Its infinities are no numbers of a model that went wrong; its places are those of tokens."""
    text = """ g (float[4,3] x) => (float[4,2] y) {
        h = MatMul(x, w1)  q = MatMul(h, wq)  k = MatMul(h, wk)  t = Transpose<perm = [1, 0]>(k)
        s = MatMul(q, t)  m = Add(s, mask)  p = Softmax<axis = 1>(m)  a = MatMul(p, h)
        y = MatMul(a, w2) }"""
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    weights = {"w1": (3, 8), "wq": (8, 5), "wk": (8, 5), "w2": (8, 2), "mask": mask}
    assert order(text, weights, tmp_path) == pytest.approx(log(8, 5))


def test_a_shape_may_choose() -> None:
    condition = """s = Shape(x)  n = Gather(s, one)  c = Equal(n, three)"""
    weights = {**TWO_LAYERS, "one": np.int64(1), "three": np.int64(3)}
    assert order(BRANCHES.replace("CONDITION", condition), weights) == pytest.approx(log(8, 8))


def test_branches_of_other_shapes_are_both_taken() -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)
        a = MatMul(x, w1)  h = Relu(a)  b = MatMul(h, w2)  k = Relu(b)
        z = If(c) <then_branch = one () => (float[p,8] t) { t = Identity(k) },
                   else_branch = two () => (float[q,8] t) {
                       d = Add(h, k)  t = Concat<axis=0>(d, d) }>
        m = ReduceMean<axes = [0], keepdims = 1>(z)
        f = Add(k, m)
        y = MatMul(f, w3) }"""
    assert order(text, {**TWO_LAYERS, "zero": np.float32(0)}) == pytest.approx(log(8))


def test_names_in_bodies_are_their_own(tmp_path: Path) -> None:
    """Sibling bodies use one name for different tensors, and for one outside."""
    text = """ g (float[n,3] x) => (float[n,2] y) {
        s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)
        z = If(c) <then_branch = one () => (float[n,2] t) {
                       a = MatMul(x, u)  b = Relu(a)  t = MatMul(b, v) },
                   else_branch = two () => (float[n,2] t) {
                       a = MatMul(x, u)  b = Relu(a)  t = MatMul(b, v) }>
        y = Identity(z) }"""
    made = model(text, {"zero": np.float32(0)}, checked=False)
    generator = np.random.default_rng(1)
    for body, size in zip(made.graph.node[2].attribute, (4, 6), strict=True):
        for name, shape in {"u": (3, size), "v": (size, 2)}.items():
            value = generator.standard_normal(shape).astype(np.float32)
            body.g.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(made, tmp_path / "b.onnx")
    found = planted(tmp_path / "b.onnx", tmp_path / "a.onnx")
    assert found.symmetry.log10_order() == pytest.approx(log(4, 6))
    assert {"z/then_branch/u", "z/else_branch/u"} <= found.symmetry.layout.keys()
    report = fxrebasin.onnx_transform(
        tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "out.onnx"
    )
    assert report.distance_after == 0 < report.distance_before


LOOP = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  h = Relu(a)
    z = Loop(trips, going, h) <body = step (int64 i, bool on, float[n,8] s) =>
        (bool again, float[n,8] t) { again = Identity(on)  b = MatMul(s, w2)  t = Tanh(b) }>
    y = MatMul(z, w3) }"""


def test_loops_carry_units_round(tmp_path: Path) -> None:
    weights = {**TWO_LAYERS, "trips": np.int64(3), "going": np.bool_(True)}
    assert order(LOOP, weights, tmp_path) == pytest.approx(log(8))


def test_loops_whose_end_data_decide() -> None:
    text = LOOP.replace("again = Identity(on)", "q = ReduceSum<keepdims=0>(s) again = Less(q, far)")
    weights = {**TWO_LAYERS, "trips": np.int64(3), "going": np.bool_(True), "far": np.float32(9)}
    assert order(text, weights) == pytest.approx(log(8))


def test_what_a_loop_counts_is_not_what_it_carries() -> None:
    text = LOOP.replace(
        "b = MatMul(s, w2)",
        """m = Mod(i, two)  odd = Cast<to = 9>(m)
           b = If(odd) <then_branch = one () => (float[n,8] c) { c = MatMul(s, w2) },
                        else_branch = other () => (float[n,8] d) { d = Relu(s) }>""",
    )
    weights = {**TWO_LAYERS, "trips": np.int64(3), "going": np.bool_(True), "two": np.int64(2)}
    assert order(text, weights) == pytest.approx(log(8, 8))  # w2 is read in the second turn only


@pytest.mark.parametrize("least", [np.finfo(np.float32).min, -np.inf])
def test_masks_are_no_weights(least: float) -> None:
    text = MLP.replace("c = Relu(b)", "s = Add(b, mask) c = Relu(s)")
    mask = np.array([0, 0, least, least, 0], np.float32)
    assert "mask" not in read(model(text, {**MLP_WEIGHTS, "mask": mask})).state
    other = np.array([0, 1, least, least, 0], np.float32)
    assert "mask" in read(model(text, {**MLP_WEIGHTS, "mask": other})).state


def test_scans_are_followed(tmp_path: Path) -> None:
    text = """ g (float[4,3] x) => (float[4,2] y) {
        first = Expand(zero, shape)
        last, z = Scan(first, x) <num_scan_inputs = 1, body = step (float[8] s, float[3] v) =>
            (float[8] t, float[8] o) {
                a = MatMul(v, w1)  b = MatMul(s, w2)  c = Add(a, b)  t = Tanh(c)  o = Relu(t) }>
        y = MatMul(z, w3) }"""
    weights = {**TWO_LAYERS, "zero": np.float32(0), "shape": np.array([8])}
    assert order(text, weights, tmp_path) == pytest.approx(log(8))


def test_nodes_may_be_in_any_order(tmp_path: Path) -> None:
    made = model(MLP, MLP_WEIGHTS)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend(nodes[::-1])
    assert find(read(made)).symmetry.log10_order() == pytest.approx(log(5))


def test_a_tensor_that_two_layers_share_ties_nothing() -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        a = MatMul(x, w1)  b = Mul(a, same)  h = Relu(b)
        d = MatMul(h, w2)  e = Mul(d, same)  k = Relu(e)
        y = MatMul(k, w3) }"""
    shared = {**TWO_LAYERS, "same": np.full(8, 0.5, np.float32)}
    assert order(text, shared) == pytest.approx(log(8, 8))
    assert order(text, {**TWO_LAYERS, "same": (8,)}) == pytest.approx(log(8, 8))


def test_a_table_that_cannot_move_is_a_constant() -> None:
    """Rows of a mask that are alike leave the units that they meet interchangeable."""
    text = """ g (float[n,3] x) => (float[n,2] y) {
        t = MatMul(x, mask)
        a = MatMul(x, w1)  h = Relu(a)  b = MatMul(h, w2)  y = Add(b, t) }"""
    mask = np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    weights = {"w1": (3, 8), "w2": (8, 2), "mask": mask}
    assert order(text, weights) == pytest.approx(log(8))
    gated = text.replace("h = Relu(a)", "g = MatMul(x, table)  r = Relu(a)  h = Mul(r, g)")
    halves = np.repeat(np.array([[1, 2], [3, 4], [5, 6]], np.float32), 4, 1)
    assert order(gated, {**weights, "table": halves}) == pytest.approx(log(8))


def test_a_constant_that_others_are_computed_from_may_free_what_it_pins_as_a_weight() -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        s = CumSum(table, axis)  p = Sign(s)
        a = MatMul(x, w1)  r = Relu(a)  h = Mul(r, p)  y = MatMul(h, w2) }"""
    weights = {"w1": (3, 8), "w2": (8, 2), "table": np.arange(1, 9, dtype=np.float32)}
    source = read(model(text, {**weights, "axis": np.array(0)}))
    assert find(source).symmetry.log10_order() == 0
    assert find(source, equal={"table"}).symmetry.log10_order() == pytest.approx(log(8))


def test_constants_that_could_free_nothing_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        a = MatMul(x, w1)  h = Relu(a)  b = MatMul(h, w2)  y = Add(b, last) }"""
    analysed: list[OnnxModule] = []

    def counting(module: OnnxModule, *rest: Any) -> Any:
        analysed.append(module)
        return symmetry_of(module, *rest)

    monkeypatch.setattr(finding, "symmetry_of", counting)
    found = find(read(model(text, {"w1": (3, 8), "w2": (8, 2), "last": (2,)})), equal={"last"})
    assert found.symmetry.log10_order() == pytest.approx(log(8))
    assert len(analysed) == len(found.runs.inputs) == 2


def test_numbers_that_shapes_are_made_of_are_no_weights() -> None:
    text = """ g (float[n,3] x) => (float[m,2] y) {
        s = Mul(halves, two)  t = Cast<to = 7>(s)  v = Reshape(x, t)
        a = MatMul(v, w1)  h = Relu(a)  y = MatMul(h, w2) }"""
    weights = {
        **{"w1": (3, 8), "w2": (8, 2)},
        "halves": np.array([-0.5, 1.5], np.float32),
        "two": np.float32(2),
    }
    source = read(model(text, weights))
    assert source.state == ("w1", "w2")
    assert find(source).symmetry.log10_order() == pytest.approx(log(8))


def test_groups_that_are_normalised_as_one_channel_each_move_as_groups(tmp_path: Path) -> None:
    text = """ g (float[n,3,224,224] x) => (float[n,2] y) {
        c = Conv<strides = [2, 2]>(x, k)  s = Shape(c)  g = Reshape(c, of_groups)
        i = InstanceNormalization(g, ones, zeros)  r = Reshape(i, s)
        m = Mul(r, scale)  a = Add(m, shift)  h = Relu(a)
        p = GlobalAveragePool(h)  f = Flatten(p)  y = MatMul(f, w) }"""
    weights = {
        **{"k": (64, 3, 3, 3), "scale": (64, 1, 1), "shift": (64, 1, 1), "w": (64, 2)},
        **{"ones": np.ones(32, np.float32), "zeros": np.zeros(32, np.float32)},
        "of_groups": np.array([0, 32, -1]),
    }
    assert order(text, weights, tmp_path) == pytest.approx(log(32, *[2] * 32))


def test_operators_before_opset_13_have_axes_as_attributes() -> None:
    text = """ g (float[2,3] x) => (float[2,8] y) {
        a = MatMul(x, w1)  b = Unsqueeze<axes = [1]>(a)  c = Squeeze<axes = [1]>(b)
        d = Softmax(c)  e = Clip<min = 0.05, max = 0.4>(d)  f = ReduceSum<axes = [1]>(e)
        y = Add(c, f) }"""
    head = '<ir_version: 6, opset_import: [ "" : 10 ]>'
    made = onnx.parser.parse_model(head + text)
    w1 = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(w1, "w1"))
    x = torch.randn(2, 3)
    a = x @ torch.from_numpy(w1)
    wanted = a + a.softmax(1).clamp(0.05, 0.4).sum(1, keepdim=True)
    torch.testing.assert_close(read(made).module()(x)["y"], wanted)


def test_inputs_are_made_up_of_what_reads_them() -> None:
    text = """ g (int64[batch,steps] tokens, float[batch,more] gate) => (float[a,b,2] y) {
        e = Gather(table, tokens)  h = MatMul(e, w1)  y = MatMul(h, w2) }"""
    made = model(text, {"table": (4, 6), "w1": (6, 3), "w2": (3, 2)})
    made.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "steps + steps"
    found = find(read(made))
    assert found.runs.inputs[0]["tokens"].max() < 4
    assert found.runs.inputs[0]["gate"].shape[1] == 2 * found.runs.inputs[0]["tokens"].shape[1]
    first, second = found.runs.inputs
    assert first["tokens"].shape != second["tokens"].shape


def test_inputs_that_do_not_fit_are_refused() -> None:
    source = read(model(MLP, MLP_WEIGHTS))
    with pytest.raises(fxrebasin.InputError, match="x"):
        find(source, {"z": torch.zeros(2, 3)})
    with pytest.raises(fxrebasin.InputError, match="2 example inputs"):
        find(source, (torch.zeros(2, 3), torch.zeros(2)))
    assert find(source, np.zeros((2, 3), np.float32)).symmetry.log10_order() > 0


@pytest.mark.parametrize("name", ["seq", "past", "total_length", "height"])
def test_a_size_is_the_same_wherever_it_is_named(name: str) -> None:
    text = f""" g (int64[batch,{name}] tokens, float[batch,2,{name},4] keys) => (float[a,b,2] y) {{
        e = Gather(table, tokens)  h = MatMul(e, w1)  y = MatMul(h, w2) }}"""
    found = find(read(model(text, {"table": (4, 6), "w1": (6, 3), "w2": (3, 2)})))
    for inputs in found.runs.inputs:
        assert inputs["tokens"].shape[1] == inputs["keys"].shape[2]
        assert inputs["tokens"].shape[0] == inputs["keys"].shape[0]


def test_channels_are_those_of_the_first_layer() -> None:
    text = """ g (float[batch,num_channels,height,width] x) => (float[a,b,c,d] y) {
        h = Conv(x, w1)  r = Relu(h)  y = Conv(r, w2) }"""
    found = find(read(model(text, {"w1": (6, 5, 3, 3), "w2": (2, 6, 1, 1)})))
    assert found.runs.inputs[0]["x"].shape == (2, 5, 64, 64)
    assert found.runs.inputs[1]["x"].shape == (3, 5, 96, 96)
    assert found.symmetry.log10_order() == pytest.approx(log(6))


def test_sounds_are_long_enough() -> None:
    text = """ g (float[batch,1,samples] x) => (float[a,b,c] y) {
        h = Conv<strides = [40]>(x, w1)  r = Relu(h)  y = Conv(r, w2) }"""
    found = find(read(model(text, {"w1": (6, 1, 200), "w2": (2, 6, 1)})))
    assert found.symmetry.log10_order() == pytest.approx(log(6))


def test_functions_of_the_file_are_followed(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: [ "" : 17, "own" : 1 ]>'
    text = """ g (float[n,3] x) => (float[n,2] y) {
            a = own.layer(x, w1)  y = MatMul(a, w2) }
        <domain: "own", opset_import: [ "" : 17 ]> layer (x, w) => (y) {
            half = Constant<value = float[2] {0.5, 0.25}>()
            part = ReduceMean<keepdims = 0>(half)
            h = MatMul(x, w)  s = Mul(h, part)  y = Relu(s) }"""
    made = onnx.parser.parse_model(head + text)
    generator = np.random.default_rng(1)
    for name, shape in {"w1": (3, 8), "w2": (8, 2)}.items():
        value = generator.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(made, tmp_path / "b.onnx")
    found = planted(tmp_path / "b.onnx", tmp_path / "a.onnx")
    assert found.symmetry.log10_order() == pytest.approx(log(8))
    report = fxrebasin.onnx_transform(
        tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "out.onnx"
    )
    assert report.distance_after == 0 < report.distance_before
    assert onnx.load(tmp_path / "out.onnx").functions == made.functions


_EXPERTS = {
    "gather": ("flat", "= Gather(up, flat)"),
    "places along the last axis": ("flat", "= GatherND(up, column)"),
    "numbers from the end": ("behind", "= Gather(up, behind)"),
    "element by element": ("flat", "= GatherElements(up, spread)"),
}


@pytest.mark.parametrize("look_up", _EXPERTS)
@pytest.mark.parametrize("other", [False, True], ids=["its own bias", "another's bias"])
def test_experts_that_data_choose_have_orders_of_their_own(
    look_up: str, other: bool, tmp_path: Path
) -> None:
    numbers, first = _EXPERTS[look_up]
    text = f""" g (float[n,4] x) => (float[n,2] y, int64[n,2] best) {{
    scores = MatMul(x, router)  weights, best = TopK(scores, two)
    flat = Reshape(best, all)  column = Unsqueeze(flat, last)
    tall = Reshape(flat, tall_shape)  spread = Expand(tall, up_shape)
    behind = Sub(flat, three)  above = Add(flat, one)  next = Mod(above, three)
    pairs = Unsqueeze(x, middle)  twice = Expand(pairs, pairs_shape)
    rows = Reshape(twice, rows_shape)
    w1 {first}  h = MatMul(w1, rows)  s = Squeeze(h, last)
    b1 = Gather(bias, {"next" if other else numbers})
    a = Add(s, b1)  r = Relu(a)  units = Unsqueeze(r, last)
    w2 = Gather(down, {numbers})  o = MatMul(w2, units)  q = Reshape(o, out_shape)
    factors = Unsqueeze(weights, last)  p = Mul(q, factors)
    y = ReduceSum <keepdims = 0> (p, middle) }}"""
    ints = {
        **{"two": [2], "all": [-1], "last": [-1], "middle": [1], "one": 1, "three": 3},
        **{"pairs_shape": [1, 2, 1], "rows_shape": [-1, 4, 1], "out_shape": [-1, 2, 2]},
        **{"tall_shape": [-1, 1, 1], "up_shape": [1, 5, 4]},
    }
    weights: dict[str, Any] = {name: np.array(item, np.int64) for name, item in ints.items()}
    weights |= {"router": (4, 3), "up": (3, 5, 4), "bias": (3, 5), "down": (3, 2, 5)}
    path = tmp_path / "b.onnx"
    onnx.save(model(text, weights), path)
    free = log10_factorial(5) * (1 if other else 3)
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(free)


READ = {
    "a condition": """s = MatMul(h, w2)  m = ReduceMax<keepdims = 0>(s)  c = Greater(m, zero)
        k = If(c) <then_branch = one () => (float[n,8] t) { t = Tanh(h) },
                   else_branch = two () => (float[n,8] t) { t = Neg(h) }>""",
    "a bound": "s = MatMul(h, w2)  m = ReduceMax<keepdims = 0>(s)  k = Clip(h, , m)",
    "rows": "r = ReduceSum<keepdims = 0>(h, last)  c = Greater(r, zero)  k = Compress<axis=0>(h,c)",
    "its type": "m = CastLike(one, h)  k = Clip(h, , m)",
    "its sizes": "u = Shape<start=-1>(h)  z = ConstantOfShape(u)  k = Add(h, z)",
}


@pytest.mark.parametrize("what", READ)
def test_what_is_computed_from_inputs_may_be_read_as_a_number(what: str, tmp_path: Path) -> None:
    text = f""" g (float[n,3] x) => (float[m,2] y) {{
        a = MatMul(x, w1)  h = Relu(a)  {READ[what]}  y = MatMul(k, w3) }}"""
    weights = TWO_LAYERS | {"zero": np.float32(0.5), "one": np.float64(1), "last": np.array([1])}
    weights = {
        name: value for name, value in weights.items() if f"{name})" in text.replace(",", ")")
    }
    expected = log(8, 8) if what in ("a condition", "a bound") else log(8)
    assert order(text, weights, tmp_path) == pytest.approx(expected)


def test_weights_before_a_bound_of_their_type_have_a_mean(tmp_path: Path) -> None:
    """As `torch.onnx.export(optimize=False)` writes relu6."""
    text = """ g (float[n,3] x) => (float[n,2] y) {
        a = MatMul(x, w1)  m = CastLike(six, a)  h = Clip(a, , m)  y = MatMul(h, w3) }"""
    weights = {"w1": (3, 8), "w3": (8, 2), "six": np.float64(6)}
    a, b = (model(text, weights, seed=seed) for seed in (0, 1))
    fxrebasin.onnx_merge([a, b], tmp_path / "out", weights=(0, 1))
    assert fxrebasin.verify(b, tmp_path / "out").passed


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("k = ArgMax<axis = 1, keepdims = 0>(h)  b = Cast<to = 1>(k)  m = Squeeze(b)", 0.0),
        ("u = Gather<axis = 1>(h, first)  m = Squeeze(u)", log(7)),
    ],
    ids=["place of a unit", "one unit"],
)
def test_numbers_that_hang_on_which_unit_is_where_pin_units(number: str, expected: float) -> None:
    text = f""" g (float[1,3] x) => (float[1,2] y) {{
        a = MatMul(x, w1)  h = Relu(a)  {number}  k0 = Clip(h, , m)  y = MatMul(k0, w3) }}"""
    weights = {"w1": (3, 8), "w3": (8, 2), "first": np.array([0])}
    weights = weights if "first" in text else {name: weights[name] for name in ("w1", "w3")}
    assert order(text, weights) == pytest.approx(expected)
