"""Files in the forms in which optimum, ultralytics and onnxruntime write them, without these."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, helper
from torch import Tensor, nn

OPSET, OF_IMAGES = 17, 14
BATCH, STEPS, PAST, SEEN = "batch_size", "sequence_length", "past_length", "encoder_length"
Axes = dict[int, str]


def written(
    net: nn.Module,
    args: tuple[Tensor, ...],
    path: Path,
    inputs: Mapping[str, Axes],
    outputs: Mapping[str, Axes],
    opset: int = OPSET,
) -> ModelProto:
    """A model as PyTorch's older exporter writes it, with dynamic axes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(net, args, path),
            dynamo=False,
            verbose=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={**inputs, **outputs},
        )
    return onnx.load(path)


def cache_names(prefix: str, layers: int, kinds: Sequence[str] = ("",)) -> list[str]:
    """Names of keys and values, layer by layer."""
    return [
        f"{prefix}.{layer}.{kind}{part}"
        for layer in range(layers)
        for kind in kinds
        for part in ("key", "value")
    ]


class WithPast(nn.Module):
    """A decoder that takes and returns its cache as tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, ids: Tensor, mask: Tensor, places: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        found = self.net(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits, *_tensors(cache))


def _tensors(cache: Any) -> Iterator[Tensor]:
    return chain.from_iterable((layer.keys, layer.values) for layer in cache.layers)


def decoder_with_past(net: nn.Module, heads: int, size: int, path: Path) -> None:
    """A decoder that takes three steps after four.

    Args:
        net: of transformers, with two layers.
        heads: of keys and values.
        size: of each.
        path: to write to.
    """
    ids = torch.arange(6).view(2, 3) * 7 + 3
    past = [torch.randn(2, heads, 4, size) for _ in range(4)]
    places = torch.arange(4, 7).expand(2, 3).contiguous()
    tokens = {0: BATCH, 1: STEPS}
    written(
        WithPast(net),
        (ids, torch.ones(2, 7, dtype=torch.int64), places, *past),
        path,
        {
            "input_ids": tokens,
            "attention_mask": {0: BATCH, 1: f"{PAST} + {STEPS}"},
            "position_ids": tokens,
            **{name: {0: BATCH, 2: PAST} for name in cache_names("past_key_values", 2)},
        },
        {
            "logits": tokens,
            **{name: {0: BATCH, 2: f"{PAST} + {STEPS}"} for name in cache_names("present", 2)},
        },
    )


class Images(nn.Module):
    """A model of images that gives back tensors, not an object of transformers.

    Args:
        net: of transformers.
        output: the name of its output.
    """

    def __init__(self, net: nn.Module, output: str) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.net(pixel_values=pixel_values)[self.output]
        return found


def images(net: nn.Module, example: Tensor, output: str, path: Path) -> None:
    """A model of images, all axes of which are dynamic by name, as optimum declares them.

    Args:
        net: of transformers.
        example: images of the one size that it takes.
        output: the name of its output, of which only the batch is declared.
        path: to write to.
    """
    axes = dict(enumerate((BATCH, "num_channels", "height", "width")))
    outputs = {output: {0: BATCH}}
    written(Images(net, output), (example,), path, {"pixel_values": axes}, outputs, OF_IMAGES)


class Encoder(nn.Module):
    """The first half of an encoder with a decoder."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.encoder = net.get_encoder()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return found


