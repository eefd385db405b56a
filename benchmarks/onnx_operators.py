"""Which ONNX operators does the importer compute, and what do the standard's own cases say?

    python -m benchmarks.onnx_operators

Writes `docs/onnx-operators.md`, and `docs/onnx-operators.csv` with a row for each.
Takes half a minute.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import torch
from onnx import defs

from fxrebasin.importers.onnx.operators import OPERATORS
from fxrebasin.storage.files import publish
from tests.support.onnx_nodes import Outcome, by_operator, outcomes

PAGE = Path("docs/onnx-operators.md")
TABLE = Path("docs/onnx-operators.csv")

_HEAD = """# ONNX operators

What the importer of ONNX files computes, in opsets 7 to {newest}. The standard comes with {total}
test cases of single nodes; {passed} of them come out as they should, {other} do not apply, and none
is wrong or missing. Functions are in `fxrebasin/importers/onnx/operators/`, one file per family.

Written by `python -m benchmarks.onnx_operators`.
"""


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    show_default=True,
    help="The page; an earlier one is replaced.",
)
def main(out: Path) -> None:
    """Write the page of ONNX operators."""
    torch.set_num_threads(1)
    found = outcomes()
    publish(out, page(found).encode(), overwrite=True)
    publish(out.with_suffix(".csv"), table(found).encode(), overwrite=True)


def page(found: Sequence[Outcome]) -> str:
    """The page, in Markdown."""
    passed = sum(item.passed for item in found)
    numbers = {"total": len(found), "passed": passed, "other": len(found) - passed}
    head = _HEAD.format(newest=defs.onnx_opset_version(), **numbers)
    return "\n".join([head, *_families(), "", *_reasons(found), "", *_not_computed()]) + "\n"


def table(found: Iterable[Outcome]) -> str:
    """A row for each operator, as CSV: its file, and how many test cases passed or do not apply."""
    tried = by_operator(found)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["operator", "file", "passed", "do not apply"])
    for key, file in _files().items():
        items = tried.get(key, [])
        passed = sum(item.passed for item in items)
        writer.writerow([_shown(key), file, passed, len(items) - passed])
    return buffer.getvalue()


def _files() -> dict[tuple[str, str], str]:
    """The file of each operator."""
    files = {key: item.module.rpartition(".")[2] + ".py" for key, item in OPERATORS.items()}
    files["", "Constant"] = "../graph.py"
    return dict(sorted(files.items()))


def _families() -> Iterator[str]:
    yield f"## Computed ({len(OPERATORS) + 1})"
    yield ""
    yield "[onnx-operators.csv](onnx-operators.csv) has the number of test cases of each of them."
    yield ""
    yield "| file | operators |"
    yield "| --- | --- |"
    families: dict[str, list[str]] = {}
    for key, file in _files().items():
        families.setdefault(file, []).append(f"`{_shown(key)}`")
    for file, names in sorted(families.items()):
        yield f"| `{file}` | {', '.join(names)} |"


def _shown(key: tuple[str, str]) -> str:
    return "::".join(filter(None, key))


def _reasons(found: Iterable[Outcome]) -> Iterator[str]:
    counts = Counter(item.reason for item in found if not item.passed)
    yield "## Cases that do not apply"
    yield ""
    yield "| reason | cases |"
    yield "| --- | ---: |"
    for reason, count in counts.most_common():
        yield f"| {reason} | {count} |"


def _not_computed() -> Iterator[str]:
    every = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
    names = sorted(every - {name for domain, name in OPERATORS if not domain} - {"Constant"})
    yield "## Of the standard, not computed"
    yield ""
    yield ", ".join(f"`{name}`" for name in names) + "."


if __name__ == "__main__":
    main()
