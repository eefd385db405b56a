"""What a permutation was made for: the tensors of a model by name, and which of them are one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fxrebasin.gather import storage_identity
from fxrebasin.layout import Layout


@dataclass(frozen=True)
class TensorKind:
    """Shape and dtype of a tensor of a state."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Architecture:
    """The tensors of a model's state.

    Attributes:
        tensors: shape and dtype by name, every name of a tensor that has several.
        ties: the names of each tensor that has several.

    Example:
        >>> net = nn.Linear(3, 2, bias=False)
        >>> print(Architecture.of(net).tensors["weight"])
        float32[2, 3]
    """

    tensors: Mapping[str, TensorKind]
    ties: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Architecture:
        """That of a module, with or without values.

        Args:
            model: its parameters and the buffers of its state dict count.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = {**parameters, **model.state_dict(keep_vars=True)}
        tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
        together: dict[object, list[str]] = {}
        for name, tensor in tensors.items():
            together.setdefault(_identity(tensor), []).append(name)
        return cls(
            {name: _kind(tensor) for name, tensor in tensors.items()},
            tuple(tuple(sorted(names)) for names in together.values() if len(names) > 1),
        )

    def faults(self, model: nn.Module) -> list[str]:
        """What a module has otherwise, in words; dtypes may be of another width.

        Args:
            model: that a permutation is to act on.
        """
        other = Architecture.of(model)
        found = [f"{name}: missing" for name in self.tensors if name not in other.tensors]
        strange = (name for name in other.tensors if name not in self.tensors)
        found += [f"{name}: not known" for name in strange if not _counts(other.tensors[name])]
        for name, kind in self.tensors.items():
            own = other.tensors.get(name)
            if own is not None and (own.shape, _family(own)) != (kind.shape, _family(kind)):
                found.append(f"{name}: {own} instead of {kind}")
        mine, theirs = set(self.ties), set(other.ties)
        found += [f"{', '.join(names)}: not one tensor any more" for names in mine - theirs]
        found += [f"{', '.join(names)}: one tensor now" for names in theirs - mine]
        return found

    def misfits(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
        """Where axes that are permuted have another size than they had, in words.

        Args:
            layout: what is permuted.
            state: tensors by name; those that are not in both are passed over.
        """
        found = []
        for name, groups in layout.items():
            kind = self.tensors.get(name)
            if kind is None or name not in state:
                continue
            shape = tuple(state[name].shape)
            axes = {axis for group in groups for axis in group.axes}
            if len(shape) != len(kind.shape) or any(shape[a] != kind.shape[a] for a in axes):
                found.append(f"{name}: has shape {shape} instead of {kind.shape}")
        return found


def listing(architecture: Architecture | None) -> dict[str, object] | None:
    """As a JSON document.

    Args:
        architecture: if it is known.
    """
    if architecture is None:
        return None
    return {
        "tensors": {n: [k.dtype, list(k.shape)] for n, k in architecture.tensors.items()},
        "ties": [list(names) for names in architecture.ties],
    }


def _kind(tensor: Tensor) -> TensorKind:
    lazy = nn.parameter.is_lazy(tensor)
    shape = () if lazy else tuple(tensor.shape)
    return TensorKind(shape, str(tensor.dtype).removeprefix("torch."))


def _identity(tensor: Tensor) -> object:
    """What tensors have in common that are one; meta tensors have no memory to share."""
    plain = not tensor.is_meta and tensor.numel() and _has_storage(tensor)
    return storage_identity(tensor) if plain else id(tensor)


def _has_storage(tensor: Tensor) -> bool:
    try:
        return tensor.untyped_storage().data_ptr() != 0
    except (NotImplementedError, RuntimeError, ValueError):
        return False


def _counts(kind: TensorKind) -> bool:
    """Whether it is one whole number, as of the batches seen; ONNX files hold none of these."""
    return kind.shape == () and _family(kind) == "integer"


def _family(kind: TensorKind) -> str:
    """What must not change: numbers, whole numbers, or truth values."""
    families: Iterable[tuple[str, str]] = (
        ("complex", "complex"),
        ("bfloat", "real"),
        ("float", "real"),
        ("bool", "boolean"),
    )
    return next((name for start, name in families if kind.dtype.startswith(start)), "integer")
