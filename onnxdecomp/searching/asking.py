"""The front door of a search: what is asked for is verified, then found."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from onnxdecomp.comparing import baseline
from onnxdecomp.errors import UsageError
from onnxdecomp.ir import InputShapes, Model, Source, Survey, as_model, on_disk, survey
from onnxdecomp.planning import Policy
from onnxdecomp.progress import Progress, ProgressEvent, silent
from onnxdecomp.runtime import Feeds, feeds_shapes, observe_sizes
from onnxdecomp.sampling import SampleSets
from onnxdecomp.searching.goal import Goal
from onnxdecomp.searching.hunt import find
from onnxdecomp.searching.result import SearchResult
from onnxdecomp.searching.storage import require_storage
from onnxdecomp.searching.task import ALIGN, COSTS, Task, Trials
from onnxdecomp.timing import Setting, Subject, settings, subject_feeds


def search(
    model: Source,
    goal: Goal,
    *,
    samples: SampleSets | None = None,
    setting: Setting | None = None,
    policy: Policy | None = None,
    cost: str = "measured",
    input_shapes: InputShapes | None = None,
    freeze_weights: bool = False,
    trials: Trials | None = None,
    time_limit: float | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Choose every site's ranks for a goal, by measured time and measured loss.

    The algebra of probing is spread over threads or what `joblib.parallel_config` sets; fitting and timing go
    one after another.

    Args:
        model: a path, or a model that holds all its data; never changed.
        goal: what it is to become.
        samples: to fit to and to measure on; None for plain factors, whose losses are those of the weights.
        setting: where it must be fast; None is one thread of the CPU.
        policy: which choices are weighed; None weighs multiples of 8 channels, without timing of 2.
        cost: "measured", or "macs": nothing is timed, and no speed promised.
        input_shapes: shapes for inputs with unknown dimensions.
        freeze_weights: treat weights that callers may override as constant.
        trials: go on with an Optuna study; None does not.
        time_limit: seconds after which no new round begins.
        scratch: folder for large intermediate files; None is the system's.
        progress: told of what is being done; where it raises a StoppedError, the best so far is the answer.

    Returns:
        The best model found, whether it meets the goal, and why every site has its choice.

    Raises:
        ModelError: the file is no whole ONNX model.
        UsageError: a goal, setting or limit that cannot be obeyed, or that needs samples or labels.
        NothingSelectedError: no site can be decomposed.
        RunError, MissingExtraError: ONNX Runtime does not run the model, or joblib's workers failed.
        StoppedError: the search was interrupted before any model was fitted.
    """
    began = time.monotonic()
    trials = trials or Trials()
    _require_meaning(goal, cost, samples, trials, time_limit)
    if trials.number:
        require_storage(trials.storage)
    where = setting or settings()[0]
    source, shapes = as_model(model), input_shapes or {}
    policy = policy or Policy(align=ALIGN[cost])
    with on_disk(source) as path:
        original = dataclasses.replace(source, path=path)
        progress(ProgressEvent("running the original", 0, 1))
        standard = baseline(original, shapes, keep=samples is not None)
        progress(ProgressEvent("running the original", 1, 1))
        feeds = _feeds(original, where, shapes, samples)
        task = Task(
            found=_survey(original, feeds, policy, freeze_weights),
            feeds=feeds,
            baseline=standard,
            goal=goal,
            setting=where,
            samples=samples,
            policy=policy,
            cost=cost,
            trials=trials,
            deadline=began + time_limit if time_limit is not None else None,
            progress=progress,
            scratch=scratch,
        )
        return find(task)


def _require_meaning(
    goal: Goal, cost: str, samples: SampleSets | None, trials: Trials, time_limit: float | None
) -> None:
    """Refuse what cannot be meant, before any work is done."""
    if cost not in COSTS:
        raise UsageError(f"`cost` {cost}: there are {', '.join(COSTS)}")
    if goal.kind == "speedup" and cost != COSTS[0]:
        raise UsageError(f"{goal}: a speed-up is measured; leave `cost` {cost} out or give `macs`")
    if not goal.bounds_cost and samples is None:
        raise UsageError(f"{goal} is measured on samples: name them with `samples`")
    if goal.kind == "max_drop" and (samples is None or samples.labels is None):
        raise UsageError(f"{goal} is measured on classes: name them with `labels`")
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
