"""From a goal to a model: choose, time, tighten, fit, measure; then the trials of a study, and tuning."""

from __future__ import annotations

from onnxdecomp.errors import StoppedError
from onnxdecomp.ir import scratch_folder
from onnxdecomp.searching.hunt import Hunt
from onnxdecomp.searching.result import SearchResult
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.task import Task
from onnxdecomp.searching.weighing import weigh


def find(task: Task, study: Study | None) -> SearchResult:
    """The best model for a goal; an interruption leaves the best so far, if there is any.

    Args:
        task: what is searched for.
        study: to go on with; one that was begun says what was measured and found before its trials.

    Raises:
        NothingSelectedError: no site can be decomposed.
        RunError, MissingExtraError: ONNX Runtime does not run the model.
        StoppedError: interrupted before any model was fitted.
    """
    with scratch_folder(beside=task.scratch) as folder:
        hunt = Hunt(task, study, *weigh(task, study), folder)
        try:
            hunt.run()
            if study is not None and not hunt.begin():
                # Another process has begun the study meanwhile: its figures count.
                hunt = Hunt(task, study, *weigh(task, study), folder)
                hunt.run()
            hunt.improve()
            hunt.tune()
        except StoppedError as stop:
            if not any(each.result is not None for each in hunt.tried):
                raise
            hunt.interrupt(stop)
        hunt.settle()
        return hunt.outcome()
