from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from onnxdecomp.errors import StoppedError, StorageError, UsageError
from onnxdecomp.factors import Ranks
from onnxdecomp.planning import Choice, Plan
from onnxdecomp.searching import read_trials, trials
from onnxdecomp.searching import storage as storages
from onnxdecomp.searching import study as studies
from onnxdecomp.searching.figures import Figures
from onnxdecomp.searching.levels import Levels, PrunedError, Scored, Space, Tell
from onnxdecomp.searching.records import StudyResult
from onnxdecomp.searching.start import Start
from onnxdecomp.searching.storage import open_storage
from onnxdecomp.searching.study import Study
from onnxdecomp.searching.task import Trials
from onnxdecomp.searching.trials import run_trials
from onnxdecomp.searching.workers import is_dead, this_worker
from onnxdecomp.timing import Speedup

SPACE = Space({f"m{i}": 5 for i in range(4)})
SEED = {f"m{i}": 1 for i in range(4)}
STORAGES = ["sqlite:///{}/study.db", "journal:{}/study.log"]


def score(levels: Levels, report: Tell) -> Scored:
    return Scored(sum((4 - level) ** 2 for level in levels.values()), sum(levels.values()))


ASKED = {"format": 1, "model": "a", "goal": "`speedup` 2", "setting": {"threads": 1}}


def start(**changes: Any) -> Start:
    """Of two units, one of which has a choice that cannot be taken."""
    figures = Figures(kept=0.1 + 0.2, choices=(1e-9, math.inf))
    known: dict[str, Any] = {
        "units": (("a", ("svd 8", "svd 16")), ("b", ("svd 8", "svd 24"))),
        "seconds": None,
        "losses": (figures, Figures(kept=0.0, choices=(1 / 3, 2.0))),
        "notes": ("something",),
        "plan": Plan({"a": Choice("svd", Ranks(8, 8))}),
        "speedup": None,
        "original_seconds": None,
        "machine": None,
    }
    return Start(**(known | changes))


def plan_at(levels: Levels) -> Plan:
    return Plan({name: Choice("svd", Ranks(level + 1, level + 1)) for name, level in levels.items()})


def run(
    evaluate: Callable[[Levels, Tell], Scored] = score,
    *,
    space: Space = SPACE,
    storage: str | None = None,
    name: str | None = None,
    front: bool = False,
    **changes: Any,
) -> StudyResult:
    settings: dict[str, Any] = {"trials": 20, "budget": 8.0, "seeds": [SEED], "plan_at": plan_at}
    settings |= {"front": front, "seed": 0 if storage is None else None}
    with open_storage(storage) as opened:
        study = Study(opened, name, ASKED, front=front)
        if study.start is None:
            study.begin(start())
        return run_trials(study, space, evaluate, **(settings | changes))


# Every trial says that it has begun, and ends when it is told to.
PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_study import run, score
from onnxdecomp.searching import trials
trials._PATIENCE_S = 0  # the test waits for this process before it ends the trial of another
def held(levels, report):
    print("trial", flush=True)
    sys.stdin.readline()
    return score(levels, report)
