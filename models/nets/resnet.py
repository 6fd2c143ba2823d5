"""ResNet-18 and ResNet-50 (He et al. 2016, arXiv:1512.03385).

As is usual today, ResNet-50 has a stage's stride in the 3×3 Conv, not in the 1×1 in front of it ("v1.5").
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.nets.blocks import Residual, classifier, conv_norm

WIDTHS = (64, 128, 256, 512)


def resnet18() -> nn.Sequential:
    """20 Convs in basic blocks: (N, 3, 224, 224) -> (N, 1000)."""
    return _resnet(_basic, depths=(2, 2, 2, 2), expansion=1)


def resnet50() -> nn.Sequential:
    """53 Convs in bottleneck blocks: (N, 3, 224, 224) -> (N, 1000)."""
    return _resnet(_bottleneck, depths=(3, 4, 6, 3), expansion=4)


def _resnet(
    body: Callable[[int, int, int], nn.Sequential], depths: tuple[int, ...], expansion: int
) -> nn.Sequential:
    layers: list[nn.Module] = [
        conv_norm(3, 64, 7, stride=2, activation=nn.ReLU()),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    c_in = 64
    for width, depth in zip(WIDTHS, depths, strict=True):
        for block in range(depth):
            stride = 2 if block == 0 and width > WIDTHS[0] else 1
            c_out = width * expansion
            skip = None if (c_in, stride) == (c_out, 1) else conv_norm(c_in, c_out, 1, stride=stride)
            layers.append(Residual(body(c_in, width, stride), skip=skip, activation=nn.ReLU()))
            c_in = c_out
    return classifier(nn.Sequential(*layers), c_in, classes=1000)


def _basic(c_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(c_in, width, 3, stride=stride, activation=nn.ReLU()),
        conv_norm(width, width, 3),
    )


def _bottleneck(c_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(c_in, width, 1, activation=nn.ReLU()),
        conv_norm(width, width, 3, stride=stride, activation=nn.ReLU()),
        conv_norm(width, 4 * width, 1),
    )
