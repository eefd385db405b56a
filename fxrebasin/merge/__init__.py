"""Merging: models between others, what they lose, averages of many, and how to repair them."""

from fxrebasin.merge.barriers import BarrierCurve, barrier
from fxrebasin.merge.interpolation import interpolate
from fxrebasin.merge.many import align_many, merge_many
from fxrebasin.merge.pictures import plot_alignment, plot_barrier
from fxrebasin.merge.recalibration import recalibrate
from fxrebasin.merge.repairs import repair
from fxrebasin.merge.statistics import MergeStats, merge_stats

__all__ = [
    "BarrierCurve",
    "MergeStats",
    "align_many",
    "barrier",
    "interpolate",
    "merge_many",
    "merge_stats",
    "plot_alignment",
    "plot_barrier",
    "recalibrate",
    "repair",
]