found = run(held, storage=sys.argv[2], trials=int(sys.argv[3]))
"""


def process(storage: str, trials: int, script: str = PROCESS) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", script, here, storage, str(trials)]
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
    assert found.states == {"complete": 20}
    again: list[dict[str, int]] = []
    run(lambda levels, report: again.append(dict(levels)) or score(levels, report))  # type: ignore[func-returns-value]
    assert again == tried


def test_levels_scored_before_are_not_evaluated_again() -> None:
    calls: list[Levels] = []
    space = Space({"a": 2, "b": 1})

    def watch(levels: Levels, report: Tell) -> Scored:
        calls.append(levels)
        return score(levels, report)

    found = run(watch, space=space, trials=12, budget=None, seeds=[])
    assert len(calls) == 2
    assert found.states == {"complete": 12}


def test_nothing_within_the_budget_is_no_answer() -> None:
    found = run(budget=-1.0, trials=3)
    assert found.best is None
    assert found.front


def test_not_a_number_is_no_answer() -> None:
    found = run(lambda levels, report: Scored(float("nan"), 1), trials=3)
    assert (found.best, found.front, found.states) == (None, [], {"complete": 3})


def test_hopeless_trials_are_pruned_and_seeds_never() -> None:
    def steps(levels: Levels, report: Tell) -> Scored:
        for step in range(3):
            if report(step, score(levels, report).loss):
                assert dict(levels) != SEED
                raise PrunedError
        return score(levels, report)

    found = run(steps, trials=30)
    assert found.states["pruned"] > 0
    assert sum(found.states.values()) == 30


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
    assert found.states["fail"] == 1
    resumed = run(storage=storage.format(tmp_path), trials=8)
    assert resumed.states == {"complete": 8, "fail": 1}
    assert resumed.stopped is None


def test_what_evaluation_raises_is_raised() -> None:
    def fail(levels: Levels, report: Tell) -> Scored:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(fail)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("after", [1, pytest.param(3, marks=pytest.mark.heavy)])
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
    assert found.states == {"complete": 6, "fail": 1}
    assert found.best is not None
    assert found.best[1].loss <= 36
    # The seed's trial was killed where it was the first.
    assert (SEED in tried) == (after == 1)
    assert run(storage=line, trials=6).states == found.states


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
    assert 12 <= found.states["complete"] <= 13
    assert found.states.keys() == {"complete"}


# A worker that is done while the other is still at its last trial.
FAST = """
import sys
sys.path.insert(0, sys.argv[1])
from test_study import run, score
found = run(score, storage=sys.argv[2], trials=int(sys.argv[3]))
print(found.states, found.best, flush=True)
"""


def test_who_is_done_first_waits_for_the_others(tmp_path: Path) -> None:
    """So that all come to the same answer."""
    line = STORAGES[0].format(tmp_path)
    with process(line, 4) as slow:
        assert begins_a_trial(slow)
        with process(line, 3, FAST) as fast:
            end = time.monotonic() + 60
            with open_storage(line) as storage:
                study = Study(storage, None, ASKED).load()
                while sum(each.state.name == "COMPLETE" for each in study.get_trials()) < 3:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            assert fast.poll() is None
            end_trial(slow)
            assert fast.stdout is not None
            told = fast.stdout.readline()
    assert "{'complete': 4}" in told, told
    assert str(run(storage=line, trials=4).best) in told


def opened_twice(line: str, asked: dict[str, Any] = ASKED, **changes: Any) -> Study:
    """A study that was begun, opened again by another process that asks for something else."""
    with open_storage(line) as storage:
        Study(storage, "s", ASKED).begin(start(machine=changes.pop("timed_on", None)))
    with open_storage(line) as storage:
        return Study(storage, "s", asked, **changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": "b"}, "study s was made for another model; choose another `study`"),
        ({"goal": "`speedup` 3"}, "study s was made for `speedup` 2, not `speedup` 3"),
        ({"setting": {"threads": 2}}, r"study s was made for another setting \(threads 1\)"),
        ({"format": 2}, "study s was made by another version of this package"),
    ],
)
def test_a_study_of_something_else_is_refused(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint):
        opened_twice(STORAGES[0].format(tmp_path), ASKED | changes)


def test_times_of_another_machine_are_refused_and_losses_are_not(tmp_path: Path) -> None:
    machine = {"machine": {"device": "a Xeon", "onnxruntime": "1.20"}}
    line = STORAGES[0].format(tmp_path)
    assert opened_twice(line, timed_on=machine, machine=machine).start is not None
    other = {"machine": {"device": "an EPYC", "onnxruntime": "1.20"}}
    with (
        open_storage(line) as storage,
        pytest.raises(UsageError, match=r"its times from device a Xeon, .*; here is device an EPYC"),
    ):
        Study(storage, "s", ASKED, other)
    assert opened_twice(STORAGES[1].format(tmp_path), machine=other).start is not None


def test_what_others_have_made_is_not_touched(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    line = STORAGES[0].format(tmp_path)
    with open_storage(line) as storage:
        study = optuna.create_study(storage=storage.optuna, study_name="s")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        with pytest.raises(UsageError, match="study s was not made by `search`"):
            Study(storage, "s", ASKED)
        assert len(study.trials) == 1 and study.user_attrs == {}


@pytest.mark.parametrize("line", STORAGES)
def test_figures_are_kept_to_the_last_bit(line: str, tmp_path: Path) -> None:
    own = start(
        seconds=(Figures(kept=1 / 7, choices=(1e-5, 2e-5)), Figures(kept=0.3, choices=(math.inf, 0.1))),
        speedup=Speedup(ratio=1.3, low=0.0, high=math.inf),
        original_seconds=1 / 3,
    )
    with open_storage(line.format(tmp_path)) as storage:
        assert Study(storage, "s", ASKED).begin(own) is own
        found = Study(storage, "s", ASKED).start
    assert found is not None
    assert {name: getattr(found, name) for name in Start.__slots__} == {
        name: getattr(own, name) for name in Start.__slots__
    }


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_SETTLE_S", 0)


def test_the_first_to_begin_a_study_says_what_counts(tmp_path: Path) -> None:
    """Two processes that found none, and measured both."""
    with open_storage(STORAGES[0].format(tmp_path)) as storage:
        one, other = (Study(storage, "s", ASKED) for _ in range(2))
        first = one.begin(start(notes=("first",)))
        agreed = other.begin(start(notes=("second",)))
    assert agreed.token == first.token and agreed.notes == ("first",)


def test_a_study_whose_maker_was_killed_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the study and saying what it is about, and before it was begun."""
    optuna = pytest.importorskip("optuna")
    with open_storage(STORAGES[0].format(tmp_path)) as storage:
        optuna.create_study(storage=storage.optuna, study_name="s")
        own = start()
        assert Study(storage, "s", ASKED).start is None
        assert Study(storage, "s", ASKED).begin(own) is own
        found = Study(storage, "s", ASKED).start
    assert found is not None and found.token == own.token


