"""The two pieces that the networks are built of: Conv + BatchNorm + activation, and the residual block."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def conv_norm(
    c_in: int,
    c_out: int,
    kernel: int,
    *,
    dims: int = 2,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Conv without bias, BatchNorm and, if given, an activation, over `dims` spatial dimensions.

    (N, c_in, *space) -> (N, c_out, *ceil(space / stride)), for odd `kernel`.
    """
    padding = dilation * (kernel - 1) // 2
    conv = CONVS[dims](
        c_in, c_out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False
    )
    norm = NORMS[dims](c_out)
    # Named, because the exporter turns module names into node names.
    parts: dict[str, nn.Module] = {"conv": conv, "norm": norm}
    if activation is not None:
        parts["activation"] = activation
    return nn.Sequential(OrderedDict(parts))


class Residual(nn.Module):
    """activation(body(x) + skip(x)); body and skip must agree on the output's shape.

    `body` ends in a BatchNorm: that is, in a `conv_norm` without activation.
    """

    def __init__(
        self, body: nn.Sequential, *, skip: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.skip = nn.Identity() if skip is None else skip
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *space) -> (N, C_out, *space / stride of the body)."""
        result: Tensor = self.activation(self.body(x) + self.skip(x))
        return result


def classifier(body: nn.Sequential, channels: int, classes: int, *, dims: int = 2) -> nn.Sequential:
    """`body`, then the mean over all positions, then one linear layer: (N, C, *space) -> (N, classes)."""
    pools: dict[int, type[nn.Module]] = {
        1: nn.AdaptiveAvgPool1d,
        2: nn.AdaptiveAvgPool2d,
        3: nn.AdaptiveAvgPool3d,
    }
    parts: dict[str, nn.Module] = {
        "features": body,
        "pool": pools[dims](1),
        "flatten": nn.Flatten(1),
        "head": nn.Linear(channels, classes),
    }
    return nn.Sequential(OrderedDict(parts))
