"""docs/how-it-works.md shows what the code prints, and its lists of words and folders are true."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```.*$", flags=re.MULTILINE)
CODE = ("fxrebasin", "passes", "exporters", "tests", "benchmarks")

WORDS = {
    *("unit", "label", "field", "value", "tie", "representative", "pin", "rigid and pinned"),
    *("edge", "relation", "imposition", "ledger", "origin", "state", "role"),
    *("structure", "part", "mark", "colour", "class", "layout", "piece", "slot"),
    *("unnamed group", "placement", "family", "track", "slice", "spread"),
}


def section(title: str) -> str:
    """The text under a heading of the second level."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = [index - 1 for index, row in enumerate(cells) if set("".join(row)) == {"-"}]
    return [row for i, row in enumerate(cells) if i not in heads and i - 1 not in heads]


FOLDERS = {row[0].strip("`"): row[1] for row in rows(section("The folders"))}
GLOSSARY = {row[0]: row[1:] for row in rows(section("The words"))}


def test_all_output_on_the_page_is_what_the_code_prints() -> None:
    text = FENCE.sub("", PAGE)
    examples = doctest.DocTestParser().get_doctest(text, {}, "how-it-works.md", None, 0)
    assert sum(bool(example.want) for example in examples.examples) > 20
    report: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert outcome.failed == 0, "".join(report)


def test_the_words_are_there_and_are_where_the_page_says() -> None:
    assert GLOSSARY.keys() == WORDS
    for word, (sentence, where) in GLOSSARY.items():
        assert sentence.endswith("."), word
        links = re.findall(r"(?:`(\w+)` in )?\[([\w/]+)\.py\]\(\.\./([\w/]+\.py)\)", where)
        assert links, word
        for name, shown, target in links:
            assert target == f"{shown}.py"
            module = importlib.import_module(installed(shown))
            assert not name or hasattr(module, name), (word, name, shown)
            if name and isinstance(getattr(module, name), type):
                assert getattr(module, name).__module__ == installed(shown), (word, name)


def installed(path: str) -> str:
    """The module that a file is imported as."""
    dotted = path.replace("/", ".")
    return dotted if dotted.startswith("fxrebasin.") else f"fxrebasin.{dotted}"


def test_every_folder_has_a_line() -> None:
    with_code = {
        f"{path.parent.relative_to(ROOT)}/" for name in CODE for path in (ROOT / name).rglob("*.py")
    }
    assert FOLDERS.keys() == {*with_code, "benchmarks/results/", "docs/"}
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)


@pytest.mark.parametrize("folder", ["fxrebasin/", "passes/", "exporters/"])
def test_every_file_outside_the_folders_is_named(folder: str) -> None:
    named = re.findall(r"`(\w+\.py)`", FOLDERS[folder])
    assert len(named) == len(set(named))
    there = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert set(named) == there


def test_other_links_and_paths_exist() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(rf"`((?:docs|{'|'.join(CODE)})/[\w/.-]*)`", PAGE):
        assert (ROOT / path).exists(), path
    headings = {
        re.sub(r"\W+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings


def test_the_stages_of_the_readme_are_the_folders() -> None:
    [diagram] = re.findall(r"```\n(nn\.Module.*?)```", README, flags=re.DOTALL)
    named = re.findall(r"(?:passes|exporters)/\w+", diagram)
    assert len(named) == len(set(named))
    for path in named:
        assert (ROOT / path).is_dir() or (ROOT / f"{path}.py").is_file(), path
    folders = {
        folder.rstrip("/") for folder in FOLDERS if re.match(r"(passes|exporters)/\w", folder)
    }
    assert {path for path in named if (ROOT / path).is_dir()} == folders
