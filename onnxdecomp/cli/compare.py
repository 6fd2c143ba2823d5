"""`onnxdecomp compare`: how far apart two models are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import onnxdecomp
from onnxdecomp import ir, show
from onnxdecomp.cli.options import Debug, InputShape, JsonFile
from onnxdecomp.cli.parsing import parse_input_shapes
from onnxdecomp.cli.reading import reads
from onnxdecomp.cli.samples import SampleOptions, files_of, read_drawn
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice, read_voice
from onnxdecomp.progress import stage


@reads(samples=read_drawn, voice=read_voice)
def compare(
    samples: SampleOptions,
    a: Annotated[Path, typer.Argument(help="The reference model.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="The model to judge.", show_default=False)],
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    json_file: JsonFile = None,
    debug: Debug = False,
    *,
    voice: Voice,
) -> None:
    """Say how far apart the outputs of two models are."""
    reference = ir.load(a)
    drawn = samples.draw(reference)
    judged = ir.load(b)
    keep = {"the input": reference.files() | judged.files()}
    targets = Targets(keep | files_of(drawn), json_file)
    shapes = parse_input_shapes(input_shape)
    with targets.accounted():
        with voice.progress() as progress, stage("comparing", progress):
            found = onnxdecomp.compare(reference, judged, drawn, input_shapes=shapes)
        targets.json(json_file, found.to_dict)
        targets.console(voice).print(show.comparison_view(found))
