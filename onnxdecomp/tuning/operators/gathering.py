"""Values picked by their places, and blocks of pixels moved into channels and back."""

from __future__ import annotations

import torch
from torch import Tensor


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Gather along an axis; the shape of the indices takes the place of that axis."""
    axis = axis % x.ndim
    places = _counted(indices, x.shape[axis]).to(x.device)
    picked = x.index_select(axis, places.flatten())
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """GatherElements: for every place its own element along an axis."""
    return torch.gather(x, axis, _counted(indices, x.shape[axis]).to(x.device))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """GatherND: slices of x by the tuples along the last axis of the indices."""
    depth = indices.shape[-1]
    shared = x.shape[:batch_dims]
    flat = x.reshape(-1, *x.shape[batch_dims:]) if batch_dims else x.unsqueeze(0)
    rows = indices.reshape(len(flat), -1, depth).to(x.device).long()
    batch = torch.arange(len(flat), device=x.device)[:, None].expand(rows.shape[:2])
    picked = flat[(batch, *rows.unbind(-1))]
    inner = indices.shape[batch_dims:-1]
    return picked.reshape((*shared, *inner, *x.shape[batch_dims + depth :]))


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """DepthToSpace: channels become blocks of pixels; the block is the outer part of them, or the inner."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        moved = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """SpaceToDepth: blocks of pixels become channels; the block is the outer part of them, or the inner."""
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(*order).reshape(n, c * b**2, h // b, w // b)


def triangle(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Trilu: the upper or the lower triangle, from the k-th diagonal on."""
    return (torch.triu if upper else torch.tril)(x, int(k) if k is not None else 0)


def _counted(indices: Tensor, length: int) -> Tensor:
    """Indices from the end as indices from the beginning."""
    places = indices.long()
    return torch.where(places < 0, places + length, places)
