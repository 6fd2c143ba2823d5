"""How pixels become what a model was trained on: the value and the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxdecomp.errors import UsageError

CHANNELS = ("rgb", "bgr")
LAYOUTS = ("nchw", "nhwc")
# What to say where bytes meet a model that takes floats.
VALUE_OPTIONS = "`PRESETS` imagenet, 0-1 or caffe, or `scale`, `mean`, `std`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """From bytes (0 to 255, RGB, channels last) to a model's floats: (x · scale − mean) / std.

    Attributes:
        scale: None is 1; one of scale, mean and std must be given before bytes are turned into floats.
        mean: one value, or one per channel in the model's order; None is 0.
        std: likewise; None is 1.
        channels: the model's order of them, "rgb" or "bgr".
        layout: "nchw" or "nhwc"; None is what the model's input looks like.
        size: height and width to resize to, bilinearly and whatever the aspect; None is that of the model's
            input.

    Raises:
        UsageError: a value makes no sense.
    """

    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: str = "rgb"
    layout: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise UsageError(f"`channels` {self.channels}: choose {' or '.join(CHANNELS)}")
        if self.layout not in (None, *LAYOUTS):
            raise UsageError(f"`layout` {self.layout}: choose {' or '.join(LAYOUTS)}")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(
                "`Preprocessing.size`: give a height and a width of one pixel or more, as in 224,224"
            )
        scales = None if self.scale is None else (self.scale,)
        for name, values in (("scale", scales), ("mean", self.mean), ("std", self.std)):
            if values is not None and (not values or not all(map(math.isfinite, values))):
                raise UsageError(f"`{name}`: give finite numbers")
        if 0 in (self.std or ()):
            raise UsageError("`std`: nothing can be divided by 0; use 1 to leave a channel as it is")

    @property
    def has_values(self) -> bool:
        """Whether it says how bytes become floats."""
        return (self.scale, self.mean, self.std) != (None, None, None)


PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "0-1": {"scale": 1 / 255},
    "caffe": {"scale": 1.0, "mean": (103.939, 116.779, 123.68), "channels": "bgr"},
}
