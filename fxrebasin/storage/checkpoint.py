"""Weights in files: safetensors (whole or in shards) and torch's own pickles; tensors only."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fxrebasin.errors import CheckpointError
from fxrebasin.models.checks import check_same_architecture
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.files import refuse_existing, replacing
from fxrebasin.storage.folders import is_model_folder, read_folder, write_folder
from fxrebasin.storage.reading import Checkpoint, Kind, Move, Reading

_SAFETENSORS = (".safetensors",)
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_INDEX = ".index.json"
_KINDS = ", ".join((*_SAFETENSORS, *_PICKLES, f"*{_INDEX}"))
# Where training scripts put the weights, the usual names first.
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "ema")
# What wrappers put before the names: DataParallel, torch.compile, training frameworks.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_checkpoint(
    path: str | Path, model: nn.Module, reading: Reading | None = None
) -> Checkpoint:
    """Read weights for a model, on the CPU, without running code from the file.

    Args:
        path: a file of weights, the index of one in shards, or a folder.
        model: has the names and shapes; its values do not count.
        reading: which copy of the weights is taken, and how.

    Raises:
        CheckpointError: what is there cannot be read, or holds several models.
        ArchitectureMismatchError: names or shapes differ from the model's.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> torch.save({"state_dict": net.state_dict(), "epoch": 3}, "net.pt")
        >>> list(read_checkpoint("net.pt", net).state)
        ['weight', 'bias']
    """
    path, reading = Path(path), reading or Reading()
    if is_model_folder(path):
        return read_folder(path, model, reading)
    own = {n: t for n, t in model.state_dict().items() if _is_tensor(t)}
    state = fitted(load_state_dict(path, own), model)
    check_same_architecture(own, state, ("the model", str(path)))
    kind = Kind.INDEX if path.name.endswith(_INDEX) else Kind.FILE
    return Checkpoint(path, kind, state)


def write_checkpoint(
    out: str | Path,
    like: Checkpoint,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    card: str | None = None,
    others: Move | None = None,
) -> tuple[Path, ...]:
    """Write other weights in the place of those of a checkpoint, all else as it came.

    Args:
        out: what to write; by its suffix a file, otherwise what was read: an index or a folder.
        like: what was read; it gives container, names, dtypes and everything beside the weights.
        state: the weights, under the names of the model.
        dtype: of all floating tensors; those of `like` when left out.
        overwrite: replace what exists.
        card: text of README.md, in the folder of a model.
        others: what makes other copies (averages) in the file fit the new weights, such as
            `permutation.permute_tensor`; they are left out when this is.

    Returns:
        Paths of what was written.

    Raises:
        CheckpointError: it cannot be written, or not in that kind of file.
        InputError: it exists.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> torch.save({"state_dict": net.state_dict(), "epoch": 3}, "old.pt")
        >>> read = read_checkpoint("old.pt", net)
        >>> write_checkpoint("new.pt", read, {name: 2 * t for name, t in read.state.items()})
        (PosixPath('new.pt'),)
    """
    out = Path(out)
    if like.kind is Kind.MODEL_FOLDER and out.suffix not in (*_SAFETENSORS, *_PICKLES):
        return write_folder(out, like, state, dtype=dtype, overwrite=overwrite, card=card)
    written = {
        name: tensor.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    save_state_dict(out, written, overwrite=overwrite)
    return (out,)


def load_state_dict(
    path: str | Path, expected: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """Read weights from a file, on the CPU, without running code from it.

    The weights may be nested under a usual key ("state_dict", "model", ...) of a training
    checkpoint, whose other contents are ignored. Prefixes that wrappers put before names
    ("module.", "_orig_mod.", "model.") are taken off if more of `expected` fits then.

    Args:
        path: a .safetensors file, the *.index.json of one in shards, or a .pt, .pth, .bin or
            .ckpt file that `torch.load` reads.
        expected: names that the weights should have.

    Returns:
        Tensors by name. Those of a pickle may be backed by the file.

    Raises:
        CheckpointError: the file is missing, a folder, of another kind, damaged, holds objects
            that only running code could load, or holds no tensors.

    Example:
        >>> torch.save({"state_dict": {"module.w": torch.ones(2)}}, "training.pt")
        >>> load_state_dict("training.pt", expected=["w"])
        {'w': tensor([1., 1.])}
    """
    path = Path(path)
    _check_is_file(path)
    if path.name.endswith(_INDEX):
        content: Any = _load_shards(path)
    elif path.suffix in _SAFETENSORS:
        content = _load_safetensors(path)
    elif path.suffix in _PICKLES:
        content = _load_pickle(path)
    else:
        raise CheckpointError(
            f"{path} does not have the name of a weights file; expected one of {_KINDS}."
        )
    candidates = [aligned(state, expected or ()) for state in _states(content)]
    if not candidates:
        raise CheckpointError(
            f"{path} holds no tensors by name: {_contents(content)}. Save the weights with "
            "`torch.save(model.state_dict(), path)`."
        )
    return max(candidates, key=lambda state: _fit(state, expected or ()))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a model, or nothing at all.

    Args:
        model: takes the weights, in its own dtypes.
        path: as for `load_state_dict`.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureMismatchError: names or shapes differ from the model's; all of them are told.

    Example:
        >>> save_state_dict("linear.safetensors", nn.Linear(2, 1).state_dict())
        >>> load_weights(nn.Linear(2, 1), "linear.safetensors")
    """
    own = model.state_dict()
    state = fitted(load_state_dict(path, own), model)
    check_same_architecture(own, state, ("the model", str(path)))
    model.load_state_dict(state)


