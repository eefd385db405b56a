"""Cards of models: a new one above the old, with the entries of both headers."""

from __future__ import annotations

import pytest
import yaml

from fxrebasin.storage.cards import card_with

NEW = "---\ntags:\n- fxrebasin\n- merge\n---\n# New\n"


def header_of(card: str) -> object:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_entries_stay_and_lists_are_joined() -> None:
    old = "---\nlicense: apache-2.0\ntags: [text, merge]\nmodel-index:\n- name: x\n---\n\n# Old\n"
    card = card_with(NEW, old)
    assert header_of(card) == {
        "license": "apache-2.0",
        "tags": ["text", "merge", "fxrebasin"],
        "model-index": [{"name": "x"}],
    }
    assert card.split("---\n", 2)[2] == "# New\n\n---\n\n# Old\n"


def test_a_card_without_a_header_keeps_that_of_the_old_one_to_the_letter() -> None:
    old = "---\nlicense:   mit # of MIT\n---\nOld"
    assert card_with("# New\n", old) == "---\nlicense:   mit # of MIT\n---\n# New\n\n---\n\nOld"


@pytest.mark.parametrize("old", ["", "\n", "# Old"])
def test_without_an_old_header_the_new_one_is_taken(old: str) -> None:
    below = "\n---\n\n# Old" if old.strip() else ""
    assert card_with(NEW, old) == NEW + below


@pytest.mark.parametrize("header", ["- a list\n", "tags: [\n", "a: b: c\n", "[" * 5000 + "\n"])
def test_a_header_that_is_not_understood_is_left_alone(header: str) -> None:
    assert card_with(NEW, f"---\n{header}---\nOld") == f"---\n{header}---\n# New\n\n---\n\nOld"


def test_a_rule_in_the_text_is_no_header() -> None:
    assert card_with("# New\n", "Old\n\n---\n\nmore") == "# New\n\n---\n\nOld\n\n---\n\nmore"
