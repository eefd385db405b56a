"""Samples of operators that move data: views, copies, shuffles, concatenation, padding."""

from __future__ import annotations

import torch

from tests.support.oracle.sample import complexes, given, p, sample

aten = torch.ops.aten

CUT_OFF = "elements that are cut off stay where they are"
PADDED = "new positions are told apart by the axes that they are new on"

_VIEWS = [
    sample(aten.transpose.int, p(2, 3, 4), 0, -1),
    sample(aten.transpose_.default, p(2, 3), 0, 1),
    sample(aten.t.default, p(3, 4)),
    sample(aten.t.default, p(3)),
    sample(aten.t_.default, p(3, 4)),
    sample(aten.permute.default, p(2, 3, 4), [2, 0, 1]),
    sample(aten.permute_copy.default, p(2, 3, 4), [-1, 0, 1]),
    sample(aten.expand.default, p(3, 1), [2, 3, 4]),
    sample(aten.expand.default, p(3), [-1]),
    sample(aten.expand_copy.default, p(3, 1), [3, 4]),
    sample(aten.slice.Tensor, p(3, 4), 1, 1, 3),
    sample(aten.slice.Tensor, p(3, 4), 0, 0, 9, 2),
    sample(aten.slice.Tensor, p(3, 4), -1, -2),
    sample(aten.slice_copy.Tensor, p(3, 4), 1, 1, 3),
    sample(aten.select.int, p(3, 4), 1, -1),
    sample(aten.select_copy.int, p(3, 4), 0, 1),
    sample(aten.unsqueeze.default, p(3, 4), 1),
    sample(aten.unsqueeze_.default, p(3, 4), -1),
    sample(aten.squeeze.default, p(3, 1, 4, 1)),
    sample(aten.squeeze.dim, p(3, 1, 4), 1),
    sample(aten.squeeze.dims, p(3, 1, 4, 1), [1, -1]),
    sample(aten.squeeze_.default, p(3, 1, 4)),
    sample(aten.squeeze_.dim, p(3, 1, 4), 1),
    sample(aten.squeeze_.dims, p(3, 1, 4), [1]),
    sample(aten.split.Tensor, p(3, 5), 2, 1),
    sample(aten.split.Tensor, p(3, 4), 2, -1),
    sample(aten.split_with_sizes.default, p(3, 4), [1, 3], 1),
    sample(aten.unsafe_split.Tensor, p(3, 4), 2, 1),
    sample(aten.unsafe_split_with_sizes.default, p(3, 4), [3, 1], 1),
    sample(aten.chunk.default, p(3, 5), 2, -1),
    sample(aten.unsafe_chunk.default, p(3, 4), 2, 1),
    sample(aten.unbind.int, p(3, 4), 0),
    sample(aten.diagonal.default, p(4, 4)),
    sample(aten.diagonal.default, p(2, 3, 4), 1, -2, -1),
    sample(aten.narrow.default, p(3, 4), 1, 1, 2),
    sample(aten.movedim.int, p(2, 3, 4), 0, -1),
    sample(aten.movedim.intlist, p(2, 3, 4), [0, 1], [1, 2]),
    sample(aten.swapaxes.default, p(2, 3), 0, 1),
    sample(aten.numpy_T.default, p(2, 3)),
    sample(aten.mT.default, p(2, 3)),
    sample(aten.unfold.default, p(2, 4), 1, 2, 2, split={"self": (2, 2, 2)}),
    sample(aten.unfold.default, p(2, 4), 1, 2, 1),
    sample(aten.unfold.default, p(2, 5), 1, 2, 3),
    sample(aten.view_as_real.default, complexes(3, 4)),
    sample(aten.view_as_complex.default, p(3, 4, 2)),
    sample(aten.slice.Tensor, given(3, 4), 1, 1, 3),
]

_RESHAPES = [
    sample(aten.view.default, p(3, 4), [4, 3]),
    sample(aten.view.default, p(2, 3, 4), [6, 4], split={"out0": (2, 3, 4)}),
    sample(aten.view.default, p(3, 4), [3, 2, 2], split={"self": (3, 2, 2)}),
    sample(aten.view.default, p(3, 4), [-1]),
    sample(aten.view.default, p(3, 1, 4), [1, 3, 4]),
    sample(aten._unsafe_view.default, p(2, 3, 4), [2, 12], split={"out0": (2, 3, 4)}),
    sample(aten.reshape.default, p(2, 3, 4), [2, -1], split={"out0": (2, 3, 4)}),
    sample(
        *(aten.reshape.default, p(3, 4), [2, 6]),
        call=lambda x, shape: aten.reshape.default(x.t(), shape),
    ),
    sample(aten._reshape_alias.default, p(3, 4), [4, 3], [3, 1]),
    sample(aten.flatten.using_ints, p(2, 3, 4), 1, 2, split={"out0": (2, 3, 4)}),
]


