"""`onnxdecomp search`: ranks from a goal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import onnxdecomp
from onnxdecomp import ir, searching, show
from onnxdecomp.cli.choices import Cost
from onnxdecomp.cli.metrics import read_metric
from onnxdecomp.cli.options import (
    GOAL,
    RANKS,
    STUDY,
    Debug,
    Freeze,
    InputShape,
    JsonFile,
    Linear,
    MinChannels,
    ModelFile,
    OutputFile,
    PlanFile,
    option,
    picture,
)
from onnxdecomp.cli.parsing import parse_input_shapes
from onnxdecomp.cli.reading import read_goal, read_setting, read_tuned, reads
from onnxdecomp.cli.samples import SampleOptions, files_of, read_dealt
from onnxdecomp.cli.targets import Targets
from onnxdecomp.cli.telling import Voice, read_voice
from onnxdecomp.progress import stage

if TYPE_CHECKING:
    from rich.console import Console

    from onnxdecomp.comparing import Check, Metric
    from onnxdecomp.planning import Policy
    from onnxdecomp.searching import Goal, SearchResult, Trials
    from onnxdecomp.timing import Setting
    from onnxdecomp.tuning import Tuning


def read_choices(
    cost: Annotated[
        Cost, option(RANKS, help="With macs nothing is timed: no promise of speed.")
    ] = Cost.MEASURED,
    linear: Linear = False,
    min_channels: MinChannels = 16,
    align: Annotated[
        int | None, option(RANKS, help="Ranks are multiples of it; default: 8, with --cost macs 2.")
    ] = None,
) -> tuple[str, Policy]:
    """What is weighed: by which cost, and which choices."""
    aligned = searching.ALIGN[cost.value] if align is None else align
    return cost.value, onnxdecomp.Policy(align=aligned, min_channels=min_channels, linear=linear)


def read_trials(
    trials: Annotated[
        int,
        option(STUDY, min=0, help="Go on with an Optuna study until it has that many trials (--data)."),
    ] = 0,
    storage: Annotated[
        str | None,
        option(STUDY, metavar="URL", help="Share and resume the study: sqlite:///F.db, journal:F.log, …"),
    ] = None,
    study: Annotated[str | None, option(STUDY, metavar="NAME", help="The study's name.")] = None,
) -> Trials:
    """The study after the search."""
    return onnxdecomp.Trials(number=trials, storage=storage, study=study)


@reads(
    goal=read_goal,
    metric=read_metric,
    samples=read_dealt,
    tuning=read_tuned,
    setting=read_setting,
    choices=read_choices,
    trials=read_trials,
    voice=read_voice,
)
def search(
    model: ModelFile,
    output: OutputFile,
    goal: Goal,
    metric: tuple[Metric | None, set[Path]],
    samples: SampleOptions,
    tuning: Tuning | None,
    setting: Setting,
    choices: tuple[str, Policy],
    trials: Trials,
    best_effort: Annotated[
        bool, option(GOAL, "--best-effort", help="Write the best found where the goal is out of reach.")
    ] = False,
    time_limit: Annotated[
        float | None,
        option(GOAL, metavar="SECONDS", help="Then begin no new round; keep the best so far."),
    ] = None,
    input_shape: InputShape = [],  # noqa: B006  (typer copies it)
    freeze_weights: Freeze = False,
    save_plan: PlanFile = None,
    json_file: JsonFile = None,
    plot: Annotated[Path | None, picture("quality against cost")] = None,
    debug: Debug = False,
    *,
    voice: Voice,
) -> None:
    """Choose every site's ranks for a goal, by measured time and measured loss."""
    source = ir.load(model)
    sets = samples.deal(source, tuned=tuning is not None)
    file = searching.storage_file(trials.storage) if trials.storage is not None else None
    figure, metric_files = metric
    keep = {
        "the input": source.files(),
        **files_of(sets),
        "the metric": metric_files,
        "the study's storage": {file.resolve()} if file is not None else set(),
    }
    targets = Targets(keep, save_plan, json_file, plot, model=output)
    if plot is not None:
        show.require_plot(plot)
    cost, policy = choices
    with targets.accounted(), voice.progress() as progress:
        found = onnxdecomp.search(
            source,
            goal,
            samples=sets,
            metric=figure,
            setting=setting,
            policy=policy,
            cost=cost,
            input_shapes=parse_input_shapes(input_shape),
            freeze_weights=freeze_weights,
            trials=trials,
            tuning=tuning,
            time_limit=time_limit,
            scratch=output.parent,
            progress=progress,
        )
    with targets.accounted(found.interrupted):
        targets.console(voice).print(show.search_view(found))
        targets.json(json_file, found.to_dict)
        targets.picture(plot, lambda path: show.plot_search(found, path))
        result = found.rewritten(best_effort=best_effort)
        with targets.staged(result) as candidate:
            with voice.progress() as progress, stage("checking the new model", progress):
                verdict = onnxdecomp.check(found.baseline, candidate)
            targets.text(save_plan, result.plan.to_json)
        _conclude(found, verdict, output, targets.console(voice))


def _conclude(found: SearchResult, verdict: Check, output: Path, console: Console) -> None:
    """Say what was written, and what is not promised of it."""
    console.print(show.check_line(verdict))
    if found.best is None or (found.best.quality is None and found.best.score is None):
        console.print("\naccuracy is unverified: losses are those of the weights; --data PATH measures them")
    if not found.timed:
        console.print("\nnothing was timed: no speed is promised (leave --cost macs out to measure)")
    console.print(f"\nwrote {output}", soft_wrap=True)
