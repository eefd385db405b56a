"""Weights of a file in another order, written, and proved by running both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from fxrebasin.choices import Choices, choices_for
from fxrebasin.errors import EquivalenceError, InputError
from fxrebasin.exporters.verify.equivalence import (
    compare_moved,
    compare_onnxruntime,
    compare_states,
)
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.exporters.verify.references import References
from fxrebasin.exporters.verify.runs import MadeWhenAsked
from fxrebasin.facts import counted
from fxrebasin.importers.onnx.finding import Runs, find, made_inputs
from fxrebasin.importers.onnx.loading import OnnxSource, Source, read
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.running import check_interpreter
from fxrebasin.importers.onnx.sharing import parted
from fxrebasin.importers.onnx.tensors import bits_of
from fxrebasin.importers.onnx.unread import unread_copies
from fxrebasin.importers.onnx.writing import changed, draft
from fxrebasin.importers.onnx.written import tensors_written
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.permutation import Permutation
from fxrebasin.reliance import contradictions, refusal
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.freed import give_back_memory
from fxrebasin.running.outputs import Outputs, Wanted
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.files import refuse_existing
from fxrebasin.wording import listed

_LARGEST = 1 << 31
_LISTED = 8


@dataclass(frozen=True, eq=False)
class Permuted:
    """A file, and its weights in another order.

    Args:
        own: the file.
        runs: its graph, and what that is run on.
        wanted: which outputs count.
        permutation: of its units.
        tensors: the weights that this moves, in their new order, by name; each is made when it is
            asked for.
    """

    own: OnnxSource
    runs: Runs
    wanted: Wanted
    permutation: Permutation
    tensors: Mapping[str, Tensor]

    def check_interpreter(self) -> References:
        """What the file computes, if the interpreter computes what onnxruntime does.

        Raises:
            EquivalenceError: it does not.
        """
        return check_interpreter(self.own, self.runs.module, self.runs.arguments, self.wanted)

    def prove(
        self, references: References, found: Mapping[str, Tensor] | None = None
    ) -> EquivalenceReport:
        """Run the graph on the weights in both orders, in float64.

        Args:
            references: what it computes of the first inputs on the weights in their own order.
            found: tensors that were read from a result; those that were moved when left out.

        Raises:
            EquivalenceError: it does not compute the same, or the way back does not lead to the
                weights that there were.
        """
        before = self.own.parsed.tensors
        after = {**before, **self.tensors} if found is None else found
        module = self.runs.module
        names = module.file_names
        state = {key: before[name] for key, name in names.items()}
        result = {key: after[name] for key, name in names.items()}
        self._check_way_back(state, result)
        label = self.own.label
        first = compare_moved(references, result)
        first.raise_if_failed()
        for inputs in self.runs.inputs[1:]:
            args = tuple(inputs.values())
            compare_states(
                module, state, result, args, {}, self.wanted, label=label
            ).raise_if_failed()
        return first

    def _check_way_back(self, state: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> None:
        back = self.permutation.inverse()
        for key in self.permutation.layout:
            found = back.permute_tensor(key, result[key])
            if not torch.equal(bits_of(found), bits_of(state[key])):
                raise EquivalenceError(f"{key} does not come back when it is permuted back")

    @contextmanager
    def drafted(self, out: Path, *, overwrite: bool) -> Iterator[Path]:
        """The file with these weights, which appears at its place when the block ends well.

        Args:
            out: that place.
            overwrite: replace a file that exists.
        """
        own = self.own
        folder = None if own.path is None else own.path.parent
        new = changed(own.parsed, self.tensors)
        with draft(own.proto, own.parsed, new, out, folder, overwrite=overwrite) as written:
            yield written

    def prove_file(self, written: Path, references: References) -> EquivalenceReport:
        """Read what was written again, and run it.

        Args:
            written: the result.
            references: what the file computes.

        Raises:
            EquivalenceError: it is not what it should be.
        """
        report = self.prove(references, tensors_written(written, self.own.parsed, self.tensors))
        give_back_memory()
        for optimized in (False, True):
            session = OnnxModel(written, "the result", optimized=optimized)
            compare_onnxruntime(session, references).raise_if_failed()
        return replace(report, notes=(*report.notes, *self._about_sharing()))

    def _about_sharing(self) -> tuple[str, ...]:
        names = parted(self.own.parsed, changed(self.own.parsed, self.tensors))
        if not names:
            return ()
        return (
            f"the result has {counted(len(names), 'new tensor')}, {listed(names, _LISTED)}: nodes "
            "that read one tensor of the file now need different orders of it",
        )


def permuted(
    own: OnnxSource, runs: Runs, permutation: Permutation, wanted: Wanted = None
) -> Permuted:
    """The weights of a file in another order.

    Args:
        own: the file.
        runs: its graph, and what that is run on.
        permutation: of its units.
        wanted: which outputs count.

    Raises:
        ArchitectureMismatchError: the permutation is of another architecture.
    """
    return Permuted(own, runs, wanted, permutation, _moved(own, runs.module, permutation))


def _moved(own: OnnxSource, module: OnnxModule, permutation: Permutation) -> Mapping[str, Tensor]:
    before = own.parsed.tensors
    keys = {name: key for key, name in module.file_names.items() if key in permutation.layout}
    permutation.check_fits({key: before[name] for name, key in keys.items()})

    def moved() -> Mapping[str, Tensor]:
        given = {name: before[name] for name in keys}
        return MadeWhenAsked(given, lambda name, old: permutation.permute_tensor(keys[name], old))

    copies = unread_copies(own.parsed, moved())
    keys.update({name: keys[other] for name, other in copies.items()})
    return moved()


@in_own_surroundings
def onnx_apply(
    source: Source,
    permutation: Permutation,
    out: str | PathLike[str],
    *,
    example_inputs: Any = None,
    verify: bool = True,
    overwrite: bool = False,
    outputs: Outputs = None,
) -> EquivalenceReport | None:
    """Permute the weights of an ONNX file, and write the result; all else stays as it is.

    Args:
        source: the path of a file, or a model in memory.
        permutation: the certificate of `onnx_transform` or `match`, `Symmetry.random`, or
            `Permutation.load`; its inverse restores the file.
        out: the path of the result.
        example_inputs: see `onnx_transform`.
        verify: check the result as `onnx_transform` does.
        overwrite: replace a file that exists.
        outputs: as for `analyze`; those that the permutation was found with when left out.

    Returns:
        The proof; None if there was to be none.

    Raises:
        ArchitectureMismatchError: the permutation belongs to another graph, or to other constants.
        EquivalenceError: the result does not compute what the file computes; nothing was written.
        InputError: the file or its inputs cannot be used.
        CheckpointError: the file is missing or cannot be read.

    Example:
        >>> import onnx, fxrebasin
        >>> text = '<ir_version: 8, opset_import: [ "" : 17 ]> g (float[n,2] x) => (float[n,1] y)'
        >>> text += '<float[2,3] a = {1,2,3,4,5,6}, float[3,1] b = {7,8,9}>'
        >>> text += ' { h = MatMul(x, a) i = Relu(h) y = MatMul(i, b) }'
        >>> model = onnx.parser.parse_model(text)
        >>> order = fxrebasin.analyze(model).random(seed=1)
        >>> onnx_apply(model, order, "moved.onnx").passed
        True
        >>> back = onnx_apply("moved.onnx", order.inverse(), "back.onnx")
        >>> onnx.load("back.onnx") == model
        True
    """
    place = Path(out)
    refuse_existing([place], overwrite=overwrite)
    own = read(source)
    chosen = choices_for(own.module(), outputs=outputs).or_those_of(permutation.found_with)
    runs, held = _held(own, permutation, example_inputs, chosen)
    result = permuted(own, runs, held, chosen.outputs)
    references = result.check_interpreter() if verify else None
    with result.drafted(place, overwrite=overwrite) as written:
        return None if references is None else result.prove_file(written, references)


def applied(
    source: Source,
    permutation: Permutation,
    example: Any = None,
    *,
    verify: bool = True,
    outputs: Outputs = None,
) -> onnx.ModelProto:
    """What `onnx_apply` writes, in memory; data that are in files of their own are in it.

    Args:
        source: see `onnx_apply`.
        permutation: see `onnx_apply`.
        example: inputs; see `onnx_transform`.
        verify: see `onnx_apply`.
        outputs: see `onnx_apply`.

    Raises:
        InputError: it takes more than the 2 GB that a model in memory may have.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        options: dict[str, Any] = {"verify": verify, "outputs": outputs}
        onnx_apply(source, permutation, path, example_inputs=example, **options)
        if sum(item.stat().st_size for item in Path(folder).iterdir()) >= _LARGEST:
            raise InputError(
                "the model takes more than 2 GB, which cannot be kept in memory as one; write it "
                "with onnx_apply"
            )
        return onnx.load(path)


def _held(
    own: OnnxSource, permutation: Permutation, example: Any, choices: Choices
) -> tuple[Runs, Permutation]:
    """The graph and its inputs, and the permutation as it holds for this file."""
    module = own.module()
    faults = contradictions(permutation.relies_on, named_state(module))
    if not faults:
        return Runs(module, tuple(made_inputs(own, module, example))), permutation
    found = find(own, example, choices)
    if not found.symmetry.identity().has_group_of(permutation):
        raise refusal(faults, "the file's")
    return found.runs, permutation.relying_on(found.symmetry.relies_on)
