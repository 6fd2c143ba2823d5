"""A small 3-D residual network over video clips: R3D (Tran et al. 2018, arXiv:1711.11248) at half width."""

from __future__ import annotations

from torch import nn

from models.nets.blocks import Residual, classifier, conv_norm

WIDTHS = (32, 64, 128, 256)


def conv3d() -> nn.Sequential:
    """12 Convs: (N, 3, 16, 64, 64) -> (N, 10), the space being time × height × width."""
    layers: list[nn.Module] = [conv_norm(3, WIDTHS[0], 3, dims=3, stride=2, activation=nn.ReLU())]
    c_in = WIDTHS[0]
    for width in WIDTHS:
        layers.append(_block(c_in, width))
        c_in = width
    return classifier(nn.Sequential(*layers), c_in, classes=10, dims=3)


def _block(c_in: int, c_out: int) -> Residual:
    stride = 1 if c_in == c_out else 2
    body = nn.Sequential(
        conv_norm(c_in, c_out, 3, dims=3, stride=stride, activation=nn.ReLU()),
        conv_norm(c_out, c_out, 3, dims=3),
    )
    skip = None if c_in == c_out else conv_norm(c_in, c_out, 1, dims=3, stride=stride)
    return Residual(body, skip=skip, activation=nn.ReLU())
