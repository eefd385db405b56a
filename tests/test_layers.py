"""The order in which the parts of the package rest on each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("colours", "facts", "kinds", "wording"),
    ("errors", "layout", "sharding", "flow", "uniformity", "terminal"),
    (
        *("counted", "groups", "indexing", "places", "gather", "rounding"),
        *("interruption", "options", "picturing", "progress", "ranks"),
    ),
    ("architecture", "reliance", "running"),
    ("acting", "charts", "choices", "ignoring", "models", "solvers"),
    ("action", "storage"),
    ("permutation",),
    ("elements", "gauge_values"),
    ("alignment",),
    ("symmetry", "reports"),
    ("passes.fields", "show"),
    ("passes.rules",),
    ("passes.propagate",),
    ("passes.group", "passes.kinds", "passes.trace"),
    ("passes.match",),
    ("passes.explain", "passes.recognition", "passes.rewrite"),
    ("exporters.verify",),
    ("exporters.onnx", "proof"),
    ("analysis",),
    ("importers",),
    ("calls", "merge"),
    ("api", "streaming"),
    ("",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""Files and folders of the package, from the ground up: none imports from its own row or above."""

FOLDERS = {"fxrebasin": (), "passes": ("passes",), "exporters": ("exporters",)}
HEIGHT = {part: height for height, row in enumerate(LAYERS) for part in row}


def files() -> Iterator[tuple[str, Path]]:
    """Each file, with the name of its module without that of the package."""
    for folder, prefix in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = (*prefix, *path.relative_to(ROOT / folder).with_suffix("").parts)
            yield ".".join(name for name in names if name != "__init__"), path


def part_of(module: str) -> str:
    """The part that a module belongs to."""
    names = module.split(".")
    return ".".join(names[: 2 if names[0] in ("passes", "exporters") else 1])


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            found = [item.name for item in node.names]
        for name in found:
            package, _, module = name.partition(".")
            if package == "fxrebasin":
                yield module


MODULES = {module: path for module, path in files() if module not in ("passes", "exporters")}


def test_every_part_has_its_height() -> None:
    assert {part_of(module) for module in MODULES} == HEIGHT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_no_file_imports_from_above(module: str) -> None:
    own = part_of(module)
    climbing = [
        name
        for name in imported(MODULES[module])
        if part_of(name) != own and HEIGHT[part_of(name)] >= HEIGHT[own]
    ]
    assert not climbing
