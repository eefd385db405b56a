"""Where in the model an operator was called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """One operator call.

    Attributes:
        operator: the ATen overload, for example `aten.addmm.default`.
        node: the fx node's name, or the path of the module that made the call and a running number.
        source: `file:line: source text` of the model's own code, empty when unknown.
    """

    operator: str
    node: str
    source: str = ""

    def __str__(self) -> str:
        place = f" at {self.source}" if self.source else ""
        return f"{self.operator} (node {self.node}){place}"
