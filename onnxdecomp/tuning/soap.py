"""The optimiser: Adam in the eigenbasis of each tensor's gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# What is left after a step of the means of gradients, of their squares, and of their covariances.
_MEAN, _SQUARE, _COVARIANCE = 0.9, 0.95, 0.95
# Directions in which gradients are so much smaller than in others hold nothing but rounding.
_LEAST = 1e-4
# The bases follow the covariances every so many steps; modes longer than this have none.
_EVERY, _LONGEST = 10, 512
# Beside the covariance, as a part of its mean eigenvalue.
_RIDGE = 1e-2
# What it keeps of a tensor: the last four as far as the modes have bases.
REMEMBERED = ("step", "mean", "square", "covariance 0", "covariance 1", "basis 0", "basis 1")


class Soap(torch.optim.Optimizer):
    """SOAP (Vyas et al. 2024, arXiv:2409.11321, algorithm 3), of the first two modes of every tensor.

    The factors of a chain are defined up to a change of basis between neighbours, and the closed-form fit
    leaves them in one where gradients of different columns go together. Adam takes every entry by itself, and
    is slow in such a basis; here gradients are turned into the eigenbases of their own covariances first.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        """
        Args:
            parameters: any number of modes; each has a group, and so a rate, of its own.
        """
        super().__init__([{"params": [each]} for each in parameters], {"lr": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step against the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * self._direction(parameter))

    def _direction(self, parameter: Tensor) -> Tensor:
        """Where the parameter goes at a rate of 1, as long as Adam's step."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state |= {"step": torch.zeros(()), "mean": torch.zeros_like(parameter)}
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        steps = int(state["step"])
        for mode in _modes(parameter):
            _follow(state, gradient, mode, steps)
        turned = _turned(gradient, state, inverse=False)
        state["mean"].lerp_(gradient, 1 - _MEAN)
        state["square"].lerp_(turned.square(), 1 - _SQUARE)
        mean = _turned(state["mean"], state, inverse=False) / (1 - _MEAN**steps)
        size = (state["square"] / (1 - _SQUARE**steps)).sqrt_()
        size += _LEAST * size.square().mean().sqrt() + torch.finfo(size.dtype).tiny
        return _turned(mean / size, state, inverse=True)


def _modes(parameter: Tensor) -> Iterator[int]:
    """The modes that have a basis of their own."""
    if parameter.ndim > 1:
        yield from (mode for mode in range(2) if 1 < parameter.shape[mode] <= _LONGEST)


def _follow(state: dict[str, Tensor], gradient: Tensor, mode: int, steps: int) -> None:
    """Take a gradient into the covariance of one mode, and let the basis follow by subspace iteration.

    In directions that no gradient had so far every basis is as good: without the ridge rounding would choose.
    """
    unfolded = gradient.movedim(mode, 0).flatten(1)
    covariance = unfolded @ unfolded.T
    length = len(covariance)
    if steps == 1:
        state[f"covariance {mode}"] = covariance
        state[f"basis {mode}"] = torch.eye(length, dtype=covariance.dtype, device=covariance.device)
    known = state[f"covariance {mode}"].lerp_(covariance, 1 - _COVARIANCE)
    if steps % _EVERY == 1:
        basis = state[f"basis {mode}"]
        ridge = _RIDGE * known.trace() / length
        state[f"basis {mode}"] = torch.linalg.qr(known @ basis + ridge * basis)[0]


def _turned(tensor: Tensor, state: dict[str, Tensor], *, inverse: bool) -> Tensor:
    """Into the eigenbases of its modes, or back from there."""
    for mode in range(2):
        basis = state.get(f"basis {mode}")
        if basis is not None:
            tensor = torch.tensordot(tensor, basis, ([mode], [1 if inverse else 0])).movedim(-1, mode)
    return tensor
