"""The optimiser against Adam, where they are the same, and against what tells them apart."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from onnxdecomp.tuning import soap

RATE = 0.01


def walked(start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Where a tensor is after steps with these gradients."""
    tensor = torch.tensor(start)
    optimiser = soap.Soap([tensor])
    optimiser.param_groups[0]["lr"] = RATE
    for gradient in gradients:
        tensor.grad = torch.tensor(gradient)
        optimiser.step()
    return tensor.numpy()


@pytest.mark.parametrize("shape", [(7,), (1, 1, 3), (soap._LONGEST + 1, 1)])
def test_without_modes_to_turn_it_is_adam(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(shape), list(rng.standard_normal((25, *shape)))
    expected = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([expected], lr=RATE, betas=(soap._MEAN, soap._SQUARE), eps=0)
    for gradient in gradients:
        expected.grad = torch.tensor(gradient)
        adam.step()
    np.testing.assert_allclose(walked(start, gradients), expected.detach().numpy(), rtol=1e-2)


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (3, 5, 2), (5, 1, 3)])
def test_it_does_not_see_in_which_basis_a_factor_is(shape: tuple[int, ...]) -> None:
    """Once it knows the gradients: those of one direction in another basis give the same steps there."""
    rng = np.random.default_rng(1)
    sizes = 0.7 ** np.arange(min(shape[0], int(np.prod(shape[1:]))))
    left = np.linalg.qr(rng.standard_normal((shape[0], len(sizes))))[0]
    inner = np.linalg.qr(rng.standard_normal((int(np.prod(shape[1:])), len(sizes))))[0]
    gradient = (left * sizes @ inner.T).reshape(shape)
    turn = np.linalg.qr(rng.standard_normal((shape[0], shape[0])))[0]
    steps = [walked(np.zeros(shape), [gradient] * count) for count in (400, 401)]
    others = [walked(np.zeros(shape), [np.tensordot(turn, gradient, 1)] * count) for count in (400, 401)]
    np.testing.assert_allclose(others[1] - others[0], np.tensordot(turn, steps[1] - steps[0], 1), atol=1e-5)


def test_its_steps_come_to_be_along_the_singular_vectors() -> None:
    left, _, right = np.linalg.svd(np.random.default_rng(2).standard_normal((4, 4)))
    gradient = left * [1, 0.5, 0.2, 0.1] @ right
    before, after = (walked(np.zeros((4, 4)), [gradient] * count) for count in (400, 401))
    np.testing.assert_allclose(after - before, -RATE * left @ right, atol=2e-3 * RATE)


@pytest.mark.parametrize("rank", [1, 2])
def test_rounding_does_not_choose_a_basis(rank: int) -> None:
    rng = np.random.default_rng(4)
    gradients = [rng.standard_normal((6, rank)) @ rng.standard_normal((rank, 5)) for _ in range(45)]
    start = rng.standard_normal((6, 5))
    near = [each * (1 + 1e-9 * rng.standard_normal(each.shape)) for each in gradients]
    np.testing.assert_allclose(walked(start, near), walked(start, gradients), atol=1e-5 * RATE)


def test_a_gradient_of_nothing_moves_nothing() -> None:
    start = np.random.default_rng(3).standard_normal((4, 5))
    np.testing.assert_array_equal(walked(start, [np.zeros((4, 5))] * 15), start)