def test_a_study_is_claimed_before_it_is_begun(tmp_path: Path) -> None:
    """Who asks for something else under the same name hears of it while the first is still measuring."""
    with open_storage(STORAGES[1].format(tmp_path)) as storage:
        Study(storage, "s", ASKED)
        with pytest.raises(UsageError, match="not `speedup` 3"):
            Study(storage, "s", ASKED | {"goal": "`speedup` 3"})


def test_two_that_begin_in_the_same_moment_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that nothing is there; the one that writes last counts for both."""
    with open_storage(STORAGES[0].format(tmp_path)) as storage:
        one, other = (Study(storage, "s", ASKED) for _ in range(2))
        late = start(notes=("late",))
        monkeypatch.setattr(studies, "_SETTLE_S", 1)
        monkeypatch.setattr(studies.time, "sleep", lambda seconds: other._write(late))
        assert one.begin(start(notes=("early",))).token == late.token


def test_every_trial_keeps_its_plan(tmp_path: Path) -> None:
    def steps(levels: Levels, report: Tell) -> Scored:
        if report(0, score(levels, report).loss):
            raise PrunedError
        return score(levels, report)

    line = STORAGES[0].format(tmp_path)
    found = run(steps, storage=line, name="s", trials=16)
    assert [trial.number for trial in found.trials] == list(range(16))
    assert {trial.state for trial in found.trials} == {"complete", "pruned"}
    best = min((trial for trial in found.trials if trial.state == "complete"), key=lambda trial: trial.loss)
    assert best.plan is not None and found.best is not None
    within = [t for t in found.trials if t.state == "complete" and t.cost is not None and t.cost <= 8]
    assert plan_at(found.best[0]) in [trial.plan for trial in within]
    assert read_trials(line) == read_trials(line, "s") == found.trials
    with pytest.raises(UsageError, match="the studies s: `study` t is not among them"):
        read_trials(line, "t")


# Workers that are no more, or seem so
# ------------------------------------


def test_a_process_is_known_by_more_than_its_number() -> None:
    me = this_worker()
    if me["boot"] is None:
        pytest.skip("this system tells neither boots nor namespaces apart: heartbeats decide")
    assert not is_dead(me)
    assert is_dead(me | {"started": "0"})  # its number has been given to another
    assert is_dead(me | {"pid": 2**22 + 1})
    for elsewhere in ({"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": None}):
        assert not is_dead(me | {"pid": 2**22 + 1} | elsewhere)
    assert not is_dead(None) and not is_dead(["host", 1])


def test_a_process_of_another_namespace_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container of the same host's name: its numbers mean nothing here."""
    monkeypatch.setattr(trials, "_PATIENCE_S", 0)
    line = STORAGES[1].format(tmp_path)

    def elsewhere(levels: Levels, report: Tell) -> Scored:
        with open_storage(line) as storage:
            trials = Study(storage, None, ASKED).load()._storage
            study = Study(storage, None, ASKED).load()
            running = study.get_trials(states=None)[-1]
            trials.set_trial_user_attr(running._trial_id, "worker", this_worker() | {"pid": 1, "boot": "x"})
        assert run(storage=line, trials=3).states["running"] == 1
        return score(levels, report)

    assert run(elsewhere, storage=line, trials=1).states == {"complete": 4}


