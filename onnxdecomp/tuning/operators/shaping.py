"""Shapes: what moves values without computing any, and what is computed of shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

# Half precision is computed in single: that of the model comes back as its file is written.
TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
}


def numbers(tensor: Tensor) -> list[int]:
    """The integers in a tensor: a shape, axes, pads."""
    return [int(each) for each in tensor.flatten().tolist()]


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """Reshape: 0 keeps a size, unless it is allowed as one; -1 is what is left."""
    sizes = numbers(shape)
    if not allowzero:
        sizes = [size or x.shape[i] for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Transpose; without a permutation the axes are reversed."""
    return x.permute(*(perm if perm is not None else reversed(range(x.ndim))))


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Flatten to a matrix: the axes before one, and those from it on."""
    rows = torch.Size(x.shape[: axis if axis >= 0 else axis + x.ndim]).numel()
    return x.reshape(rows, x.numel() // rows if rows else 0)


def squeeze(x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    """Squeeze: axes of size 1 leave, all of them where none are named."""
    along = axes if axes is not None else numbers(given) if given is not None else None
    return x.squeeze() if along is None else x.squeeze(tuple(along))


def unsqueeze(x: Tensor, given: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    """Unsqueeze: axes of size 1 enter, counted as the result has them."""
    along = axes if axes is not None else numbers(given) if given is not None else ()
    count = x.ndim + len(along)
    for axis in sorted(axis % count for axis in along):
        x = x.unsqueeze(axis)
    return x


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Shape, or a stretch of it, on the host."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def size(x: Tensor) -> Tensor:
    """Size: how many elements there are, on the host."""
    return torch.tensor(x.numel())


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """Expand: broadcast in both directions, as in NumPy."""
    sizes = numbers(shape)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    longer = [1] * (len(own) - len(sizes)) + sizes
    return x.expand([a if b == 1 else b for a, b in zip(own, longer, strict=True)])


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Tile along every axis."""
    return x.repeat(numbers(repeats))


def concat(*inputs: Tensor, axis: int) -> Tensor:
    """Concat along an axis."""
    return torch.cat(inputs, axis)


def split(
    x: Tensor,
    given: Tensor | None = None,
    *,
    outputs: int,
    axis: int = 0,
    num_outputs: int | None = None,
    split: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Split along an axis: as named, or into equal parts, of which the last may be smaller."""
    parts = split if split is not None else numbers(given) if given is not None else None
    if parts is not None:
        return torch.split_with_sizes(x, list(parts), axis)
    length = x.shape[axis]
    each = -(-length // outputs)
    sizes = [max(0, min(each, length - i * each)) for i in range(outputs)]
    return torch.split_with_sizes(x, sizes, axis)


def slice_(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """Slice along some axes, also backwards."""
    first, last = numbers(starts), numbers(ends)
    along = numbers(axes) if axes is not None else list(range(len(first)))
    stride = numbers(steps) if steps is not None else [1] * len(first)
    for begin, end, axis, step in zip(first, last, along, stride, strict=True):
        length = x.shape[axis]
        if step > 0:
            chosen = range(*slice(begin, end, step).indices(length))
            index = [slice(None)] * x.ndim
            index[axis] = slice(chosen.start, max(chosen.start, chosen.stop), step)
            x = x[tuple(index)]
            continue
        # An end before the first element is no end at all.
        chosen = range(*slice(begin, None if end < -length else end, step).indices(length))
        x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def fixed_slice(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> Tensor:
    """Slice before opset 10: all is attributes."""
    along = None if axes is None else torch.tensor(axes)
    return slice_(x, torch.tensor(starts), torch.tensor(ends), along)


def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Pad: a constant, reflected, the edge, or around the other side; negative pads crop."""
    sizes = numbers(pads)
    along = [axis % x.ndim for axis in numbers(axes)] if axes is not None else list(range(x.ndim))
    pairs = dict(zip(along, zip(sizes[: len(along)], sizes[len(along) :], strict=True), strict=True))
    if mode == "constant":
        sides = [side for axis in reversed(range(x.ndim)) for side in pairs.get(axis, (0, 0))]
        return functional.pad(x, sides, value=float(value) if value is not None else 0.0)
    for axis, (before, behind) in pairs.items():
        if before or behind:
            places = torch.arange(-before, x.shape[axis] + behind, device=x.device)
            x = x.index_select(axis, _folded(places, x.shape[axis], mode))
    return x


def fixed_pad(x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Pad before opset 11: all is attributes."""
    return pad(x, torch.tensor(pads), torch.tensor(value), mode=mode)


def _folded(places: Tensor, length: int, mode: str) -> Tensor:
    """Places beyond an axis as places on it."""
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(2 * (length - 1), 1)
    turned = places % period
    return torch.minimum(turned, period - turned)


def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Cast to a type that PyTorch has.

    Raises:
        NotImplementedError: it has no such type.
    """
    if to not in TYPES:
        raise NotImplementedError(f"Cast to type {to}")
    return x.to(TYPES[to])


def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """CastLike: to the type of another tensor."""
    return x.to(like.dtype)


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """ConstantOfShape: one value everywhere, 0 where none is named."""
    one = value.reshape(()) if value is not None else torch.tensor(0.0)
    return one.expand(numbers(shape))


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range from a start to before a limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def identity(x: Tensor) -> Tensor:
    """Identity."""
    return x


def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    is_test: int = 1,
    seed: int = 0,
    **older: float,
) -> tuple[Tensor, Tensor]:
    """Dropout at inference: nothing is dropped, and the mask says so.

    Raises:
        NotImplementedError: it would train.
    """
    if not is_test or (training_mode is not None and bool(training_mode)):
        raise NotImplementedError("Dropout that trains")
    return x, torch.ones_like(x, dtype=torch.bool)
