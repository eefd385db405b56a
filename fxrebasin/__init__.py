"""Permutation symmetries of PyTorch models, and re-basing with proof that nothing changed."""

from importlib.metadata import version as _version

from fxrebasin.api import Reference, analyze, apply, match, transform
from fxrebasin.errors import (
    ArchitectureMismatchError,
    CheckpointError,
    EquivalenceError,
    ExportError,
    FxRebasinError,
    InputError,
    TraceError,
)
from fxrebasin.exporters.onnx.export import export_onnx
from fxrebasin.exporters.verify.equivalence import verify
from fxrebasin.layout import PermutationClass
from fxrebasin.merge import (
    BarrierCurve,
    MergeStats,
    align_many,
    barrier,
    interpolate,
    merge_many,
    merge_stats,
    plot_barrier,
    recalibrate,
    repair,
)
from fxrebasin.permutation import Permutation
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.reports.rebasin import RebasinReport
from fxrebasin.symmetry import Symmetry

__version__ = _version("fxrebasin")

__all__ = [
    "ArchitectureMismatchError",
    "BarrierCurve",
    "CheckpointError",
    "EquivalenceError",
    "EquivalenceReport",
    "ExportError",
    "FxRebasinError",
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
    "plot_barrier",
    "recalibrate",
    "repair",
    "transform",
    "verify",
]
