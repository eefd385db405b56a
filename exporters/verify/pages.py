"""Float64 weights that exist only while operators read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxrebasin.running.freed import give_back_memory
from fxrebasin.running.modes import modes_off
from fxrebasin.running.operators import tensors_in, touched_by, viewed_by, writes
from fxrebasin.running.watching import OperatorMode

# Of all weights up to this part is kept where a run comes back to some that were emptied: recurrent
# layers read the same ones at every step.
_KEPT_PART = 4

# So much is emptied, in bytes, before the C library is asked to hand it to the operating system: it
# would keep more than that at hand, and the next page may not fit between what is in use.
_HANDED_BACK = 1 << 23

# They return some of the numbers of their first operand: rows of a table are widened when picked.
_PICKS = frozenset(
    {
        torch.ops.aten.embedding.default,
        torch.ops.aten.index_select.default,
        torch.ops.aten.index.Tensor,
    }
)

# How values leave the sight of dispatch modes.
_ESCAPES = frozenset(
    getattr(torch.Tensor, name)
    for name in ("numpy", "__array__", "__dlpack__", "tolist", "data_ptr")
)


class Pages(OperatorMode):
    """Dispatch mode that fills tensors just before an operator reads them, and empties them again.

    A float64 copy of a model takes twice the memory of float32 weights. Here a copy has tensors
    without memory. An operator finds the numbers that it reads; a view is made without any. Of the
    rest only those that were read last are kept. What an operator writes to stays until the mode
    is left, and what leaves torch (`.numpy()`) stays for good.

    Args:
        kept: bytes that may stay from operator to operator, and from run to run.

    Example:
        >>> pages = Pages(kept=1024)
        >>> wide = pages.stand_in(torch.ones(2), torch.float64)
        >>> wide.untyped_storage().nbytes()
        0
        >>> with pages:
        ...     float(wide.sum())
        2.0
    """

    def __init__(self, kept: int) -> None:
        super().__init__()
        self._kept = kept
        self._pages: dict[int, _Page] = {}
        self._filled: dict[int, _Page] = {}  # the one that was read last is the last
        self._bytes = self._held = 0  # of all pages, of those filled
        self._emptied = 0  # bytes, since memory was handed back
        self._left: set[int] = set()  # what this run has emptied
        self._missed = 0  # bytes that this run read again after that
        self._escapes: list[_Escapes] = []  # while inside: it knows this mode

    def stand_in(
        self, source: torch.Tensor, dtype: torch.dtype, form: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A tensor without memory that has the numbers of another one when it is read.

        Args:
            source: has to stay as it is; of any shape, with a layout of strides.
            dtype: of what is read.
            form: has the strides of what is read; those of the source if None.
        """
        form = source if form is None else form
        wide = torch.empty_like(form, dtype=dtype, device=source.device, requires_grad=False)
        page = _Page(wide, source.detach())
        page.empty()
        self._pages[page.key] = page
        self._bytes += page.size
        return wide

    def replace(
        self,
        wide: torch.Tensor,
        source: torch.Tensor,
        make: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> bool:
        """Let a stand-in have other numbers from now on; False if it is none.

        Args:
            wide: the stand-in.
            source: may be a stand-in itself: a model that cannot be copied has them in its own
                parameters.
            make: the numbers of the source, each time that they are read; these themselves if None.
        """
        page, other = (self._pages.get(_key(tensor)) for tensor in (wide, source))
        if page is None:
            return False
        page.source = source.detach() if other is None else other.source
        page.make = make
        self._forget(page)
        return True

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator on tensors that have their numbers."""
        pages = self._among(tensors_in((list(args), kwargs)))
        if len(pages) == 1 and func in _PICKS and pages[0].is_whole(args[0]):
            picked: torch.Tensor = func(pages[0].numbers(), *args[1:], **kwargs)
            return picked.to(pages[0].dtype)
        looks_only = _only_views(func) if pages else False
        if pages and not looks_only:
            self._make_room(pages)
        for page in pages:
            if looks_only:
                page.allocate()
            else:
                self._fill(page)
        result = func(*args, **kwargs)
        schema = getattr(func, "_schema", None)  # control flow has none
        if pages and schema is not None and writes(func):
            bound = dict(zip((a.name for a in schema.arguments), args, strict=False))
            for page in self._among(touched_by(func, bound | kwargs)):
                page.stays = True
        if pages:
            self._make_room()
        return result

    def let_go(self, found: Any) -> None:
        """Fill what is looked at by other means than operators, and leave it so for good."""
        for page in self._among(tensors_in(found)):
            page.fill()
            del self._pages[page.key]
            self._bytes -= page.size
            self._unfilled(page)

    def __enter__(self) -> Pages:
        self._left, self._missed = set(), 0
        super().__enter__()  # type: ignore[no-untyped-call]
        self._escapes.append(_Escapes(self))
        self._escapes[-1].__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._escapes.pop().__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for page in self._pages.values():
            if page.stays:
                self._forget(page)

    def empty(self) -> None:
        """Give back all memory, written or not."""
        for page in self._pages.values():
            self._forget(page)

    def _among(self, tensors: list[torch.Tensor]) -> list[_Page]:
        found = {_key(t): t for t in tensors if t.layout == torch.strided}
        return [self._pages[key] for key in found if key in self._pages]

    def _fill(self, page: _Page) -> None:
        if page.key in self._left:
            self._left.remove(page.key)
            self._missed += page.size
        self._unfilled(page)
        self._filled[page.key] = page
        self._held += page.size
        page.fill()

    def _make_room(self, coming: Sequence[_Page] = ()) -> None:
        """Empty pages until those that are about to be read fit beside what is filled."""
        needed = {page.key for page in coming}
        new = sum(page.size for page in coming if page.key not in self._filled)
        most = max(min(self._bytes // _KEPT_PART, self._missed), self._kept) - new
        if self._held <= most:
            return
        for page in list(self._filled.values()):
            if self._held > most and not page.stays and page.key not in needed:
                self._forget(page)
                self._left.add(page.key)
                self._emptied += page.size
        if self._emptied >= _HANDED_BACK:
            give_back_memory()
            self._emptied = 0

    def _forget(self, page: _Page) -> None:
        page.empty()
        self._unfilled(page)

    def _unfilled(self, page: _Page) -> None:
        if self._filled.pop(page.key, None) is not None:
            self._held -= page.size


class _Page:
    """A tensor, and where its numbers come from."""

    def __init__(self, wide: torch.Tensor, source: torch.Tensor) -> None:
        self._wide, self.source = wide, source
        self._storage = wide.untyped_storage()
        self.key, self.size = self._storage._cdata, self._storage.nbytes()
        self._has_numbers = self.stays = False
        self.make: Callable[[torch.Tensor], torch.Tensor] | None = None

    def numbers(self) -> torch.Tensor:
        """The numbers, in the dtype that they come in."""
        return self.source if self.make is None else self.make(self.source)

    @property
    def dtype(self) -> torch.dtype:
        """What is read."""
        return self._wide.dtype

    def is_whole(self, tensor: Any) -> bool:
        """Whether a tensor is the stand-in itself, and nothing was written to it."""
        wide = self._wide
        if self.stays or not isinstance(tensor, torch.Tensor) or self.key != _key(tensor):
            return False
        return tensor.dtype == wide.dtype and (
            (tensor.shape, tensor.stride(), tensor.storage_offset())
            == (wide.shape, wide.stride(), wide.storage_offset())
        )

    def allocate(self) -> None:
        if self._storage.nbytes() != self.size:
            self._storage.resize_(self.size)

    def fill(self) -> None:
        self.allocate()
        if not self._has_numbers:
            with modes_off(), torch.no_grad():
                self._wide.copy_(self.numbers())
        self._has_numbers = True

    def empty(self) -> None:
        self._has_numbers = self.stays = False
        self._storage.resize_(0)


class _Escapes(TorchFunctionMode):
    """Fills what leaves the sight of the dispatcher."""

    def __init__(self, pages: Pages) -> None:
        super().__init__()
        self._pages = pages

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ESCAPES:
            self._pages.let_go(args[:1])
        return func(*args, **(kwargs or {}))


def may_be_paged(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain one, whose numbers are in a storage of its own."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter)
    return plain and tensor.layout == torch.strided and not tensor.is_meta


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@cache
def _only_views(func: Any) -> bool:
    """Whether an operator makes views and reads nothing.

    Composite operators say so in their schema and may copy all the same.
    """
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten" or writes(func):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return bool(viewed_by(func)) and not composite
