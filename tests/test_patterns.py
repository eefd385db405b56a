"""Factor strings: what is read from them, and what is refused."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fxrebasin.passes.rules
from fxrebasin.errors import FxRebasinError
from fxrebasin.passes.fields.patterns import factor_sizes, merged, pattern, spelled_out
from fxrebasin.passes.rules.contraction import contraction

WRONG = {
    "no arrow": ("n k, k m", "0 arrows"),
    "two arrows": ("n -> m -> n", "2 arrows"),
    "an axis that never ends": ("n (k m -> n k m", r"'\('"),
    "an axis that never began": ("n k) -> n k", r"'\)'"),
    "an axis of nothing": ("n () -> n", r"'\(\)'"),
    "axes in an axis": ("n (a (b c)) -> n", r"'\('"),
    "no name": ("n k; -> n", "'k;'"),
    "a position of nothing": ("n ! -> n", "'!'"),
    "a number for a name": ("n 3 -> n", "'3'"),
    "two dots": (".. n -> n", r"'\.\.'"),
    "unwritten axes in an axis": ("(... n) -> n", r"\(\.\.\. n\)"),
    "a diagonal": ("n n -> n", "'n' twice in one tensor"),
    "a factor that is a position as well": ("n !n -> n", "'n' twice in one tensor"),
    "unwritten axes twice": ("... n !... -> n", r"'\.\.\.' twice in one tensor"),
    "a position that moves": ("!n k -> n k", "both 'n' and '!n'"),
    "a factor of no operand": ("n k -> n m", "'m' in the output only"),
    "unwritten axes of no operand": ("n k -> ... n", r"'\.\.\.' in the output only"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pattern_is_refused_when_its_rule_is_registered(name: str) -> None:
    text, found = WRONG[name]
    with pytest.raises(FxRebasinError, match=found) as caught:
        contraction(text, "mm.default")
    assert repr(text) in str(caught.value)


def test_a_pattern_is_read() -> None:
    found = pattern("n (g i) !s, (g o) i !k -> n (g o) !t")
    assert found.inputs == ((("n",), ("g", "i"), ("!s",)), (("g", "o"), ("i",), ("!k",)))
    assert found.output == (("n",), ("g", "o"), ("!t",))


def test_an_operand_and_an_output_may_be_numbers() -> None:
    assert pattern("k, -> ").tensors == ((("k",),), (), ())


def test_axes_that_are_not_written_are_counted_from_the_last() -> None:
    found = spelled_out(pattern("... n, ... -> n ..."), (3, 1, 3))
    assert found.inputs == ((("...2",), ("...1",), ("n",)), (("...1",),))
    assert found.output == (("n",), ("...2",), ("...1",))


def test_axes_that_are_not_written_may_be_none_or_positions() -> None:
    found = spelled_out(pattern("!v f ... -> !... f"), (2, 3))
    assert found.inputs == ((("!v",), ("f",)),)
    assert found.output == (("!...2",), ("!...1",), ("f",))


@pytest.mark.parametrize("ranks", [(1, 2), (3, 2), (2, 0), (2, 2, 2), (2,)])
def test_tensors_have_as_many_axes_as_are_written(ranks: tuple[int, ...]) -> None:
    with pytest.raises(FxRebasinError, match="n k -> n"):
        spelled_out(pattern("n k -> n"), ranks)


def test_sizes_come_from_shapes() -> None:
    found = pattern("c !h -> (c !k) !l")
    sizes = factor_sizes(found, [(3, 5), (12, 2)], {})
    assert sizes == {"c": 3, "!h": 5, "!k": 4, "!l": 2}


def test_an_axis_that_is_broadcast_does_not_say_its_size() -> None:
    found = pattern("b n, b m -> b n m")
    assert factor_sizes(found, [(1, 2), (4, 3), (4, 2, 3)], {}) == {"b": 4, "n": 2, "m": 3}


def test_one_group_is_none() -> None:
    found = merged(pattern("n (g i), (g o) i -> n (g o)"), frozenset({"g", "n"}))
    assert found.inputs == ((("n",), ("i",)), (("o",), ("i",)))
    assert found.output == (("n",), ("o",))


RULE_FILES = sorted(Path(fxrebasin.passes.rules.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_rules_speak_through_the_call(path: Path) -> None:
    reached = {
        node.lineno
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "ledger"
    }
    assert path.stem == "call" or not reached
