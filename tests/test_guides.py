"""The guides and the first pages do what they show, block by block."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
import transformers
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

import fxrebasin
from fxrebasin.cli import main

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"```(python|sh)\n(.*?)```", flags=re.DOTALL)
PAGES = ["first-model.md", *(f"guides/{page.name}" for page in (DOCS / "guides").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page."""
    found = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_blocks_of_a_guide_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert blocks(page, "python")
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def test_the_start_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_a, model_b = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)
    )
    names: dict[str, object] = {"model_a": model_a, "model_b": model_b, "images": torch.randn(4, 6)}
    for block in blocks("index.md", "python"):
        exec(compile(block, "index.md", "exec"), names)
    assert (tmp_path / "model_b.onnx").exists()


def test_the_commands_for_a_first_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    definition = re.search(
        r"^def build\(\):\n.*?\n\n", blocks("first-model.md", "python")[0], re.M | re.S
    )
    assert definition
    Path("model.py").write_text(f"from torch import nn\n\n\n{definition.group()}", encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(Path("model.py").read_text(encoding="utf-8"), "model.py", "exec"), names)
    for name in "ab":
        torch.save(names["build"]().state_dict(), f"{name}.pt")  # type: ignore[operator]
    (commands,) = blocks("first-model.md", "sh")
    for line in commands.splitlines():
        assert line.startswith("fxrebasin ")
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(line)[1:])
        assert ended.value.code == 0, capsys.readouterr().err
    assert {"aligned.pt", "merged.pt"} <= {path.name for path in tmp_path.iterdir()}


def test_every_guide_is_on_the_site() -> None:
    site = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in site} == set()


def two_layers(seed: int) -> onnx.ModelProto:
    """A graph as the TorchScript exporter names it, with weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    graph = (
        '<ir_version: 8, opset_import: [ "" : 17 ]> g (float[n,4] x) => (float[n,2] y) '
        "{ h = MatMul(x, first) i = Relu(h) y = MatMul(i, last) }"
    )
    model = onnx.parser.parse_model(graph)
    for name, shape in (("first", (4, 6)), ("last", (6, 2))):
        values = torch.randn(shape, generator=generator).numpy()
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for place in (model.graph.initializer[0], model.graph.node[0]):
        if isinstance(place, onnx.TensorProto):
            place.name = "onnx::MatMul_193"
        else:
            place.input[1] = "onnx::MatMul_193"
    return model


def test_the_page_on_onnx_files_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        onnx.save(two_layers(seed), f"{name}.onnx")
    names: dict[str, object] = {}
    for block in blocks("onnx-files.md", "python"):
        exec(compile(block, "onnx-files.md", "exec"), names)
    assert names["report"].equivalence.passed  # type: ignore[attr-defined]
    assert Path("again.onnx").read_bytes() == Path("rebased.onnx").read_bytes()
    for file in ("p.safetensors", "rebased.onnx", "mean.onnx"):
        Path(file).unlink()
    commands = [line for b in blocks("onnx-files.md", "sh") for line in b.splitlines()]
    assert len(commands) > 5
    for line in commands:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert Path("between-0.75.onnx").exists()


def test_the_call_on_the_page_of_exporting_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(input_ids) * attention_mask[..., None])

    monkeypatch.chdir(tmp_path)
    ids = torch.arange(10).reshape(2, 5)
    names = {"fxrebasin": fxrebasin, "model": Reader().eval(), "ids": ids}
    names["mask"] = torch.ones(2, 5)
    block, _ = blocks("exporting.md", "python")
    exec(compile(block, "exporting.md", "exec"), names)
    inputs = {item.name: item for item in onnx.load("model.onnx").graph.input}
    for item in inputs.values():
        sizes = [dimension.dim_param for dimension in item.type.tensor_type.shape.dim]
        assert sizes == ["batch", "sequence"]


def test_the_three_files_of_an_encoder_decoder_on_the_page_of_exporting_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=20, decoder_start_token_id=0, **sizes)
    model = transformers.T5ForConditionalGeneration(config).eval()
    source = {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": torch.ones(2, 5)}
    both = source | {"decoder_input_ids": torch.arange(4).reshape(2, 2)}
    monkeypatch.chdir(tmp_path)
    _, block = blocks("exporting.md", "python")
    names = {"fxrebasin": fxrebasin, "model": model, "source": source, "both": both}
    exec(compile(block, "exporting.md", "exec"), names)
    expected = {"encoder_model", "decoder_model", "decoder_with_past_model"}
    assert {path.stem for path in tmp_path.glob("*.onnx")} == expected


def test_commands_for_several_processes_have_these_options() -> None:
    text = "".join(blocks("several-machines.md", "sh")).replace("\\\n", " ")
    found = re.findall(r"^(?:torchrun .*-m )?fxrebasin (.*)$", text, flags=re.MULTILINE)
    assert found
    for line in found:
        name, *arguments = shlex.split(line, comments=True)
        context = main.commands[name].make_context(name, arguments, resilient_parsing=True)
        assert not context.args, line


def test_calls_on_pages_that_take_models_as_given_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for models that processes share hold for models that nobody shares, too."""
    monkeypatch.chdir(tmp_path)
    images = torch.randn(12, 6)
    model_a, model_b = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)
    )
    names: dict[str, object] = {"fxrebasin": fxrebasin, "images": images, "x": images}
    names |= {"model_a": model_a, "model_b": model_b, "loader": [images]}
    before = model_b(images)
    (sharded,) = blocks("several-machines.md", "python")
    for block in (*blocks("matching.md", "python")[:2], sharded):
        exec(compile(block, "page", "exec"), names)
    assert Path("units.png").exists()
    torch.testing.assert_close(model_b(images), before)


def test_the_commands_for_large_checkpoints_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=20, intermediate_size=12, **sizes)
    for name in ("llama-a", "llama-b"):
        transformers.LlamaForCausalLM(config).save_pretrained(name)
    for line in "".join(blocks("larger-than-memory.md", "sh")).splitlines():
        shutil.rmtree("rebased", ignore_errors=True)
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert {"merged", "at-0.25", "at-0.75"} <= {path.name for path in tmp_path.iterdir()}
