"""`onnxdecomp bench`: how fast models are, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxdecomp
from onnxdecomp import ir, runtime, show
from onnxdecomp.cli.choices import Precision, Provider
from onnxdecomp.cli.options import (
    OUTPUT,
    WHERE,
    Debug,
    InputShape,
    JsonFile,
    ProviderOptions,
    document,
    option,
    picture,
)
from onnxdecomp.cli.parsing import MOST_ALONG, MOST_THREADS, parse_counts, parse_input_shapes, parse_options
from onnxdecomp.cli.reading import reads
from onnxdecomp.cli.samples import SampleOptions, files_of, read_inputs
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice, read_voice
from onnxdecomp.errors import StoppedError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxdecomp.sampling import Samples
    from onnxdecomp.timing import BenchResult, Setting


# In seconds, and of runs: nobody waits for more.
_DAY, _MOST_RUNS = 86_400, 10**9


def read_settings(
    provider: Annotated[list[Provider], option(WHERE, help="May be given several times.")] = [Provider.CPU],  # noqa: B006  (typer copies it)
    provider_option: ProviderOptions = [],  # noqa: B006
    batch: Annotated[
        str | None,
        option(WHERE, metavar="N,N,…", help="Samples per run; default: as the model says, else 1."),
    ] = None,
    threads: Annotated[str, option(WHERE, metavar="N,N,…", help="Of the CPU.")] = "1",
    precision: Annotated[Precision, option(WHERE, help="fp16 on GPUs only.")] = Precision.FP32,
    cuda_graph: Annotated[bool, option(WHERE, "--cuda-graph", help="Replay a captured CUDA graph.")] = False,
) -> tuple[list[Setting], list[str]]:
    """All places to measure in, and a line on each provider that this ONNX Runtime lacks."""
    names = [each.value for each in provider]
    _, missing = runtime.find_providers(names)
    found = onnxdecomp.settings(
        names,
        options=parse_options(provider_option),
        threads=parse_counts("--threads", threads, MOST_THREADS),
        batches=[None] if batch is None else parse_counts("--batch", batch, MOST_ALONG),
        precision=precision.value,
        cuda_graph=cuda_graph,
    )
    return found, missing


@reads(places=read_settings, inputs=read_inputs, voice=read_voice)
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX models; the others are compared with the first.")
    ],
    places: tuple[list[Setting], list[str]],
    inputs: SampleOptions,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    duration: Annotated[
        float, option(OUTPUT, max=_DAY, help="Seconds of timed runs per model and setting.")
    ] = 5.0,
    runs: Annotated[int | None, option(OUTPUT, max=_MOST_RUNS, help="That many timed runs instead.")] = None,
    per_layer: Annotated[
        bool, option(OUTPUT, "--per-layer", help="Also the time of every layer, before and after.")
    ] = False,
    json_file: JsonFile = None,
    csv_file: Annotated[
        Path | None,
        option(
            OUTPUT, "--csv", metavar="FILE", parser=document, help="Write the rows; - is standard output."
        ),
    ] = None,
    plot: Annotated[Path | None, picture("bars")] = None,
    debug: Debug = False,
    *,
    voice: Voice,
) -> None:
    """Time models in ONNX Runtime, in turns, and say how much faster the others are than the first."""
    budget = onnxdecomp.Budget(duration=duration, runs=runs)
    shapes = parse_input_shapes(input_shape)
    settings, missing = places
    loaded = {path: ir.load(path) for path in dict.fromkeys(models)}
    samples = inputs.draw(loaded[models[0]])
    keep = {"the input": {file for each in loaded.values() for file in each.files()}}
    targets = Targets(keep | files_of(samples), json_file, csv_file, plot)
    if plot is not None:
        show.require_plot(plot)
    with voice.progress() as progress:
        found = onnxdecomp.bench(
            [loaded[path] for path in models],
            settings=settings,
            budget=budget,
            input_shapes=shapes,
            samples=samples,
            per_layer=per_layer,
            progress=progress,
        )
    _show(found, missing, samples, targets.console(voice))
    targets.json(json_file, found.to_dict)
    targets.text(csv_file, found.to_csv)
    targets.picture(plot if found.cells else None, lambda path: show.plot_bench(found, path))
    if found.stopped is not None:
        known = "what was measured so far is above" if found.cells else "nothing was measured yet"
        raise StoppedError(found.stopped.number, f"interrupted; {known}") from found.stopped


def _show(found: BenchResult, missing: Sequence[str], samples: Samples | None, console: Console) -> None:
    for line in missing:
        console.print(f"left out: {line}")
    if found.cells:
        what = f"samples of {samples.path}" if samples else "random inputs"
        cpu, version = found.environment["cpu"], found.environment["onnxruntime"]
        console.print(f"{cpu}, ONNX Runtime {version}, {what}")
    for cell in found.cells:
        console.print(show.cell_view(cell))
    if found.layers is not None:
        console.print(show.layers_view(found.layers))
