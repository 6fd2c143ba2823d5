"""`onnxdecomp inspect`: what is there, what it costs, what can be decomposed and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnxdecomp
from onnxdecomp import ir, show
from onnxdecomp.cli.options import (
    OUTPUT,
    Debug,
    Freeze,
    InputShape,
    JsonFile,
    Linear,
    MinChannels,
    ModelFile,
    option,
    picture,
)
from onnxdecomp.cli.parsing import parse_input_shapes
from onnxdecomp.cli.reading import reads
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice, read_voice


@reads(voice=read_voice)
def inspect(
    model: ModelFile,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    min_channels: MinChannels = 16,
    freeze_weights: Freeze = False,
    linear: Linear = False,
    spectrum: Annotated[
        bool,
        option(OUTPUT, "--spectrum", help="Energy kept per mode, and what each rank rule would choose."),
    ] = False,
    plot: Annotated[Path | None, picture("the spectra")] = None,
    json_file: JsonFile = None,
    debug: Debug = False,
    *,
    voice: Voice,
) -> None:
    """List every Conv, its cost, and how it can be decomposed."""
    policy = onnxdecomp.Policy(min_channels=min_channels, linear=linear)
    source = ir.load(model)
    targets = Targets({"the input": source.files()}, json_file, plot)
    if plot is not None:
        show.require_plot(plot)
    with targets.accounted(), voice.progress() as progress:
        found = onnxdecomp.inspect(
            source,
            policy=policy,
            input_shapes=parse_input_shapes(input_shape),
            freeze_weights=freeze_weights,
            spectrum=spectrum or plot is not None,
            progress=progress,
        )
    with targets.accounted():
        targets.picture(plot, lambda path: show.plot_spectra(found.spectra, path))
        targets.json(json_file, found.to_dict)
        console = targets.console(voice)
        console.print(show.inspect_view(found))
        if spectrum:
            console.print(show.spectra_view(found.spectra))
