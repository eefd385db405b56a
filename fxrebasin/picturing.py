"""Pictures as files: of which kinds there are, and how they become bytes."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxrebasin.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
# Files are the same every time: nothing in them says when and by what they were made.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}

_ONE_AT_A_TIME = threading.Lock()
"""matplotlib's settings hold for all threads; each puts back what it found."""


def kind_of(path: str | PathLike[str]) -> str:
    """What kind of picture a file is to be: "png", "svg" or "pdf".

    Args:
        path: of the file.

    Raises:
        InputError: its suffix is none of these.

    Example:
        >>> kind_of("barrier.PDF")
        'pdf'
    """
    file = Path(path)
    if file.suffix.lower() not in PICTURES:
        raise InputError(
            f"{file} does not have the name of a picture; expected one of {', '.join(PICTURES)}"
        )
    return file.suffix[1:].lower()


def rendered(figures: Figure | Sequence[Figure], kind: str) -> bytes:
    """A figure as a file, the same bytes every time; as PDF also several, one on each page.

    Args:
        figures: what to draw.
        kind: "png", "svg" or "pdf".
    """
    # matplotlib takes half as long to import as torch, and most programs draw nothing.
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages

    pages = figures if isinstance(figures, Sequence) else [figures]
    buffer = io.BytesIO()
    # Letters stay letters in a PDF, which can then be searched and cut out.
    with _ONE_AT_A_TIME, rc_context({"svg.hashsalt": "fxrebasin", "pdf.fonttype": 42}):
        if kind == "pdf":
            with PdfPages(buffer, metadata=_METADATA[kind]) as file:
                for page in pages:
                    file.savefig(page)
        else:
            pages[0].savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()