class Decoder(nn.Module):
    """The second half, with a cache or without."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, mask: Tensor, ids: Tensor, states: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        own = list(zip(past[0::4], past[1::4], strict=True))
        crossed = list(zip(past[2::4], past[3::4], strict=True))
        found = self.net(
            encoder_outputs=(states,),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=EncoderDecoderCache(DynamicCache(own), DynamicCache(crossed)),
            use_cache=True,
        )
        cache = found.past_key_values
        first, second = (
            list(_tensors(part))
            for part in (cache.self_attention_cache, cache.cross_attention_cache)
        )
        layers = zip(first[::2], first[1::2], second[::2], second[1::2], strict=True)
        return (found.logits, *chain.from_iterable(layers))


def encoder(net: nn.Module, path: Path) -> None:
    """The encoder of a model."""
    ids = torch.arange(10).view(2, 5) * 3 + 3
    axes = {0: BATCH, 1: SEEN}
    inputs = {"input_ids": axes, "attention_mask": axes}
    written(Encoder(net), (ids, torch.ones_like(ids)), path, inputs, {"last_hidden_state": axes})


def decoder(net: nn.Module, width: int, heads: int, path: Path, *, past: bool) -> ModelProto:
    """The decoder of a model with two layers.

    Args:
        net: the model.
        width: of the encoder's states.
        heads: the number of them.
        path: to write to.
        past: whether it takes a cache.
    """
    ids = torch.arange(6).view(2, 3) * 7 + 3
    mask = torch.ones(2, 5, dtype=torch.int64)
    cache = [torch.randn(2, heads, n, width // heads) for _ in range(2) for n in (4, 4, 5, 5)]
    kinds = ("decoder.", "encoder.")
    lengths = {"decoder": f"{PAST} + {STEPS}" if past else STEPS, "encoder": SEEN}
    before = {
        name: {0: BATCH, 2: PAST if ".decoder." in name else SEEN}
        for name in cache_names("past_key_values", 2, kinds)
    }
    return written(
        Decoder(net),
        (mask, ids, torch.randn(2, 5, width), *(cache if past else [])),
        path,
        {
            "encoder_attention_mask": {0: BATCH, 1: SEEN},
            "input_ids": {0: BATCH, 1: STEPS},
            "encoder_hidden_states": {0: BATCH, 1: SEEN},
            **(before if past else {}),
        },
        {
            "logits": {0: BATCH, 1: STEPS},
            **{
                name: {0: BATCH, 2: lengths[name.split(".")[2]]}
                for name in cache_names("present", 2, kinds)
            },
        },
    )


def merged(first: ModelProto, following: ModelProto) -> ModelProto:
    """A decoder without a cache and one with it as branches of one `If`, with shared weights.

    Args:
        first: without; what it does not take, the other one does.
        following: with.
    """
    outer: dict[tuple[Any, ...], str] = {}
    stored = []
    branches = []
    for model in (following, first):
        names = {}
        for item in model.graph.initializer:
            key = (item.data_type, tuple(item.dims), item.raw_data)
            if key not in outer:
                outer[key] = f"shared_{len(outer)}_{item.name}"
                stored.append(helper.make_tensor(outer[key], *key[:2], key[2], raw=True))
            names[item.name] = outer[key]
        branches.append(_branch(model.graph, names))
    taken = {item.name: item for model in (first, following) for item in model.graph.input}
    taken |= {item.name: item for item in following.graph.input}
    choice = helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    node = helper.make_node(
        "If",
        ["use_cache_branch"],
        [item.name for item in following.graph.output],
        name="optimum::if",
        then_branch=branches[0],
        else_branch=branches[1],
    )
    outputs = list(following.graph.output)
    graph = helper.make_graph([node], "merged", [*taken.values(), choice], outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def _branch(graph: GraphProto, names: Mapping[str, str]) -> GraphProto:
    """A graph without inputs, whose weights have other names."""
    found = GraphProto()
    found.CopyFrom(graph)
    del found.input[:], found.initializer[:], found.value_info[:]
    for node in found.node:
        for at, name in enumerate(node.input):
            node.input[at] = names.get(name, name)
    ends = {item.name for item in found.output} - {n for node in found.node for n in node.output}
    assert not ends
    return found


class _Block(nn.Sequential):
    """Convolution and SiLU; its normalisation is folded into it."""

    def __init__(self, channels: int, filters: int, size: int = 1, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(channels, filters, size, stride, size // 2), nn.SiLU())


class _Split(nn.Module):
    """Half of the channels pass, the others go through a residual and are kept at each step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.before, self.after = _Block(width, width), _Block(width + half, width)
        self.one, self.two = _Block(half, half, 3), _Block(half, half, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.before(x).chunk(2, 1))
        parts.append(parts[-1] + self.two(self.one(parts[-1])))
        found: Tensor = self.after(torch.cat(parts, 1))
        return found


