"""The mean of checkpoints whose units are aligned, in files, to match them with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fxrebasin.layout import Layout
from fxrebasin.merge.combinations import Combination
from fxrebasin.merge.states import wide_dtype
from fxrebasin.merge.turns import squared_length
from fxrebasin.permutation import Permutation
from fxrebasin.ranks import Ranks
from fxrebasin.streaming.bundles import bundles
from fxrebasin.streaming.combining import Combining
from fxrebasin.streaming.dealing import spread
from fxrebasin.streaming.making import Item, NewFile, ranges, write_files
from fxrebasin.streaming.opening import Opened
from fxrebasin.streaming.reader import open_reader
from fxrebasin.streaming.safetensors_file import new_layout
from fxrebasin.streaming.stored import Stored

_INDEX = "mean.safetensors.index.json"


def write_mean(
    opened: Sequence[Opened],
    permutations: Sequence[Permutation | None],
    names: Sequence[str],
    folder: Path,
    ranks: Ranks,
    on_write: Callable[[int], None] = lambda count: None,
) -> Opened:
    """Write some tensors of the mean of checkpoints, and open it.

    Each process makes some of them, of all checkpoints, so that the mean does not depend on how
    many there are.

    Args:
        opened: the checkpoints.
        permutations: of their units; None for none.
        names: of the tensors.
        folder: where the files go; those that are complete stay.
        ranks: the processes that share the work.
        on_write: called with the number of bytes that were written, or read again.
    """
    first = opened[0]
    forms = {n: Stored(first.stored[n].shape, wide_dtype(first.stored[n].dtype)) for n in names}
    recipe = Combining(opened, permutations, Combination(), (), (), {}, wide=True)
    files = [
        NewFile(
            f"mean-{number:05d}.safetensors",
            new_layout({name: forms[name] for name in bundle}, {}),
            {name: Item(first.places[name], name) for name in bundle},
        )
        for number, bundle in enumerate(bundles(forms))
    ]
    owners = spread([file.bytes for file in files], ranks.count)
    mine = [file for file, owner in zip(files, owners, strict=True) if owner == ranks.number]
    write_files(first, mine, recipe, folder, on_write)
    ranks.every(None)
    if not ranks.number:
        where = {name: file.name for file in files for name in file.items}
        (folder / _INDEX).write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    ranks.every(None)
    reader, _, index = open_reader(folder / _INDEX)
    places = {name: (name,) for name in forms}
    return replace(
        first,
        path=folder,
        reader=reader,
        places=places,
        written=places,
        stored=forms,
        index=index,
        notes=(),
    )


def length_of(mean: Opened, layout: Layout, ranks: Ranks) -> float:
    """The squared length of the tensors of a mean that units are in, in what is compared.

    Args:
        mean: that was written.
        layout: where the units are.
        ranks: the processes, each of which reads some of the tensors.
    """
    names = [name for name in mean.stored if name in layout]
    owners = spread([mean.stored[name].bytes for name in names], ranks.count)
    mine = {
        name: squared_length(name, _parts(mean, name), layout)
        for name, owner in zip(names, owners, strict=True)
        if owner == ranks.number
    }
    return math.fsum(square for part in ranks.every(mine) for square in part.values())


def _parts(opened: Opened, name: str) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor a few rows at a time, each part with the number of its first row."""
    for rows in ranges(opened.stored[name]):
        yield (rows.start if rows else 0), opened.read(name, rows)