# A worker whose trial is given up by others while it sleeps. Beats follow each other quickly here.
SLEEPER = """
import sys
sys.path.insert(0, sys.argv[1])
from onnxdecomp.searching import storage
storage._HEARTBEAT_S, storage._GRACE_S = 1, 2
from test_study import run, score
def held(levels, report):
    print("trial", flush=True)
    sys.stdin.readline()
    report(0, 1.0)
    return score(levels, report)
found = run(held, storage=sys.argv[2], trials=int(sys.argv[3]))
print(found.states, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def await_a_heartbeat(path: Path) -> None:
    """Until a thread has written the first one: a trial without any is never given up."""
    deadline = time.monotonic() + 30
    with contextlib.closing(sqlite3.connect(path)) as database:
        while not database.execute("select count(*) from trial_heartbeats").fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.heavy
def test_a_worker_that_slept_too_long_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "_HEARTBEAT_S", 1)
    monkeypatch.setattr(storages, "_GRACE_S", 2)
    line = STORAGES[0].format(tmp_path)
    with process(line, 5, SLEEPER) as sleeper:
        assert begins_a_trial(sleeper)
        await_a_heartbeat(tmp_path / "study.db")
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            others = run(storage=line, trials=2).states
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        assert others == {"fail": 1, "complete": 2}
        end_trial(sleeper)
        while begins_a_trial(sleeper):
            end_trial(sleeper)
    assert sleeper.returncode == 0
    assert run(storage=line, trials=5).states == {"fail": 1, "complete": 5}


@pytest.mark.parametrize("moment", ["begin", "report", "end", "prune"])
def test_a_trial_given_up_by_others_is_left_to_them(moment: str, tmp_path: Path) -> None:
    """Whenever that happens, the process goes on with the next trial."""
    line, given_up = STORAGES[0].format(tmp_path), []

    def give_up() -> None:
        if not given_up:
            with open_storage(line) as storage:
                study = Study(storage, None, ASKED).load()
                given_up.append(study.get_trials(deepcopy=False)[-1].number)
                study.tell(given_up[0], state=storages.load_optuna().trial.TrialState.FAIL)

    def evaluate(levels: Levels, report: Tell) -> Scored:
        if moment in ("report", "prune"):
            give_up()
        if moment == "prune" and len(given_up) == 1:
            given_up.append(-1)
            raise PrunedError
        report(0, 1.0)
        if moment == "end":
            give_up()
        return score(levels, report)

    def plan(levels: Levels) -> Plan:
        if moment == "begin":
            give_up()
        return plan_at(levels)

    found = run(evaluate, storage=line, trials=3, seeds=[], plan_at=plan)
    assert found.states == {"fail": 1, "complete": 3}
    assert found.trials[given_up[0]].state == "fail"


def test_an_error_of_the_same_kind_is_not_taken_for_that(tmp_path: Path) -> None:
    def fail(levels: Levels, report: Tell) -> Scored:
        raise ValueError("Cannot tell a FAIL trial")

    with pytest.raises(ValueError, match="Cannot tell"):
        run(fail, storage=STORAGES[0].format(tmp_path))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("how", ["overwritten", "removed"])
def test_a_storage_that_fails_on_the_way_is_one_line(how: str, storage: str, tmp_path: Path) -> None:
    def vanish(levels: Levels, report: Tell) -> Scored:
        for file in (tmp_path / "study.db", tmp_path / "study.log"):
            if file.exists() and how == "overwritten":
                file.write_bytes(b"no database any more" * 100)
            elif file.exists():
                file.unlink()
        return score(levels, report)

    with pytest.raises(StorageError, match="`storage` ") as failure:
        run(vanish, storage=storage.format(tmp_path))
    assert "\n" not in str(failure.value)


def test_a_heartbeat_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is written in a thread, where an error would be printed, and no other heartbeat follow."""
    with open_storage(STORAGES[0].format(tmp_path)) as storage:
        study = Study(storage, "k", ASKED).load()
        trial = storage.optuna.create_new_trial(study._study_id)
        file, aside = tmp_path / "study.db", tmp_path / "aside"
        file.rename(aside)
        storage.optuna.remove_session()
        storage.optuna.engine.dispose()
        with caplog.at_level("INFO", logger="onnxdecomp"):
            storage.optuna.record_heartbeat(trial)
        assert "heartbeat" in caplog.text
        aside.replace(file)
        storage.optuna.engine.dispose()
        caplog.clear()
        storage.optuna.record_heartbeat(trial)
        assert not caplog.text
        with storage.optuna.engine.connect() as connection:
            found = connection.exec_driver_sql("select count(*) from trial_heartbeats").scalar()
        assert found == 1


