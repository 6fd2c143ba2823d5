from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from onnxdecomp.errors import StoppedError, UsageError
from onnxdecomp.searching import run_study
from onnxdecomp.searching.levels import Levels, PrunedError, Scored, Space, Tell
from onnxdecomp.searching.study import StudyResult

SPACE = Space({f"m{i}": 5 for i in range(4)})
SEED = {f"m{i}": 1 for i in range(4)}
STORAGES = ["sqlite:///{}/study.db", "journal:{}/study.log"]


def score(levels: Levels, report: Tell) -> Scored:
    return Scored(sum((4 - level) ** 2 for level in levels.values()), sum(levels.values()))


def run(evaluate: Callable[[Levels, Tell], Scored] = score, **changes: Any) -> StudyResult:
    settings: dict[str, Any] = {"trials": 20, "budget": 8.0, "seeds": [SEED], "storage": None, "name": None}
    return run_study(SPACE, evaluate, **(settings | {"fingerprint": "a" * 64} | changes))


# Every trial says that it has begun, and ends when it is told to.
PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_study import run, score
def held(levels, report):
    print("trial", flush=True)
    sys.stdin.readline()
    return score(levels, report)
found = run(held, storage=sys.argv[2], trials=int(sys.argv[3]))
"""


def process(storage: str, trials: int) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", PROCESS, here, storage, str(trials)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, bufsize=1, cwd=Path(__file__).parents[2])  # type: ignore[call-overload, no-any-return]


def begins_a_trial(process: subprocess.Popen[str]) -> bool:
    """Whether the process begins another trial, rather than come to its end."""
    assert process.stdout is not None
    return process.stdout.readline() == "trial\n"


def end_trial(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")


def test_the_seed_is_first_and_nothing_worse_is_found() -> None:
    tried: list[dict[str, int]] = []

    def watch(levels: Levels, report: Tell) -> Scored:
        tried.append(dict(levels))
        return score(levels, report)

    found = run(watch)
    assert tried[0] == SEED
    assert found.best is not None
    assert found.best[1].loss <= score(SEED, lambda *_: False).loss
    assert found.best[1].cost <= 8
    assert found.trials == {"complete": 20}
    again: list[dict[str, int]] = []
    run(lambda levels, report: again.append(dict(levels)) or score(levels, report))  # type: ignore[func-returns-value]
    assert again == tried


def test_levels_scored_before_are_not_evaluated_again() -> None:
    calls: list[Levels] = []
    space = Space({"a": 2, "b": 1})

    def watch(levels: Levels, report: Tell) -> Scored:
        calls.append(levels)
        return score(levels, report)

    found = run_study(
        space, watch, trials=12, budget=None, seeds=[], storage=None, name=None, fingerprint="f"
    )
    assert len(calls) == 2
    assert found.trials == {"complete": 12}


def test_nothing_within_the_budget_is_no_answer() -> None:
    found = run(budget=-1.0, trials=3)
    assert found.best is None
    assert found.front


def test_not_a_number_is_no_answer() -> None:
    found = run(lambda levels, report: Scored(float("nan"), 1), trials=3)
    assert (found.best, found.front, found.trials) == (None, [], {"complete": 3})


def test_hopeless_trials_are_pruned_and_seeds_never() -> None:
    def steps(levels: Levels, report: Tell) -> Scored:
        for step in range(3):
            if report(step, score(levels, report).loss):
                assert dict(levels) != SEED
                raise PrunedError
        return score(levels, report)

    found = run(steps, trials=30)
    assert found.trials["pruned"] > 0
    assert sum(found.trials.values()) == 30


def test_the_front_is_monotone() -> None:
    found = run(front=True, budget=None, trials=40)
    costs = [each.cost for _, each in found.front]
    losses = [each.loss for _, each in found.front]
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)
    assert len(costs) > 3


@pytest.mark.parametrize(
    ("storage", "error"), [(STORAGES[0], StoppedError(signal.SIGINT)), (STORAGES[1], KeyboardInterrupt())]
)
def test_an_interrupt_leaves_what_was_found(tmp_path: Path, storage: str, error: BaseException) -> None:
    calls = 0

    def stop(levels: Levels, report: Tell) -> Scored:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise error
        return score(levels, report)

    found = run(stop, storage=storage.format(tmp_path))
    assert found.stopped is error
    assert found.best is not None
    assert found.trials["fail"] == 1
    resumed = run(storage=storage.format(tmp_path), trials=8)
    assert resumed.trials == {"complete": 8, "fail": 1}
    assert resumed.stopped is None


def test_what_evaluation_raises_is_raised() -> None:
    def fail(levels: Levels, report: Tell) -> Scored:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(fail)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_study_resumes(tmp_path: Path, storage: str, after: int) -> None:
    line = storage.format(tmp_path)
    with process(line, 50) as killed:
        for number in range(after):
            if number:
                end_trial(killed)
            assert begins_a_trial(killed)
        killed.kill()
    tried: list[Levels] = []
    found = run(lambda levels, report: tried.append(levels) or score(levels, report), storage=line, trials=6)  # type: ignore[func-returns-value]
    assert found.trials == {"complete": 6, "fail": 1}
    assert found.best is not None
    assert found.best[1].loss <= 36
    # The seed's trial was killed where it was the first.
    assert (SEED in tried) == (after == 1)
    assert run(storage=line, trials=6).trials == found.trials


@pytest.mark.parametrize("storage", STORAGES)
def test_two_processes_share_a_study(tmp_path: Path, storage: str) -> None:
    """Trials of both run at the same time, from the first to the last."""
    line = storage.format(tmp_path)
    with process(line, 12) as one, process(line, 12) as other:
        running = [one, other]
        while running := [each for each in running if begins_a_trial(each)]:
            for each in running:
                end_trial(each)
    assert (one.returncode, other.returncode) == (0, 0)
    found = run(storage=line, trials=12)
    assert 12 <= found.trials["complete"] <= 13
    assert found.trials.keys() == {"complete"}


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    line = STORAGES[0].format(tmp_path)
    run(storage=line, name="s", trials=1)
    with pytest.raises(UsageError, match="study s belongs to another model or data; choose another `study`"):
        run(storage=line, name="s", trials=1, fingerprint="b")
    with pytest.raises(UsageError, match="another goal or budget"):
        run(storage=line, name="s", trials=1, budget=3.0)
    with pytest.raises(UsageError, match="another goal or budget"):
        run(storage=line, name="s", trials=1, front=True)


@pytest.mark.parametrize(
    "line",
    [
        "study.db",
        "nonsense://x",
        "://",
        "sqlite:///{}/none/study.db",
        "postgresql+psycopg2://user:secret@localhost:1/x",
        "journal:",
        "journal:{}/none/study.log",
        "journal:{}/text",
        "sqlite:///{}/text",
    ],
)
def test_bad_storages_are_refused_in_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "text").write_text("hello, this is no database at all\n" * 40)
    with pytest.raises(UsageError, match="`storage`") as refusal:
        run(storage=line.format(tmp_path))
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert (tmp_path / "text").read_text().endswith("at all\n")


def test_no_trial_begins_after_the_deadline() -> None:
    assert run(deadline=-math.inf).trials == {"waiting": 1}


@pytest.mark.parametrize("levels", [{}, SEED | {"m0": 5}, SEED | {"other": 0}])
def test_seeds_of_another_space_are_refused(levels: Levels) -> None:
    with pytest.raises(UsageError, match="first"):
        run(seeds=[levels])
