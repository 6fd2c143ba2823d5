"""What two models select by their data, as by NonMaxSuppression, and how much of that is the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdecomp.abridging import abridged
from onnxdecomp.factors import Floats
from onnxdecomp.ir import Array
from onnxdecomp.runtime import Outputs, Selector

# From this overlap on two boxes are one.
_SAME_BOX = 0.5


@abridged
@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How many items two models select at one node, over all samples together.

    An example is in docs/python.md under "Comparing".

    Attributes:
        name: the tensor that the node puts out.
        op: what it is: NonMaxSuppression, NonZero, Unique, Compress or TopK.
        before: items that a selects.
        after: items that b selects.
        common: items that both select: boxes of one class whose intersection over union is .5 or more, each
            counted once; else the same places, or for Unique the same values.
    """

    name: str
    op: str
    before: int
    after: int
    common: int

    def to_dict(self) -> dict[str, Any]:
        """As in JSON reports."""
        return {field: getattr(self, field) for field in self.__slots__}


def count_selected(selector: Selector, a: Outputs, b: Outputs) -> Selection:
    """What two models select in one run.

    Args:
        selector: the node.
        a: what the first model computes there.
        b: what the second does.
    """
    first, second = ([np.asarray(each[name]) for name in selector.reads] for each in (a, b))
    if selector.op == "NonMaxSuppression":
        before, after, common = len(first[0]), len(second[0]), _matched(first, second, selector.centred)
    else:
        own, other = (_items(selector, values[0]) for values in (first, second))
        before, after, common = len(own), len(other), len(np.intersect1d(own, other))
    return Selection(name=selector.name, op=selector.op, before=before, after=after, common=common)


def summed(counts: Iterable[Selection]) -> tuple[Selection, ...]:
    """What selections of several runs come to, node by node."""
    totals: dict[str, Selection] = {}
    for one in counts:
        known = totals.get(one.name)
        totals[one.name] = one if known is None else _added(known, one)
    return tuple(totals.values())


def _added(a: Selection, b: Selection) -> Selection:
    before, after, common = a.before + b.before, a.after + b.after, a.common + b.common
    return Selection(name=a.name, op=a.op, before=before, after=after, common=common)


def _items(selector: Selector, found: Array) -> Array:
    """One value for each selected item, which says what that is."""
    rows = found.reshape(-1, 1)
    if selector.op == "NonZero":
        rows = found.T
    elif selector.op == "Compress":
        rows = np.flatnonzero(found)[:, None]
    elif selector.op == "TopK":
        picked = np.moveaxis(found, selector.axis, -1)
        places = np.arange(picked.size).reshape(picked.shape) // max(picked.shape[-1], 1)
        rows = np.stack([places.ravel(), picked.ravel()], axis=1)
    whole = np.ascontiguousarray(rows)
    return whole.view([(f"{i}", whole.dtype) for i in range(whole.shape[1])])[:, 0]


def _matched(a: list[Array], b: list[Array], centred: bool) -> int:
    """How many boxes of a have one of their own in b: of one sample and class, and nearly in one place."""
    (own, own_boxes), (other, other_boxes) = a, b
    common = 0
    for group in np.unique(own[:, :2], axis=0):
        first, second = (
            _corners(boxes[group[0]][picked[(picked[:, :2] == group).all(axis=1), 2]], centred)
            for picked, boxes in ((own, own_boxes), (other, other_boxes))
        )
        overlaps = _overlaps(first, second)
        for row in range(len(first)):
            if not overlaps.shape[1]:
                break
            best = int(overlaps[row].argmax())
            if overlaps[row, best] >= _SAME_BOX:
                common += 1
                overlaps[:, best] = -1
    return common


def _corners(boxes: Array, centred: bool) -> Floats:
    """The lower and the upper corner of each box, shape (N, 2, 2)."""
    wide = boxes.astype(np.float64)
    one, two = wide[:, :2], wide[:, 2:]
    if centred:
        one, two = one - two / 2, one + two / 2
    return np.stack([np.minimum(one, two), np.maximum(one, two)], axis=1)


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of a with every one of b, both (N, 2 corners, 2 coordinates)."""
    low = np.maximum(a[:, None, 0], b[None, :, 0])
    high = np.minimum(a[:, None, 1], b[None, :, 1])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(each[:, 1] - each[:, 0]).prod(axis=1) for each in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    equal = (a[:, None] == b[None]).all(axis=(2, 3))  # boxes without an area
    return np.asarray(np.divide(shared, union, out=equal.astype(np.float64), where=union > 0))
