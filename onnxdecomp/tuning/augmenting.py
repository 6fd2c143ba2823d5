"""Images turned, scaled, moved and flipped: from few images many, of which the teacher says what it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from onnxdecomp.ir import Array
from onnxdecomp.runtime import Feeds, is_floating

# Half of the images are flipped and moved by whole pixels alone, up to this part of each side: so stay sharp.
STEP = 1 / 8
# Of the others: how large a part of each side is seen, how far it is turned, in radians, and moved.
PARTS, TURN, SHIFT = (0.7, 1.15), 0.25, 0.15
_SMALLEST = 8


def varied(feeds: Feeds, rngs: Sequence[np.random.Generator]) -> Feeds:
    """Feeds whose only input, where that holds images, is changed, each image by itself.

    Args:
        feeds: of the model.
        rngs: one for each image.
    """
    if len(feeds) != 1:
        return feeds
    ((name, images),) = feeds.items()
    axes = _image_axes(images)
    if axes is None:
        return feeds
    wide = torch.as_tensor(np.moveaxis(images, axes, (2, 3)).astype(np.float32))
    motions = torch.as_tensor(np.stack([motion(rng, *wide.shape[2:]) for rng in rngs]))
    grid = functional.affine_grid(motions, list(wide.shape), align_corners=False)
    made = functional.grid_sample(wide, grid, padding_mode="reflection", align_corners=False)
    return {name: np.ascontiguousarray(np.moveaxis(made.numpy(), (2, 3), axes), images.dtype)}


def motion(rng: np.random.Generator, height: int, width: int) -> Array:
    """From where in an image each place of the new one is taken, shape (2, 3).

    In the coordinates of PyTorch's `affine_grid`: −1 to 1 over each side.

    Args:
        rng: source of randomness.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    mirror = rng.choice((-1, 1))
    if rng.random() < 0.5:
        down, across = (_pixels(rng, side) for side in (height, width))
        return np.array([[mirror, 0, across], [0, 1, down]], np.float32)
    part, turn = math.exp(rng.uniform(math.log(PARTS[0]), math.log(PARTS[1]))), rng.uniform(-TURN, TURN)
    down, across = rng.uniform(-2 * SHIFT, 2 * SHIFT, 2)
    # A turn of pixels is one of sides only where these are equally long.
    cosine, sine, aspect = part * math.cos(turn), part * math.sin(turn), height / width
    return np.array(
        [[mirror * cosine, -sine * aspect, across], [mirror * sine / aspect, cosine, down]], np.float32
    )


def _pixels(rng: np.random.Generator, side: int) -> float:
    """A way of whole pixels, as a part of half a side."""
    most = max(1, int(side * STEP))
    return 2 * float(rng.integers(-most, most + 1)) / side


def _image_axes(images: Array) -> tuple[int, int] | None:
    """Where the rows and the columns of images are; None where an array holds none."""
    if images.ndim != 4 or not is_floating(images.dtype):
        return None
    for channels, axes in ((1, (2, 3)), (3, (1, 2))):
        if images.shape[channels] in (1, 3) and min(images.shape[axis] for axis in axes) >= _SMALLEST:
            return axes
    return None
