"""Where constraints come from: an operator that the model called, or what else happened to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch._ops import OpOverload

INPUT, CONSTANT = "<input>", "<constant>"
"""The names, in records of operators, of tensors that no operator of the model made."""


@dataclass(frozen=True)
class Origin:
    """One operator call, or another event of a run.

    Attributes:
        operator: for people: the ATen overload, for example `aten.addmm.default`, or what happened.
        node: the path of the module that made the call and a running number, or a name.
        source: `file:line: source text` of the model's own code, empty when unknown.
        op: the operator; None if the event is no operator call.
        module: the path of the module that made the call, empty for the model itself.
        is_output: whether the model returned a tensor here.
    """

    operator: str
    node: str
    source: str = ""
    op: OpOverload | None = None
    module: str = ""
    is_output: bool = False

    def __str__(self) -> str:
        place = f" at {self.source}" if self.source else ""
        return f"{self.operator} (node {self.node}){place}"
