"""`onnxdecomp search`: ranks from a goal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from onnxdecomp.cli.bench import parse_options
from onnxdecomp.cli.console import output_console, to_json, tracked
from onnxdecomp.cli.options import (
    Channels,
    Data,
    Fitted,
    ImageSize,
    InputShape,
    JsonFile,
    LabelSource,
    Layout,
    Mean,
    Preset,
    Scale,
    Std,
    sample_sets,
)
from onnxdecomp.comparing import baseline, check
from onnxdecomp.errors import GoalError, UsageError
from onnxdecomp.ir import (
    data_path,
    load,
    parse_input_shapes,
    require_distinct,
    require_target,
    staged,
    write_file,
    write_text,
)
from onnxdecomp.planning import Policy
from onnxdecomp.runtime import PROVIDERS, find_providers
from onnxdecomp.sampling import parse_preprocessing
from onnxdecomp.searching import ALIGN, COSTS, Task, find, parse_goal, require_storage, search_report
from onnxdecomp.show import check_view, outcome_view, plot_search, require_plot, unmet
from onnxdecomp.timing import settings


def search(
    model: Annotated[Path, typer.Argument(help="The ONNX model.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Where to write the new model.", show_default=False)],
    speedup: Annotated[float | None, typer.Option(help="Goal: that many times as fast.")] = None,
    macs: Annotated[float | None, typer.Option(help="Goal: that share of the Convs' MACs.")] = None,
    params: Annotated[float | None, typer.Option(help="Goal: that share of the Convs' parameters.")] = None,
    size: Annotated[float | None, typer.Option(help="Goal: that share of the file.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Goal: the fastest whose outputs differ by at most that, relatively.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Goal: the fastest whose accuracy drops by at most that (--labels).")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Goal: the fastest whose top-1 classes agree at least that often.")
    ] = None,
    data: Data = None,
    samples: Fitted = None,
    labels: LabelSource = None,
    preset: Preset = None,
    image_size: ImageSize = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    channels: Channels = None,
    layout: Layout = None,
    provider: Annotated[str, typer.Option(help=f"Where it must be fast: {', '.join(PROVIDERS)}.")] = "cpu",
    provider_option: Annotated[
        list[str], typer.Option("--provider-option", metavar="K=V", help="Of the execution provider.")
    ] = [],  # noqa: B006  (typer copies it)
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per run.")] = None,
    input_shape: InputShape = [],  # noqa: B006
    cost: Annotated[str, typer.Option(help="measured, or macs: no timing, no promise of speed.")] = COSTS[0],
    linear: Annotated[bool, typer.Option("--linear", help="Gemm and MatMul too.")] = False,
    min_channels: Annotated[
        int, typer.Option(help="No two-sided chain where a group has fewer input or output channels.")
    ] = 16,
    align: Annotated[
        int | None, typer.Option(help="Ranks are multiples of it; default: 8, with --cost macs 2.")
    ] = None,
    freeze_weights: Annotated[
        bool, typer.Option("--freeze-weights", help="Treat weights that are graph inputs as constant.")
    ] = False,
    trials: Annotated[
        int, typer.Option(min=0, help="Go on with an Optuna study until it has that many trials (--data).")
    ] = 0,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Share and resume the study: sqlite:///F.db, journal:F.log, …"),
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="The study's name.")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Then begin no new round; keep the best so far."),
    ] = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Write the best found where the goal is out of reach.")
    ] = False,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan carried out.")
    ] = None,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw quality against cost: .png or .svg.")
    ] = None,
) -> None:
    """Choose every site's ranks for a goal, by measured time and measured loss."""
    began = time.monotonic()
    goal = parse_goal(
        {
            "speedup": speedup,
            "macs": macs,
            "params": params,
            "size": size,
            "max_error": max_error,
            "max_drop": max_drop,
            "min_agreement": min_agreement,
        }
    )
    if cost not in COSTS:
        raise UsageError(f"--cost {cost}: there are {', '.join(COSTS)}")
    if goal.kind == "speedup" and cost != COSTS[0]:
        raise UsageError(f"{goal}: a speed-up is measured; leave --cost {cost} out or give --macs")
    if not goal.bounds_cost and data is None:
        raise UsageError(f"{goal} is measured on samples: name them with --data")
    if goal.kind == "max_drop" and labels is None:
        raise UsageError(f"{goal} is measured on classes: name them with --labels")
    if trials and data is None:
        raise UsageError("--trials judges models on samples: name them with --data")
    if not trials and (storage is not None or study is not None):
        raise UsageError("--storage and --study speak of trials: give --trials N")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"--time-limit {time_limit:g}: give a positive number of seconds")
    usable, _ = find_providers([provider])
    (setting,) = settings(usable, options=parse_options(provider_option), threads=[threads], batches=[batch])
    loaded = load(model)
    preprocessing = parse_preprocessing(
        preset=preset,
        image_size=image_size,
        mean=mean,
        std=std,
        scale=scale,
        channels=channels,
        layout=layout,
    )
    sets = sample_sets(data, samples, labels, preprocessing, loaded.proto)
    keep = loaded.files() | (sets.fitted.sources() if sets is not None else set())
    require_target(output, keep)
    for target in filter(None, (save_plan, json_file, plot)):
        require_target(target, keep, device=True)
    require_distinct(output, data_path(output), save_plan, json_file, plot)
    if plot is not None:
        require_plot(plot)
    if trials:
        require_storage(storage)
    shapes = parse_input_shapes(input_shape)
    shown = Console(stderr=True)
    with shown.status("running the original"):
        standard = baseline(model, shapes)
    task = Task(
        path=model,
        goal=goal,
        setting=setting,
        input_shapes=shapes,
        fitted=sets.fitted if sets is not None else None,
        held_out=sets.held_out if sets is not None else None,
        labels=sets.labels if sets is not None else None,
        policy=Policy(
            align=ALIGN[cost] if align is None else align, min_channels=min_channels, linear=linear
        ),
        cost=cost,
        freeze=freeze_weights,
        trials=trials,
        storage=storage,
        study=study,
        deadline=began + time_limit if time_limit is not None else None,
        track=tracked,
        track_jobs=tracked,
        say=lambda line: shown.print(line, highlight=False) if shown.is_terminal else None,
        scratch=output.parent,
    )
    outcome = find(task)
    measure = {"params": "params", "macs": "macs", "size": "bytes"}.get(
        goal.kind, "seconds" if task.timed else "macs"
    )
    console = output_console()
    console.print(outcome_view(outcome, goal, measure))
    if json_file is not None:
        write_text(json_file, to_json(search_report(outcome, goal, measure)), keep)
    if plot is not None:
        write_file(plot, lambda path: plot_search(outcome, measure, path), keep)
    best = outcome.best
    slower = best is not None and best.speedup is not None and best.speedup.ratio < 1
    if best is None or best.result is None or slower or not (outcome.met or best_effort):
        raise GoalError(unmet(outcome, goal))
    with staged(best.result.rewritten, output, keep) as candidate:
        verdict = check(standard, candidate)
        if save_plan is not None:
            write_text(save_plan, best.plan.to_json(), keep)
    console.print(check_view(verdict, best.quality) if sets is None else f"\ncheck {verdict.status}")
    if sets is None:
        console.print("\naccuracy is unverified: losses are those of the weights; --data PATH measures them")
    if not task.timed:
        console.print("\nnothing was timed: no speed is promised (leave --cost macs out to measure)")
    console.print(f"\nwrote {output}", soft_wrap=True)
