"""VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556) for 32×32 images: BatchNorm and a one-layer head."""

from __future__ import annotations

from torch import nn

from models.nets.blocks import classifier, conv_norm

# Configuration D of the paper: the output channels of each stage's 3×3 Convs; 2×2 max pooling ends a stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_cifar10() -> nn.Sequential:
    """13 Convs, global pooling, one linear layer: (N, 3, 32, 32) -> (N, 10)."""
    layers: list[nn.Module] = []
    c_in = 3
    for stage in STAGES:
        for c_out in stage:
            layers.append(conv_norm(c_in, c_out, 3, activation=nn.ReLU()))
            c_in = c_out
        layers.append(nn.MaxPool2d(2))
    return classifier(nn.Sequential(*layers), c_in, classes=10)
