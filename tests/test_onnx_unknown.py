"""Operators that the importer does not know pin what they touch; onnxruntime computes them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, helper, numpy_helper, parser

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.graph import graphs_of
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of
from tests.support.onnx_graphs import planted

HEAD = """<ir_version: 8,
    opset_import: ["" : 17, "com.microsoft" : 1, "ai.onnx.ml" : 3, "my.own" : 2]>"""
BETWEEN = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = OPERATOR
    e = MatMul(d, w3)  f = Tanh(e)  y = MatMul(f, w4) }"""
SHAPES = {"w1": (3, 5), "w2": (5, 6), "w3": (6, 4), "w4": (4, 2)}
ORDER = math.log10(math.factorial(5) * math.factorial(4))
"""The units before and after; those that the operator touches stay."""

KNOWN_TO_ONNXRUNTIME = {
    "ai.onnx.ml::Normalizer": 'ai.onnx.ml.Normalizer<norm = "L2">(c)',
    "com.microsoft::CDist": 'com.microsoft.CDist<metric = "euclidean">(c, k)',
}


def built(text: str, seed: int = 0, **more: tuple[int, ...]) -> ModelProto:
    made = parser.parse_model(HEAD + text)
    rng = np.random.default_rng(seed)
    read_by = {
        name for _, graph in graphs_of(made.graph) for node in graph.node for name in node.input
    }
    for name, shape in {**SHAPES, **more}.items():
        if name in read_by:
            value = rng.standard_normal(shape).astype(np.float32)
            made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


def between(operator: str, seed: int = 0) -> ModelProto:
    text = BETWEEN.replace("OPERATOR", operator)
    return built(text, seed, k=(6, 6))


@pytest.mark.parametrize("name", KNOWN_TO_ONNXRUNTIME)
def test_what_it_touches_stays_and_the_rest_moves(name: str, tmp_path: Path) -> None:
    b, a, out = (tmp_path / file for file in ("b.onnx", "a.onnx", "out.onnx"))
    onnx.save(between(KNOWN_TO_ONNXRUNTIME[name]), b)
    symmetry = fxrebasin.analyze(b)
    assert symmetry.unknown_operators == (name,)
    assert symmetry.log10_order() == pytest.approx(ORDER)
    assert ("w2", 1) in symmetry.pins
    assert ("w3", 0) in symmetry.pins
    assert any(name in note for note in symmetry.notes)
    planted(b, a)
    report = fxrebasin.onnx_transform(b, ref=a, out=out)
    assert report.unknown_operators == (name,)
    assert any("onnxruntime computes" in note for note in report.notes)
    found, wanted = (read(path).parsed.tensors for path in (out, a))
    assert {n: bytes_of(t) for n, t in found.items()} == {n: bytes_of(t) for n, t in wanted.items()}
    assert fxrebasin.verify(b, out).passed


@pytest.mark.parametrize("declared", ["", "<float[n,6] d>"])
def test_what_nothing_runs_is_analysed_and_nothing_is_written(
    declared: str, tmp_path: Path
) -> None:
    text = BETWEEN.replace("OPERATOR", "my.own.Thing<how = 3>(c)").replace("{", declared + " {", 1)
    symmetry = fxrebasin.analyze(built(text))
    assert symmetry.unknown_operators == ("my.own::Thing",)
    assert symmetry.log10_order() == pytest.approx(ORDER)
    with pytest.raises(InputError, match=r"my\.own::Thing.*neither here nor to onnxruntime"):
        fxrebasin.onnx_transform(built(text), ref=built(text, 1), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_inspect_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    onnx.save(between("my.own.Thing(c)"), path)
    shown = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["unknown_operators"] == ["my.own::Thing"]
    assert "my.own::Thing" in CliRunner().invoke(main, ["inspect", str(path)]).output


@pytest.mark.parametrize(
    "text",
    [
        " g (float[n,3] x) => (float[n,5] y) { a = MatMul(x, w1)  y = my.own.Thing(a) }",
        """ g (float[n,3] x) => (float[n,6] y) {
            z = my.own.Thing(w1)  a = MatMul(x, z)  b = Relu(a)  y = my.own.Thing(b, w2) }""",
    ],
)
def test_a_file_that_they_cut_off_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"my\.own::Thing.*nothing in it can move"):
        fxrebasin.analyze(built(text))


