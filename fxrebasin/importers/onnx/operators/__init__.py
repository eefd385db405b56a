"""What each operator computes, one file per family; importing the package fills the table."""

import importlib
import pkgutil

from fxrebasin.importers.onnx.registry import OPERATORS

for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["OPERATORS"]
