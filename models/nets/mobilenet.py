"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): depthwise 3×3 Convs between 1×1 Convs."""

from __future__ import annotations

from torch import nn

from models.nets.blocks import Residual, classifier, conv_norm

# Table 2 of the paper: expansion t, output channels c, repetitions n, stride s of the first repetition.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenetv2() -> nn.Sequential:
    """52 Convs, 17 of them depthwise: (N, 3, 224, 224) -> (N, 1000)."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, stride=2, activation=nn.ReLU6())]
    c_in = 32
    for expansion, c_out, depth, stride in STAGES:
        for block in range(depth):
            layers.append(_inverted_residual(c_in, c_out, expansion, stride if block == 0 else 1))
            c_in = c_out
    layers.append(conv_norm(c_in, 1280, 1, activation=nn.ReLU6()))
    return classifier(nn.Sequential(*layers), 1280, classes=1000)


def _inverted_residual(c_in: int, c_out: int, expansion: int, stride: int) -> nn.Module:
    hidden = c_in * expansion
    expand = [] if expansion == 1 else [conv_norm(c_in, hidden, 1, activation=nn.ReLU6())]
    body = nn.Sequential(
        *expand,
        conv_norm(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6()),
        conv_norm(hidden, c_out, 1),
    )
    return Residual(body) if (c_in, stride) == (c_out, 1) else body
