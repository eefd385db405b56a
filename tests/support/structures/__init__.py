"""One small module per structure that models are made of, with the order of its group."""

from __future__ import annotations

import importlib
import pkgutil

from tests.support.structures.table import STRUCTURES, Structure

for _info in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_info.name}")

__all__ = ["STRUCTURES", "Structure"]
