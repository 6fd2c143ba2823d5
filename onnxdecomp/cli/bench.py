"""`onnxdecomp bench`: how fast models are, side by side."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onnxdecomp.cli.console import output_console, to_json
from onnxdecomp.cli.options import (
    Channels,
    Data,
    ImageSize,
    InputShape,
    JsonFile,
    Layout,
    Mean,
    Preset,
    Scale,
    Std,
    open_data,
)
from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.ir import InputShapes, parse_input_shapes, require_target, write_file, write_text
from onnxdecomp.runtime import PROVIDERS, cpu_name, find_providers, onnxruntime
from onnxdecomp.sampling import Samples, parse_preprocessing
from onnxdecomp.show import cell_view, layers_view, plot_layers, plot_times, require_plot
from onnxdecomp.timing import (
    PRECISIONS,
    Budget,
    Cell,
    Layer,
    Profile,
    Setting,
    Subject,
    align,
    cell_rows,
    layers_report,
    measure,
    open_subjects,
    profile,
    report,
    setting_engine,
    settings,
    subject_feeds,
)

Models = Annotated[list[Path], typer.Argument(help="ONNX models; the others are compared with the first.")]
Counts = Annotated[str | None, typer.Option(metavar="N,N,…")]


def bench(
    models: Models,
    provider: Annotated[
        list[str], typer.Option("--provider", help=f"{', '.join(PROVIDERS)}; may be given several times.")
    ] = ["cpu"],  # noqa: B006  (typer copies it)
    provider_option: Annotated[
        list[str], typer.Option("--provider-option", metavar="K=V", help="Of the execution providers.")
    ] = [],  # noqa: B006
    batch: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Samples per run; default: as the model says, else 1.")
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,N,…", help="Of the CPU.")] = "1",
    precision: Annotated[str, typer.Option(help=f"{' or '.join(PRECISIONS)}; fp16 on GPUs only.")] = "fp32",
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Replay a captured CUDA graph.")] = False,
    duration: Annotated[float, typer.Option(help="Seconds of timed runs per model and setting.")] = 5.0,
    runs: Annotated[int | None, typer.Option(help="That many timed runs instead.")] = None,
    input_shape: InputShape = [],  # noqa: B006
    data: Data = None,
    preset: Preset = None,
    image_size: ImageSize = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = None,
    layout: Layout = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also the time of every layer, before and after.")
    ] = False,
    json_file: JsonFile = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw bars: .png or .svg.")] = None,
) -> None:
    """Time models in ONNX Runtime, in turns, and say how much faster the others are than the first."""
    budget = Budget(duration=duration, runs=runs)
    shapes = parse_input_shapes(input_shape)
    usable, missing = find_providers(provider)
    wanted = settings(
        usable,
        options=parse_options(provider_option),
        threads=_parse_counts("--threads", threads),
        batches=[None] if batch is None else _parse_counts("--batch", batch),
        precision=precision,
        cuda_graph=cuda_graph,
    )
    subjects = open_subjects(models)
    preprocessing = parse_preprocessing(
        preset=preset,
        image_size=image_size,
        mean=mean,
        std=std,
        scale=scale,
        channels=channels,
        layout=layout,
    )
    samples = open_data(data, subjects[0].proto, preprocessing, None)
    keep = {file for each in subjects for file in each.files} | (samples.sources() if samples else set())
    for target in filter(None, (json_file, csv_file, plot)):
        require_target(target, keep, device=True)
    if plot is not None:
        require_plot(plot)
    cells: dict[int, Cell] = {}
    layers: tuple[list[Profile], list[Layer]] | None = None
    stopped: StoppedError | None = None
    try:
        _measure_all(cells, subjects, wanted, budget, shapes, samples)
        layers = _profile(subjects, wanted[0], shapes, samples) if per_layer else None
    except StoppedError as stop:
        stopped = stop
    known = list(cells.values())
    console = output_console()
    for line in missing:
        console.print(f"left out: {line}", soft_wrap=True)
    if known:
        _print_head(console, samples)
    for cell in known:
        console.print(cell_view(cell))
    if layers is not None:
        console.print(layers_view(subjects, *layers))
    if json_file is not None:
        document = report(known) | {"complete": stopped is None}
        if layers is not None:
            document |= {"per_layer": layers_report([each.name for each in subjects], *layers)}
        write_text(json_file, to_json(document), keep)
    if csv_file is not None:
        write_text(csv_file, _to_csv(known), keep)
    if plot is not None and known:
        names = [each.name for each in subjects]
        draw = (
            (lambda path: plot_layers(names, layers[1], path))
            if layers
            else (lambda path: plot_times(known, path))
        )
        write_file(plot, draw, keep)
    if stopped is not None:
        known_so_far = "what was measured so far is above" if known else "nothing was measured yet"
        raise StoppedError(stopped.number, f"interrupted; {known_so_far}") from stopped


def _print_head(console: Console, samples: Samples | None) -> None:
    what = f"samples of {samples.path}" if samples else "random inputs"
    console.print(f"{cpu_name()}, ONNX Runtime {onnxruntime().__version__}, {what}", soft_wrap=True)


def _measure_all(
    cells: dict[int, Cell],
    subjects: Sequence[Subject],
    wanted: Sequence[Setting],
    budget: Budget,
    shapes: InputShapes,
    samples: Samples | None,
) -> None:
    """Measure every setting; `cells` fills as results come, so that an interruption leaves what is known."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("measuring", total=len(wanted))
        for i, setting in enumerate(wanted):
            batch = "" if setting.batch is None else f", batch {setting.batch}"
            progress.update(task, description=f"{setting.provider.short}, threads {setting.threads}{batch}")
            for cell in measure(subjects, setting, budget, input_shapes=shapes, data=samples):
                cells[i] = cell
                progress.update(task, completed=i + cell.done)


def _profile(
    subjects: Sequence[Subject], setting: Setting, shapes: InputShapes, samples: Samples | None
) -> tuple[list[Profile], list[Layer]]:
    feeds = [subject_feeds(each, setting.batch, shapes, samples)[0] for each in subjects]
    with Console(stderr=True).status("profiling the layers"):
        profiles = profile([each.path for each in subjects], setting_engine(setting), feeds)
    return profiles, align(profiles)


def _parse_counts(option: str, text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UsageError(f"{option} {text}: write positive whole numbers, as in 1,8")
    return list(dict.fromkeys(counts))


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`.

    Raises:
        UsageError: a text is not of that form.
    """
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"--provider-option {text}: write KEY=VALUE")
        options[key] = value
    return options


def _to_csv(cells: Sequence[Cell]) -> str:
    """One line per model and setting, its speed-up over the first model at the end."""
    rows: list[dict[str, Any]] = []
    for cell in cells:
        first, *others = cell_rows(cell)
        found = [{"ratio": 1.0, "low": 1.0, "high": 1.0}, *(each.to_dict() for each in cell.speedups())]
        for row, own in zip((first, *others), found, strict=True):
            speedup = {f"speedup_{name}" if name != "ratio" else "speedup": v for name, v in own.items()}
            shown = {name: value if math.isfinite(value) else None for name, value in speedup.items()}
            rows.append(row | {"provider_options": json.dumps(row["provider_options"])} | shown)
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
