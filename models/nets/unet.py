"""U-Net for segmentation (Ronneberger et al. 2015, arXiv:1505.04597).

Half the paper's widths, padded Convs (so that the mask has the image's size) and BatchNorm.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.nets.blocks import conv_norm

WIDTHS = (32, 64, 128, 256, 512)


class UNet(nn.Module):
    """Four levels down by max pooling and four up by ConvTranspose, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        steps = list(pairwise(WIDTHS))
        self.stem = _double(3, WIDTHS[0])
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(narrow, wide) for narrow, wide in steps)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2) for narrow, wide in reversed(steps)
        )
        self.join = nn.ModuleList(_double(wide, narrow) for narrow, wide in reversed(steps))
        self.head = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, H, W) logits; H and W are multiples of 16."""
        levels: list[Tensor] = [self.stem(image)]
        for encode in self.down:
            levels.append(encode(self.pool(levels[-1])))
        x = levels.pop()
        for enlarge, decode in zip(self.up, self.join, strict=True):
            x = decode(torch.cat([levels.pop(), enlarge(x)], dim=1))
        mask: Tensor = self.head(x)
        return mask


def unet() -> UNet:
    """19 Convs and 4 ConvTransposes: (N, 3, 256, 256) -> (N, 1, 256, 256)."""
    return UNet()


def _double(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(c_in, c_out, 3, activation=nn.ReLU()),
        conv_norm(c_out, c_out, 3, activation=nn.ReLU()),
    )
