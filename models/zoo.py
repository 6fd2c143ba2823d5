"""The networks that can be exported from PyTorch. The table itself needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network, written in `models.nets`."""

    name: str
    what: str
    """The network, in a few words."""
    family: str
    """The module of `models.nets` that holds it; the constructor is the function `name` there."""
    shape: tuple[int, ...]
    """Of the input: batch, channels, then one or more spatial dimensions."""


NETWORKS = (
    Network(
        name="vgg16_cifar10",
        what="VGG-16 with BatchNorm and a one-layer head: 13 Convs, 10 classes",
        family="vgg",
        shape=(1, 3, 32, 32),
    ),
    Network(
        name="resnet18",
        what="ResNet-18, basic blocks: 20 Convs, 1000 classes",
        family="resnet",
        shape=(1, 3, 224, 224),
    ),
    Network(
        name="resnet50",
        what="ResNet-50, bottleneck blocks: 53 Convs, 1000 classes",
        family="resnet",
        shape=(1, 3, 224, 224),
    ),
    Network(
        name="mobilenetv2",
        what="MobileNetV2, inverted residuals: 52 Convs, 17 of them depthwise, 1000 classes",
        family="mobilenet",
        shape=(1, 3, 224, 224),
    ),
    Network(
        name="unet",
        what="U-Net at half width: 19 Convs and 4 ConvTransposes, one mask",
        family="unet",
        shape=(1, 3, 256, 256),
    ),
    Network(
        name="conv1d",
        what="residual net over 12-lead signals: 13 Convs, some dilated, 6 classes",
        family="sequence",
        shape=(1, 12, 4096),
    ),
    Network(
        name="conv3d",
        what="residual net over video clips: 12 Convs, 10 classes",
        family="video",
        shape=(1, 3, 16, 64, 64),
    ),
)


def network_of(name: str) -> Network:
    """The network called `name`; raises UsageError, with the known names, if there is none."""
    for network in NETWORKS:
        if network.name == name:
            return network
    known = ", ".join(network.name for network in NETWORKS)
    raise UsageError(f"unknown network {name!r}; there are: {known}")
