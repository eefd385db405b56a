"""What a run has done so far, in a folder beside its result: to go on with after an interrupt.

The folder has a name that no reader takes for a result, holds the state of the match and the files
that are complete, and is gone when the result is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.ranks import ALONE, Ranks
from fxrebasin.storage.files import publish, replacing
from fxrebasin.streaming.states import Found, Progress
from fxrebasin.wording import spoken

_STATE = "state-{}.safetensors"
_NUMBER = "{}.number"
_SETTINGS = "settings"
_LOCK = "lock"
_RESULT = "result-{}"
_VERSION = 3
_ARRAY, _TOTAL = "array.", "total."


def folder_for(out: Path) -> Path:
    """Where the unfinished run for a result lies.

    Args:
        out: the result.

    Example:
        >>> folder_for(Path("merged")).name
        '.merged.unfinished'
    """
    return out.parent / f".{out.name}.unfinished"


class Unfinished:
    """The folder of a run.

    Args:
        folder: where it is.
        settings: a digest of all that decides about the result: inputs, options, versions.
        rank: of this process among those that share the run; each keeps a state of its own.
    """

    def __init__(self, folder: Path, settings: str, rank: int = 0) -> None:
        self.folder = folder
        self._settings, self._rank = settings, rank

    def mark(self) -> None:
        """From here on there is something to go on with."""
        publish(self.folder / _SETTINGS, self._settings.encode(), overwrite=True)

    def result(self, number: int = 0) -> Path:
        """Where a result is put together.

        Args:
            number: which of the run's results.
        """
        place = self.folder / _RESULT.format(number)
        place.mkdir(exist_ok=True)
        return place

    def _state(self, task: str) -> Path:
        return self.folder / _STATE.format(f"{task}-of-{self._rank}" if self._rank else task)

    def load(self, task: str) -> Progress | Found | None:
        """How far a match was, or what it found; None if nothing was kept.

        Args:
            task: which of the run's matches.

        Raises:
            CheckpointError: the state is damaged.
        """
        path = self._state(task)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                document = json.loads((file.metadata() or {})["document"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged; remove {self.folder} to start over"
            ) from error
        arrays = {
            name.removeprefix(_ARRAY): tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith(_ARRAY)
        }
        if "found" in document:
            return Found(arrays=arrays, **document["found"])
        totals = {n.removeprefix(_TOTAL): t for n, t in tensors.items() if n.startswith(_TOTAL)}
        return _progress(document["progress"], arrays, totals)

    def number(self, name: str) -> float | None:
        """A number that was kept; None if it was not.

        Args:
            name: of it.
        """
        path = self.folder / _NUMBER.format(name)
        return float.fromhex(path.read_text("ascii")) if path.is_file() else None

    def keep_number(self, name: str, number: float) -> None:
        """Write a number down, to all its digits.

        Args:
            name: of it.
            number: that is kept.
        """
        publish(self.folder / _NUMBER.format(name), number.hex().encode(), overwrite=True)

    def keep(self, task: str, state: Progress | Found) -> None:
        """Write down how far a match is, or what it found.

        Args:
            task: which of the run's matches.
            state: of it.

        Raises:
            CheckpointError: the disk is full.
        """
        tensors = {f"{_ARRAY}{n}": torch.from_numpy(np.array(a)) for n, a in state.arrays.items()}
        document: dict[str, Any] = {}
        if isinstance(state, Found):
            document["found"] = {k: v for k, v in vars(state).items() if k != "arrays"}
        else:
            tensors |= {f"{_TOTAL}{name}": total for name, total in state.totals.items()}
            document["progress"] = _document(state)
        with replacing(self._state(task)) as draft:
            try:
                save_file(tensors, draft, {"document": json.dumps(document)})
            except SafetensorError as error:
                raise CheckpointError(f"{self.folder} cannot be written: {error}") from error
        self.mark()


def _document(state: Progress) -> dict[str, Any]:
    return {
        "sweep": state.sweep,
        "step": state.step,
        "known": list(state.known),
        "told": dict(state.told),
        "scales": {name: list(scale) for name, scale in state.scales.items()},
        "stale": sorted(state.stale),
        "before": {name: list(sums) for name, sums in state.before.items()},
        "after": {name: list(sums) for name, sums in state.after.items()},
        "gained": state.gained,
        "meetings": state.meetings,
    }


def _progress(
    document: Mapping[str, Any], arrays: Mapping[str, Any], totals: Mapping[str, torch.Tensor]
) -> Progress:
    return Progress(
        document["sweep"],
        document["step"],
        arrays,
        tuple(document["known"]),
        totals,
        {n: (s[0], s[1], s[2], s[3]) for n, s in document["scales"].items()},
        document["told"],
        frozenset(document["stale"]),
        {name: (sums[0], sums[1]) for name, sums in document["before"].items()},
        {name: (sums[0], sums[1]) for name, sums in document["after"].items()},
        document["gained"],
        document["meetings"],
    )


@contextmanager
def unfinished_run(
    out: Path, settings: Mapping[str, Any], *, resume: bool, ranks: Ranks = ALONE
) -> Iterator[Unfinished]:
    """The folder of a run, which goes when the run ends well, or before anything was kept in it.

    Where several processes share the run, the folder is looked after by the first of them.

    Args:
        out: the result.
        settings: all that decides about it.
        resume: go on with an earlier run, if there is one.
        ranks: the processes that share it.

    Raises:
        InputError: there is an earlier run, and it is not to be gone on with; or it is still going
            on.
        RankLostError: another process has ended.
    """
    shared = {**settings, "processes": ranks.count}
    if ranks.number:
        ranks.every(None)  # until the folder is there
        yield Unfinished(folder_for(out), _digest(shared), ranks.number)
        ranks.every(None)
        return
    with _own_run(folder_for(out), _digest(shared), resume=resume) as run:
        ranks.every(None)
        yield run
        ranks.every(None)  # until nobody needs it any more


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps({"version": _VERSION, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _own_run(folder: Path, digest: str, *, resume: bool) -> Iterator[Unfinished]:
    marked = folder / _SETTINGS
    if marked.exists() and not resume:
        raise InputError(
            f"{folder} is of an earlier run that was interrupted: go on with it by "
            f"{spoken('resume=True', '--resume')}, or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w", encoding="utf-8") as lock:
        _take(lock, folder)
        if marked.exists() and marked.read_text(encoding="utf-8") != digest:
            raise InputError(
                f"{folder} is of a run with other inputs or options, or of another version: run "
                "the same command again, or remove the folder to start over"
            )
        run = Unfinished(folder, digest)
        for draft in folder.glob(
            f"{_RESULT.format('*')}/.*.part"
        ):  # of files that were not finished
            draft.unlink()
        try:
            yield run
        except BaseException as error:
            # With the same inputs it would end the same way.
            if not marked.exists() or isinstance(error, InputError):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def _take(lock: TextIO, folder: Path) -> None:
    """Hold a file that no other run holds; the system lets go of it when the process ends."""
    try:
        import fcntl
    except ImportError:  # where there is no such lock, two runs at once are the user's to avoid
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"another run works in {folder}; wait until it is over") from error