_SAME = [
    sample(aten.clone.default, p(3, 4)),
    sample(aten._to_copy.default, p(3, 4), dtype=torch.float32, search=False),
    sample(aten._to_copy.default, p(3, 4), dtype=torch.int64, search=False),
    sample(aten.clone.default, p(2, 3, 2, 2), memory_format=torch.channels_last, search=False),
    sample(aten.detach.default, p(3, 4)),
    sample(aten.detach_.default, p(3, 4)),
    sample(aten.detach_copy.default, p(3, 4)),
    sample(aten.alias.default, p(3, 4)),
    sample(aten.alias_copy.default, p(3, 4)),
    sample(aten.contiguous.default, p(3, 4)),
    sample(aten.lift_fresh.default, p(3, 4)),
    sample(aten.lift.default, p(3, 4)),
    sample(aten.lift_fresh_copy.default, p(3, 4)),
    sample(aten.positive.default, p(3, 4)),
    sample(aten.view_as.default, p(3, 4), p(3, 4)),
    sample(aten.requires_grad_.default, p(3, 4), False),
    sample(aten.conj.default, complexes(3, 4)),
    sample(aten._conj.default, complexes(3, 4)),
    sample(aten.resolve_conj.default, complexes(3, 4)),
    sample(aten.resolve_neg.default, p(3, 4)),
]

_STRIDES = [
    sample(aten.as_strided.default, p(3, 4), [3, 4], [4, 1]),
    sample(
        *(aten.as_strided.default, p(3, 4), [4, 3], [1, 4]),
        missing={"*": "other strides than the tensor has pin all axes"},
    ),
    sample(
        *(aten.as_strided.default, p(3, 4), [2, 2], [4, 1], 1),
        missing={"*": "other strides than the tensor has pin all axes"},
    ),
    sample(
        *(aten.as_strided.default, p(2, 4), [3, 4], [2, 1]),
        missing={"*": "other strides than the tensor has pin all axes"},
    ),
    sample(aten.as_strided_.default, p(3, 4), [3, 4], [4, 1]),
]

_SHUFFLES = [
    sample(aten.flip.default, p(3, 4), [1]),
    sample(aten.flip.default, p(3, 4), [0, -1]),
    sample(aten.roll.default, p(3, 4), [1], [1]),
    sample(aten.roll.default, p(3, 4), [1, 2], [0, -1]),
    sample(aten.roll.default, p(3, 4), [5]),
    sample(aten.repeat.default, p(3, 2), [2, 2], split={"out0": (2, 3, 2, 2)}),
    sample(aten.repeat.default, p(3), [2, 2], split={"out0": (2, 2, 3)}),
    sample(aten.pixel_shuffle.default, p(1, 8, 2, 2), 2, search=False),
    sample(
        *(aten.pixel_shuffle.default, p(1, 8, 1, 1), 2),
        split={"self": (1, 2, 4, 1, 1), "out0": (1, 2, 4)},
    ),
    sample(aten.pixel_unshuffle.default, p(1, 2, 2, 2), 2, split={"out0": (1, 2, 4, 1, 1)}),
    sample(
        *(aten.channel_shuffle.default, p(1, 6, 2, 2), 2),
        split={"self": (1, 2, 3, 2, 2), "out0": (1, 3, 2, 2, 2)},
        search=False,
    ),
    sample(
        *(aten.native_channel_shuffle.default, p(1, 6, 1, 1), 2),
        split={"self": (1, 2, 3, 1, 1), "out0": (1, 3, 2, 1, 1)},
    ),
    sample(aten.repeat_interleave.self_int, p(3, 4), 2, 1, split={"out0": (3, 4, 2)}),
    sample(aten.repeat_interleave.self_int, p(3, 2), 2, split={"out0": (3, 2, 2)}),
]

