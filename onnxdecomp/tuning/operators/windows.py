"""Where a window stands: padding as ONNX says it, explicit or by a rule, also more on one side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def each(values: Sequence[int] | None, count: int) -> list[int]:
    """Strides or dilations of `count` axes; where nothing is said, 1."""
    return list(values) if values is not None else [1] * count


def find_pads(
    rule: str,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """What is padded before and behind each axis.

    Args:
        rule: `auto_pad` of the ONNX operator.
        pads: explicit ones, all befores first; None is none.
        sizes: of the input's axes.
        kernel: sizes of the window.
        strides: of the window.
        dilations: of the window.
    """
    count = len(sizes)
    if rule in ("NOTSET", ""):
        given = list(pads) if pads is not None else [0] * 2 * count
        return list(zip(given[:count], given[count:], strict=True))
    if rule == "VALID":
        return [(0, 0)] * count
    found = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        less = total // 2
        found.append((less, total - less) if rule == "SAME_UPPER" else (total - less, less))
    return found


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` with its last axes padded; negative pads crop."""
    if not any(map(any, pads)):
        return x
    return functional.pad(x, [side for pair in reversed(pads) for side in pair], value=value)


def excess(
    sizes: Sequence[int],
    pads: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """What is missing behind each axis for the last window to be whole, where sizes are rounded up.

    A window that would begin behind the input and what is padded in front of it does not count.
    """
    found = []
    for size, (before, behind), k, stride, dilation in zip(
        sizes, pads, kernel, strides, dilations, strict=True
    ):
        span = (k - 1) * dilation + 1
        count = -(-(size + before + behind - span) // stride) + 1
        if (count - 1) * stride >= size + before:
            count -= 1
        found.append((count - 1) * stride + span - (size + before + behind))
    return found