def test_sums_with_weights_that_it_reads_too(tmp_path: Path) -> None:
    """A weight that an unknown operator reads stays, wherever else it is read."""
    text = """ g (float[n,3] x) => (float[n,2] y) {
        a = MatMul(x, w1)  b = Relu(a)  k = my.own.Thing(w1)  s = ReduceSum<keepdims = 0>(k)
        c = MatMul(b, w2)  t = Add(c, s)  d = Relu(t)  e = MatMul(d, w3)  f = Tanh(e)
        y = MatMul(f, w4) }"""
    symmetry = fxrebasin.analyze(built(text))
    assert ("w1", 1) in symmetry.pins
    assert symmetry.log10_order() == pytest.approx(
        math.log10(math.factorial(6) * math.factorial(4))
    )


def test_an_attribute_that_is_not_known_makes_an_operator_unknown() -> None:
    """What an attribute changes is not passed over."""
    b = between("Hardmax(c)")
    assert fxrebasin.analyze(b).unknown_operators == ()
    node = next(item for item in b.graph.node if item.op_type == "Hardmax")
    node.attribute.append(helper.make_attribute("from_tomorrow", 1))
    symmetry = fxrebasin.analyze(b)
    assert symmetry.unknown_operators == ("Hardmax",)
    assert ("w2", 1) in symmetry.pins


