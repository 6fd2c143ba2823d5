"""`onnxdecomp tune`: a rewritten model brought nearer to its original by gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxdecomp
from onnxdecomp import comparing, ir, show, tuning
from onnxdecomp.cli.choices import Device, Train
from onnxdecomp.cli.options import GOAL, SAMPLES, WHERE, Debug, InputShape, JsonFile, OutputFile, option
from onnxdecomp.cli.parsing import parse_input_shapes
from onnxdecomp.cli.reading import reads
from onnxdecomp.cli.samples import SampleOptions, read_drawn
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice, read_voice
from onnxdecomp.errors import UsageError
from onnxdecomp.progress import stage

if TYPE_CHECKING:
    from onnxdecomp.tuning import Tuning


def read_tuning(
    train: Annotated[
        Train, option(GOAL, help="Factors and their biases; scales and biases of norms too; or every Conv.")
    ] = Train.FACTORS,
    time_limit: Annotated[
        float, option(GOAL, metavar="SECONDS", help="When it ends; the best so far is kept.")
    ] = 600.0,
    steps: Annotated[
        int | None, option(GOAL, metavar="N", min=1, help="End after that many, if that is sooner.")
    ] = None,
    batch: Annotated[int, option(SAMPLES, metavar="N", min=1, help="Samples in a step.")] = 64,
    seed: Annotated[
        int, option(SAMPLES, metavar="N", min=0, help="Of what is held out, and of the order.")
    ] = 0,
    augment: Annotated[
        bool, option(SAMPLES, "--augment/--no-augment", help="Flip images, and move them by a few pixels.")
    ] = True,
    device: Annotated[Device, option(WHERE, help="Where PyTorch computes.")] = Device.CPU,
) -> Tuning:
    """How to train."""
    return onnxdecomp.Tuning(
        train=train.value,
        time_limit=time_limit,
        steps=steps,
        batch=batch,
        seed=seed,
        augment=augment,
        device=device.value,
    )


@reads(how=read_tuning, samples=read_drawn, voice=read_voice)
def tune(
    original: Annotated[Path, typer.Argument(help="The ONNX model as it was.", show_default=False)],
    rewritten: Annotated[Path, typer.Argument(help="What was made of it.", show_default=False)],
    output: OutputFile,
    how: Tuning,
    samples: SampleOptions,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    json_file: JsonFile = None,
    debug: Debug = False,
    *,
    voice: Voice,
) -> None:
    """Bring a rewritten model nearer to its original by gradients, without labels."""
    first, second = ir.load(original), ir.load(rewritten)
    drawn = samples.draw(first)
    if drawn is None:
        raise UsageError("tuning needs samples: name them with --data, a folder of images or an .npz file")
    tuning.require_torch(how.device)
    keep = {"the input": first.files() | second.files(), "the samples": drawn.sources()}
    targets = Targets(keep, json_file, model=output)
    shapes = parse_input_shapes(input_shape)
    with targets.accounted(), voice.progress() as progress:
        with stage("running the original", progress):
            standard = comparing.baseline(first, shapes)
        found = onnxdecomp.tune(first, second, drawn, tuning=how, progress=progress)
    with targets.accounted(found.interrupted):
        console = targets.console(voice)
        console.print(show.tune_view(found))
        with targets.staged(found) as candidate:
            with voice.progress() as progress, stage("checking the new model", progress):
                verdict = onnxdecomp.check(standard, candidate)
            targets.json(json_file, lambda: found.to_dict() | {"check": verdict.to_dict()})
        console.print(show.check_line(verdict), soft_wrap=True)
        console.print(f"\nwrote {output}", soft_wrap=True)
