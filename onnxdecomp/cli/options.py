"""The options that several commands take: shapes, samples and how to read them, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from onnx import ModelProto

from onnxdecomp.errors import UsageError
from onnxdecomp.sampling import (
    CHANNELS,
    DEFAULT_FITTED,
    LAYOUTS,
    PRESETS,
    Preprocessing,
    Samples,
    SampleSets,
    open_samples,
)

InputShape = Annotated[
    list[str],
    typer.Option("--input-shape", metavar="NAME:DIMS", help="Fix unknown dimensions: x:1,3,224,224."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Samples: .npz with arrays named as the inputs, .npy for one input, or a folder of them, "
        "of images, or of test_data_set_*.",
    ),
]
SampleCount = Annotated[
    int | None, typer.Option("--samples", metavar="N", help="Draw N of the samples (seeded).")
]
Fitted = Annotated[
    int | None, typer.Option("--samples", metavar="N", help="Fit to N samples (seeded draw); default: 256.")
]
LabelSource = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="F",
        help="Classes of the samples: a CSV of file,class, F.npy, F.npz:KEY, or an array of the --data file.",
    ),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help=f"Preprocessing of images and bytes: {', '.join(PRESETS)}.")
]
ImageSize = Annotated[
    str | None,
    typer.Option("--image-size", metavar="H,W", help="Resize images; default: the size the model declares."),
]
Scale = Annotated[
    float | None, typer.Option("--scale", help="Pixels (0 to 255) become (x · scale − mean) / std.")
]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="M,M,M", help="Per channel, in the model's order.")
]
Std = Annotated[str | None, typer.Option("--std", metavar="S,S,S", help="Per channel, in the model's order.")]
Channels = Annotated[
    str | None, typer.Option("--channels", help=f"The model's order: {' or '.join(CHANNELS)}.")
]
Layout = Annotated[
    str | None,
    typer.Option("--layout", help=f"{' or '.join(LAYOUTS)}; default: what the model's input looks like."),
]


def open_data(
    data: Path | None, model: ModelProto, preprocessing: Preprocessing | None, count: int | None
) -> Samples | None:
    """The samples that `--data` names, None without it.

    Raises:
        UsageError: as `open_samples`, or other options speak of samples and `--data` names none.
        MissingExtraError: there are images and Pillow is not installed.
    """
    if data is not None:
        return open_samples(data, model, preprocessing=preprocessing, count=count)
    if preprocessing is not None or count is not None:
        raise UsageError("--samples and the options of preprocessing speak of samples: name them with --data")
    return None


def sample_sets(
    data: Path | None,
    count: int | None,
    labels: str | None,
    preprocessing: Preprocessing | None,
    model: ModelProto,
) -> SampleSets | None:
    """The samples that `--data` names, dealt; None without it.

    Raises:
        UsageError: as `open_data`, or there are too few, or the labels do not match them.
    """
    drawn = open_data(data, model, preprocessing, None)
    if drawn is None:
        if count is not None or labels is not None:
            raise UsageError("--samples and --labels speak of samples: name them with --data")
        return None
    return SampleSets.draw(drawn, DEFAULT_FITTED if count is None else count, labels)
