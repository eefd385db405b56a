"""The steps that programs are made of, one file per family."""

from __future__ import annotations

from tests.fuzz.grammar import (  # noqa: F401  (importing them fills the table)
    catalogue,
    contraction,
    indexing,
    joining,
    normalization,
    pointwise,
    structures,
    views,
    writing,
)
