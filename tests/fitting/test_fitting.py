"""Held-out losses of plain factors, fold by fold, against NumPy on the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.factors import Ranks
from onnxdecomp.fitting import Factors, Moments, Target, factor_one
from onnxdecomp.fitting.ridges import best_factors
from onnxdecomp.planning import Choice


def test_plain_factors_are_weighed_on_samples_held_out() -> None:
    """White noise in few samples: no fit does better, and the biases move by the other folds' means alone."""
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((6, 40, 1, 1)), rng.standard_normal(6)
    xs = [rng.standard_normal((5, 40)).astype(np.float32) + np.float32(0.5) for _ in range(3)]
    flat = w.reshape(6, 40)
    ys = [(x @ flat.T).astype(np.float32) for x in xs]
    folds = [[Moments.zero(6, 40).add(x, y)] for x, y in zip(xs, ys, strict=True)]
    plain = factor_one(w, Choice("svd", Ranks(2, 2)), 1, np.dtype(np.float32))
    assert isinstance(plain, Factors)
    target = Target(moments=folds, weight=w, centred=True, bias=bias)
    found, shift, held_out = best_factors(plain, target, np.dtype(np.float32))
    stored = plain.chain.reconstruct().reshape(6, 40)
    left = [y - x @ stored.T for x, y in zip(xs, ys, strict=True)]
    moved = 0.0
    for fold, each in enumerate(left):
        others = np.concatenate([other for i, other in enumerate(left) if i != fold])
        moved += float(((each - others.mean(axis=0)) ** 2).sum())
    whole = np.concatenate([y + bias for y in ys])
    scale = np.linalg.norm(whole)
    unmoved = np.linalg.norm(np.concatenate(left))
    fit = found.fit
    assert fit is not None
    assert fit.plain == pytest.approx(unmoved / scale, rel=1e-4)
    assert fit.held_out == held_out
    assert fit.plain_because is not None and fit.ridge is None and found.chain is plain.chain
    assert held_out == pytest.approx(min(unmoved, np.sqrt(moved)) / scale, rel=1e-4)
    if np.sqrt(moved) <= unmoved:
        assert shift is not None
        assert np.allclose(shift, np.concatenate(left).mean(axis=0), atol=1e-4)
    else:
        assert shift is None
