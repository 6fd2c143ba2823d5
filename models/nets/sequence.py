"""A small residual network over 1-D signals, such as a 12-lead electrocardiogram (after Ribeiro et al. 2020).

Antônio H. Ribeiro et al., "Automatic diagnosis of the 12-lead ECG using a deep neural network", Nature
Communications 11:1760: long kernels, few blocks, a steep stride. The second Conv of a block is dilated here.
"""

from __future__ import annotations

from torch import nn

from models.nets.blocks import Residual, classifier, conv_norm

WIDTHS = (64, 128, 192, 256)


def conv1d() -> nn.Sequential:
    """13 Convs: (N, 12, 4096) -> (N, 6)."""
    layers: list[nn.Module] = [conv_norm(12, WIDTHS[0], 15, dims=1, stride=2, activation=nn.ReLU())]
    c_in = WIDTHS[0]
    for width in WIDTHS:
        layers.append(_block(c_in, width, stride=4))
        c_in = width
    return classifier(nn.Sequential(*layers), c_in, classes=6, dims=1)


def _block(c_in: int, c_out: int, stride: int) -> Residual:
    body = nn.Sequential(
        conv_norm(c_in, c_out, 9, dims=1, stride=stride, activation=nn.ReLU()),
        conv_norm(c_out, c_out, 9, dims=1, dilation=2),
    )
    return Residual(body, skip=conv_norm(c_in, c_out, 1, dims=1, stride=stride), activation=nn.ReLU())