def test_functions_of_the_file_are_looked_into(tmp_path: Path) -> None:
    function = helper.make_function(
        "my.own",
        "Pair",
        ["u"],
        ["v"],
        [
            helper.make_node("Relu", ["u"], ["r"]),
            helper.make_node("Normalizer", ["r"], ["v"], domain="ai.onnx.ml", norm="L1"),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    files = [between("my.own.Pair(c)", seed) for seed in (0, 1)]
    for file in files:
        file.functions.append(function)
    report = fxrebasin.onnx_transform(files[0], ref=files[1], out=tmp_path / "out")
    assert report.unknown_operators == ("ai.onnx.ml::Normalizer",)
    assert report.log10_order == pytest.approx(ORDER)
    assert onnx.load(tmp_path / "out").functions == files[0].functions


def test_bodies_of_unknown_operators_are_read_too(tmp_path: Path) -> None:
    """An operator with a body that reads a weight from outside: that weight stays."""
    b = between("my.own.Loop(c)")
    body = helper.make_graph(
        [helper.make_node("MatMul", ["inner", "w1"], ["o"])],
        "body",
        [helper.make_tensor_value_info("inner", 1, None)],
        [helper.make_tensor_value_info("o", 1, None)],
    )
    b.graph.node[3].attribute.append(helper.make_attribute("body", body))
    symmetry = fxrebasin.analyze(b)
    assert symmetry.log10_order() == pytest.approx(math.log10(math.factorial(4)))
    assert ("w1", 1) in symmetry.pins


def test_a_number_is_no_input_of_a_layer() -> None:
    b = built(BETWEEN.replace("OPERATOR", "Identity(c)"))
    del b.graph.input[0].type.tensor_type.shape.dim[:]
    with pytest.raises(InputError, match="does not run"):
        fxrebasin.analyze(b)


@pytest.mark.parametrize("kind", ["Bernoulli", "RandomNormalLike", "RandomUniformLike"])
def test_random_numbers_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match=f"random numbers .*{kind}"):
        fxrebasin.analyze(between(f"{kind}(c)"))


IN_A_BRANCH = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  b = Relu(a)  s = ReduceSum<keepdims = 0>(x)  c = Greater(s, s)
    d = If(c) <then_branch = one () => (float[n,6] t) { p = MatMul(b, w2)  t = OPERATOR },
               else_branch = two () => (float[n,6] t) { q = MatMul(b, w2)  t = Tanh(q) }>
    e = MatMul(d, w3)  f = Tanh(e)  y = MatMul(f, w4) }"""
IN_A_LOOP = """ g (float[n,3] x) => (float[n,2] y) <int64 three = {3}, bool yes = {1}> {
    a = MatMul(x, w1)  b = Relu(a)  z = MatMul(b, w2)
    d = Loop(three, yes, z) <body = turn (int64 i, bool k, float[n,6] u) => (bool l, float[n,6] t)
                             { l = Identity(k)  p = MatMul(u, w5)  t = OPERATOR }>
    e = MatMul(d, w3)  f = Tanh(e)  y = MatMul(f, w4) }"""


@pytest.mark.parametrize("text", [IN_A_BRANCH, IN_A_LOOP])
def test_in_a_body_it_pins_what_it_touches(text: str, tmp_path: Path) -> None:
    b, a, out = (tmp_path / file for file in ("b.onnx", "a.onnx", "out.onnx"))
    known = text.replace("OPERATOR", 'ai.onnx.ml.Normalizer<norm = "L2">(p)')
    onnx.save(built(known, w5=(6, 6)), b)
    planted(b, a)
    report = fxrebasin.onnx_transform(b, ref=a, out=out)
    assert report.unknown_operators == ("ai.onnx.ml::Normalizer",)
    assert report.log10_order == pytest.approx(ORDER)
    assert report.distance_before > 0 == report.distance_after


def test_in_a_branch_that_is_not_taken_it_has_to_be_known_to_onnxruntime(tmp_path: Path) -> None:
    file = built(IN_A_BRANCH.replace("OPERATOR", "my.own.Thing(p)"))
    assert fxrebasin.analyze(file).log10_order() == pytest.approx(ORDER)
    with pytest.raises(InputError, match=r"nothing can be run of.*onnxruntime.*my\.own"):
        fxrebasin.onnx_transform(file, ref=file, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


NET = "a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Relu(c)  y = MatMul(d, w3)"
HEADS = {
    "text": "k = ArgMax<axis = 1, keepdims = 0>(y)  z = ai.onnx.ml.LabelEncoder<keys_int64s = "
    '[0, 1, 2, 3], values_strings = ["a", "b", "c", "d"]>(k)',
    "mappings": "z = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1, 2, 3]>(y)",
}


@pytest.mark.parametrize("head", HEADS)
def test_results_that_are_no_numbers_are_refused(head: str, tmp_path: Path) -> None:
    kind = {"text": "string[n]", "mappings": "seq(map(int64, float))"}[head]
    file = built(f" g (float[n,3] x) => (float[n,4] y, {kind} z) {{ {NET} {HEADS[head]} }}")
    with pytest.raises(InputError, match=r"makes text, a mapping or a sequence.*zipmap=False"):
        fxrebasin.onnx_transform(file, ref=file, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("inputs", "more", "said"),
    [
        ("float[n,3] x, string[n] t", "z = Identity(t)", "the input 't'.*STRING"),
        ("float[n,3] x", "z = Identity(names)", "the tensor 'names'.*STRING"),
        ("float[n,3] x", 'z = Constant<value_strings = ["a"]>()', "holds text"),
    ],
)
def test_text_is_refused(inputs: str, more: str, said: str) -> None:
    file = built(f" g ({inputs}) => (float[n,4] y, string[n] z) {{ {NET} {more} }}")
    if "names" in more:
        file.graph.initializer.append(helper.make_tensor("names", 8, [2], [b"a", b"b"]))
    with pytest.raises(InputError, match=said):
        fxrebasin.analyze(file)


def test_a_sequence_is_several_outputs(tmp_path: Path) -> None:
    text = f" g (float[n,3] x) => (seq(float[n,4]) z) {{ {NET}  z = SequenceConstruct(y, y) }}"
    b, a = tmp_path / "b.onnx", tmp_path / "a.onnx"
    onnx.save(built(text), b)
    planted(b, a)
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    assert report.distance_before > 0 == report.distance_after
    assert report.equivalence is not None
    assert [output.name for output in report.equivalence.outputs] == ["z.0", "z.1"]
    assert fxrebasin.verify(b, tmp_path / "out.onnx").passed


def test_a_loop_that_collects_has_to_run(tmp_path: Path) -> None:
    text = """ g (float[n,3] x) => (float[n,4] y, float[m,n,6] r)
        <int64 k = {TRIPS}, bool g = {1}> {
        a = MatMul(x, w1)  b = Relu(a)  z = MatMul(b, w2)
        d, r = Loop(k, g, z) <body = turn (int64 i, bool h, float[n,6] u)
                => (bool l, float[n,6] t, float[n,6] v) { l = Identity(h)  t = MatMul(u, w5)
                                                          v = Identity(t) }>
        y = MatMul(d, w3) }"""
    b, a = tmp_path / "b.onnx", tmp_path / "a.onnx"
    onnx.save(built(text.replace("TRIPS", "2"), w5=(6, 6)), b)
    planted(b, a)
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    assert report.log10_order == pytest.approx(math.log10(math.factorial(5)))
    assert report.distance_before > 0 == report.distance_after
    with pytest.raises(InputError, match="Loop that runs not once and collects"):
        fxrebasin.analyze(built(text.replace("TRIPS", "0"), w5=(6, 6)))
