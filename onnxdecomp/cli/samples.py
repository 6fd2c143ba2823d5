"""The samples that a command is given, and what becomes of their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import onnxdecomp
from onnxdecomp import sampling
from onnxdecomp.cli.choices import Channels, Layout, Preset
from onnxdecomp.cli.options import SAMPLES, option
from onnxdecomp.cli.parsing import parse_preprocessing
from onnxdecomp.cli.reading import reads
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnxdecomp.ir import Model
    from onnxdecomp.sampling import Preprocessing, Samples, SampleSets

Data = Annotated[
    Path | None,
    option(
        SAMPLES,
        "--data",
        metavar="PATH",
        help="Samples: .npz with arrays named as the inputs, .npy for one input, or a folder of them, "
        "of images, or of test_data_set_*.",
    ),
]


def read_preprocessing(
    preset: Annotated[Preset | None, option(SAMPLES, help="Preprocessing of images and bytes.")] = None,
    image_size: Annotated[
        str | None,
        option(SAMPLES, metavar="H,W", help="Resize images; default: the size the model declares."),
    ] = None,
    scale: Annotated[
        float | None, option(SAMPLES, help="Pixels (0 to 255) become (x · scale − mean) / std.")
    ] = None,
    mean: Annotated[
        str | None, option(SAMPLES, metavar="M,M,M", help="Per channel, in the model's order.")
    ] = None,
    std: Annotated[
        str | None, option(SAMPLES, metavar="S,S,S", help="Per channel, in the model's order.")
    ] = None,
    channels: Annotated[Channels | None, option(SAMPLES, help="The model's order.")] = None,
    layout: Annotated[
        Layout | None, option(SAMPLES, help="Default: what the model's input looks like.")
    ] = None,
) -> Preprocessing | None:
    """What becomes of pixels, None where nothing is said of it."""
    return parse_preprocessing(
        preset=preset,
        image_size=image_size,
        scale=scale,
        mean=mean,
        std=std,
        channels=channels,
        layout=layout,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What is said of samples.

    Attributes:
        data: where they lie; None for none.
        count: how many to draw; None is all, or the default number to fit to.
        labels: where the classes lie; None for nowhere.
        preprocessing: what becomes of bytes; None where nothing is said of it.
    """

    data: Path | None
    count: int | None = None
    labels: str | None = None
    preprocessing: Preprocessing | None = None

    def draw(self, model: Model) -> Samples | None:
        """The samples, None without `--data`.

        Raises:
            UsageError: as `open_samples`, or options speak of samples and none are named.
            MissingExtraError: there are images and Pillow is not installed.
        """
        self._require_data()
        if self.data is None:
            return None
        made = self.preprocessing
        return onnxdecomp.open_samples(self.data, model, preprocessing=made, count=self.count)

    def deal(self, model: Model, *, tuned: bool) -> SampleSets | None:
        """The samples to fit to, to measure on, and, if that is done, to tune on; None without `--data`.

        Raises:
            UsageError: as `draw`, or there are too few, or the labels do not match them.
        """
        self._require_data()
        if self.data is None:
            return None
        drawn = onnxdecomp.open_samples(self.data, model, preprocessing=self.preprocessing)
        count = {} if self.count is None else {"count": self.count}
        return onnxdecomp.SampleSets.draw(drawn, labels=self.labels, tuned=tuned, **count)

    def labels_files(self) -> dict[str, set[Path]]:
        """The file that the classes are read of, by what it belongs to."""
        path = sampling.labels_file(self.labels) if self.labels is not None else None
        return {} if path is None else {"the labels": {path}}

    def _require_data(self) -> None:
        others = (self.count, self.labels, self.preprocessing)
        if self.data is None and any(each is not None for each in others):
            raise UsageError(
                "--samples, --labels and the options of preprocessing speak of samples: name them with --data"
            )


def files_of(samples: Samples | SampleSets | None) -> dict[str, set[Path]]:
    """The files that samples and labels are read of, by what they belong to."""
    if samples is None:
        return {}
    if isinstance(samples, onnxdecomp.SampleSets):
        labels = samples.labels_path
        return files_of(samples.fitted) | {"the labels": set() if labels is None else {labels}}
    return {"the samples": samples.sources()}


Drawn = Annotated[int | None, option(SAMPLES, metavar="N", min=1, help="Draw N of the samples (seeded).")]
LabelsFile = Annotated[
    str | None,
    option(
        SAMPLES,
        metavar="F",
        help="Classes of the samples: a CSV of file,class, F.npy, F.npz:KEY, or an array of the --data file.",
    ),
]


@reads(preprocessing=read_preprocessing)
def read_drawn(
    data: Data = None, samples: Drawn = None, preprocessing: Preprocessing | None = None
) -> SampleOptions:
    """Samples to run models on."""
    return SampleOptions(data=data, count=samples, preprocessing=preprocessing)


@reads(preprocessing=read_preprocessing)
def read_labelled(
    data: Data = None,
    samples: Drawn = None,
    labels: LabelsFile = None,
    preprocessing: Preprocessing | None = None,
) -> SampleOptions:
    """Samples to train on, and their classes."""
    return SampleOptions(data=data, count=samples, labels=labels, preprocessing=preprocessing)


@reads(preprocessing=read_preprocessing)
def read_inputs(data: Data = None, preprocessing: Preprocessing | None = None) -> SampleOptions:
    """Samples to time models on: as many as a batch takes."""
    return SampleOptions(data=data, preprocessing=preprocessing)


@reads(preprocessing=read_preprocessing)
def read_dealt(
    data: Data = None,
    samples: Annotated[
        int | None, option(SAMPLES, metavar="N", help="Fit to N samples (seeded draw); default: 256.")
    ] = None,
    labels: LabelsFile = None,
    preprocessing: Preprocessing | None = None,
) -> SampleOptions:
    """Samples to fit to, and others to measure on."""
    return SampleOptions(data=data, count=samples, labels=labels, preprocessing=preprocessing)
