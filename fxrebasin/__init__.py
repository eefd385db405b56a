"""Permutation symmetries of PyTorch models, and re-basing with a check that nothing changed."""

import random
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxrebasin.alignment import Alignment
    from fxrebasin.api import Reference, analyze, apply, match, transform
    from fxrebasin.errors import (
        ArchitectureMismatchError,
        CheckpointError,
        EquivalenceError,
        ExportError,
        FxRebasinError,
        FxRebasinWarning,
        InputError,
        TraceError,
    )
    from fxrebasin.exporters.onnx.export import export_onnx
    from fxrebasin.importers.onnx.comparing import verify
    from fxrebasin.importers.onnx.merging import onnx_merge
    from fxrebasin.importers.onnx.permuting import onnx_apply
    from fxrebasin.importers.onnx.transforming import onnx_transform
    from fxrebasin.layout import PermutationClass
    from fxrebasin.merge import (
        BarrierCurve,
        MergeStats,
        align_many,
        barrier,
        interpolate,
        merge_many,
        merge_stats,
        plot_alignment,
        plot_barrier,
        recalibrate,
        repair,
    )
    from fxrebasin.permutation import Permutation
    from fxrebasin.reports.equivalence import EquivalenceReport
    from fxrebasin.reports.rebasin import RebasinReport
    from fxrebasin.symmetry import Symmetry

    __version__: str

__all__ = [
    "Alignment",
    "ArchitectureMismatchError",
    "BarrierCurve",
    "CheckpointError",
    "EquivalenceError",
    "EquivalenceReport",
    "ExportError",
    "FxRebasinError",
    "FxRebasinWarning",
    "InputError",
    "MergeStats",
    "Permutation",
    "PermutationClass",
    "RebasinReport",
    "Reference",
    "Symmetry",
    "TraceError",
    "__version__",
    "align_many",
    "analyze",
    "apply",
    "barrier",
    "export_onnx",
    "interpolate",
    "match",
    "merge_many",
    "merge_stats",
    "onnx_apply",
    "onnx_merge",
    "onnx_transform",
    "plot_alignment",
    "plot_barrier",
    "recalibrate",
    "repair",
    "transform",
    "verify",
]

# A name loads the module that holds it when it is first asked for: `fxrebasin --help` needs no
# torch, and `import fxrebasin` neither pictures nor ONNX. Type checkers read the imports above.
_NAMES_IN = {
    "fxrebasin.alignment": ("Alignment",),
    "fxrebasin.api": ("Reference", "analyze", "apply", "match", "transform"),
    "fxrebasin.errors": (
        *("ArchitectureMismatchError", "CheckpointError", "EquivalenceError", "ExportError"),
        *("FxRebasinError", "FxRebasinWarning", "InputError", "TraceError"),
    ),
    "fxrebasin.exporters.onnx.export": ("export_onnx",),
    "fxrebasin.importers.onnx.merging": ("onnx_merge",),
    "fxrebasin.importers.onnx.permuting": ("onnx_apply",),
    "fxrebasin.importers.onnx.transforming": ("onnx_transform",),
    "fxrebasin.importers.onnx.comparing": ("verify",),
    "fxrebasin.layout": ("PermutationClass",),
    "fxrebasin.merge": (
        *("BarrierCurve", "MergeStats", "align_many", "barrier", "interpolate", "merge_many"),
        *("merge_stats", "plot_alignment", "plot_barrier", "recalibrate", "repair"),
    ),
    "fxrebasin.permutation": ("Permutation",),
    "fxrebasin.reports.equivalence": ("EquivalenceReport",),
    "fxrebasin.reports.rebasin": ("RebasinReport",),
    "fxrebasin.symmetry": ("Symmetry",),
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}


def _imported(module: str) -> Any:
    """A module; some of those that are loaded with it draw numbers when they are."""
    state = random.getstate()
    found = import_module(module)
    if random.getstate() != state:
        random.setstate(state)
    return found


if not TYPE_CHECKING:  # checkers would take every name for one that exists

    def __getattr__(name: str) -> Any:
        """A public name, or a module of the package, on its first use."""
        if name in _MODULE_OF:
            found = getattr(_imported(_MODULE_OF[name]), name)
        elif name == "__version__":
            found = import_module("importlib.metadata").version(__name__)
        elif not name.startswith("_") and util.find_spec(f"{__name__}.{name}") is not None:
            found = _imported(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """The public names, loaded or not, and what is there."""
        return sorted({*globals(), *__all__})
