"""Seeded random weights: enough for a network's structure and speed, and for numbers that stay in range.

Convs get He's initialisation (He et al. 2015, arXiv:1502.01852: variance 2 / fan-in), which keeps the second
moment from layer to layer behind a ReLU. BatchNorms get running statistics and an affine map that differ from
channel to channel, so that folding one into its Conv changes every number, but not the overall scale by much.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, nn

from models.nets.blocks import Residual

CONV_LIKE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
NORM_LIKE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# What a residual body adds to the stream, relative to it: at 1, each block would double the variance.
BODY_SCALE = 0.3


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers of `net`, in place, from `seed` alone: no global generator is used."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (*CONV_LIKE, nn.Linear)):
            _randomise_weights(module, generator)
        elif isinstance(module, NORM_LIKE):
            _randomise_statistics(module, generator)
    for module in net.modules():
        if isinstance(module, Residual):
            norms = [part for part in module.body.modules() if isinstance(part, NORM_LIKE)]
            norms[-1].weight.mul_(BODY_SCALE)


def _randomise_weights(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear, generator: Generator
) -> None:
    module.weight.normal_(0.0, math.sqrt(2 / _fan_in(module)), generator=generator)
    if module.bias is not None:
        module.bias.normal_(0.0, 0.1, generator=generator)


def _fan_in(module: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear) -> int:
    """How many products each output value sums."""
    if isinstance(module, nn.Linear):
        return module.in_features
    taps = module.weight.numel() // module.out_channels
    # A transposed Conv spreads its kernel's taps over stride × stride output positions.
    return taps // math.prod(module.stride) if isinstance(module, nn.ConvTranspose2d) else taps


def _randomise_statistics(
    module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, generator: Generator
) -> None:
    mean, variance, tracked = module.running_mean, module.running_var, module.num_batches_tracked
    assert mean is not None and variance is not None and tracked is not None
    mean.normal_(0.0, 0.2, generator=generator)
    variance.uniform_(0.5, 2.0, generator=generator)
    tracked.zero_()
    # γ / √variance, the factor a folded Conv gets, is then uniform around 1 whatever the variance.
    module.weight.uniform_(0.7, 1.3, generator=generator).mul_(variance.sqrt())
    module.bias.normal_(0.0, 0.1, generator=generator)
