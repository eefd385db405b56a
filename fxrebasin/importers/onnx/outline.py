"""What a graph multiplies, looks up and scales: coarser than what its nodes are.

One exporter writes a normalisation, an activation or attention as one node, another one as ten, in
any order. Here a graph is only its products, its tables and what else reads weights; of what is
between them it only counts where it comes from. So spellings that nobody has listed are alike. That
two graphs have one outline says which of their tensors may go together, and no more than that: see
`fxrebasin.importers.onnx.joining`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.foreign import full_name
from fxrebasin.importers.onnx.graph import Parsed, Step
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.roles import is_mask, is_uniform, weights_of
from fxrebasin.importers.onnx.tails import Fold, folds_of


@dataclass(frozen=True, eq=False)
class InAdvance:
    """What a weight is together with what follows its layer.

    Args:
        factor: it is multiplied by this, as it is read; None if it is replaced.
        value: it is replaced by this; None if it is multiplied.
    """

    factor: Tensor | None = None
    value: Tensor | None = None

    def of(self, read: Tensor) -> Tensor:
        """The numbers, in the type and shape of the weight.

        Args:
            read: the weight, as it is read.
        """
        if self.factor is not None:
            return (read.double() * self.factor).to(read.dtype)
        return read if self.value is None else self.value.reshape(read.shape).to(read.dtype)


@dataclass(frozen=True)
class Leaf:
    """A weight, where it is read.

    Args:
        name: of the tensor in the whole model.
        shape: of it as it is read.
        order: how its axes were transposed for that; None if they were not.
        uniform: whether it holds one number throughout, so that others may leave it out.
        part: the places along its last axis that are read; None for all.
        computed: what is done to it in advance; None if it is as in the file.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None
    uniform: bool = False
    part: tuple[int, int] | None = None
    computed: InAdvance | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Its sizes without those of 1."""
        shape = self.shape
        if self.part is not None:
            shape = (*shape[:-1], self.part[1] - self.part[0])
        return tuple(size for size in shape if size != 1)

    def turned(self, order: Sequence[int]) -> Leaf:
        """The same, transposed once more.

        Args:
            order: of the axes.
        """
        before = self.order or tuple(range(len(self.shape)))
        if len(before) != len(order):  # it was reshaped since
            return self
        shape = tuple(self.shape[at] for at in order)
        return replace(self, shape=shape, order=tuple(before[at] for at in order))

    def cut(self, start: int, stop: int) -> Leaf:
        """Some places along the last axis.

        Args:
            start: the first of them.
            stop: the one after the last.
        """
        return replace(self, part=(start, stop))


@dataclass(frozen=True)
class Entry:
    """An input of the graph, by its place."""

    place: int


@dataclass(frozen=True, eq=False)
class Anchor:
    """Something that reads weights or multiplies values.

    Args:
        kind: what it does.
        label: what messages call it.
        weights: that it reads, by their places; None for those that it may have and has not.
        sources: where each value comes from that it works on.
        folded: the layer that this is the tail of, and all of that tail, as one layer; None if it
            is no tail.
        fold: the tail that went into its weights; None where nothing did.
        loose: whether only layers and products tell where something comes from.
    """

    kind: str
    label: str
    weights: tuple[Leaf | None, ...]
    sources: tuple[Origin, ...]
    folded: Anchor | None = None
    fold: Fold | None = None
    loose: bool = False
    keys: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        below = [sorted(keys_of(origin, self.loose)) for origin in self.sources]
        if self.kind == SCALE or (self.loose and self.kind == LOOKUP):  # others may leave it out
            found = frozenset(key for keys in below for key in keys)
        else:
            sizes = [None if leaf is None else sorted(leaf.dims) for leaf in self.weights[:1]]
            if self.kind == LINEAR:  # others may have several in one
                sizes = [[leaf.shape[-2]] for leaf in self.weights[:1] if leaf is not None]
            text = repr((self.kind, sizes, below))
            found = frozenset({hashlib.sha256(text.encode()).hexdigest()})
        object.__setattr__(self, "keys", found)


Item: TypeAlias = Leaf | Entry | Anchor
Origin: TypeAlias = tuple[Item, ...]
"""All that a value comes from, each once; nothing for numbers that depend on nothing."""

LINEAR, PRODUCT, SCALE, LOOKUP = "linear", "product", "scale", "lookup"
_BIASED = frozenset({LINEAR, SCALE, "Conv", "ConvTranspose"})
"""Kinds whose last weight is added to what they make."""

_LAYERS = _BIASED - {SCALE}

_Rule: TypeAlias = Callable[["_Node"], Sequence[Origin]]
_RULES: dict[tuple[str, str], _Rule] = {}
_MICROSOFT = "com.microsoft"


def keys_of(origin: Origin, loose: bool = False) -> frozenset[str]:
    """What tells origins apart, whoever wrote the graph: weights that are added do not count.

    Args:
        origin: of a value.
        loose: whether inputs do not count either.
    """
    found: set[str] = set()
    for item in origin:
        if isinstance(item, Entry) and not loose:
            found.add(f"input {item.place}")
        elif isinstance(item, Anchor):
            found |= item.keys
    return frozenset(found)


def outline_of(source: OnnxSource, loose: bool = False) -> tuple[Origin, ...]:
    """Where each output of a graph comes from.

    Args:
        source: the model.
        loose: whether only layers and products tell where something comes from: not inputs, and
            not tables, which others may have computed in advance.

    Raises:
        ArchitectureMismatchError: it has branches or loops, of which there is no outline.
    """
    parsed = source.parsed
    weights = set(weights_of(parsed))
    values: dict[str, Origin] = {"": ()}
    for local, name in parsed.graph.tensors.items():
        tensor = parsed.tensors[name]
        if name in weights and tensor.numel() > 1 and not is_mask(tensor):
            leaf = Leaf(name, tuple(tensor.shape), uniform=is_uniform(tensor))
            values[local] = (leaf,)
        else:
            values[local] = ()
    values.update((name, (Entry(at),)) for at, name in enumerate(parsed.graph.inputs))
    folds = folds_of(parsed, set(source.state))
    for step in parsed.graph.steps:
        if step.graphs:
            raise ArchitectureMismatchError(
                f"{step.kind} {step.name!r} has bodies, which are compared node by node only"
            )
        reads = step.operator.reads if step.operator is not None else ()
        given = [() if at in reads else values[name] for at, name in enumerate(step.inputs)]
        made = _RULES.get((step.domain, step.kind), _between)(_Node(step, given, loose))
        values.update(zip(step.outputs, made, strict=False))
        values.update((name, made[-1]) for name in step.outputs[len(made) :])
        fold = folds.get(step.outputs[0])
        if fold is not None:
            values[step.outputs[0]] = _with_fold(made[0], values[fold.layer], fold, parsed)
    return tuple(values[name] for name in parsed.graph.outputs)


def _with_fold(tail: Origin, layer: Origin, fold: Fold, parsed: Parsed) -> Origin:
    """Where a tail comes from, which may be one layer in other files."""
    end, owner = (origin[0] if len(origin) == 1 else None for origin in (tail, layer))
    if not (isinstance(end, Anchor) and isinstance(owner, Anchor)) or end.kind != SCALE:
        return tail
    weight = owner.weights[0] if len(owner.weights) == 2 else None
    if owner.kind not in _LAYERS or weight is None:
        return tail
    bias = None
    if fold.bias is not None and fold.held is not None:
        bias = Leaf(fold.held, tuple(parsed.tensors[fold.held].shape))
        bias = replace(bias, computed=InAdvance(value=fold.bias))
    factor = _per_channel(owner.kind, fold.factor, weight.shape)
    whole = replace(weight, computed=InAdvance(factor=factor), uniform=False)
    found = replace(owner, label=end.label, weights=(whole, bias), fold=fold)
    return (replace(end, folded=found),)


def _per_channel(kind: str, factor: Tensor, shape: Sequence[int]) -> Tensor:
    """A number for each channel, as a weight of this shape is multiplied by them."""
    if kind == LINEAR:
        return factor
    ones = [1] * (len(shape) - 2)
    if kind == "Conv":
        return factor.reshape(-1, 1, *ones)
    groups = factor.reshape(-1, shape[1])  # of a ConvTranspose
    return groups.repeat_interleave(shape[0] // len(groups), 0).reshape(*shape[:2], *ones)


@dataclass(frozen=True, eq=False)
class _Node:
    """A node, and where what it reads comes from."""

    step: Step
    given: Sequence[Origin]
    loose: bool

    def __getitem__(self, at: int) -> Origin:
        return self.given[at] if at < len(self.given) else ()

    def leaf(self, at: int) -> Leaf | None:
        """The weight that an input is; None if it is something else."""
        return _only_leaf(self[at])

    def attribute(self, name: str, default: Any) -> Any:
        return self.step.attributes.get(name, default)

    def anchor(
        self, kind: str, weights: Iterable[Leaf | None], sources: Iterable[Origin]
    ) -> Origin:
        label = f"{full_name(self.step.domain, self.step.kind)} {self.step.name!r}"
        return (Anchor(kind, label, tuple(weights), tuple(sources), loose=self.loose),)

    def scaled(self, value: Origin, scale: Origin, shift: Origin = ()) -> Origin:
        """A value times a weight and plus another one, if these are weights."""
        factor, added = _only_leaf(scale), _only_leaf(shift)
        if factor is None:
            return _together(value, scale, shift)
        found = self.anchor(SCALE, (factor, added), (value,))
        return found if added is not None else _together(found, shift)


def _rule(*kinds: str, domain: str = "") -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(((domain, kind) for kind in kinds), rule))
        return rule

    return register


def _together(*origins: Origin) -> Origin:
    return tuple(dict.fromkeys(item for origin in origins for item in origin))


def _only_leaf(origin: Origin) -> Leaf | None:
    found = origin[0] if len(origin) == 1 else None
    return found if isinstance(found, Leaf) else None


def _biased(value: Origin, bias: Origin) -> Origin | None:
    """A value plus a weight that is its own bias; None if it is no such thing."""
    leaf = _only_leaf(bias)
    owner = value[0] if len(value) == 1 else None
    if leaf is None or not isinstance(owner, Anchor) or owner.kind not in _BIASED:
        return None
    if owner.weights[-1] is not None or len(leaf.dims) > 1:
        return None
    return (replace(owner, weights=(*owner.weights[:-1], leaf)),)


def _between(node: _Node) -> Sequence[Origin]:
    """What only passes on, mixes or bends values."""
    return [_together(*node.given)]


@_rule("Shape", "Size", "ConstantOfShape", "EyeLike")
def _sizes(node: _Node) -> Sequence[Origin]:
    return [()]


@_rule("CastLike")
def _cast_like(node: _Node) -> Sequence[Origin]:
    return [node[0]]


@_rule("Add", "Sum", "BiasGelu", "FastGelu")
@_rule("BiasGelu", "FastGelu", domain=_MICROSOFT)
def _add(node: _Node) -> Sequence[Origin]:
    biased = (
        _biased(node[0], node[1]) or _biased(node[1], node[0]) if len(node.given) == 2 else None
    )
    return [biased or _together(*node.given)]


@_rule("Mul", "Div")
def _multiply(node: _Node) -> Sequence[Origin]:
    first, second = node.given
    if node.leaf(1) is not None and first and node.leaf(0) is None:
        return [node.scaled(first, second)]
    if node.leaf(0) is not None and second and node.leaf(1) is None:
        return [node.scaled(second, first)]
    return [_together(first, second)]


@_rule("Transpose")
def _transpose(node: _Node) -> Sequence[Origin]:
    leaf = node.leaf(0)
    if leaf is None:
        return [node[0]]
    return [(leaf.turned(node.attribute("perm", None) or range(len(leaf.shape))[::-1]),)]


@_rule("Gather")
def _look_up(node: _Node) -> Sequence[Origin]:
    table, places = node.leaf(0), node[1]
    if table is None or not places:
        return [_together(node[0], places)]
    return [node.anchor(LOOKUP, [table], [places])]


def _matrix(node: _Node, first: Origin, second: Origin) -> Origin:
    """A product of two values, or of a value and a weight."""
    left, right = _only_leaf(first), _only_leaf(second)
    if right is not None and left is None and first and len(right.shape) == 2:
        return node.anchor(LINEAR, (right, None), [first])
    if left is not None and right is None and second and len(left.shape) == 2:
        return node.anchor(LINEAR, (left.turned((1, 0)), None), [second])
    if not first or not second or (left is not None and right is not None):
        return _together(first, second)
    if node.loose and not any(isinstance(item, Anchor) for item in (*first, *second)):
        return _together(first, second)  # angles of positions
    return node.anchor(PRODUCT, (), [first, second])


@_rule("MatMul", "Gemm")
@_rule("FusedMatMul", "TransposeMatMul", "FusedGemm", domain=_MICROSOFT)
def _product(node: _Node) -> Sequence[Origin]:
    sides = []
    for at, name in enumerate(("transA", "transB")):
        leaf = node.leaf(at)
        turned = leaf is not None and len(leaf.shape) == 2 and node.attribute(name, 0)
        sides.append((leaf.turned((1, 0)),) if leaf is not None and turned else node[at])
    found = _matrix(node, *sides)
    return [_biased(found, node[2]) or _together(found, node[2])]


def _is_dense(node: _Node, weight: Leaf) -> bool:
    """Whether a convolution is a product at each place."""
    moves = any(value != 1 for value in node.attribute("strides", None) or ())
    pads = any(node.attribute("pads", None) or ()) or node.attribute("group", 1) != 1
    return not (moves or pads) and all(size == 1 for size in weight.shape[2:])


@_rule("Conv", "ConvTranspose")
@_rule("FusedConv", domain=_MICROSOFT)
def _convolution(node: _Node) -> Sequence[Origin]:
    if node.leaf(1) is None:
        return [node.anchor(PRODUCT, (), node.given)]
    weight, kind = node.leaf(1), node.step.kind.removeprefix("Fused")
    if weight is not None and kind == "Conv" and _is_dense(node, weight):
        kind, weight = LINEAR, weight.turned((*range(2, len(weight.shape)), 1, 0))
    found = node.anchor(kind, (weight, None), [node[0]])
    return [_together(_biased(found, node[2]) or _together(found, node[2]), node[3])]


@_rule("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
@_rule("SimplifiedLayerNormalization")
def _normalise(node: _Node) -> Sequence[Origin]:
    return [node.scaled(node[0], node[1], node[2]), node[0]]


@_rule("BatchNormalization")
def _batch_norm(node: _Node) -> Sequence[Origin]:
    value, scale, shift, mean, variance = node.given[:5]
    return [node.scaled(node.scaled(_together(value, mean), variance), scale, shift)]


@_rule("SkipLayerNormalization", domain=_MICROSOFT)
def _skip_norm(node: _Node) -> Sequence[Origin]:
    return _skipped(node, node[3], node[4])


@_rule("SkipSimplifiedLayerNormalization", domain=_MICROSOFT)
def _skip_rms_norm(node: _Node) -> Sequence[Origin]:
    return _skipped(node, (), node[3])


def _skipped(node: _Node, shift: Origin, bias: Origin) -> Sequence[Origin]:
    """A sum of two values, one of which has its bias here, normalised; and the sum itself."""
    one, two = node[0], node[1]
    first, second = _biased(one, bias), _biased(two, bias)
    if first is not None:
        total = _together(first, two)
    elif second is not None:
        total = _together(one, second)
    else:
        total = _together(one, two, bias)
    return [node.scaled(total, node[2], shift), total, total, total]


@_rule("EmbedLayerNormalization", domain=_MICROSOFT)
def _embed(node: _Node) -> Sequence[Origin]:
    ids, kinds, words, places, segments, scale, shift, mask, positions = (
        node[at] for at in range(9)
    )
    found: list[Origin] = []
    for table, read in ((words, ids), (places, positions), (segments, kinds)):
        leaf = _only_leaf(table)
        found.append(table if leaf is None or not read else node.anchor(LOOKUP, [leaf], [read]))
    total = _together(*found)
    return [node.scaled(total, scale, shift), mask, total]


@_rule("Attention", domain=_MICROSOFT)
def _packed_attention(node: _Node) -> Sequence[Origin]:
    weight, bias = node.leaf(1), node.leaf(2)
    if weight is None:
        return [node.anchor(PRODUCT, (), node.given)]
    sizes = node.attribute("qkv_hidden_sizes", None) or [weight.shape[1] // 3] * 3
    parts = []
    for at, size in enumerate(sizes):
        start = sum(sizes[:at])
        own = None if bias is None else bias.cut(start, start + size)
        parts.append(node.anchor(LINEAR, (weight.cut(start, start + size), own), [node[0]]))
    return _attended(node, parts, (node[3], node[5]), node[4])


@_rule("MultiHeadAttention", domain=_MICROSOFT)
def _attention_of_three(node: _Node) -> Sequence[Origin]:
    bias, parts = node.leaf(3), list(node.given[:3])
    if bias is not None:
        size = bias.shape[0] // 3
        cuts = [bias.cut(at * size, (at + 1) * size) for at in range(3)]
        parts = [
            _biased(one, (cut,)) or _together(one, (cut,))
            for one, cut in zip(parts, cuts, strict=True)
        ]
    return _attended(node, parts, (node[4], node[5]), _together(node[6], node[7]))


@_rule("GroupQueryAttention", domain=_MICROSOFT)
def _grouped_attention(node: _Node) -> Sequence[Origin]:
    parts = list(node.given[:3])
    packed = parts[0][0] if len(parts[0]) == 1 and not parts[1] else None
    if isinstance(packed, Anchor) and packed.kind == LINEAR:
        heads, few = node.attribute("num_heads", 1), node.attribute("kv_num_heads", 1)
        parts = _cut(packed, [heads, few, few])
    tables = _together(node[5], node[6], *(node[at] for at in (7, 8, 9)))
    past = _together(node[3], node[4])
    return _attended(node, parts, (tables, node[10]), past)


def _cut(layer: Anchor, shares: Sequence[int]) -> list[Origin]:
    """Several layers that are one, whose units are shared out."""
    found: list[Origin] = []
    weight, bias = layer.weights
    size = weight.shape[-1] // sum(shares) if weight is not None else 0
    for at, share in enumerate(shares):
        start = sum(shares[:at]) * size
        cut = (start, start + share * size)
        own = [leaf if leaf is None else leaf.cut(*cut) for leaf in (weight, bias)]
        found.append((replace(layer, weights=tuple(own)),))
    return found


@_rule("Attention")
def _attention(node: _Node) -> Sequence[Origin]:
    return _attended(node, list(node.given[:3]), (node[3],), _together(node[4], node[5]))


def _attended(
    node: _Node, parts: Sequence[Origin], added: Sequence[Origin], past: Origin
) -> Sequence[Origin]:
    """Queries times keys, plus masks, times values; with keys and values of before."""
    query, key, value = parts
    scores = node.anchor(PRODUCT, (), [query, _together(past, key)])
    found = node.anchor(PRODUCT, (), [_together(scores, *added), _together(past, value)])
    return [found, _together(past, key), _together(past, value)]


@_rule("LSTM", "GRU", "RNN")
def _recurrent(node: _Node) -> Sequence[Origin]:
    weights = [node.leaf(at) for at in (1, 2, 3, 7)]
    return [node.anchor(node.step.kind, weights, [node[0], node[5], node[6]])]


@_rule("Einsum")
def _einsum(node: _Node) -> Sequence[Origin]:
    leaves = [node.leaf(at) for at in range(len(node.given))]
    values = [
        origin for origin, leaf in zip(node.given, leaves, strict=True) if leaf is None and origin
    ]
    if not values or (len(values) < 2 and not any(leaves)):
        return [_together(*node.given)]
    kind = f"Einsum {node.attribute('equation', '')}" if any(leaves) else PRODUCT
    return [node.anchor(kind, [leaf for leaf in leaves if leaf is not None], values)]
