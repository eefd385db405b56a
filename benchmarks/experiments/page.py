"""The page of results, docs/results.md, put together from what the experiments wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fxrebasin.errors import InputError
from fxrebasin.storage.files import publish

_BESIDE = re.compile(r"(!?\[[^\]]*\]\()([^)/]+\.(?:png|csv)\))")
_HEADING = re.compile(r"^(#+) ", re.MULTILINE)

INTRODUCTION = """# Results of the experiments

This project began with experiments on Git Re-Basin whose authors used another library. They are
repeated here. Each section is what the command that it names wrote, sentences included: they are
made from the figures, by the same code. Figures are means over pairs of networks trained from
different seeds, in brackets least and most; bands in the pictures go from least to most. Barriers
are the largest excess of the held-out loss over the straight line between the losses of the ends.
Parts of some experiments ran in processes of their own, side by side, and were put together from
their tables by the code of the command; minutes are then sums, without the training of networks.

Without `--data-dir` experiments run on data that are part of installed packages: scikit-learn's
handwritten digits, and the source text of Python's standard library. **All figures on this page
are of those**, at reduced widths that each section states; none is of MNIST, CIFAR or ImageNet.
With `--data-dir DIR`, a folder that holds MNIST, CIFAR-10, CIFAR-100 or ImageNet as they are
distributed (for `gpt`, `*.txt` files), and with `--width` and `--epochs`, the same commands run at
the sizes of the originals. `--quick` runs each in seconds and fails where what is robust does not
hold: a rebased model computes what it computed, and the barrier falls.

Tables here are excerpts; whole ones are linked below each section, as CSV. This page is put
together from `benchmarks/results/experiments/` by `python -m benchmarks.experiments page`;
`python -m benchmarks.experiments pictures` draws the pictures anew, as PNG, SVG or PDF.

**Figures are of the code at these commits** and were not measured again since: `d7771ad` (MLPs and
hlb-gpt), `a581387` (filter sizes), `9bf0210` (torchvision), `08cd841` (beside rebasin), `8058639`
(beyond permutation). After the first four, filter taps that only see padding count as free."""


def assemble(results: Path, page: Path, names: Sequence[str]) -> list[str]:
    """Write the page, replacing the one that is there.

    Args:
        results: folder with a folder per experiment.
        page: to write.
        names: of the experiments, in the order of the page.

    Returns:
        The experiments that have no results yet, and are left out.

    Raises:
        InputError: there are no results at all.
    """
    found = {name: results / name / f"{name}.md" for name in names}
    missing = [name for name, path in found.items() if not path.is_file()]
    if len(missing) == len(names):
        raise InputError(f"{results} holds no results; run an experiment first")
    sections = [
        _section(path, Path(os.path.relpath(path.parent, page.parent)).as_posix())
        for name, path in found.items()
        if name not in missing
    ]
    content = "\n\n".join([INTRODUCTION, *sections]) + "\n"
    publish(page, content.encode(), overwrite=True)
    return missing


def _section(path: Path, folder: str) -> str:
    """The page of one experiment, headings one level lower, files where they lie."""
    text = _HEADING.sub(r"#\1 ", path.read_text().strip())
    return _BESIDE.sub(rf"\g<1>{folder}/\g<2>", text)
