"""Silence for the messages and progress bars of Hugging Face's libraries, for a while."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fxrebasin.models.library_imports import import_library


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """No warnings and no progress from a library; then what was set before.

    Its reports on what it loads are for people who load; what matters in them is told by us.

    Args:
        library: transformers or diffusers.
    """
    logging, hub = library.utils.logging, import_library("huggingface_hub.utils")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    without_downloads = hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if bars and without_downloads:  # transformers turns on those of the hub too
            hub.disable_progress_bars()
