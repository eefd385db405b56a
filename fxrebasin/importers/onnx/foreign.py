"""Operators that the table lacks: analysed as unknown ones, and computed by onnxruntime.

Each becomes an operator of torch that no rule is known for, so that an analysis pins whatever it
touches and reports it. Its values come from onnxruntime, which runs the node alone.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TypeProto, helper, numpy_helper
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.exporters.verify.onnx_session import ONNXRUNTIME_ERRORS
from fxrebasin.importers.onnx.dtypes import DTYPES, dtype_of
from fxrebasin.importers.onnx.registry import UnsupportedError
from fxrebasin.importers.onnx.tensors import bits_of, from_array
from fxrebasin.passes.propagate.escapes import NeedsDataError
from fxrebasin.running.messages import first_lines

_NAMESPACE = "fxrebasin_onnx"
_FATAL = 4  # of onnxruntime's log levels
_IR_VERSION = 10
_SESSIONS = 64

_RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)

_ALSO_IN_FLOAT32 = (torch.float64, torch.bfloat16)
"""Types that kernels may lack, where they have float32."""

_CODES: Mapping[torch.dtype, int] = {dtype: code for code, dtype in DTYPES.items()}

_Dims: TypeAlias = tuple[int | str, ...]


class Unknown(Enum):
    """What becomes of operators that are not computed here.

    REFUSED: they raise. COMPUTED: onnxruntime computes them. GUESSED: it does, and where the file
    does not say how large results are, they are as large as what they are made of; good enough for
    an analysis only, which pins them.
    """

    REFUSED = auto()
    COMPUTED = auto()
    GUESSED = auto()


@dataclass(frozen=True)
class Sizes:
    """What is known of the sizes of results without running anything.

    Args:
        named: sizes of dimensions that have a name in the file.
        guessed: results that the file says nothing of are as large as what they are made of.
    """

    named: Mapping[str, int]
    guessed: bool = False


class CannotRunError(InputError):
    """An operator that neither this package nor onnxruntime computes."""


class _NoNumbersError(UnsupportedError):
    """A result that is no tensor of numbers."""


@dataclass(frozen=True, eq=False)
class Foreign:
    """A node that onnxruntime computes.

    Args:
        label: its operator, and its name.
        reads: names of what it reads, those that its bodies read from outside included.
        makes: names of what it makes.
        spec: all that it takes to run it, as text.
        declared: what the file says of its outputs: element type and sizes, if it says so.
        call: the operator of torch that stands for it.
    """

    label: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    spec: str
    declared: tuple[tuple[int, _Dims] | None, ...]
    call: Callable[..., list[Tensor]]

    def __call__(self, values: Sequence[Any], sizes: Sizes) -> list[Tensor]:
        """What the node makes.

        Args:
            values: of the names that it reads.
            sizes: of its results, as far as they are known.

        Raises:
            UnsupportedError: a value is no tensor.
            CannotRunError: onnxruntime does not compute it.
        """
        if not all(value is None or isinstance(value, Tensor) for value in values):
            raise UnsupportedError(f"{self.label} is not known, and is given what is no tensor")
        first = next((value for value in values if isinstance(value, Tensor)), None)
        guess = None
        if sizes.guessed and first is not None:
            guess = (_CODES[first.dtype], list(first.shape))
        shapes = json.dumps([_with_sizes(item, sizes.named) or guess for item in self.declared])
        if first is None:
            return _computed(list(values), self.spec, shapes)
        return self.call(list(values), self.spec, shapes)


def _foreign(
    node: NodeProto, reads: Iterable[str], types: Mapping[str, TypeProto], opsets: Mapping[str, int]
) -> Foreign:
    """A node as something that onnxruntime computes.

    Args:
        node: of the file.
        reads: names that it reads, those that its bodies read from outside included.
        types: of values, as far as the file says so.
        opsets: versions by domain.
    """
    makes = tuple(name for name in node.output if name)
    inside = (*node.input, *sorted(set(reads) - set(node.input)))
    taken = tuple(dict.fromkeys(name for name in inside if name))
    label = f"{full_name(node.domain, node.op_type)} {(node.name or makes[0])!r}"
    payload = node.SerializeToString(deterministic=True).hex()
    spec = {"label": label, "node": payload, "reads": taken, "makes": makes, "opsets": opsets}
    return Foreign(
        label,
        taken,
        makes,
        json.dumps(spec),
        tuple(_declared(types.get(name)) for name in makes),
        _torch_operator(node.domain, node.op_type),
    )


class Alone:
    """A node that onnxruntime may have to compute; it is made ready when it has to.

    Args:
        node: of the file.
        reads: names that it reads, those that its bodies read from outside included.
        types: of values, as far as the file says so.
        opsets: versions by domain.
    """

    def __init__(
        self,
        node: NodeProto,
        reads: Iterable[str],
        types: Mapping[str, TypeProto],
        opsets: Mapping[str, int],
    ) -> None:
        self._given = (node, reads, types, opsets)

    def reading(self, inputs: Sequence[str]) -> Alone:
        """The same node with other names for what it reads.

        Args:
            inputs: names, one for each that there are.
        """
        node, reads, types, opsets = self._given
        renamed = NodeProto()
        renamed.CopyFrom(node)
        del renamed.input[:]
        renamed.input.extend(inputs)
        inside = set(reads) - set(node.input)
        return Alone(renamed, {*inputs, *inside}, types, opsets)

    @cached_property
    def ready(self) -> Foreign:
        """What onnxruntime computes."""
        return _foreign(*self._given)


def full_name(domain: str, kind: str) -> str:
    """What messages call an operator: its domain, unless that is the standard, and its name."""
    return f"{domain}::{kind}" if domain else kind


def is_random(domain: str, kind: str) -> bool:
    """Whether an operator draws numbers, so that nothing could be compared."""
    return domain == "" and kind in _RANDOM


def _declared(kind: TypeProto | None) -> tuple[int, _Dims] | None:
    if kind is None or not kind.HasField("tensor_type"):
        return None
    tensor = kind.tensor_type
    if not tensor.HasField("shape") or tensor.elem_type not in DTYPES:
        return None
    dims = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param)
        for dim in tensor.shape.dim
    )
    return tensor.elem_type, dims


def _with_sizes(
    declared: tuple[int, _Dims] | None, sizes: Mapping[str, int]
) -> tuple[int, list[int]] | None:
    if declared is None:
        return None
    code, dims = declared
    found = [dim if isinstance(dim, int) else sizes.get(dim) for dim in dims]
    known = [dim for dim in found if dim is not None]
    return (code, known) if len(known) == len(found) else None


_LOCK = threading.Lock()
_OPERATORS: dict[tuple[str, str], tuple[torch.library.Library, Callable[..., list[Tensor]]]] = {}
_NAMES: dict[str, str] = {}


def _torch_operator(domain: str, kind: str) -> Callable[..., list[Tensor]]:
    """The operator of torch that stands for one of ONNX; it is made once."""
    with _LOCK:
        if (domain, kind) not in _OPERATORS:
            name = _torch_name(domain or "ai.onnx", kind)
            library = torch.library.Library(_NAMESPACE, "FRAGMENT")
            library.define(f"{name}(Tensor?[] inputs, str node, str shapes) -> Tensor[]")
            library.impl(name, _computed, "CPU")
            library.impl(name, _shaped, "Meta")
            call = getattr(getattr(torch.ops, _NAMESPACE), name).default
            _OPERATORS[domain, kind] = (library, call)
            _NAMES[str(call)] = full_name(domain, kind)
        return _OPERATORS[domain, kind][1]


def _torch_name(domain: str, kind: str) -> str:
    """A name that torch takes and no other operator has."""
    plain = re.sub(r"[^A-Za-z0-9]", "_", f"{domain}::{kind}")
    clear = re.fullmatch(r"[A-Za-z0-9.]+::[A-Za-z0-9]+", f"{domain}::{kind}")
    return plain if clear else f"{plain}_{f'{domain}::{kind}'.encode().hex()}"


def onnx_names(operators: Iterable[str]) -> tuple[str, ...]:
    """Names of operators that torch was asked for, as the file has them.

    Args:
        operators: as torch calls them; those that do not stand for one of ONNX stay.
    """
    return tuple(dict.fromkeys(_NAMES.get(name, name) for name in operators))


def _shaped(inputs: Sequence[Tensor | None], node: str, shapes: str) -> list[Tensor]:
    """Results without data, if the file says of which sizes they are."""
    known = json.loads(shapes)
    if not all(known):
        raise NeedsDataError(f"sizes of {json.loads(node)['label']}")
    return [torch.empty(dims, dtype=dtype_of(code), device="meta") for code, dims in known]


def _computed(inputs: Sequence[Tensor | None], node: str, shapes: str) -> list[Tensor]:
    """Results of onnxruntime: in the precision of the inputs, or in float32 if it has no other.

    Some kernels want some inputs to be constants of the graph; then all of them are.
    """
    spec = json.loads(node)
    values = dict(zip(spec["reads"], inputs, strict=True))
    given = {name: value for name, value in values.items() if value is not None}
    other = next((v.dtype for v in given.values() if v.dtype in _ALSO_IN_FLOAT32), None)
    faults = []
    for narrow in (False, True) if other else (False,):
        feeds = {name: _fed(value, narrow) for name, value in given.items()}
        for constant in (False, True):
            try:
                found = _run(node, feeds, constant)
            except _NoNumbersError as error:
                raise CannotRunError(
                    f"{spec['label']} makes text, a mapping or a sequence, which cannot be "
                    "compared; export the model without it (zipmap=False in skl2onnx)"
                ) from error
            except ONNXRUNTIME_ERRORS as error:
                faults.append(first_lines(error, 1))
                continue
            return [
                item.to(other) if narrow and item.is_floating_point() else item for item in found
            ]
    raise CannotRunError(
        f"{spec['label']} is known neither here nor to onnxruntime, which could compute its values "
        f"({faults[0]})"
    )


def _fed(value: Tensor, narrow: bool) -> Tensor:
    """A copy: what numpy has looked at, torch cannot resize any more."""
    value = value.detach().cpu().contiguous()
    return value.float() if narrow and value.dtype in _ALSO_IN_FLOAT32 else value.clone()


def _run(node: str, feeds: Mapping[str, Tensor], constant: bool) -> list[Tensor]:
    codes = tuple((name, _CODES[value.dtype]) for name, value in feeds.items())
    session = _session(_model(node, [], feeds)) if constant else _kept_session(node, codes)
    arrays = {} if constant else {name: _array(value) for name, value in feeds.items()}
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    return [_result(value) for value in session.run(None, arrays, options)]


def _result(value: Any) -> Tensor:
    if not isinstance(value, np.ndarray) or value.dtype == object:
        raise _NoNumbersError
    return from_array(value)


def _array(value: Tensor) -> npt.NDArray[Any]:
    """What onnxruntime takes; of bfloat16, which numpy lacks, the bits, which it refuses."""
    found: npt.NDArray[Any] = (bits_of(value) if value.dtype is torch.bfloat16 else value).numpy()
    return found


@lru_cache(maxsize=_SESSIONS)
def _kept_session(node: str, codes: tuple[tuple[str, int], ...]) -> onnxruntime.InferenceSession:
    return _session(_model(node, codes, {}))


def _model(
    node: str, codes: Sequence[tuple[str, int]], constants: Mapping[str, Tensor]
) -> ModelProto:
    """A model of one node."""
    spec = json.loads(node)
    inputs = [helper.make_tensor_value_info(name, code, None) for name, code in codes]
    outputs = [helper.make_empty_tensor_value_info(name) for name in spec["makes"]]
    stored = [numpy_helper.from_array(_array(value), name) for name, value in constants.items()]
    body = NodeProto.FromString(bytes.fromhex(spec["node"]))
    graph = helper.make_graph([body], "alone", inputs, outputs, stored)
    opsets = [helper.make_opsetid(domain, version) for domain, version in spec["opsets"].items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
