"""Which layers run on a loader, in which order, and with how much memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm

from fxrebasin.merge.data import Data
from fxrebasin.merge.held_bytes import HeldBytes, bytes_of
from fxrebasin.merge.other_norms import MeansRead
from fxrebasin.merge.sites import Site
from fxrebasin.running.preserve import Attributes, attributes_of, same_attributes

_MOST_LANES = 4096
"""Batches that go side by side, each of which takes a thread and a structure of the model."""
_STRUCTURES = 2**30
_OF_A_MODULE = 3 * 2**10
"""Bytes for these structures in all, and about what a module of one takes."""


@dataclass(frozen=True)
class Survey:
    """What one pass over the loader shows.

    Args:
        paths: for every batch the names of the sites that run, in order, one for every call.
        held: for every batch the memory that it takes where it takes most, in bytes.
        normalised: names of the sites whose output is what a BatchNorm gets.
        one_by_one: batches have to run one after the other: the model writes to its tensors, keeps
            something for the next batch, or waits for another one.
        shared: other libraries work in the memory of what operators made.
        modules: number of modules in the model.
        means_read: identities of the storages of running means that operators read.
    """

    paths: tuple[tuple[str, ...], ...]
    held: tuple[int, ...]
    normalised: frozenset[str]
    one_by_one: bool
    shared: bool
    modules: int
    means_read: frozenset[int]

    @property
    def batches(self) -> int:
        """Their number."""
        return len(self.paths)

    @property
    def calls(self) -> Mapping[str, int]:
        """Of every site that runs, in the order of their first calls; the most in a batch."""
        found: dict[str, int] = {}
        for path in self.paths:
            found |= {name: max(n, found.get(name, 0)) for name, n in Counter(path).items()}
        return found

    def along(self, sites: Sequence[Site]) -> Survey:
        """The same with some of the sites only.

        Args:
            sites: those.
        """
        names = {site.name for site in sites}
        paths = tuple(tuple(name for name in path if name in names) for path in self.paths)
        return replace(self, paths=paths)

    @property
    def alike(self) -> bool:
        """Whether every batch comes to the same sites, once each and in one order."""
        return len(set(self.paths)) == 1 and len(set(self.paths[0])) == len(self.paths[0])

    def side_by_side(self, most: int) -> int:
        """How many batches, from the first one, can go through the model side by side.

        Args:
            most: room for what they hold, in bytes.
        """
        if self.one_by_one:
            return 0
        fitting = min(self.fitting(most), _MOST_LANES, _STRUCTURES // (_OF_A_MODULE * self.modules))
        return fitting if self.alike or fitting == self.batches else 0

    def fitting(self, most: int) -> int:
        """Of how many batches, from the first one, what they hold has room.

        Args:
            most: room in bytes.
        """
        return sum(total <= most for total in accumulate(self.held))


def survey(model: nn.Module, data: Data, sites: Sequence[Site]) -> Survey:
    """Which sites run, in which order and how often, and which lead into a BatchNorm.

    Args:
        model: to run.
        data: to run it on.
        sites: candidates.

    Raises:
        InputError: the model does not run on the loader.
    """
    paths, held, one_by_one, shared = [], [], False, False
    normalised: set[str] = set()
    kept: Attributes | None = None
    means = MeansRead()
    with data.running(model) as (running, pending):
        for batch in pending:
            path: list[str] = []
            memory = HeldBytes()
            with memory, means, _watching(model, sites, path, normalised, memory):
                running.call({}, batch)
            paths.append(tuple(path))
            held.append(memory.most + bytes_of((batch.args, batch.kwargs)))
            shared |= memory.shared
            before, kept = kept, attributes_of(model)
            one_by_one |= running.wrote or (
                before is not None and not same_attributes(before, kept)
            )
    return Survey(
        tuple(paths),
        tuple(held),
        frozenset(normalised),
        one_by_one,
        shared,
        sum(1 for _ in model.modules()),
        frozenset(means.found),
    )


@contextmanager
def _watching(
    model: nn.Module,
    sites: Sequence[Site],
    path: list[str],
    normalised: set[str],
    memory: HeldBytes,
) -> Iterator[None]:
    """Note the calls of sites, and which of their outputs a BatchNorm gets as they are."""
    given: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def after(name: str, output: Any) -> None:
        path.append(name)
        memory.look()
        if isinstance(output, torch.Tensor):
            # Held weakly, so that the address is not used again while the memory may be.
            storage = StorageWeakRef(output.untyped_storage())
            given[storage.cdata] = (storage, output._version, name)

    def into_norm(args: tuple[Any, ...]) -> None:
        for value in args[:1]:
            if isinstance(value, torch.Tensor):
                found = given.get(StorageWeakRef(value.untyped_storage()).cdata)
                if found is not None and found[1] == value._version:
                    normalised.add(found[2])

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                handle = module.register_forward_pre_hook(lambda m, args: into_norm(args))
                stack.callback(handle.remove)
        for site in sites:
            handle = model.get_submodule(site.name).register_forward_hook(
                lambda m, args, output, name=site.name: after(name, output)
            )
            stack.callback(handle.remove)
        yield
