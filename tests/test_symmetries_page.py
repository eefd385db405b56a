"""docs/symmetries.md runs as it stands, and its picture is what its script draws."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.experiments.symmetry_page import renewed, rows_of
from benchmarks.symmetry_picture import example_of
from fxrebasin.kinds import GroupKind
from tests.support.tiny_transformers import Form, drawn

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "symmetries.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_a, model_b = (drawn(Form(layers=2, width=12, hidden=9, heads=3), k) for k in (1, 2))
    names: dict[str, object] = {
        "model_a": model_a,
        "model_b": model_b,
        "tokens": model_a.batch(2, 0),
        "batches": [(model_a.batch(8, k), model_a.batch(8, k)) for k in range(3)],
        "loss": lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten()),
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "symmetries.md", "exec"), names)
    restored = names["restored"]
    assert isinstance(restored, dict)
    for key, value in model_b.state_dict().items():
        torch.testing.assert_close(restored[key], value, rtol=1e-9, atol=1e-9)


def test_figures_are_those_of_the_table() -> None:
    rows = rows_of(ROOT / "benchmarks" / "results" / "experiments" / "symmetries" / "barriers.csv")
    assert renewed(PAGE, rows) == PAGE  # python -m benchmarks.experiments page
    first = rows[0]
    changed = renewed(PAGE, [replace(first, barrier=first.barrier + 1), *rows[1:]])
    assert changed != PAGE
    for network, way, said in _SAID:
        own = [row for row in rows if (row.network, row.way) == (network, way)]
        found = [row.barrier for row in own if not row.is_joint]
        assert f"{sum(found) / len(found):.2f}" == said
        assert said in README


_SAID = (
    ("GPT", "untouched", "2.85"),
    ("GPT", "activation (permutation)", "1.86"),
    ("GPT", "straight_through (permutation)", "1.27"),
    ("GPT", "learned, 1000 steps (all)", "0.25"),
    ("GPT of width 256", "learned, 1000 steps (all)", "0.03"),
)


def test_every_kind_is_on_the_page_and_what_it_points_to_exists() -> None:
    for kind in GroupKind:
        assert f"**{kind.value.capitalize()}.**" in PAGE
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)


@pytest.mark.parametrize("kind", list(GroupKind))
def test_the_picture_shows_elements_of_the_groups(kind: GroupKind) -> None:
    matrix = example_of(kind)
    one = torch.eye(6, dtype=torch.float64)
    assert torch.linalg.cond(matrix) < 100
    orthogonal = torch.allclose(matrix @ matrix.mT, one, atol=1e-9)
    assert orthogonal is (kind <= GroupKind.ORTHOGONAL)
    sums = torch.allclose(matrix.sum(1), torch.ones(6, dtype=torch.float64))
    assert sums is (kind <= GroupKind.ORTHOGONAL_FIXING_ONES)
    single = bool(((matrix != 0).sum(1) == 1).all())
    assert single is (kind <= GroupKind.MONOMIAL)
    assert bool((matrix < 0).any()) is not (kind <= GroupKind.POSITIVE)
