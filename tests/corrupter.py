"""Tiny files of every format, damaged at random: each is refused by name, or read as something.

    python -m tests.corrupter --seconds 600 --seed 1

A file with checksums is refused, or read as it was. What comes out otherwise, or another exception
than those of the package, is printed with the damage that led to it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment, applied
from fxrebasin.cli import main as commands
from fxrebasin.cli.recipes import arguments_of
from fxrebasin.errors import FxRebasinError, InputError
from fxrebasin.importers.onnx.loading import read as read_onnx
from fxrebasin.models.valueless import build_without_values
from fxrebasin.permutation import Permutation
from fxrebasin.storage.checkpoint import load_state_dict
from fxrebasin.storage.reading import Reading
from fxrebasin.streaming.opening import open_checkpoint

Content = Mapping[str, Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        make: writes a file into a folder, and returns the one that is damaged.
        read: what is in a file.
        checked: whether it has checksums of all that counts.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Content]
    checked: bool = False


@dataclass(frozen=True)
class Escape:
    """A damaged file that was neither refused nor read as it should be."""

    kind: str
    damage: str
    found: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.damage}:\n{self.found}"


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def _pt(folder: Path) -> Path:
    torch.save({"state_dict": _net().state_dict(), "epoch": 3}, folder / "a.pt")
    return folder / "a.pt"


def _old_pt(folder: Path) -> Path:
    path = folder / "old.pth"
    torch.save(_net().state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def _safetensors(folder: Path) -> Path:
    save_file(dict(_net().state_dict()), folder / "a.safetensors", {"format": "pt"})
    return folder / "a.safetensors"


def _index(folder: Path, shard: str = "m-1.safetensors") -> Path:
    save_file(dict(_net().state_dict()), folder / "m-1.safetensors", {"format": "pt"})
    names = ", ".join(f'"{name}": "{shard}"' for name in _net().state_dict())
    (folder / "m.index.json").write_text(f'{{"metadata": {{}}, "weight_map": {{{names}}}}}')
    return folder / "m.index.json"


def _certificate(folder: Path) -> Path:
    fxrebasin.analyze(_net()).random(1).save(folder / "c.safetensors")
    return folder / "c.safetensors"


def _alignment(folder: Path) -> Path:
    a, b = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    found = fxrebasin.match(a, ref=b, example_inputs=torch.ones(2, 3), symmetry="signed")
    found.save(folder / "c.safetensors")
    return folder / "c.safetensors"


def _distributed(name: str) -> Callable[[Path], Path]:
    """One of the files of a folder of torch.distributed.checkpoint."""

    def make(folder: Path) -> Path:
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"model": _net().state_dict(), "epoch": 3}, checkpoint_id=folder)
        return folder / name

    return make


def _bin_index(folder: Path) -> Path:
    torch.save(dict(_net().state_dict()), folder / "m-1.bin")
    return _index(folder, "m-1.bin")


def _shard(folder: Path) -> Path:
    _bin_index(folder)
    return folder / "m-1.bin"


def _onnx_with_data(name: str) -> Callable[[Path], Path]:
    """A model whose numbers are in a second file, or that file."""

    def make(folder: Path) -> Path:
        model = onnx.load(_onnx(folder))
        onnx.save(
            model, folder / "a.onnx", save_as_external_data=True, location="w", size_threshold=0
        )
        return folder / name

    return make


def _recipe(folder: Path) -> Path:
    text = "command: merge\nmodel: torchvision:resnet18\nmodels: [a.pt, b.pt]\nout: c.pt\n"
    text += "weights: {'*': [0.3, 0.7], 'layer1.*': [1, 0]}\nreport: false\n"
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


def _config(folder: Path) -> Path:
    entries = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    small = {"num_hidden_layers": 1, "intermediate_size": 12, "max_position_embeddings": 6}
    named = {"architectures": ["BertModel"], "attn_implementation": "eager"}
    (folder / "config.json").write_text(json.dumps({**entries, **small, **named}))
    return folder / "config.json"


def _onnx(folder: Path) -> Path:
    helper = onnx.helper
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(_net()[0].weight.detach().numpy(), "w"),
        onnx.numpy_helper.from_array(_net()[0].bias.detach().numpy(), "b"),
    ]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / "a.onnx"
    )
    return folder / "a.onnx"


def _read_onnx(path: Path) -> Content:
    return dict(read_onnx(path).module().state_dict())


def _read_beside(name: str) -> Callable[[Path], Content]:
    """What a file beside the damaged one holds, with that one."""
    return lambda path: _read_onnx(path.with_name(name))


def _read_folder(path: Path) -> Content:
    return load_state_dict(path.parent)


def _read_streamed(path: Path) -> Content:
    """As commands with --max-memory do: a tensor at a time."""
    opened = open_checkpoint(path, _net().to("meta"), Reading())
    return {name: opened.read(name) for name in opened.stored}


def _read_recipe(path: Path) -> Content:
    try:
        arguments_of(commands, path, [])
    except click.ClickException as error:
        raise InputError(error.format_message()) from error
    return {}


def _read_config(path: Path) -> Content:
    build_without_values(str(path))
    return {}


def _read_alignment(path: Path) -> Content:
    return dict(applied(Alignment.load(path), _net().double().state_dict()))


def _read_certificate(path: Path) -> Content:
    return {name: torch.from_numpy(a) for name, a in Permutation.load(path).arrays.items()}


FORMATS: Mapping[str, Format] = {
    "pt": Format(_pt, load_state_dict, checked=True),
    "old pt": Format(_old_pt, load_state_dict),
    "safetensors": Format(_safetensors, load_state_dict),
    "index": Format(_index, load_state_dict),
    "certificate": Format(_certificate, _read_certificate, checked=True),
    "alignment": Format(_alignment, _read_alignment, checked=True),
    "index of pickles": Format(_bin_index, load_state_dict),
    "shard": Format(_shard, lambda path: load_state_dict(path.parent / "m.index.json"), True),
    "distributed metadata": Format(_distributed(".metadata"), _read_folder),
    "distributed data": Format(_distributed("__0_0.distcp"), _read_folder),
    "pt a tensor at a time": Format(_pt, _read_streamed, checked=True),
    "safetensors a tensor at a time": Format(_safetensors, _read_streamed),
    "index a tensor at a time": Format(_index, _read_streamed),
    "onnx": Format(_onnx, _read_onnx),
    "onnx with data": Format(_onnx_with_data("a.onnx"), _read_onnx),
    "data of onnx": Format(_onnx_with_data("w"), _read_beside("a.onnx")),
    "recipe": Format(_recipe, _read_recipe),
    "config.json": Format(_config, _read_config),
}


def damaged(data: bytes, generator: random.Random) -> tuple[bytes, str]:
    """Data with one or two faults, and what they are, in words."""
    words = []
    for _ in range(generator.choice((1, 1, 1, 2))):
        at = generator.randrange(len(data)) if data else 0
        kind = generator.choice(("flip", "flip", "set", "cut", "insert", "remove", "repeat"))
        length = generator.choice((1, 2, 4, 8, 64))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :]
        elif kind == "set":
            data = (
                data[:at]
                + generator.choice((b"\0", b"\xff", b"\x80")) * length
                + data[at + length :]
            )
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + generator.randbytes(length) + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + length :]
        else:
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        words.append(f"{kind} at {at} (length {length})")
    return data, ", ".join(words)


def escapes(
    kinds: Mapping[str, Format], seed: int, until: Callable[[int], bool]
) -> Iterator[Escape]:
    """Damage files of each kind in turn until enough were tried; yields what was not right."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {
            kind: form.make(_folder(folder / kind.replace(" ", "-")))
            for kind, form in kinds.items()
        }
        whole = {kind: path.read_bytes() for kind, path in paths.items()}
        right = {kind: kinds[kind].read(path) for kind, path in paths.items()}
        tried = 0
        while not until(tried):
            kind = list(kinds)[tried % len(kinds)]
            data, words = damaged(whole[kind], generator)
            tried += 1
            paths[kind].unlink()
            paths[kind].write_bytes(data)
            found = _fault(kinds[kind], paths[kind], right[kind])
            if found is not None:
                yield Escape(kind, f"seed {seed}, file {tried}: {words}", found)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _fault(form: Format, path: Path, right: Content) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = form.read(path)
    except FxRebasinError as error:
        return None if str(error) else "a message without words"
    except Exception:  # noqa: BLE001 - anything else is what is looked for
        return traceback.format_exc(limit=-4)
    if form.checked and not _same(content, right):
        return "other numbers were read, though there are checksums"
    return None


def _same(left: Content, right: Content) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in right)


def main() -> int:
    """Try for a while; the exit code says whether anything escaped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    count = 0
    for escape in escapes(FORMATS, options.seed, lambda _: time.monotonic() > end):
        sys.stdout.write(f"{escape}\n\n")
        count += 1
    sys.stdout.write(f"{count} damaged files were not refused as they should be\n")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
