"""What every rank pair loses, by one core, against energies pair by pair; and how losses travel."""

from __future__ import annotations

import itertools
import math

import nets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp import Choice, Ranks
from onnxdecomp.searching.losses import find_core, transfer

SHAPES = {"3×3": (10, 6, 3, 3), "1×1": (7, 9, 1, 1), "1-D": (6, 8, 5), "matrix": (8, 5), "wide": (3, 12, 2)}


def covariance(channels: int, seed: int) -> np.ndarray:
    """Of correlated signals whose spectrum falls off."""
    mixing = nets.signal(channels, channels, seed=seed, dtype=np.float64) * np.logspace(0, -2, channels)
    return mixing @ mixing.T


def root(matrix: np.ndarray) -> np.ndarray:
    left, values, _ = np.linalg.svd(matrix)
    return (left * np.sqrt(values)) @ left.T


def directions(tensor: np.ndarray, axis: int) -> np.ndarray:
    unfolded = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    return np.linalg.svd(unfolded, full_matrices=True)[0]


def lost_energy(part: np.ndarray, r: int, s: int) -> float:
    """‖W − W ×₀ SSᵀ ×₁ RRᵀ‖² with the leading directions of both unfoldings."""
    out, into = directions(part, 0)[:, :s], directions(part, 1)[:, :r]
    projected = np.einsum("de,ecl,cb->dbl", out @ out.T, part, into @ into.T)
    return float(((part - projected) ** 2).sum())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("white", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_a_core_says_what_every_rank_pair_loses(name: str, white: bool, groups: int) -> None:
    outputs, inputs, *kernel = SHAPES[name]
    weight = nets.weight(outputs * groups, inputs, *kernel, dtype=np.float64) * np.logspace(
        0, -1, inputs
    ).reshape(1, -1, *[1] * len(kernel))
    given_ = None if white and groups == 1 else [covariance(inputs, 3 + i) for i in range(groups)]
    if white and groups > 1:
        given_ = [np.eye(inputs)] * groups
    core = find_core(weight, given_)
    parts = np.split(weight.reshape(*weight.shape[:2], -1), groups)
    if given_ is not None:
        parts = [np.einsum("dcl,cb->dbl", p, root(c)) for p, c in zip(parts, given_, strict=True)]
    total = sum(float((part**2).sum()) for part in parts)
    assert core.kept.shape == (inputs + 1, outputs + 1)
    for r in range(inputs + 1):
        for s in range(outputs + 1):
            lost = sum(lost_energy(part, r, s) for part in parts) / total
            assert 1 - core.kept[r, s] == pytest.approx(lost, abs=1e-9), (r, s)
            if r and s:
                tucker2 = core.lost(Choice("tucker2", Ranks(r, s)))
                assert tucker2 == pytest.approx(lost, abs=1e-9)
    assert (np.diff(core.kept, axis=0) >= -1e-12).all() and (np.diff(core.kept, axis=1) >= -1e-12).all()
    assert core.lost(Choice("tucker2", Ranks(inputs, outputs))) == pytest.approx(0, abs=1e-12)
    for r in range(1, inputs + 1):
        whole = sum(lost_energy(part, r, outputs) for part in parts) / total
        assert core.lost(Choice("tucker1", Ranks(r, None))) == pytest.approx(whole, abs=1e-9)
    for s in range(1, outputs + 1):
        whole = sum(lost_energy(part, inputs, s) for part in parts) / total
        assert core.lost(Choice("tucker1", Ranks(None, s))) == pytest.approx(whole, abs=1e-9)
    if np.prod(kernel) == 1:
        assert core.matrix is not None
        singular = sum(np.linalg.svd(p[:, :, 0], compute_uv=False) ** 2 for p in parts)
        tail = np.append(np.cumsum(singular[::-1])[::-1], 0.0) / total
        np.testing.assert_allclose(1 - core.matrix, tail, atol=1e-9)
        # A single factor is the better choice of the two that keep as much.
        for r in range(1, min(inputs, outputs)):
            svd, pair = (core.lost(Choice(m, Ranks(r, r))) for m in ("svd", "tucker2"))
            assert svd <= pair + 1e-9
    else:
        assert core.matrix is None


def test_a_matrix_loses_what_no_other_of_its_rank_does_better() -> None:
    """On samples: the least that a rank leaves of the products is the tail of theirs."""
    weight = nets.weight(9, 7, dtype=np.float64)
    x = nets.signal(50, 7, seed=4, dtype=np.float64) @ covariance(7, 5)
    core = find_core(weight, [x.T @ x / 50])
    energies = np.linalg.svd(x @ weight.T, compute_uv=False) ** 2
    for rank in range(1, 8):
        tail = energies[rank:].sum() / energies.sum()
        assert core.lost(Choice("svd", Ranks(rank, rank))) == pytest.approx(tail, abs=1e-7)


def test_weights_of_zeros_and_silent_inputs_lose_nothing_that_is_not_a_number() -> None:
    for weight, covariances in (
        (np.zeros((4, 4, 3, 3)), None),
        (nets.weight(4, 4, 3, 3, dtype=np.float64), [np.zeros((4, 4))]),
        (nets.weight(4, 4, dtype=np.float64), [np.diag([1.0, 0, 0, 0])]),
    ):
        core = find_core(weight, covariances)
        for choice in (Choice("tucker2", Ranks(2, 2)), Choice("svd", Ranks(2, 2))):
            assert 0 <= core.lost(choice) <= 1


share = st.floats(1e-9, 1.0)


@given(st.lists(st.tuples(share, share), min_size=1, max_size=4, unique_by=lambda p: math.log(p[0])))
def test_a_transfer_rises_through_its_points_and_is_proportional_beyond(
    points: list[tuple[float, float]],
) -> None:
    points = sorted(points)
    curve = transfer(points)
    best = 0.0
    for lost, output in points:
        best = max(best, output)
        assert curve(lost) == pytest.approx(best, rel=1e-6)
    (low, first), high = points[0], points[-1][0]
    for factor in (0.5, 0.01):
        if low * factor > 1e-12:
            assert curve(low * factor) == pytest.approx(first * factor, rel=1e-6)
    for factor in (2.0, 50.0):
        assert curve(high * factor) == pytest.approx(best * factor, rel=1e-6)
    found = [curve(lost) for lost in np.geomspace(1e-11, 10, 60)]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(found))
    assert curve(0.0) == 0


def test_without_points_what_a_site_loses_is_what_the_outputs_lose() -> None:
    assert transfer([])(0.3) == 0.3
