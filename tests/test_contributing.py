"""CONTRIBUTING.md names what exists, and the rules that it shows are correct."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxrebasin.passes.match.methods import METHODS
from fxrebasin.passes.rules.registry import RULES, Call
from tests.support.oracle.samples import OPERATORS
from tests.support.oracle.verdict import faults

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def registry() -> Iterator[None]:
    """The table of rules is what it was after the test."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("registry")
def test_the_rules_on_the_page_agree_with_their_operators() -> None:
    before = dict(RULES)
    names: dict[str, object] = {}
    blocks = re.findall(r"^( *)```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for _, block in blocks:
        exec(compile(textwrap.dedent(block), "CONTRIBUTING.md", "exec"), names)
    changed = {overload for overload, rule in RULES.items() if rule is not before.get(overload)}
    assert len(changed) >= 4
    own = names["SAMPLES"]
    assert isinstance(own, list)
    samples = [*(item for item in OPERATORS if item.overload in changed), *own]
    assert changed <= {item.overload for item in samples}
    for item in samples:
        assert not faults(item), "\n".join(faults(item))


def test_files_and_targets_that_the_page_names_exist() -> None:
    folders = "fxrebasin|passes|exporters|tests|benchmarks|docs"
    paths = re.findall(rf"`((?:{folders})/[\w/.-]*)(?: -k \w+)?`", PAGE)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert len(paths) > 30
    missing = [path for path in {*paths, *links} if not (ROOT / path).exists()]
    assert missing == ["passes/match/NAME.py"]
    rules = re.findall(r"`(\w+\.py)`", PAGE)
    assert not [name for name in rules if not (ROOT / "passes" / "rules" / name).exists()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in re.findall(r"make ([a-z]+)", PAGE))


def test_folders_are_those_of_the_repository() -> None:
    table = PAGE.split("| folder | installed as |")[1].split("\n\n")[0]
    with_code = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    named = set(re.findall(r"^\| `(\w+)/` \|", table, flags=re.MULTILINE))
    assert named == {name for name in with_code if not name.startswith((".", "build"))} | {"docs"}


def test_what_rules_call_exists() -> None:
    fields = {field.name for field in dataclasses.fields(Call)}
    used = set(re.findall(r"`call\.(\w+)", PAGE))
    assert {"value", "optional", "args", "join", "broadcast", "pin_axes"} <= used
    assert not [name for name in used if name not in fields and not hasattr(Call, name)]


def test_the_shared_tests_of_methods_run_every_method() -> None:
    tests = (ROOT / "tests" / "test_match_methods.py").read_text(encoding="utf-8")
    options = tests.split("def options(self")[1].split("}[method]")[0]
    assert all(f'"{method}":' in options for method in METHODS)