# Storages
# --------


@pytest.mark.parametrize(
    "line",
    [
        "sqlite+pysqlcipher://:s3cret@/f.db",
        "postgresql+psycopg:/me:s3cret@h/db",
        "postgresql+psycopg:me:s3cret@h/db",
        "//me:s3cret@h/db",
        "me:s3cret@h/db",
        "redis:me:s3cret@h",
        "journal:redis://me:s3cret@h",
        "postgresql+psycopg://h:1/db?options=-c%20password%3Ds3cret",
    ],
)
def test_no_password_is_shown_however_a_url_is_mistyped(line: str) -> None:
    for use in (lambda: run(storage=line), lambda: read_trials(line)):
        with pytest.raises(StorageError, match="`storage`") as refusal:
            use()
        assert "s3cret" not in str(refusal.value)
    assert "s3cret" not in repr(Trials(number=3, storage=line))


def test_a_torn_line_of_a_journal_costs_that_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk, or a crash of the machine."""
    # Whose end was torn off seems to be at work still, and is waited for.
    monkeypatch.setattr(trials, "_PATIENCE_S", 0.5)
    line = STORAGES[1].format(tmp_path)
    assert run(storage=line, trials=4).states == {"complete": 4}
    journal = tmp_path / "study.log"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert len(read_trials(line)) == 4
    assert run(storage=line, trials=6).states["complete"] == 6
    assert read_trials(line) == run(storage=line, trials=6).trials


def test_levels_of_the_same_plan_are_not_evaluated_again() -> None:
    tried: list[Levels] = []

    def watch(levels: Levels, report: Tell) -> Scored:
        tried.append(levels)
        return score(levels, report)

    same = Plan({"a": Choice("svd", Ranks(8, 8))})
    assert run(watch, trials=6, plan_at=lambda levels: same).states == {"complete": 6}
    assert len(tried) == 1


@pytest.mark.parametrize(
    "line",
    [
        "study.db",
        "nonsense://x",
        "://",
        "sqlite:///{}/none/study.db",
        "postgresql+psycopg2://user:secret@localhost:1/x",
        "postgresql+psycopg://user:secret@localhost:1/x",
        "postgresql://user:se@secret@localhost:1/x",
        "postgresql+psycopg://user:12:secret@localhost/x",
        "postgresql://user:pass@localhost:secret/x",
        "mysql://user:secret@localhost/x",
        "oracle://user:secret@localhost/x?password=secret",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
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
    assert run(deadline=-math.inf).states == {"waiting": 1}


@pytest.mark.parametrize("levels", [{}, SEED | {"m0": 5}, SEED | {"other": 0}])
def test_seeds_of_another_space_are_refused(levels: Levels) -> None:
    with pytest.raises(UsageError, match="first"):
        run(seeds=[levels])


def test_a_missing_driver_is_named_and_how_to_name_another() -> None:
    if importlib.util.find_spec("MySQLdb") is not None:
        pytest.skip("the driver that is missing here is installed")
    with pytest.raises(StorageError) as refusal:
        run(storage="mysql://user:secret@localhost/x")
    assert str(refusal.value) == (
        "`storage` mysql://…: needs the Python module MySQLdb, which is not installed; "
        "another driver is named as in mysql+pymysql://… or mysql+mysqldb://…"
    )


@pytest.mark.parametrize(
    "line",
    [
        "postgresql://user:se@secret@localhost:1/x",
        "postgresql://user:se/secret@localhost:1/x",
        "postgresql://user:se:secret@localhost:1/x",
    ],
)
def test_a_password_that_breaks_the_url_is_explained(line: str) -> None:
    with pytest.raises(StorageError, match=r"write @, : and / of a user or password as %40, %3A and %2F"):
        run(storage=line)
