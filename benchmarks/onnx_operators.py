"""Which ONNX operators does the importer compute, and what do the standard's own cases say?

    python -m benchmarks.onnx_operators

Writes `docs/onnx-operators.md`. Takes half a minute.
"""

from __future__ import annotations

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
    publish(out, page(outcomes()).encode(), overwrite=True)


def page(found: Sequence[Outcome]) -> str:
    """The page, in Markdown."""
    passed = sum(item.passed for item in found)
    numbers = {"total": len(found), "passed": passed, "other": len(found) - passed}
    head = _HEAD.format(newest=defs.onnx_opset_version(), **numbers)
    return "\n".join([head, *_table(found), "", *_reasons(found), "", *_not_computed()]) + "\n"


def _table(found: Iterable[Outcome]) -> Iterator[str]:
    tried = by_operator(found)
    yield f"## Computed ({len(OPERATORS) + 1})"
    yield ""
    yield "| operator | file | passed | do not apply |"
    yield "| --- | --- | ---: | ---: |"
    files = {key: item.module.rpartition(".")[2] for key, item in OPERATORS.items()}
    files["", "Constant"] = "../graph"
    for key in sorted(files):
        items = tried.get(key, [])
        passed = sum(item.passed for item in items)
        yield f"| `{_shown(key)}` | `{files[key]}.py` | {passed} | {len(items) - passed or ''} |"


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
