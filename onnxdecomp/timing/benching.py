"""How fast models are, side by side: every setting in turn, then layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from onnxdecomp.arguments import verified
from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.ir import ShapesLike, Source, as_input_shapes
from onnxdecomp.progress import Progress, ProgressEvent, logged, silent
from onnxdecomp.runtime import PROVIDERS, environment
from onnxdecomp.sampling import SamplesLike, as_samples
from onnxdecomp.timing.cells import Cell, measure_cell
from onnxdecomp.timing.kernels import profile, require_profile
from onnxdecomp.timing.layers import LayerTable
from onnxdecomp.timing.racing import TURNS, WARMUP_RUNS, Budget
from onnxdecomp.timing.result import BenchResult
from onnxdecomp.timing.setting import Setting, setting_engine
from onnxdecomp.timing.subjects import Lineup, in_files, open_subjects


@verified
def bench(
    models: Source | Sequence[Source],
    *,
    settings: Setting | Sequence[Setting] | None = None,
    budget: Budget | None = None,
    input_shapes: ShapesLike | None = None,
    samples: SamplesLike | None = None,
    per_layer: bool = False,
    progress: Progress = silent,
) -> BenchResult:
    """Time models in ONNX Runtime, in turns, each in a process of its own.

    A StoppedError, raised by a signal's handler or by `progress`, ends the bench early: the result holds what
    was measured by then, and the error.

    An example is in docs/python.md under "Timing".

    Args:
        models: paths, each read once, ModelProtos or results, which are written to files for the time; the
            others are compared with the first. One alone will do.
        settings: where, or one place alone; None is the CPU with one thread.
        budget: how long per model and setting; None is five seconds.
        input_shapes: for inputs with unknown dimensions.
        samples: what the models are fed; None is random inputs.
        per_layer: also the time of every layer, in the first setting, on the CPU.
        progress: is told the hundredths measured, of 100 per setting, then the sessions profiled.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file is no ONNX model.
        RunError: a model does not load or run.
        UsageError: shapes, batches, samples or settings do not fit the models, or a shape is unknown.
    """
    progress = logged(progress)
    several = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    settings = Setting(provider=PROVIDERS["cpu"]) if settings is None else settings
    wanted = [settings] if isinstance(settings, Setting) else list(settings)
    if not wanted:
        raise UsageError("`settings` is empty: name one or more")
    if per_layer:
        require_profile(setting_engine(wanted[0]))
    with in_files(several) as files:
        subjects = tuple(open_subjects(files))
        drawn = as_samples(samples, subjects[0].proto, "samples") if samples is not None else None
        lineup = Lineup(subjects=subjects, input_shapes=as_input_shapes(input_shapes), samples=drawn)
        lineup.require_shapes([setting.batch for setting in wanted])
        return _timed(lineup, wanted, budget or Budget(), per_layer, progress)


def _timed(
    lineup: Lineup, wanted: Sequence[Setting], budget: Budget, per_layer: bool, progress: Progress
) -> BenchResult:
    cells: list[Cell] = []
    layers: LayerTable | None = None
    stopped: StoppedError | None = None
    try:
        _measure(cells, lineup, wanted, budget, progress)
        layers = _profile(lineup, wanted[0], progress) if per_layer else None
    except StoppedError as stop:
        stopped = stop
    return BenchResult(
        names=lineup.names,
        cells=tuple(cells),
        layers=layers,
        environment=environment() | {"warmup_runs": WARMUP_RUNS, "turns": TURNS, "optimisation": "all"},
        stopped=stopped,
    )


def _measure(
    cells: list[Cell], lineup: Lineup, wanted: Sequence[Setting], budget: Budget, progress: Progress
) -> None:
    """Measure every setting; `cells` fills as results come, so that an interruption leaves what is known."""
    for i, setting in enumerate(wanted):
        batch = "" if setting.batch is None else f", batch {setting.batch}"
        stage = f"measuring {setting.provider.short}, threads {setting.threads}{batch}"
        progress(ProgressEvent(stage, 100 * i, 100 * len(wanted)))
        with closing(measure_cell(lineup, setting, budget)) as growing:
            for cell in growing:
                cells[i:] = [cell]
                progress(ProgressEvent(stage, 100 * i + round(100 * cell.done), 100 * len(wanted)))


def _profile(lineup: Lineup, setting: Setting, progress: Progress) -> LayerTable:
    feeds = [own for own, _ in lineup.feeds(setting.batch)]
    found = profile(lineup.subjects, setting_engine(setting), feeds, progress=progress)
    return LayerTable.of(lineup.names, found)
