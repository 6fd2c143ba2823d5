"""The front door of a search: what is asked for is verified, then found."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from onnxdecomp.arguments import PathLike, verified
from onnxdecomp.comparing import Metric, as_metric, baseline
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import (
    InputShapes,
    Model,
    ShapesLike,
    Source,
    Survey,
    as_folder,
    as_input_shapes,
    as_model,
    on_disk,
    survey,
)
from onnxdecomp.planning import Policy
from onnxdecomp.progress import Progress, ProgressEvent, logged, silent
from onnxdecomp.rewriting import require_tunable
from onnxdecomp.runtime import Feeds, Runner, feeds_shapes, observe_sizes
from onnxdecomp.sampling import SampleSets, SamplesLike, as_sets
from onnxdecomp.searching.finding import find
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.joining import joined
from onnxdecomp.searching.result import SearchResult
from onnxdecomp.searching.task import ALIGN, COSTS, Task, Trials
from onnxdecomp.timing import Setting, Subject, settings, subject_feeds
from onnxdecomp.tuning import Tuning


@verified
def search(
    model: Source,
    goal: Goal,
    *,
    samples: SampleSets | SamplesLike | None = None,
    metric: Metric | Callable[[Runner], float] | None = None,
    setting: Setting | None = None,
    policy: Policy | None = None,
    cost: str = "measured",
    input_shapes: ShapesLike | None = None,
    freeze_weights: bool = False,
    trials: Trials | None = None,
    tuning: Tuning | None = None,
    time_limit: float | None = None,
    scratch: PathLike | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Choose every site's ranks for a goal, by measured time and measured loss.

    The algebra of probing is spread over threads or what `joblib.parallel_config` sets; fitting and timing go
    one after another.

    An example is in docs/python.md under "Searching".

    Args:
        model: a path, a ModelProto that holds all its data, or a result; never changed.
        goal: what it is to become.
        samples: to fit to and to measure on; what `open_samples` takes is drawn from; None for plain factors,
            whose losses are those of the weights.
        metric: a figure of merit of your own, where the distance of outputs does not say how good a model is:
            a function that is called with a loaded model, or a `Metric`. With it `max_drop` bounds how much
            worse the figure becomes, and other goals take the model where it is best.
        setting: where it must be fast; None is one thread of the CPU.
        policy: which choices are weighed; None weighs multiples of 8 channels, without timing of 2.
        cost: "measured", or "macs": nothing is timed, and no speed promised.
        input_shapes: shapes for inputs with unknown dimensions.
        freeze_weights: treat weights that callers may override as constant.
        trials: go on with an Optuna study, which processes may share, and begin again after an interruption
            where it lies in a storage; None does not.
        tuning: how to tune, as the function `tune` does, on `SampleSets.trained`. Where a
            cost is bounded, the model that is chosen is tuned once, and reported as it is then; where a loss
            is, up to four are on the way, for what tuning wins back is spent on a lower cost. None does not.
        time_limit: seconds after which no new round begins; tuning what was chosen by then is not counted:
            each time it has the `time_limit` of `tuning`.
        scratch: folder for large intermediate files; None is the system's.
        progress: told of what is being done; where it raises a StoppedError, the best so far is the answer.

    Returns:
        The best model found, whether it meets the goal, and why every site has its choice.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: a goal, setting or limit that cannot be obeyed, or that needs samples or labels; a study
            of something else; a metric that fails.
        NothingSelectedError: no site can be decomposed.
        RunError: ONNX Runtime does not run the model, or joblib's workers failed.
        MissingExtraError: ONNX Runtime, Optuna or PyTorch, where it is needed, is absent or too old.
        StoppedError: the search was interrupted before any model was fitted.
    """
    began, progress = time.monotonic(), logged(progress)
    trials = trials or Trials()
    folder = as_folder(scratch, "scratch")
    judge = as_metric(metric) if metric is not None else None
    _require_meaning(goal, cost, samples, judge, trials, time_limit)
    where = setting or settings()[0]
    source, shapes = as_model(model), as_input_shapes(input_shapes)
    sets = as_sets(samples, source, "samples", tuned=tuning is not None) if samples is not None else None
    if tuning is not None:
        require_tunable(tuning, sets.tuned_on if sets is not None else None, "samples")
        if tuning.checkpoint is not None:
            raise UsageError("`tuning`: a search tunes several models; leave `checkpoint` out")
    policy = policy or Policy(align=ALIGN[cost])
    with (
        on_disk(source) as path,
        joined(
            trials,
            original := dataclasses.replace(source, path=path),
            goal,
            samples=sets,
            setting=where,
            policy=policy,
            cost=cost,
            metric=judge,
            tuning=tuning,
            shapes=shapes,
            freeze=freeze_weights,
        ) as study,
    ):
        progress(ProgressEvent("running the original", 0, 1))
        standard = baseline(original, shapes, keep=sets is not None or judge is not None)
        progress(ProgressEvent("running the original", 1, 1))
        beyond = standard.where().beyond
        if cost == COSTS[0] and beyond is not None:
            raise UsageError(f"{beyond} runs nowhere here, so nothing can be timed: give `cost` macs")
        feeds = _feeds(original, where, shapes, sets)
        task = Task(
            found=_survey(original, feeds, policy, freeze_weights),
            feeds=feeds,
            baseline=standard,
            goal=goal,
            setting=where,
            samples=sets,
            policy=policy,
            cost=cost,
            metric=judge,
            trials=trials,
            tuning=tuning,
            deadline=began + time_limit if time_limit is not None else None,
            progress=progress,
            scratch=folder,
        )
        return find(task, study)


def _require_meaning(
    goal: Goal,
    cost: str,
    samples: SampleSets | SamplesLike | None,
    metric: Metric | None,
    trials: Trials,
    time_limit: float | None,
) -> None:
    """Refuse what cannot be meant, before any work is done."""
    if cost not in COSTS:
        raise UsageError(f"`cost` {cost}: there are {', '.join(COSTS)}")
    if goal.kind == "speedup" and cost != COSTS[0]:
        raise UsageError(f"{goal}: a speed-up is measured; leave `cost` {cost} out or give `macs`")
    judged = goal.kind == "max_drop" and metric is not None
    if not (goal.bounds_cost or judged) and samples is None:
        raise UsageError(f"{goal} is measured on samples: name them with `samples`")
    if goal.kind == "max_drop" and not judged and getattr(samples, "labels", None) is None:
        raise UsageError(f"{goal} is measured on classes: name them with `labels`, or give a `metric`")
    if goal.kind == "max_drop" and not judged and goal.value >= 1:
        raise UsageError(f"{goal}: give a share between 0 and 1")
    if trials.number and samples is None:
        raise UsageError("`trials` judges models on samples: name them with `samples`")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"`time_limit` {time_limit:g}: give a positive number of seconds")


def _feeds(model: Model, setting: Setting, shapes: InputShapes, samples: SampleSets | None) -> Feeds:
    """One set of inputs as the model is to be fast on."""
    path = model.path or Path()
    subject = Subject(name=path.name, path=path, proto=model.proto, files=frozenset(model.files()))
    return subject_feeds(subject, setting.batch, shapes, samples.fitted if samples else None)[0]


def _survey(model: Model, feeds: Feeds, policy: Policy, freeze: bool) -> Survey:
    """The survey of a model, with the sizes that its sites have on these inputs."""
    shapes = feeds_shapes(feeds)
    found = survey(model, input_shapes=shapes, freeze=freeze, fold_bn=True, linear=policy.wants_linear)
    return observe_sizes(found, feeds)
