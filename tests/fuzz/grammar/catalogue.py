"""Any operator that has a rule, with arguments that its schema lets guess."""

from __future__ import annotations

import torch
from torch._ops import OpOverload

from fxrebasin.passes.rules.registry import BLOCKED, RULES
from tests.fuzz.grammar.registry import step
from tests.fuzz.scope import Cursor, DoesNotFit

AXIS = ("dim", "axis", "dim0", "dim1", "axis0", "axis1", "start_dim", "end_dim", "sumdim")
INDEX = ("index", "indices")


def _can_be_called(overload: OpOverload) -> bool:
    """Some draw numbers, and those inside PyTorch do not check what they are given.

    Medians of an expanded axis are wrong in PyTorch: they depend on the order of the others.
    """
    name = overload._schema.name.removeprefix("aten::")
    inside = name.startswith(("_", "native_", "cudnn_", "miopen_", "mkldnn_", "unsafe_", "prims::"))
    inside = inside or name.endswith("_backward")
    given = any(argument.is_out for argument in overload._schema.arguments)
    random = torch.Tag.nondeterministic_seeded in overload.tags
    return not (inside or given or random or "median" in name)


OPERATORS = sorted((o for o in RULES if o not in BLOCKED and _can_be_called(o)), key=str)


@step
def from_rules(c: Cursor) -> None:
    overload = c.one_of(*OPERATORS)
    x = c.operand()
    if overload._schema.name.endswith("_"):
        x = c.local(f"{x}.clone()")
        c.shapes[x] = c.shapes[c.read[-1]]
    arguments = []
    for position, argument in enumerate(overload._schema.arguments):
        text = _argument(c, argument, x, position)
        if text is None:
            continue
        arguments.append(f"{argument.name}={text}" if argument.kwarg_only else text)
        if argument.has_default_value() and not argument.kwarg_only:
            arguments[-1] = f"{argument.name}={text}"
    results = len(overload._schema.returns)
    part = f"[{c.pick(results)}]" if results > 1 else ""
    c.result(f"torch.ops.{overload}({', '.join(arguments)}){part}.to(x.dtype)")


def _argument(c: Cursor, argument: torch.Argument, x: str, position: int) -> str | None:
    """The text of an argument; None where it is left out."""
    kind, name = str(argument.type), argument.name
    if position == 0:
        return f"[{x}, {_other(c, x)}]" if kind == "List[Tensor]" else x
    if argument.has_default_value() and (name not in AXIS or not c.flag(2)):
        return None
    shape = c.shapes[x]
    if "Tensor" in kind and name in INDEX:
        axis = c.one_of(*range(len(shape)))
        return f"torch.tensor({c.order(shape[axis])})"
    by_kind = {
        "Tensor": lambda: _other(c, x),
        "Optional[Tensor]": lambda: None if c.flag(2) else _other(c, x),
        "bool": lambda: c.one_of("False", "True"),
        "number": lambda: c.one_of("0.5", "2"),
        "float": lambda: "0.5",
        "List[int]": lambda: _axes(c, name, shape),
        "int": lambda: str(c.axis(x)) if name in AXIS else str(1 + c.pick(2)),
        "Optional[int]": lambda: str(c.axis(x)) if name in AXIS else str(1 + c.pick(2)),
        "Optional[List[int]]": lambda: _axes(c, name, shape),
        "List[Tensor]": lambda: f"[{x}, {_other(c, x)}]",
    }
    if kind not in by_kind:
        raise DoesNotFit(f"nothing to give for {argument.type}")
    return by_kind[kind]()


def _axes(c: Cursor, name: str, shape: tuple[int, ...]) -> str:
    if "dim" in name:
        return str(c.some(range(len(shape))))
    if "shape" in name or "size" in name:
        return str(list(shape[-c.one_of(*range(1, len(shape) + 1)) :]))
    return str([1 + c.pick(2) for _ in range(c.one_of(1, 2, len(shape)))])


def _other(c: Cursor, x: str) -> str:
    """Something that an operator may take beside a variable."""
    shape = c.shapes[x]
    kind = c.one_of("variable", "parameter", "vector", "matrix", "itself")
    if kind == "variable":
        return c.operand(lambda other: other == shape)
    if kind == "parameter":
        return c.parameter(*shape[1:]) if len(shape) > 1 else c.parameter(*shape)
    if kind == "vector":
        return c.parameter(shape[-1])
    if kind == "matrix":
        return c.parameter(shape[-1], c.size())
    return x
