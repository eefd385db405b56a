"""Graphs that `transform` made are exported with the axes open that the model has open."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import EquivalenceError, ExportError
from fxrebasin.exporters.onnx.axes import joined
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.passes.rewrite import rewrite
from fxrebasin.passes.trace.exported import exported_graph
from fxrebasin.passes.trace.made_for import made_for
from fxrebasin.passes.trace.trace import TraceResult, trace
from fxrebasin.proof import prove_graph
from tests.support.small_nets import Attention, draw, unsettled

ensure_torchvision()
import transformers as t  # noqa: E402

Inputs = Mapping[str, Tensor]
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def padded(rows: int = 2, length: int = 6) -> dict[str, Tensor]:
    """Tokens of texts that are not equally long, and their mask."""
    ids = (torch.arange(rows * length).view(rows, length) * 7) % 45 + 3
    mask = (torch.arange(length) < (length - torch.arange(rows)[:, None] % 3).clamp(min=1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def gpt2() -> nn.Module:
    config = t.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=3, n_positions=64)
    return t.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return t.LlamaForCausalLM(t.LlamaConfig(**SMALL, num_key_value_heads=3, bos_token_id=1))


def t5_encoder() -> nn.Module:
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    return t.T5EncoderModel(t.T5Config(vocab_size=50, **sizes))


class Looking(nn.Module):
    """Looks at its words one way and the other, then at all of them; in ways that torch.fx refuses.

    Its positions are for 40 words.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 12), nn.Parameter(draw(40, 12))
        self.both_ways = nn.LSTM(12, 5, batch_first=True, bidirectional=True)
        self.query, self.key, self.value = (nn.Linear(10, 10) for _ in range(3))
        self.head = nn.Linear(10, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = input_ids.shape[1]
        if length > len(self.places):
            raise ValueError("too many words")
        x = self.both_ways(self.tokens(input_ids) + self.places[:length])[0]
        seen = None if attention_mask is None else attention_mask[:, None, :].bool()
        x = x + F.scaled_dot_product_attention(
            self.query(x), self.key(x), self.value(x), attn_mask=seen
        )
        return self.head(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "llama": llama,
    "bert": lambda: t.BertModel(t.BertConfig(**SMALL)),
    "t5_encoder": t5_encoder,
    "lstm_and_attention": Looking,
}


def transformed(build: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> Any:
    """A model, and it as a graph towards another."""
    torch.manual_seed(0)
    a, b = unsettled(build(), 1), unsettled(build(), 2)
    return b, fxrebasin.transform(b, a, args or None, kwargs or None)


def shapes(path: Path) -> dict[str, list[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {port.name: port.shape for port in session.get_inputs()}


def run(path: Path, inputs: Inputs) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {name: x.numpy() for name, x in inputs.items()}
    return torch.from_numpy(np.array(session.run(None, feeds)[0]))


def result(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        returned = model(**inputs)
    return returned if isinstance(returned, Tensor) else returned[0]


def agrees(path: Path, model: nn.Module, inputs: Inputs) -> bool:
    return torch.allclose(run(path, inputs), result(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_sequences_are_open(name: str, tmp_path: Path) -> None:
    model, graph = transformed(MODELS[name], **padded())
    report = fxrebasin.export_onnx(graph, tmp_path / "m.onnx", example_kwargs=padded())
    assert graph.meta["fxrebasin"].tracer == "export"
    assert report.notes == ()
    assert {"batch of 3, sequence of 7", "sequence of 1"} <= {*report.inputs}
    assert shapes(tmp_path / "m.onnx") == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
    }
    for rows, length in ((1, 1), (5, 17), (3, 2)):
        assert agrees(tmp_path / "m.onnx", model, padded(rows, length))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_mask_that_a_model_fills_up_is_as_long_as_the_text(name: str, tmp_path: Path) -> None:
    """PyTorch relies on it being no shorter, and a graph does not fill it up."""
    model = unsettled(MODELS[name]())
    report = fxrebasin.export_onnx(model, tmp_path / "m.onnx", example_kwargs=padded())
    assert report.notes == ()
    assert shapes(tmp_path / "m.onnx")["attention_mask"] == ["batch", "sequence"]
    assert agrees(tmp_path / "m.onnx", model, padded(3, 11))


def test_the_symmetry_of_a_graph_with_open_sequences_is_that_of_the_model() -> None:
    model, graph = transformed(MODELS["bert"], **padded())
    found = [fxrebasin.analyze(one, example_kwargs=padded()) for one in (model, graph)]
    assert found[0].log10_order() == found[1].log10_order() > 0


def test_images_are_as_large_as_the_model_says(tmp_path: Path) -> None:
    config = t.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40,
        image_size=16, patch_size=4,
    )  # fmt: skip
    model, graph = transformed(lambda: t.ViTModel(config), pixel_values=draw(2, 3, 16, 16))
    report = fxrebasin.export_onnx(graph, tmp_path / "m.onnx", draw(2, 3, 16, 16))
    assert report.notes == ()
    assert shapes(tmp_path / "m.onnx") == {"pixel_values": ["batch", 3, 16, 16]}
    assert agrees(tmp_path / "m.onnx", model, {"pixel_values": draw(5, 3, 16, 16)})


class Shrinking(nn.Module):
    """Images of any size, seen at half their size and at the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image).relu()
        low = F.avg_pool2d(x, 2)
        return self.second(x + F.interpolate(low, size=x.shape[2:], mode="nearest")).tanh()


def test_axes_of_graphs_of_torch_fx_are_open(tmp_path: Path) -> None:
    model, graph = transformed(Shrinking, image=draw(2, 3, 8, 12))
    fxrebasin.export_onnx(graph, tmp_path / "m.onnx", draw(2, 3, 8, 12))
    assert graph.meta["fxrebasin"].tracer == "fx"
    assert shapes(tmp_path / "m.onnx") == {"image": ["batch", 3, "height", "width"]}
    assert agrees(tmp_path / "m.onnx", model, {"image": draw(3, 3, 16, 10)})
    ids = padded()["input_ids"] % 20
    model, graph = transformed(Attention, ids=ids)
    fxrebasin.export_onnx(graph, tmp_path / "n.onnx", ids)
    assert graph.meta["fxrebasin"].tracer == "fx"
    assert shapes(tmp_path / "n.onnx") == {"ids": ["batch", "sequence"]}
    assert agrees(tmp_path / "n.onnx", model, {"ids": padded(3, 9)["input_ids"] % 20})


class Tagging(nn.Module):
    """Looks at each word alone, in a way that torch.fx refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.inner, self.head = nn.Embedding(50, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.dim() != 2 or input_ids.shape[1] < 1:
            raise ValueError("no words")
        return self.head(self.inner(self.tokens(input_ids)).relu())


def test_one_row_and_one_word_are_traced_with_more(tmp_path: Path) -> None:
    inputs = {"input_ids": torch.tensor([[7]])}
    model, graph = transformed(Tagging, **inputs)
    assert fxrebasin.export_onnx(graph, tmp_path / "m.onnx", example_kwargs=inputs).notes == ()
    assert shapes(tmp_path / "m.onnx") == {"input_ids": ["batch", "sequence"]}
    more = {"input_ids": padded(3, 9)["input_ids"]}
    assert agrees(tmp_path / "m.onnx", model, more)


def test_a_permutation_that_holds_for_one_word_only_is_an_error() -> None:
    """With one word a recurrent layer looks at no state, and attention at nothing else."""
    with pytest.raises(EquivalenceError, match="the model on inputs of other sizes"):
        transformed(Looking, input_ids=torch.tensor([[7]]))


def test_axes_can_be_chosen(tmp_path: Path) -> None:
    model, graph = transformed(Looking, **padded())
    both = {key: {0: "rows", 1: "words"} for key in padded()}
    fxrebasin.export_onnx(graph, tmp_path / "m.onnx", example_kwargs=padded(), dynamic=both)
    assert shapes(tmp_path / "m.onnx") == {key: ["rows", "words"] for key in padded()}
    words = dict.fromkeys(padded(), (None, "words"))
    fxrebasin.export_onnx(graph, tmp_path / "n.onnx", example_kwargs=padded(), dynamic=words)
    assert shapes(tmp_path / "n.onnx") == {key: [2, "words"] for key in padded()}
    assert agrees(tmp_path / "n.onnx", model, padded(2, 9))
    two = {"input_ids": {1: "words"}, "attention_mask": {1: "seen"}}
    with pytest.raises(ExportError, match="words and seen are one size in this graph"):
        fxrebasin.export_onnx(graph, tmp_path / "o.onnx", example_kwargs=padded(), dynamic=two)


class Summing(nn.Module):
    """Sums the words one by one, which makes a graph for just so many."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.inner, self.head = nn.Embedding(50, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        total = torch.zeros(())
        for word in self.tokens(input_ids).unbind(1):
            total = total + self.inner(word).tanh()
        return self.head(total)


def saved(graph: fx.GraphModule) -> fx.GraphModule:
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    with warnings.catch_warnings():  # torch's, about its own trees
        warnings.simplefilter("ignore", FutureWarning)
        return torch.load(file, weights_only=False)


def exported(graph: fx.GraphModule) -> fx.GraphModule:
    """What torch.export makes of a model, with the batch open."""
    rows = {0: torch.export.Dim("rows")}
    ids = {"input_ids": padded()["input_ids"]}
    program = torch.export.export(graph, (), ids, dynamic_shapes={"input_ids": rows})
    return program.module()


@pytest.mark.parametrize("kind", [lambda graph: graph, saved, exported])
def test_an_axis_on_which_a_graph_is_not_its_model_is_closed(
    kind: Callable[[fx.GraphModule], fx.GraphModule], tmp_path: Path
) -> None:
    ids = padded()["input_ids"]
    model, graph = transformed(Summing, input_ids=ids)
    graph = kind(graph)
    inputs, longer = {"input_ids": ids}, {"input_ids": padded(2, 7)["input_ids"]}
    if kind is not exported:  # it runs; those of torch.export look at their inputs
        assert not torch.allclose(model(**longer), graph(**longer), atol=1e-3)
    report = fxrebasin.export_onnx(graph, tmp_path / "m.onnx", example_kwargs=inputs)
    assert shapes(tmp_path / "m.onnx") == {"input_ids": ["batch", 6]}
    if kind is not exported:
        (note,) = report.notes
        assert note.startswith(
            "sequence (axis 1 of input_ids) is fixed at 6: PyTorch relies on Eq("
        )
    with pytest.raises(ExportError, match=r"dynamic: words \(axis 1 of input_ids\) is fixed at 6"):
        fxrebasin.export_onnx(
            graph,
            tmp_path / "n.onnx",
            example_kwargs=inputs,
            dynamic={"input_ids": (None, "words")},
        )


def test_a_graph_that_was_saved_has_its_axes_open(tmp_path: Path) -> None:
    model, graph = transformed(MODELS["bert"], **padded())
    again = saved(graph)
    fxrebasin.export_onnx(again, tmp_path / "m.onnx", example_kwargs=padded())
    assert shapes(tmp_path / "m.onnx") == {key: ["batch", "sequence"] for key in padded()}
    assert agrees(tmp_path / "m.onnx", model, padded(4, 13))


def test_a_graph_with_no_open_axis_stays_so(tmp_path: Path) -> None:
    """It runs on more rows, and leaves them out."""

    class Rows(Summing):
        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(sum(self.inner(row).tanh() for row in self.tokens(input_ids)))

    ids = padded()["input_ids"]
    program = torch.export.export(unsettled(Rows()), (ids,))
    report = fxrebasin.export_onnx(program.module(), tmp_path / "m.onnx", ids)
    assert shapes(tmp_path / "m.onnx") == {"input_ids": [2, 6]}
    assert report.notes[0].startswith("the batch is fixed at 2: ")


class Switching(nn.Module):
    """Does something else with more than so many words."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.tokens, self.head, self.most = nn.Embedding(50, 6), nn.Linear(6, 3), most

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids).cumsum(1)
        return self.head(x.tanh() if input_ids.shape[1] > self.most else x)


@pytest.mark.parametrize("most", [6, 11, 100])
def test_a_graph_is_compared_with_the_model_where_pytorch_relied_on_a_size(
    most: int, tmp_path: Path
) -> None:
    ids = padded()["input_ids"]
    _, graph = transformed(lambda: Switching(most), input_ids=ids)
    report = fxrebasin.export_onnx(graph, tmp_path / "m.onnx", ids)
    assert shapes(tmp_path / "m.onnx") == {"input_ids": ["batch", 6]}
    assert "sequence (axis 1 of input_ids) is fixed at 6" in report.notes[0]
    assert f"int64[2, {most + 1}]" in report.notes[0]


class Crowded(nn.Module):
    """Does something else with more than so many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.head(h.tanh() if x.shape[0] > 9 else h.relu())


def test_the_batch_is_compared_where_pytorch_relied_on_a_size(tmp_path: Path) -> None:
    model, graph = transformed(Crowded, x=draw(4, 4))
    assert not torch.allclose(model(draw(10, 4)), graph(draw(10, 4)), atol=1e-2)
    report = fxrebasin.export_onnx(graph, tmp_path / "m.onnx", draw(4, 4))
    assert shapes(tmp_path / "m.onnx") == {"x": [4, 4]}
    assert report.notes[0].startswith("the batch is fixed at 4: torch.export with an open batch")


def test_a_graph_that_is_wrong_for_other_batches_is_for_the_one_of_the_example() -> None:
    class Counting(Crowded):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x.shape[0] - 4)

    model, x = unsettled(Crowded()), draw(4, 4)
    order = fxrebasin.analyze(model, x).random(seed=0)
    other = Counting()
    other.load_state_dict(model.state_dict())
    traced = TraceResult(exported_graph(other.eval(), (x,), {}), "export")
    graph = rewrite(model, order, (x,), traced=traced)
    assert made_for(graph) is not None
    assert ("x", 0) in made_for(graph).open
    assert prove_graph(model, traced, graph, order, ((x,), {})).passed
    assert not made_for(graph).open
    assert "for other batch sizes" in made_for(graph).closed["x", 0]


@pytest.mark.parametrize("most", [6, 11, 100])
def test_a_file_is_compared_with_the_model_where_pytorch_relied_on_a_size(
    most: int, tmp_path: Path
) -> None:
    ids = padded()["input_ids"]
    report = fxrebasin.export_onnx(unsettled(Switching(most)), tmp_path / "m.onnx", ids)
    assert shapes(tmp_path / "m.onnx") == {"input_ids": ["batch", 6]}
    assert f"PyTorch relies on sequence <= {most}" in report.notes[0]


class Prefixed(nn.Module):
    """Takes a mask that is longer than the words by two."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.before, self.head = nn.Embedding(50, 6), draw(2, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if input_ids.shape[1] + 2 != attention_mask.shape[1]:
            raise ValueError("a mask of another length")
        x = torch.cat([self.before.expand(input_ids.shape[0], 2, 6), self.tokens(input_ids)], 1)
        return self.head((x * attention_mask[..., None]).sum(1))


def test_sizes_that_follow_each_other_are_closed(tmp_path: Path) -> None:
    inputs = {**padded(), "attention_mask": padded(2, 8)["attention_mask"]}
    model, graph = transformed(Prefixed, **inputs)
    made = made_for(graph)
    assert made is not None
    assert made.open.keys() == {("input_ids", 0), ("attention_mask", 0)}
    fxrebasin.export_onnx(graph, tmp_path / "m.onnx", example_kwargs=inputs)
    assert shapes(tmp_path / "m.onnx") == {
        "input_ids": ["batch", 6],
        "attention_mask": ["batch", 8],
    }
    more = {"input_ids": padded(5)["input_ids"], "attention_mask": padded(5, 8)["attention_mask"]}
    assert agrees(tmp_path / "m.onnx", model, more)


def test_lengths_of_two_texts_are_told_apart() -> None:
    class Two(Looking):
        def forward(self, input_ids: Tensor, others: Tensor) -> Tensor:
            return super().forward(input_ids).sum(1) + super().forward(others).sum(1)

    ids = padded()["input_ids"]
    made = made_for(trace(unsettled(Two()), (ids, ids)).graph_module)
    assert made is not None
    assert made.open["input_ids", 0] == made.open["others", 0]
    assert made.open["input_ids", 1] != made.open["others", 1]


def test_labels_of_whole_numbers_that_are_equally_long_are_joined() -> None:
    ids = padded()["input_ids"]
    axes = {"a": {0: "batch", 1: "x"}, "b": {0: "batch", 1: "y"}, "c": {0: "batch", 1: "z"}}
    tensors = {"a": ids, "b": ids, "c": ids.float()}
    assert joined(axes, tensors) == {**axes, "b": {0: "batch", 1: "x"}}