def save_state_dict(
    path: str | Path, state: Mapping[str, torch.Tensor], *, overwrite: bool = False
) -> None:
    """Write weights to a file, whole or not at all.

    safetensors cannot hold two names for one tensor: there, tied tensors are stored under each
    of their names, which every reader understands. The pickles keep the tie.

    Args:
        path: a .safetensors, .pt, .pth, .bin or .ckpt file; its folder is made if it is missing.
        state: tensors by name.
        overwrite: replace a file that exists.

    Raises:
        CheckpointError: the name is of no known kind, or the file cannot be written.
        InputError: the file exists.

    Example:
        >>> save_state_dict("weights.safetensors", {"w": torch.ones(2)})
        >>> load_state_dict("weights.safetensors")
        {'w': tensor([1., 1.])}
    """
    path = Path(path)
    if path.suffix not in (*_SAFETENSORS, *_PICKLES):
        kinds = ", ".join((*_SAFETENSORS, *_PICKLES))
        raise CheckpointError(
            f"{path} does not have the name of a weights file; expected one of {kinds}."
        )
    refuse_existing([path], overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            if path.suffix in _SAFETENSORS:
                save_file(_separate(state), temporary, metadata={"format": "pt"})
            else:
                torch.save({name: tensor.detach() for name, tensor in state.items()}, temporary)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be written: {first_lines(error)}") from error


def _separate(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, no two in one memory."""
    used: set[int] = set()
    separate: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage._cdata in used or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        used.add(tensor.untyped_storage()._cdata)
        separate[name] = tensor
    return separate


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(
            p.name for p in path.iterdir() if p.name.endswith(tuple(_KINDS.split(", ")))
        )
        hint = f"; it holds {', '.join(inside[:5])}" if inside else ""
        raise CheckpointError(f"{path} is a folder; expected a file of weights{hint}.")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a file of weights ({_KINDS}).")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; its download or copy was cut short.")


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not an intact safetensors file ({first_lines(error, 1)}): it is cut short, "
            "damaged, or of another kind. Download or save it again."
        ) from error


def _load_pickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # only torch's newer format can be read in place
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path} holds objects other than tensors, and loading those runs code from the "
                "file, which fxrebasin does not. Where you trust it, load it yourself and save "
                "the weights alone: `torch.save(model.state_dict(), path)`."
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read by torch.load ({first_lines(error, 1)}): it is cut short, damaged, "
        "or of another kind. Download or save it again."
    )


def _load_shards(index: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint in shards, from its index."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index of a checkpoint in shards: expected JSON with a 'weight_map'."
        ) from error
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} names the shard {shard!r}; expected a file beside it.")
        state.update(load_state_dict(index.parent / shard))
    missing = [name for name in files if name not in state]
    if missing:
        raise CheckpointError(
            f"{index} promises {', '.join(missing[:5])}, {len(missing)} in all, which its shards "
            "do not hold. Download the shards again."
        )
    return {name: state[name] for name in files}


def _states(content: Any) -> Iterator[dict[str, torch.Tensor]]:
    """The mappings from names to tensors in a checkpoint, the usual places first."""
    if not isinstance(content, Mapping):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and _is_tensor(v)}
    if tensors:
        yield tensors
    rest = [key for key in content if key not in _NESTED]
    for key in [*_NESTED, *rest]:
        if isinstance(content.get(key), Mapping):
            yield from _states(content[key])


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _contents(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    return f"its keys are {', '.join(map(str, list(content)[:8]))}" if content else "it is empty"


def aligned(
    state: Mapping[str, torch.Tensor], expected: Collection[str]
) -> dict[str, torch.Tensor]:
    """The state with the prefixes of wrappers taken off its names, where that makes more fit.

    Example:
        >>> list(aligned({"module.w": torch.ones(1)}, ["w"]))
        ['w']
    """
    best = current = dict(state)
    stripped = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    for candidate in (stripped, *_without_prefixes(current), *_without_prefixes(stripped)):
        if len(candidate) == len(state) and _fit(candidate, expected) > _fit(best, expected):
            best = candidate
    return best


def _without_prefixes(state: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The state with each run of prefixes taken off the names that have it."""
    current = dict(state)
    while True:
        prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in current)), None)
        if prefix is None:
            return
        current = {name.removeprefix(prefix): tensor for name, tensor in current.items()}
        yield current


def _fit(state: Mapping[str, torch.Tensor], expected: Collection[str]) -> int:
    return sum(name in state for name in expected)


def fitted(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The state in the order of the model's keys, completed and cleared where it is safe.

    A tied tensor that is stored under one of its names gets the others; what the model has as
    a non-persistent buffer is left out. Everything else stays, for a comparison to tell.
    """
    own = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    result: dict[str, torch.Tensor] = {}
    for name, tensor in own.items():
        source = next((other for other in (name, *names[id(tensor)]) if other in state), None)
        if source is not None:
            result[name] = state[source]
    dropped = {name for name, _ in model.named_buffers(remove_duplicate=False)} - set(own)
    rest = {k: v for k, v in state.items() if k not in result and k not in dropped}
    return result | rest
