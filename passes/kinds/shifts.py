"""Numbers that may be added to a parameter because others take them back.

What is added to a parameter is followed through the operators, as a tensor that has size 1 along
axes where it is the same everywhere. A bias or an embedding further on can take it back; a softmax
does not see what is the same along its axis; an average with weights that sum to one hands on what
is the same for all that it averages. Anything else that meets it shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxrebasin.errors import FxRebasinError
from fxrebasin.passes.kinds.added import added_parameter
from fxrebasin.passes.kinds.averages import sums_to_one
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.marks import raised, reshaped
from fxrebasin.passes.kinds.walk import bound, name_of, shape_of


class ShownError(FxRebasinError):
    """Something depends on what was added."""


@dataclass(frozen=True)
class Change:
    """What is added to the tensor of a node.

    Attributes:
        added: broadcast to the tensor, as far as it is known.
        known: whether it is; else it depends on the input, and only the axes matter along which
            it is the same.
        origin: equal for what is the same number in all models, where that is not known.
    """

    added: Tensor
    known: bool = True
    origin: object = None


_NOTHING = -1e38
"""A score below this gets no weight at all."""

_POOLS = (
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
)

SPLITS = ("split", "split_with_sizes", "chunk", "unbind")
"""Operators that cut a tensor into parts."""

MOVES = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "unsqueeze"),
        *("squeeze", "slice", "clone", "detach", "alias", "_to_copy", "select"),
    }
)
"""Operators that move elements of one tensor."""


@dataclass
class Shifts:
    """Follows what is added to one parameter.

    Attributes:
        graph: of the model.
        state: values by name; meta tensors where it is only asked who can take back what.
        in_training: whether norms take their statistics of what they are given.
        taken: what others take back, by the name of the parameter: to be added to it.
    """

    graph: FunctionalGraph
    state: Mapping[str, Tensor]
    in_training: bool = False
    taken: dict[str, Tensor] = field(default_factory=dict)
    _names: dict[fx.Node, str] = field(default_factory=dict)
    _values: dict[fx.Node, Any] = field(default_factory=dict)
    _synthetic: bool = False
    _changes: dict[fx.Node, Change] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = {node: name for name, node in self.graph.state.items()}
        self._synthetic = any(value.is_meta for value in self.state.values())

    def follow(self, start: Mapping[fx.Node, Change]) -> dict[str, Tensor]:
        """What has to be added to other parameters so that the model's function stays.

        Args:
            start: what is added to which nodes' tensors.

        Raises:
            ShownError: nothing can make up for it.
        """
        self._changes.update(start)
        reached = self.graph.downstream(start)
        for node in reached:
            change = None if node in start else self._step(node)
            if change is not None and not (change.known and not bool(change.added.any())):
                self._changes[node] = change
                reached.go_on(node)
        if any(node in self._changes for node in self.graph.outputs):
            raise ShownError
        return self.taken

    # Operators --------------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> Change | None:
        name = name_of(node)
        if name.endswith("getitem>"):
            return self._item(node.all_input_nodes[0], int(str(node.args[1])))
        if name in SPLITS:
            return self._changes[node.all_input_nodes[0]]
        args = bound(node)
        if name in MOVES:
            change = self._changes[args["self"]]
            return replace(change, added=self._moved(node, args, change.added))
        step = {
            "add": self._sum,
            "sub": self._sum,
            "mul": self._product,
            "div": self._product,
            "masked_fill": self._masked,
            "mm": self._matrix,
            "bmm": self._batched,
            "cat": self._cat,
            "index": self._looked_up,
            "mean": self._mean,
            "var_mean": self._mean,
            "_softmax": self._softmax,
            "_safe_softmax": self._softmax,
            "convolution": self._convolution,
            "amax": self._mean,
            **dict.fromkeys(_POOLS, self._pooled),
        }.get(name)
        if step is None:
            raise ShownError
        if self.in_training and self.graph.of_statistics.intersection(node.all_input_nodes):
            raise ShownError
        return step(node, args)

    def _item(self, several: fx.Node, index: int) -> Change | None:
        """One of the tensors that an operator returns."""
        change, name = self._changes[several], name_of(several)
        if name not in SPLITS:
            # the variance does not depend on what is the same along its axes, and nor do places
            return change if index == (1 if name == "var_mean" else 0) else None
        args = bound(several)
        dim = args["dim"] % len(shape_of(args["self"]))
        if name == "unbind":
            added = change.added.select(dim, index if change.added.shape[dim] > 1 else 0)
            return replace(change, added=added)
        if change.added.shape[dim] == 1:
            return change
        lengths = [int(item.shape[dim]) for item in several.meta["val"]]
        return replace(change, added=change.added.narrow(dim, sum(lengths[:index]), lengths[index]))

    def _moved(self, node: fx.Node, args: Mapping[str, Any], added: Tensor) -> Tensor:
        before, after, name = shape_of(args["self"]), shape_of(node), name_of(node)
        if name in ("view", "_unsafe_view", "reshape"):
            return reshaped(added, before, after)
        if name == "expand":
            return raised(added, len(after))
        if name in ("clone", "detach", "alias", "_to_copy"):
            return added
        if name in ("slice", "select"):
            dim = args["dim"]
            if added.shape[dim] == 1:
                return added if name == "slice" else added.squeeze(dim)
        if name == "squeeze":
            gone = [k for k in range(len(before)) if before[k] == 1 and len(before) != len(after)]
            if len(before) - len(gone) != len(after):
                raise ShownError
            return added.squeeze(tuple(gone)) if gone else added
        others = {key: value for key, value in args.items() if key != "self"}
        overload: Any = node.target
        plain = getattr(torch.ops.aten, name)
        found: Tensor = getattr(plain, overload._overloadname)(added, **others)
        return found

    def _sum(self, node: fx.Node, args: Mapping[str, Any]) -> Change | None:
        if args.get("alpha", 1) != 1:
            raise ShownError
        one, two = args["self"], args["other"]
        rank = len(shape_of(node))
        sign = -1 if name_of(node) == "sub" else 1
        left, right = (self._raised(item, rank) for item in (one, two))
        if left is not None and right is not None:
            same = left.origin is right.origin and left.known is right.known
            if same and sign == -1 and torch.equal(left.added, right.added):
                return None
            if not (left.known and right.known):
                raise ShownError
            return Change(left.added + sign * right.added)
        change, other = (left, two) if left is not None else (right, one)
        if change is None:
            return None
        if sign == 1 and change.known and self._take(other, change.added, node):
            return None
        if left is None and sign == -1:
            return Change(-change.added, change.known)
        return change

    def _raised(self, item: Any, rank: int) -> Change | None:
        change = self._changes.get(item) if isinstance(item, fx.Node) else None
        return None if change is None else replace(change, added=raised(change.added, rank))

    def _mean(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        """Averages, or the largest, over axes along which the same was added."""
        change = self._changes[args["self"]]
        rank = len(shape_of(args["self"]))
        dims = sorted((dim % rank for dim in args.get("dim") or range(rank)), reverse=True)
        if any(change.added.shape[dim] > 1 for dim in dims):
            raise ShownError
        added = change.added
        for dim in [] if args.get("keepdim") else dims:
            added = added.squeeze(dim)
        return replace(change, added=added)

    def _product(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        one, two = args["self"], args["other"]
        if one in self._changes and isinstance(two, fx.Node) and two in self._changes:
            raise ShownError
        left = one in self._changes
        change, other = (self._changes[one], two) if left else (self._changes[two], one)
        divides = name_of(node) == "div"
        if divides and not left:
            raise ShownError
        if not isinstance(other, fx.Node):
            return replace(change, added=change.added / other if divides else change.added * other)
        rank = len(shape_of(node))
        if other in self.graph.from_inputs or not change.known:
            raise ShownError
        factor = raised(self._value(other), rank)
        return Change(raised(change.added, rank) * (1 / factor if divides else factor))

    def _masked(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        """Scores that a softmax turns into zeros, whatever was added to them."""
        change = self._changes.get(args["self"])
        value = args["value"]
        if change is None or isinstance(value, fx.Node) or value > _NOTHING:
            raise ShownError
        softmax = {name_of(user) for user in node.users}
        if not softmax <= {"_softmax", "_safe_softmax"}:
            raise ShownError
        return change

    def _matrix(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        one, two = args["self"], args["mat2"]
        change = self._changes.get(one)
        if change is None or two in self._changes or two in self.graph.from_inputs:
            raise ShownError
        if not change.known:
            raise ShownError
        inner, columns = shape_of(two)
        rows = change.added.expand(change.added.shape[0], inner)
        if self._synthetic:  # a product with one column and one row is as good as any
            return Change((rows @ some(inner))[:, None] * some(columns))
        return Change(rows @ self._value(two))

    def _batched(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        one, two = args["self"], args["mat2"]
        if one in self._changes and two in self._changes:
            raise ShownError
        if two in self._changes and self._changes[two].known:
            added = self._changes[two].added
            if added.shape[1] == 1 and sums_to_one(one, self.graph):
                return Change(added)
            if added.shape[2] == 1:  # the same for all columns of the result, whatever it is
                return Change(added.new_zeros(shape_of(node)).narrow(2, 0, 1), known=False)
        raise ShownError

    def _cat(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        shape = shape_of(node)
        parts = [item for item in args["tensors"] if shape_of(item) != (0,)]
        dim = args["dim"] % len(shape)
        changes = [self._changes.get(item) for item in parts]
        if len(parts) == 1 and changes[0] is not None:
            return changes[0]
        if any(change is not None and not change.known for change in changes):
            raise ShownError
        form = next(change.added for change in changes if change is not None)
        sizes = [max(c.added.shape[k] for c in changes if c is not None) for k in range(len(shape))]
        pieces = []
        for item, change in zip(parts, changes, strict=True):
            sizes[dim] = shape_of(item)[dim]
            pieces.append(form.new_zeros(sizes) if change is None else change.added.expand(sizes))
        return Change(torch.cat(pieces, dim))

    def _looked_up(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        """Places along an axis: known ones, or where all have the same added."""
        change = self._changes.get(args["self"])
        given = {axis: item for axis, item in enumerate(args["indices"]) if item is not None}
        if change is None or len(given) != 1:
            raise ShownError
        [(axis, at)] = given.items()
        added = change.added
        if added.shape[axis] == 1:
            shape = [*added.shape[:axis], *(1 for _ in shape_of(at)), *added.shape[axis + 1 :]]
            return replace(change, added=added.reshape(shape))
        places = self.graph.constant(at)
        if places is None:
            raise ShownError
        return replace(change, added=added[(slice(None),) * axis + (places,)])

    def _softmax(self, node: fx.Node, args: Mapping[str, Any]) -> Change | None:
        if self._changes[args["self"]].added.shape[args["dim"]] != 1:
            raise ShownError
        return None

    def _convolution(self, node: fx.Node, args: Mapping[str, Any]) -> Change | None:
        if args["weight"] in self._changes:
            raise ShownError
        space = len(shape_of(args["weight"])) - 2
        batch = len(shape_of(node)) - space - 1
        added: Tensor | None = None
        known = True
        if args["input"] in self._changes:
            added = self._filtered(args, self._changes[args["input"]], batch)
        if args["bias"] in self._changes:
            own = self._changes[args["bias"]]
            known = own.known
            along = own.added.reshape([1] * batch + [-1] + [1] * space)
            added = along if added is None else added + along
        elif added is not None and self._take(args["bias"], added.flatten(), args["bias"]):
            return None
        if added is None:
            raise ShownError
        return Change(added, known)

    def _filtered(self, args: Mapping[str, Any], change: Change, batch: int) -> Tensor:
        """What is added to each channel of a convolution without borders."""
        weight = self._value(args["weight"])
        rest = (*change.added.shape[:batch], *change.added.shape[batch + 1 :])
        plain = not any(args["padding"]) and args["groups"] == 1 and not args["transposed"]
        if not plain or not change.known or any(size > 1 for size in rest):
            raise ShownError
        rows = change.added.flatten().expand(weight.shape[1])
        space = weight.dim() - 2
        if self._synthetic:
            found = (rows @ some(len(rows))) * some(weight.shape[0])
        else:
            found = weight.flatten(2).sum(2) @ rows
        return found.reshape([1] * batch + [-1] + [1] * space)

    def _pooled(self, node: fx.Node, args: Mapping[str, Any]) -> Change:
        """The largest or the average of places at which the same was added."""
        change = self._changes[args["self"]]
        name, space = name_of(node), int(name_of(node).split("pool")[1][0])
        averaged = name.startswith("avg") and any(args["padding"])
        if averaged or any(size > 1 for size in change.added.shape[-space:]):
            raise ShownError
        return change

    # Parameters -------------------------------------------------------------------------------

    def _take(self, other: Any, added: Tensor, node: fx.Node) -> bool:
        """Let a parameter that is added take back what was added; whether it can."""
        found = added_parameter(other, self._names)
        if found is None:
            return False
        name = found.name
        shape = tuple(self.state[name].shape)
        if found.rows:
            if any(size > 1 for size in added.shape[:-1]) or added.shape[-1] not in (1, shape[-1]):
                return False
            change = -added.reshape(1, -1).expand(shape)
        else:
            wide = raised_shape(found.shape, len(shape_of(node)))
            if any(size > 1 and size != own for size, own in zip(added.shape, wide, strict=True)):
                return False
            change = -added.expand(wide).reshape(shape)
        if name in self.taken:
            return False
        self.taken[name] = change
        return True

    def _value(self, node: fx.Node) -> Any:
        """The value of a node that depends on no input: a tensor, or several."""
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    def _computed(self, node: fx.Node) -> Any:
        if node in self._names:
            own = self.state[self._names[node]]
            return some(*own.shape) if own.is_meta else own
        if node.op != "call_function":
            return self.graph.values[node]
        if self._synthetic:
            several = not isinstance(node.meta["val"], Tensor)
            return None if several else some(*shape_of(node))
        if name_of(node) == "_to_copy":
            return self._value(node.all_input_nodes[0])  # in the precision of the state
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def raised_shape(shape: Iterable[int], rank: int) -> list[int]:
    """A shape with axes of size 1 in front."""
    own = list(shape)
    return [1] * (rank - len(own)) + own


def some(*shape: int) -> Tensor:
    """Numbers that are all different, the same ones for a shape."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
