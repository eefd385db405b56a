"""Folders of images or texts as batches for a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxrebasin.cli.work import Bench, folder_of_weights
from fxrebasin.errors import InputError
from fxrebasin.models.example_inputs import normalise_inputs

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_TEXTS = (".txt", ".md")
_ROWS = 32
# Of ImageNet, by channel: what most classifiers of images are trained with.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


def folder_batches(folder: Path, bench: Bench) -> Files:
    """The images or the texts below a folder, in the order of their names.

    Images get the size that the model's example inputs have, and ImageNet's mean and deviation
    where they have three channels. Texts are cut by the tokenizer in the model's folder into
    rows as long as its example inputs.

    Args:
        folder: with files, or with folders of files (classes, which are not looked at).
        bench: has the model.

    Raises:
        InputError: there are neither images nor texts, or the model takes neither.
    """
    args, kwargs = normalise_inputs(
        bench.module, bench.example.args, bench.example.kwargs, check=False
    )
    inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    first = inputs[0] if inputs else None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    name = None if args else next(iter(kwargs), None)
    if first is not None and first.ndim == 4 and first.is_floating_point():
        images = _of_kind(files, _IMAGES, folder, "images")
        return Images(images, name, tuple(first.shape[1:]))
    if first is not None and first.ndim == 2 and not first.is_floating_point():
        texts = _of_kind(files, _TEXTS, folder, "texts")
        return Texts(texts, name, _tokenizer(bench), first.shape[1])
    raise InputError(
        f"files of {folder} are no inputs for this model, which takes neither images nor ids of "
        "tokens; name a package.module:callable that gives batches"
    )


@dataclass(frozen=True)
class Files:
    """Files that are read again in every pass over them.

    Args:
        paths: of the files.
        keyword: of the input, if it has none but that.
    """

    paths: tuple[Path, ...]
    keyword: str | None

    def __iter__(self) -> Iterator[Any]:
        """Batches of inputs."""
        for rows in self.rows():
            yield rows if self.keyword is None else {self.keyword: rows}

    def rows(self) -> Iterator[torch.Tensor]:
        """Tensors of a few rows each."""
        yield from ()


@dataclass(frozen=True)
class Images(Files):
    """Images of one size.

    Args:
        shape: channels, height and width.
    """

    shape: tuple[int, ...]

    def rows(self) -> Iterator[torch.Tensor]:
        """Tensors of shape (rows, channels, height, width)."""
        for start in range(0, len(self.paths), _ROWS):
            yield torch.stack([self._read(path) for path in self.paths[start : start + _ROWS]])

    def _read(self, path: Path) -> torch.Tensor:
        from PIL import Image

        channels, height, width = self.shape
        mode = {1: "L", 3: "RGB"}.get(channels)
        if mode is None:
            raise InputError(f"the model takes {channels} channels; images have 1 or 3")
        try:
            with Image.open(path) as opened:
                image = opened.convert(mode).resize((width, height), Image.Resampling.BICUBIC)
        except OSError as error:
            raise InputError(f"{path} cannot be read as an image: {error}") from error
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        values = pixels.reshape(height, width, channels).permute(2, 0, 1).float() / 255
        if channels != 3:
            return values
        mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in (_MEAN, _DEVIATION))
        return (values - mean) / deviation


@dataclass(frozen=True)
class Texts(Files):
    """Texts, as ids of tokens.

    Args:
        tokenizer: of the model.
        length: of a row.
    """

    tokenizer: Any
    length: int

    def rows(self) -> Iterator[torch.Tensor]:
        """Tensors of shape (rows, length), int64."""
        ids: list[int] = []
        for path in self.paths:
            ids += self.tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
            while len(ids) >= _ROWS * self.length:
                yield torch.tensor(ids[: _ROWS * self.length]).reshape(_ROWS, self.length)
                ids = ids[_ROWS * self.length :]
        whole = len(ids) // self.length
        if whole:
            yield torch.tensor(ids[: whole * self.length]).reshape(whole, self.length)


def _of_kind(
    files: Sequence[Path], suffixes: Sequence[str], folder: Path, what: str
) -> tuple[Path, ...]:
    found = tuple(path for path in files if path.suffix.lower() in suffixes)
    if not found:
        raise InputError(f"there are no {what} ({' '.join(suffixes)}) in {folder}")
    return found


def _tokenizer(bench: Bench) -> Any:
    folder = folder_of_weights(bench.name)
    if folder is None:
        raise InputError(
            f"texts need a tokenizer, which is found in the folder of a model; {bench.name} is "
            "none. Name a package.module:callable that gives batches of ids"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{folder} has no usable tokenizer: {error}") from error
