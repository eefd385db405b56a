"""Where what a node makes comes from: one rule for the operators that read weights or multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fxrebasin.importers.onnx.foreign import full_name
from fxrebasin.importers.onnx.graph import Step
from fxrebasin.importers.onnx.origins import (
    LINEAR,
    LOOKUP,
    PRODUCT,
    SCALE,
    Anchor,
    Leaf,
    Origin,
    biased,
    only_leaf,
    together,
)

_Rule: TypeAlias = Callable[["_Node"], Sequence[Origin]]
_RULES: dict[tuple[str, str], _Rule] = {}
_MICROSOFT = "com.microsoft"


def origins_of(
    step: Step, given: Sequence[Origin], bodies: Sequence[Sequence[Origin]], loose: bool
) -> Sequence[Origin]:
    """Where each value comes from that a node makes; the last stands for all that follow it.

    Args:
        step: the node.
        given: where each of its inputs comes from.
        bodies: where what each of its bodies returns comes from.
        loose: see `fxrebasin.importers.onnx.outline.outline_of`.
    """
    node = _Node(step, given, loose)
    if bodies:
        return _branches(node, bodies) if step.kind == "If" else _repeated(node, bodies)
    return _RULES.get((step.domain, step.kind), _between)(node)


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
        return only_leaf(self[at])

    def attribute(self, name: str, default: Any) -> Any:
        return self.step.attributes.get(name, default)

    def anchor(
        self, kind: str, weights: Iterable[Leaf | None], sources: Iterable[Origin]
    ) -> Origin:
        label = f"{full_name(self.step.domain, self.step.kind)} {self.step.name!r}"
        return (Anchor(kind, label, tuple(weights), tuple(sources), loose=self.loose),)

    def scaled(self, value: Origin, scale: Origin, shift: Origin = ()) -> Origin:
        """A value times a weight and plus another one, if these are weights."""
        factor, added = only_leaf(scale), only_leaf(shift)
        if factor is None:
            return together(value, scale, shift)
        found = self.anchor(SCALE, (factor, added), (value,))
        return found if added is not None else together(found, shift)


def _rule(*kinds: str, domain: str = "") -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(((domain, kind) for kind in kinds), rule))
        return rule

    return register


def _between(node: _Node) -> Sequence[Origin]:
    """What only passes on, mixes or bends values."""
    return [together(*node.given)]


def _branches(node: _Node, bodies: Sequence[Sequence[Origin]]) -> Sequence[Origin]:
    """One of several; where all come from the same, others may do without the condition."""
    return [
        ways[0] if len(set(ways)) == 1 else node.anchor(f"If {at}", (), [*node.given, *ways])
        for at, ways in enumerate(zip(*bodies, strict=True))
    ]


def _repeated(node: _Node, bodies: Sequence[Sequence[Origin]]) -> Sequence[Origin]:
    """All that goes round in a loop may go into each of its results."""
    below = [*node.given, *(origin for body in bodies for origin in body)]
    return [
        node.anchor(f"{node.step.kind} {at}", (), below) for at in range(len(node.step.outputs))
    ]


@_rule("Shape", "Size", "ConstantOfShape", "EyeLike")
def _sizes(node: _Node) -> Sequence[Origin]:
    return [()]


@_rule("CastLike")
def _cast_like(node: _Node) -> Sequence[Origin]:
    return [node[0]]


@_rule("Add", "Sum", "BiasGelu", "FastGelu")
@_rule("BiasGelu", "FastGelu", domain=_MICROSOFT)
def _add(node: _Node) -> Sequence[Origin]:
    found = biased(node[0], node[1]) or biased(node[1], node[0]) if len(node.given) == 2 else None
    return [found or together(*node.given)]


@_rule("Mul", "Div")
def _multiply(node: _Node) -> Sequence[Origin]:
    first, second = node.given
    if node.leaf(1) is not None and first and node.leaf(0) is None:
        return [node.scaled(first, second)]
    if node.leaf(0) is not None and second and node.leaf(1) is None:
        return [node.scaled(second, first)]
    return [together(first, second)]


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
        return [together(node[0], places)]
    return [node.anchor(LOOKUP, [table], [places])]


def _matrix(node: _Node, first: Origin, second: Origin) -> Origin:
    """A product of two values, or of a value and a weight."""
    left, right = only_leaf(first), only_leaf(second)
    if right is not None and left is None and first and len(right.shape) == 2:
        return node.anchor(LINEAR, (right, None), [first])
    if left is not None and right is None and second and len(left.shape) == 2:
        return node.anchor(LINEAR, (left.turned((1, 0)), None), [second])
    if not first or not second or (left is not None and right is not None):
        return together(first, second)
    if node.loose and not any(isinstance(item, Anchor) for item in (*first, *second)):
        return together(first, second)  # angles of positions
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
    return [biased(found, node[2]) or together(found, node[2])]


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
    return [together(biased(found, node[2]) or together(found, node[2]), node[3])]


@_rule("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")
@_rule("SimplifiedLayerNormalization")
def _normalise(node: _Node) -> Sequence[Origin]:
    return [node.scaled(node[0], node[1], node[2]), node[0]]


@_rule("BatchNormalization")
def _batch_norm(node: _Node) -> Sequence[Origin]:
    value, scale, shift, mean, variance = node.given[:5]
    return [node.scaled(node.scaled(together(value, mean), variance), scale, shift)]


@_rule("SkipLayerNormalization", domain=_MICROSOFT)
def _skip_norm(node: _Node) -> Sequence[Origin]:
    return _skipped(node, node[3], node[4])


@_rule("SkipSimplifiedLayerNormalization", domain=_MICROSOFT)
def _skip_rms_norm(node: _Node) -> Sequence[Origin]:
    return _skipped(node, (), node[3])


def _skipped(node: _Node, shift: Origin, bias: Origin) -> Sequence[Origin]:
    """A sum of two values, one of which has its bias here, normalised; and the sum itself."""
    one, two = node[0], node[1]
    first, second = biased(one, bias), biased(two, bias)
    if first is not None:
        total = together(first, two)
    elif second is not None:
        total = together(one, second)
    else:
        total = together(one, two, bias)
    return [node.scaled(total, node[2], shift), total, total, total]


@_rule("EmbedLayerNormalization", domain=_MICROSOFT)
def _embed(node: _Node) -> Sequence[Origin]:
    ids, kinds, words, places, segments, scale, shift, mask, positions = (
        node[at] for at in range(9)
    )
    found: list[Origin] = []
    for table, read in ((words, ids), (places, positions), (segments, kinds)):
        leaf = only_leaf(table)
        found.append(table if leaf is None or not read else node.anchor(LOOKUP, [leaf], [read]))
    total = together(*found)
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
            biased(one, (cut,)) or together(one, (cut,))
            for one, cut in zip(parts, cuts, strict=True)
        ]
    return _attended(node, parts, (node[4], node[5]), together(node[6], node[7]))


@_rule("GroupQueryAttention", domain=_MICROSOFT)
def _grouped_attention(node: _Node) -> Sequence[Origin]:
    parts = list(node.given[:3])
    packed = parts[0][0] if len(parts[0]) == 1 and not parts[1] else None
    if isinstance(packed, Anchor) and packed.kind == LINEAR:
        heads, few = node.attribute("num_heads", 1), node.attribute("kv_num_heads", 1)
        parts = _cut(packed, [heads, few, few])
    tables = together(node[5], node[6], *(node[at] for at in (7, 8, 9)))
    past = together(node[3], node[4])
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
    return _attended(node, list(node.given[:3]), (node[3],), together(node[4], node[5]))


def _attended(
    node: _Node, parts: Sequence[Origin], added: Sequence[Origin], past: Origin
) -> Sequence[Origin]:
    """Queries times keys, plus masks, times values; with keys and values of before."""
    query, key, value = parts
    scores = node.anchor(PRODUCT, (), [query, together(past, key)])
    found = node.anchor(PRODUCT, (), [together(scores, *added), together(past, value)])
    return [found, together(past, key), together(past, value)]


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
        return [together(*node.given)]
    kind = f"Einsum {node.attribute('equation', '')}" if any(leaves) else PRODUCT
    return [node.anchor(kind, [leaf for leaf in leaves if leaf is not None], values)]
