"""Operator rules, one file per family; importing the package fills the registry."""

import importlib
import pkgutil

from fxrebasin.passes.rules.registry import register_out_variants

for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
register_out_variants()
