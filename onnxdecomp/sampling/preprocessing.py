"""How pixels become what a model was trained on: the value and the presets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from onnxdecomp.abridging import abridged
from onnxdecomp.arguments import verified
from onnxdecomp.errors import UsageError

CHANNELS = ("rgb", "bgr")
LAYOUTS = ("nchw", "nhwc")
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "0-1": {"scale": 1 / 255},
    "caffe": {"scale": 1.0, "mean": (103.939, 116.779, 123.68), "channels": "bgr"},
}
# What to say where bytes meet a model that takes floats.
VALUES = "`open_samples(…, preprocessing=Preprocessing.imagenet())`"
_LARGEST = 2**15


@abridged
@verified
@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """From bytes (0 to 255, RGB, channels last) to a model's floats: (x · scale − mean) / std.

    An example is in docs/python.md under "Samples".

    Attributes:
        scale: None is 1; one of scale, mean and std must be given before bytes are turned into floats.
        mean: one value, or one per channel in the model's order; None is 0.
        std: likewise; None is 1.
        channels: the model's order of them, "rgb" or "bgr".
        layout: "nchw" or "nhwc"; None is what the model's input looks like.
        size: height and width to resize to, bilinearly and whatever the aspect, or one number for both; None
            is that of the model's input.

    Raises:
        UsageError: a value makes no sense.
    """

    scale: float | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    channels: str = "rgb"
    layout: str | None = None
    size: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        # Whatever was given, tuples are kept.
        for name, number in (("mean", 1), ("std", 1), ("size", 2)):
            object.__setattr__(self, name, _listed(getattr(self, name), number))
        if self.channels not in CHANNELS:
            raise UsageError(f"`channels` {self.channels}: choose {' or '.join(CHANNELS)}")
        if self.layout not in (None, *LAYOUTS):
            raise UsageError(f"`layout` {self.layout}: choose {' or '.join(LAYOUTS)}")
        size = cast(tuple[int, ...] | None, self.size)
        if size is not None and not (len(size) == 2 and all(0 < each <= _LARGEST for each in size)):
            raise UsageError(
                "`Preprocessing.size`: give a height and a width of one pixel or more, as in 224,224"
            )
        for name in ("scale", "mean", "std"):
            values = _listed(getattr(self, name), 1)
            if values is not None and (not values or not all(map(math.isfinite, values))):
                raise UsageError(f"`{name}`: give finite numbers")
            if name == "std" and 0 in (values or ()):
                raise UsageError("`std`: nothing can be divided by 0; use 1 to leave a channel as it is")

    @classmethod
    def imagenet(cls, **others: Any) -> Preprocessing:
        """0 to 1, then ImageNet's mean and deviation; the attributes that `others` name are as they say."""
        return cls(**PRESETS["imagenet"] | others)

    @classmethod
    def zero_to_one(cls, **others: Any) -> Preprocessing:
        """0 to 1; the attributes that `others` name are as they say."""
        return cls(**PRESETS["0-1"] | others)

    @classmethod
    def caffe(cls, **others: Any) -> Preprocessing:
        """BGR minus the means of Caffe's models; the attributes that `others` name are as they say."""
        return cls(**PRESETS["caffe"] | others)

    @property
    def has_values(self) -> bool:
        """Whether it says how bytes become floats."""
        return (self.scale, self.mean, self.std) != (None, None, None)


def _listed(value: Any, number: int) -> tuple[Any, ...] | None:
    """Values as a tuple; a single one stands for a `number` of them."""
    if value is None:
        return None
    return tuple(value) if isinstance(value, Sequence) else (value,) * number
