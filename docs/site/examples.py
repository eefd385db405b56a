"""Docstrings have one example under "Example:"; the parser knows code under "Examples:" only."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Code under "Example:" is shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