class _Pooled(nn.Module):
    """What it is given beside its maxima over growing windows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = _Block(width, width // 2), _Block(width // 2 * 4, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.before(x)]
        parts += [self.pool(parts[-1])]
        parts += [self.pool(parts[-1])]
        parts += [self.pool(parts[-1])]
        found: Tensor = self.after(torch.cat(parts, 1))
        return found


class _Attention(nn.Module):
    """Attention between places, with queries, keys and values of one convolution, head by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size, self.keys = heads, width // heads, width // heads // 2
        self.qkv = nn.Conv2d(width, width + 2 * heads * self.keys, 1)
        self.places = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv(x).view(n, self.heads, 2 * self.keys + self.size, h * w)
        q, k, v = qkv.split([self.keys, self.keys, self.size], 2)
        weights = (q.transpose(-2, -1) @ k * self.keys**-0.5).softmax(-1)
        found = (v @ weights.transpose(-2, -1)).view(n, c, h, w)
        shown: Tensor = self.out(found + self.places(v.reshape(n, c, h, w)))
        return x + shown


class Detector(nn.Module):
    """Two scales, boxes as expected distances to the four sides from places of a grid."""

    def __init__(self, classes: int = 5, bins: int = 8) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.stem = nn.Sequential(_Block(3, 8, 3, 2), _Block(8, 12, 3, 2), _Split(12))
        self.deep = nn.Sequential(
            _Block(12, 16, 3, 2), _Split(16), _Pooled(16), _Attention(16, 2), _Block(16, 16)
        )
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.join = nn.Sequential(_Block(28, 16), _Split(16))
        self.boxes = nn.ModuleList(_head(16, 4 * bins) for _ in range(2))
        self.kinds = nn.ModuleList(_head(16, classes) for _ in range(2))
        self.expected = nn.Conv2d(bins, 1, 1, bias=False)
        with torch.no_grad():
            self.expected.weight.copy_(torch.arange(float(bins)).view(1, bins, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        deep = self.deep(stem)
        fine = self.join(torch.cat([self.up(deep), stem], 1))
        found, grid, steps = [], [], []
        for at, (x, stride) in enumerate(((fine, 4.0), (deep, 8.0))):
            n, _, h, w = x.shape
            found.append(torch.cat([self.boxes[at](x), self.kinds[at](x)], 1).view(n, -1, h * w))
            across, down = torch.arange(w) + 0.5, torch.arange(h) + 0.5
            rows, columns = torch.meshgrid(down, across, indexing="ij")
            grid.append(torch.stack((columns, rows), -1).view(-1, 2))
            steps.append(torch.full((h * w, 1), stride))
        boxes, kinds = torch.cat(found, 2).split((4 * self.bins, self.classes), 1)
        n, _, places = boxes.shape
        shares = boxes.view(n, 4, self.bins, places).transpose(2, 1).softmax(1)
        near, far = self.expected(shares).view(n, 4, places).chunk(2, 1)
        at, stride = torch.cat(grid).t().unsqueeze(0), torch.cat(steps).t()
        low, high = at - near, at + far
        return torch.cat(
            [torch.cat([(low + high) / 2, high - low], 1) * stride, kinds.sigmoid()], 1
        )


def _head(width: int, outputs: int) -> nn.Sequential:
    grouped = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.SiLU())
    return nn.Sequential(grouped, _Block(width, 10), nn.Conv2d(10, outputs, 1))


def detector(net: nn.Module, path: Path) -> None:
    """A detector for images of any size."""
    axes = {0: "batch", 2: "height", 3: "width"}
    outputs = {"output0": {0: "batch", 2: "anchors"}}
    written(net, (torch.randn(1, 3, 64, 64),), path, {"images": axes}, outputs)


def _walked(steps: Tensor, start: Tensor, own: Tensor, new: Tensor) -> Tensor:
    state = start
    for at in range(steps.shape[1]):
        state = torch.tanh(state @ own + steps[:, at] @ new)
    return state


class Walk(nn.Module):
    """A recurrent layer that is written as a loop over as many steps as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.new = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(4, 6))
        self.start, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and what makes loops of files
            self.walked: Any = torch.jit.script(_walked)

    def forward(self, steps: Tensor) -> Tensor:
        first = self.start(steps[:, 0])
        found: Tensor = self.last(self.walked(steps, first, self.own, self.new))
        return found


def walk(net: nn.Module, path: Path) -> None:
    """A loop over steps of any number."""
    axes = {0: BATCH, 1: STEPS}
    written(net, (torch.randn(2, 5, 4),), path, {"steps": axes}, {"state": {0: BATCH}})