_JOINS = [
    sample(aten.cat.default, [p(3, 4), p(3, 2)], 1),
    sample(aten.cat.default, [p(3, 4), p(2, 4)], 0),
    sample(aten.cat.default, [p(3, 4), p(3, 4)], -1),
    sample(aten.cat.default, [p(3, 1), p(3, 1)], -1),
    sample(aten.cat.default, [p(3, 4), given(3, 2)], -1),
    sample(aten.cat.default, [p(3, 4), torch.zeros(3, 2, dtype=torch.float64)], 1),
    sample(aten.cat.default, [p(3, 4), torch.arange(6.0, dtype=torch.float64).view(3, 2)], 1),
    sample(aten.cat.default, [p(4), torch.zeros(0, dtype=torch.float64)]),
    sample(aten.cat.default, [torch.zeros(3, 0, dtype=torch.float64), p(3, 4)], 1),
    sample(aten.cat.default, [p(3)]),
    sample(aten.concat.default, [p(3, 4), p(3, 2), p(3, 1)], 1),
    sample(aten.stack.default, [p(3, 4), p(3, 4)], 1),
    sample(aten.stack.default, [p(3, 4), p(3, 4)], -1),
    sample(aten.stack.default, [p(), p()]),
    sample(aten.constant_pad_nd.default, p(3, 4), [1, 2]),
    sample(
        *(aten.constant_pad_nd.default, p(3, 4), [1, -1, 0, 2], 0.5),
        missing={"*": PADDED},
    ),
    sample(aten.constant_pad_nd.default, p(3, 4), [-1, -1], missing={"*": CUT_OFF}),
    sample(aten.constant_pad_nd.default, p(3), [0, 1], 0.5),
    sample(
        *(aten.constant_pad_nd.default, p(3, 1), [1, 1]),
        missing={"out0[0] where [1]=0": PADDED},
    ),
]

_GATES = [
    sample(aten.glu.default, p(4, 3), 0, split={"self": (2, 2, 3)}),
    sample(aten.glu.default, p(2, 3, 4), -1, split={"self": (2, 3, 2, 2)}, search=False),
]

_TRIANGLES = [
    sample(aten.tril.default, p(4, 4), missing={"*": "masked by position: both axes are pinned"}),
    sample(aten.triu.default, p(2, 3, 4), 1, missing={"*": "masked by position"}),
    sample(aten.tril_.default, p(4, 4), missing={"*": "masked by position"}),
    sample(aten.triu_.default, p(4, 4), missing={"*": "masked by position"}),
]

_DIAGONALS = [
    sample(aten.diag_embed.default, p(3)),
    sample(
        aten.diag_embed.default,
        p(2, 3),
        0,
        0,
        -1,
        missing={"*": "zeros, of which no weight matters"},
    ),
    sample(aten.diag_embed.default, p(3), 1, missing={"*": "beside the diagonal it is pinned"}),
]

_PATCHES = [
    sample(aten.im2col.default, p(1, 3, 3, 3), [2, 2], [1, 1], [0, 0], [1, 1], search=False),
    sample(
        *(aten.im2col.default, p(1, 3, 2, 2), [2, 2], [1, 1], [0, 0], [2, 2]),
        split={"out0": (1, 3, 4)},
        missing={"*": "positions of an image are pinned, even if windows do not overlap"},
    ),
    sample(
        *(aten.im2col.default, p(3, 2, 2), [2, 1], [1, 1], [0, 0], [1, 1]),
        split={"out0": (3, 2, 2)},
        missing={"*": "positions of an image are pinned, even if windows do not overlap"},
    ),
    sample(
        *(aten.col2im.default, p(1, 12, 4), [3, 3], [2, 2], [1, 1], [0, 0], [1, 1]),
        split={"in0": (1, 3, 4, 4)},
        missing={"*": "positions of an image are pinned"},
    ),
    sample(
        *(aten.col2im.default, p(6, 2), [2, 2], [2, 1], [1, 1], [0, 0], [1, 1]),
        split={"in0": (3, 2, 2)},
        missing={"*": "positions of an image are pinned, even if windows do not overlap"},
    ),
]

SAMPLES = [
    *(
        *_VIEWS,
        *_RESHAPES,
        *_SAME,
        *_STRIDES,
        *_SHUFFLES,
        *_JOINS,
        *_GATES,
        *_TRIANGLES,
        *_DIAGONALS,
        *_PATCHES,
    ),
]
