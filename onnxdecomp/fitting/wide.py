"""Factors of sites whose patches are too large for their covariance: whitened by that of the channels alone.

With S ≈ I ⊗ Σ, Σ the second moments of the channels about their means, and T = W S, the best low-rank weight
is the plain decomposition of W Σ^½ along the input mode, undone by Σ^-½ in its first factor. The bias moves
to the mean; whether that beats the plain factors is seen on samples held out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.factors import Chain, Floats, Whitening, factorise
from onnxdecomp.fitting.moments import flattened
from onnxdecomp.fitting.outcome import Factors, Fit
from onnxdecomp.fitting.plain import find_errors
from onnxdecomp.fitting.ridges import PLAIN_IS_BETTER

# Fold, group, patches (n, taps · channels) and products (n, D / groups).
PatchBlock = tuple[int, int, NDArray[np.float32], NDArray[np.float32]]
# Eigenvalues below this share of the largest are raised to it; where there is no variance at all, of this.
_FLOOR, _NOTHING = 1e-6, 1.0
_JUDGED = 0


@dataclass(slots=True, eq=False)
class ChannelMoments:
    """Sums over the positions of one group: patches x (P,), products y (D,), channel by channel (C, C)."""

    x: Floats
    y: Floats
    channels: Floats
    count: int = 0

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Count one block."""
        flat = x.reshape(-1, len(self.channels))
        self.channels += flat.T @ flat
        self.x += x.sum(axis=0, dtype=np.float64)
        self.y += y.sum(axis=0, dtype=np.float64)
        self.count += len(x)

    def covariance(self) -> Floats:
        """Σ of the channels, over all taps, shape (C, C)."""
        size = len(self.channels)
        taps = len(self.x) // size
        mean = self.x.reshape(taps, size).sum(axis=0) / (taps * self.count)
        return self.channels / (taps * self.count) - np.outer(mean, mean)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WideTarget:
    """What the chains of a wide unit are fitted to.

    Attributes:
        blocks: reads all blocks, as often as it is called.
        weight: the original, shape (D, C / groups, *kernel).
        groups: channel groups.
        centred: whether there is a bias to take up the means.
        bias: what the first site adds to its product, shape (D,).
    """

    blocks: Callable[[], Iterable[PatchBlock]]
    weight: Floats
    groups: int
    centred: bool
    bias: Floats


def best_wide_factors(
    plain: Factors, target: WideTarget, dtype: np.dtype[np.generic]
) -> tuple[Factors, Floats | None, float]:
    """Plain or whitened factors, whichever do better on samples held out; see `ridges.best_factors`."""
    learned, everything = _sums(target)
    whitened = _whitened(plain, target, learned, dtype)
    rivals = [(plain.chain, False), (plain.chain, target.centred)]
    rivals += [(whitened.chain, target.centred)] if whitened is not None else []
    losses = _losses(rivals, target, learned)
    best = min(range(len(rivals)), key=lambda i: losses[i])
    chosen, corrected = plain, rivals[best][1]
    if best == len(rivals) - 1 and whitened is not None:
        chosen = _whitened(plain, target, everything, dtype) or plain
    report = Fit(
        plain_because=None if chosen is not plain else PLAIN_IS_BETTER,
        held_out=losses[best],
        plain=losses[0],
        note="its patches are too large for their covariance: fitted to that of the channels",
    )
    shift = _shift(chosen.chain, target, everything) if corrected else None
    return dataclasses.replace(chosen, fit=report), shift, losses[best]


def _sums(target: WideTarget) -> tuple[list[ChannelMoments], list[ChannelMoments]]:
    """The moments of each group over the samples that are learned from, and over all."""
    outputs, channels = target.weight.shape[0] // target.groups, target.weight.shape[1]
    inputs = math.prod(target.weight.shape[1:])

    def empty() -> list[ChannelMoments]:
        return [
            ChannelMoments(np.zeros(inputs), np.zeros(outputs), np.zeros((channels, channels)))
            for _ in range(target.groups)
        ]

    learned, everything = empty(), empty()
    for fold, group, x, y in target.blocks():
        everything[group].add(x, y)
        if fold != _JUDGED:
            learned[group].add(x, y)
    return learned, everything


def _whitened(
    plain: Factors, target: WideTarget, moments: Sequence[ChannelMoments], dtype: np.dtype[np.generic]
) -> Factors | None:
    """The decomposition of W Σ^½, undone in its first link; None where it cannot be stored."""
    found = [Whitening.of(each.covariance(), floor=_FLOOR, nothing=_NOTHING) for each in moments]
    parts = np.split(target.weight, target.groups)
    scaled = np.concatenate([_mix(part, each.root()) for part, each in zip(parts, found, strict=True)])
    peak = float(np.abs(scaled).max()) or 1.0
    first, *rest = factorise(plain.choice.method, scaled / peak, plain.choice.ranks, target.groups).links
    undone = [
        _mix(part, each.inverse()) * peak
        for part, each in zip(np.split(first.weight, target.groups), found, strict=True)
    ]
    exact = Chain((dataclasses.replace(first, weight=np.concatenate(undone)), *rest), target.groups)
    stored = exact.cast(dtype)
    if not stored.finite():
        return None
    return dataclasses.replace(plain, chain=stored, errors=find_errors(target.weight, exact, stored, dtype))


def _mix(weight: Floats, matrix: Floats) -> Floats:
    """A weight (D, C, *kernel) times a symmetric (C, C) along its input mode."""
    return np.ascontiguousarray(np.moveaxis(np.tensordot(weight, matrix, (1, 0)), -1, 1))


def _shift(chain: Chain, target: WideTarget, moments: Sequence[ChannelMoments]) -> Floats:
    """What biases must add so that the mean outputs are right, shape (D,)."""
    pairs = zip(moments, flattened(chain.reconstruct(), target.groups), strict=True)
    return np.concatenate([(m.y - weight @ m.x) / m.count for m, weight in pairs])


def _losses(
    rivals: Sequence[tuple[Chain, bool]], target: WideTarget, learned: Sequence[ChannelMoments]
) -> list[float]:
    """‖y − ŷ‖ / ‖y‖ of each chain on the samples held out."""
    weights = [
        [w.astype(np.float32) for w in flattened(chain.reconstruct(), target.groups)] for chain, _ in rivals
    ]
    shifts = [
        np.split(_shift(chain, target, learned) if corrected else np.zeros(len(target.bias)), target.groups)
        for chain, corrected in rivals
    ]
    biases = np.split(target.bias, target.groups)
    lost, whole = [0.0] * len(rivals), 0.0
    for fold, group, x, y in target.blocks():
        if fold != _JUDGED:
            continue
        whole += float(np.square(y + biases[group]).sum())
        for i in range(len(rivals)):
            left = y - x @ weights[i][group].T - shifts[i][group]
            lost[i] += float(np.square(left).sum())
    return [math.sqrt(each / (whole or 1.0)) for each in lost]
