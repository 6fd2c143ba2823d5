"""Studies of a search: gone on with after a kill, shared by processes, judged by the user's own metric."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest

pytest.importorskip("optuna")

from conftest import Cli, command, spawn
from test_search import GOALS, SMALL, Clock, clock, data, model

import onnxdecomp
from onnxdecomp import Goal, Metric, Policy, Runner, SampleSets, SearchResult, Trials, open_samples
from onnxdecomp.errors import UsageError
from onnxdecomp.progress import ProgressEvent, silent
from onnxdecomp.searching import asking, read_trials
from onnxdecomp.searching.storage import open_storage

__all__ = ["clock", "data", "model"]  # fixtures

# The command line by a clock of its own, killed as its second trial is judged.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_search
from onnxdecomp.cli import main
from onnxdecomp.searching import automl, costs, workshop
clock = test_search.Clock()
clock.overhead = 1.9e-7
costs.time_models, workshop.race = clock.time_models, clock.race
judge, left = automl.Judge.__call__, 2
def killed(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return judge(*arguments)
automl.Judge.__call__ = killed
sys.argv = ["onnxdecomp", *sys.argv[2:]]
main()
"""

METRIC = """
import numpy as np

def agreement(model):
    stored = np.load("{data}")
    return (model.run({{"x": stored["x"]}})["y"].argmax(axis=1) == stored["classes"]).mean()
"""

TALKING = """
import ctypes, os, subprocess, sys

def talk(where):
    print(f"{where}: Python")
    print(f"{where}: the true standard output", file=sys.__stdout__)
    ctypes.CDLL(None).printf(f"{where}: C\\n".encode())
    subprocess.run(["echo", f"{where}: a child"])

def f(model):
    talk("called")
    return 0.5

talk("loaded")
"""


def process(script: str, *words: object, **environment: str) -> int:
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, str(here), *map(str, words)]
    places = os.pathsep.join(map(str, (here.parent, here.parents[1])))
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": places} | environment, capture_output=True, check=False
    ).returncode


def study_of(storage: str) -> dict[str, Any]:
    """What the only study in a storage was begun with."""
    import optuna

    with open_storage(storage) as opened:
        (name,) = optuna.get_all_study_names(opened.optuna)
        return dict(optuna.load_study(study_name=name, storage=opened.optuna).user_attrs)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize(
    "goal",
    [
        # One goal of each kind, the others when there is time.
        goal if goal == "--speedup" else pytest.param(goal, marks=pytest.mark.heavy)
        for goal in (*GOALS, "--metric")
    ],
)
def test_a_killed_search_goes_on(
    goal: str, model: Path, data: Path, tmp_path: Path, cli: Cli, clock: Clock
) -> None:
    """On a machine whose cache is empty and whose clock shows other times: those of the study count."""
    storage, report = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "r.json"
    kind = (goal, GOALS.get(goal))
    if goal == "--metric":
        (tmp_path / "mine.py").write_text(METRIC.format(data=data))
        kind = ("--metric", f"{tmp_path / 'mine.py'}:agreement", "--max-drop", 0.15)
    words = ("search", model, tmp_path / "out.onnx", *kind, "--data", data, "--labels", "classes", *SMALL,
             "--best-effort", "--trials", 3, "--storage", storage, "--json", report)  # fmt: skip
    more = [30 if word == 3 else word for word in words]  # until the second that is judged
    assert process(KILLED, *more, ONNXDECOMP_CACHE=str(tmp_path / "other")) == -signal.SIGKILL
    assert not (tmp_path / "out.onnx").exists()
    begun = study_of(storage)
    done = cli(*words)
    assert done.code == 0, done
    assert clock.sites == 0
    document = json.loads(report.read_text())
    assert document["study"]["states"] == {"complete": 3, "fail": 1}
    assert study_of(storage) == begun
    assert document["tried"][0]["sites"] == len(begun["onnxdecomp start"]["plan"]["sites"])
    if goal == "--speedup":  # whoever comes late gets the same
        again = tmp_path / "again.onnx"
        assert cli(*words[:2], again, *words[3:]).code == 0
        assert again.read_bytes() == (tmp_path / "out.onnx").read_bytes()


def searched(model: Path, data: Path, storage: str, goal: Goal | None = None, **options: Any) -> SearchResult:
    sets = SampleSets.draw(open_samples(data, model), count=64)
    policy = Policy(align=4, min_channels=8)
    trials = Trials(number=4, storage=storage, study="s")
    wanted = goal or Goal("speedup", 1.6)
    return onnxdecomp.search(
        model, wanted, **({"samples": sets, "policy": policy, "trials": trials} | options)
    )


def test_another_goal_is_refused_before_any_work(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"journal:{tmp_path / 'study.log'}"
    searched(model, data, storage)

    def work(*arguments: object, **options: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(asking, "baseline", work)
    few = SampleSets.draw(open_samples(data, model), count=32)
    settings = onnxdecomp.settings(threads=[2])
    for options, complaint in (
        ({"goal": Goal("speedup", 1.7)}, r"study s was made for `speedup` 1\.6, not `speedup` 1\.7"),
        ({"samples": few}, "study s was made for other samples"),
        ({"setting": settings[0]}, r"for another setting \(provider cpu, threads 1\)"),
        ({"policy": Policy(align=8)}, r"for other choices \(.*align 4"),
        ({"metric": lambda run: 1.0}, "for another `metric`"),
    ):
        with pytest.raises(UsageError, match=complaint):
            searched(model, data, storage, **options)


def test_what_another_process_made_meanwhile_counts(
    model: Path, data: Path, tmp_path: Path, clock: Clock
) -> None:
    """Both find no study; the other's is there when this one has its first model."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    others: list[SearchResult] = []

    def progress(event: ProgressEvent) -> None:
        if event.stage == "tried" and not others:
            clock.overhead, mine = 4e-7, clock.overhead
            others.append(None)  # type: ignore[arg-type]  # the other is told of its own models, too
            others[0] = searched(model, data, storage, progress=silent)
            clock.overhead = mine

    found = searched(model, data, storage, progress=progress)
    assert found.plan == others[0].plan and found.study is not None and others[0].study is not None
    assert found.study.trials == others[0].study.trials
    start = study_of(storage)["onnxdecomp start"]
    assert found.original_seconds == start["original_seconds"] == others[0].original_seconds


@pytest.mark.parametrize("stage", ["timing the choices", "gathering statistics"])
def test_a_storage_that_fails_leaves_the_best_so_far(
    stage: str, model: Path, data: Path, tmp_path: Path
) -> None:
    def progress(event: ProgressEvent) -> None:
        if event.stage == stage:
            (tmp_path / "study.db").write_bytes(b"no database any more" * 100)

    found = searched(model, data, f"sqlite:///{tmp_path / 'study.db'}", progress=progress)
    assert found.met and found.study is None
    assert [note for note in found.notes if note.startswith("the study was left early: `storage` sqlite:///")]
    found.save(tmp_path / "out.onnx")


def test_a_search_out_of_time_makes_no_study(model: Path, data: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    found = searched(model, data, storage, time_limit=1e-6)
    assert found.stopped and found.study is None and found.best is not None
    assert "time was up before any trial of the study" in found.notes
    assert read_trials(storage) == ()
    assert searched(model, data, storage).study is not None


# Two processes of one kind of processor that compute with other kernels, each with a cache of its own. The
# times are real, so that noise is too.
REAL = """
import sys
from onnxdecomp.cli import main
from onnxdecomp.searching import workshop
from onnxdecomp.timing import Budget
workshop._TIMING, workshop._VAGUE = Budget(runs=8), 100
sys.argv = ["onnxdecomp", *sys.argv[2:]]
main()
"""


@pytest.mark.heavy
def test_two_machines_share_a_study(model: Path, data: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    begun = []
    for number, core in enumerate(("Haswell", "Nehalem")):
        out = tmp_path / f"{core}.onnx"
        words = ("search", model, out, "--max-error", 0.2, "--data", data, *SMALL, "--best-effort",
                 "--trials", 2 + number, "--storage", storage, "--study", "s")  # fmt: skip
        cache = str(tmp_path / core)
        assert process(REAL, *words, OPENBLAS_CORETYPE=core, ONNXDECOMP_CACHE=cache) in (0, 1)
        begun.append(study_of(storage))
        assert len(read_trials(storage)) == 2 + number
    assert begun[0] == begun[1]


# Any trial, and what a metric of one's own does to them
# ------------------------------------------------------


def test_a_model_can_be_made_of_any_trial(model: Path, data: Path, tmp_path: Path, cli: Cli) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    found = searched(model, data, storage, Goal("macs", 0.5))
    assert found.study is not None
    listed = tmp_path / "trials.json"
    for trial in found.study.trials:
        plan, out = tmp_path / "plan.json", tmp_path / "trial.onnx"
        done = cli("trials", storage, "--trial", trial.number, "--save-plan", plan, "--json", listed)
        assert done.code == 0 and str(trial.number) in done.out, done
        assert onnxdecomp.Plan.load(plan) == trial.plan
        assert cli("rewrite", model, out, "--plan", plan, "--data", data, "--samples", 32).code == 0
        onnx.checker.check_model(onnx.load(out))
    assert json.loads(listed.read_text())["trials"] == [each.to_dict() for each in found.study.trials]
    assert found.to_dict()["study"]["trials"] == json.loads(listed.read_text())["trials"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("--trial", 9, "--save-plan", "p.json"),
            "no trial of that number has a plan; they are numbered 0 to 3",
        ),
        (("--trial", 0), "--trial and --save-plan belong together"),
        (("--study", "t"), "--study t is not among them"),
        (("--json", "study.db"), "belongs to the study's storage"),
    ],
)
def test_trials_that_cannot_be_told(
    words: tuple[object, ...], complaint: str, model: Path, data: Path, tmp_path: Path, cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    searched(model, data, "sqlite:///study.db", Goal("macs", 0.5))
    assert complaint in cli("trials", "sqlite:///study.db", *words).refusal()


def test_reading_makes_no_storage(tmp_path: Path, cli: Cli) -> None:
    for line in (f"sqlite:///{tmp_path}/none.db", f"journal:{tmp_path}/none.log"):
        assert "no such file" in cli("trials", line).refusal()
    assert not list(tmp_path.iterdir())


def brightness(model: Runner) -> float:
    """A figure that has little to do with how far outputs are apart: the mean of the first score."""
    x = nets.structured(16, 8, 12, 12, seed=3)
    return float(model.run({"x": x})["y"][:, 0].mean())


@pytest.mark.parametrize("lower", [False, True])
def test_a_metric_bounds_the_drop(lower: bool, model: Path, data: Path, tmp_path: Path) -> None:
    before = nets.run(onnx.load(model), x=nets.structured(16, 8, 12, 12, seed=3))["y"][:, 0].mean()
    bound = 0.02 * abs(float(before))
    found = searched(model, data, "", Goal("max_drop", bound), metric=Metric(brightness, lower), trials=None)
    assert found.met and found.best is not None and found.best.score is not None
    found.save(tmp_path / "out.onnx")
    after = nets.run(onnx.load(tmp_path / "out.onnx"), x=nets.structured(16, 8, 12, 12, seed=3))["y"][
        :, 0
    ].mean()
    worse = (after - before) if lower else (before - after)
    assert worse <= bound * (1 + 1e-5)
    assert found.best.score.drop == pytest.approx(worse, abs=1e-5)
    assert found.to_dict()["best"]["metric"]["after"] == pytest.approx(after, abs=1e-5)


def test_trials_are_judged_by_the_metric(model: Path, data: Path, tmp_path: Path) -> None:
    """And what is best is so by the metric, not by the outputs' error."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    found = searched(model, data, storage, Goal("macs", 0.5), metric=brightness)
    assert found.study is not None and found.best is not None
    before = brightness(onnxdecomp.Runner("", lambda feeds: nets.run(onnx.load(model), **feeds), model))
    seed = found.study.trials[0]
    assert found.best.loss == min(each.loss for each in found.tried if each.result is not None)
    assert all(trial.loss is not None and trial.loss > -abs(before) for trial in found.study.trials)
    assert seed.loss is not None and seed.state == "complete"


def test_samples_are_not_needed_where_a_metric_judges(model: Path, data: Path) -> None:
    found = searched(model, data, "", Goal("max_drop", 10.0), metric=brightness, trials=None, samples=None)
    assert found.met and found.best is not None
    assert found.best.quality is None and found.best.score is not None


def fails(model: Runner) -> float:
    raise KeyError("labels")


@pytest.mark.parametrize(
    ("metric", "complaint"),
    [
        (fails, "`metric` fails failed: KeyError: 'labels'"),
        (lambda run: float("nan"), "must answer with one finite number, not nan"),
        (lambda run: "good", "must answer with one finite number, not 'good'"),
        (lambda run: sys.exit(3), "failed: SystemExit: 3"),
        (lambda run: np.zeros(1), None),
        ("accuracy", "`metric` takes a Metric, a function of one argument or None"),
    ],
)
def test_metrics_that_fail(metric: Any, complaint: str | None, model: Path, data: Path) -> None:
    if complaint is None:
        assert searched(model, data, "", Goal("max_drop", 1.0), metric=metric, trials=None).best is not None
        return
    with pytest.raises(UsageError, match=complaint):
        searched(model, data, "", Goal("max_drop", 1.0), metric=metric, trials=None)


@pytest.mark.parametrize(
    ("text", "option", "complaint"),
    [
        ("", "none.py:f", "write FILE.py:FUNCTION"),
        ("", "mine.py", "write FILE.py:FUNCTION"),
        ("", "mine.py:g", "mine.py has no function g"),
        ("f = 3", "mine.py:f", "mine.py has no function f"),
        ("1 / 0", "mine.py:f", "cannot be loaded (ZeroDivisionError"),
        ("raise SystemExit(3)", "mine.py:f", "cannot be loaded (SystemExit: 3)"),
        ("def f(model): raise SystemExit(3)", "mine.py:f", "--metric f failed: SystemExit: 3"),
        ("def f(model, data): return 1", "mine.py:f", "mine.py:f: the function must take one argument, a lo"),
        ("class f: pass", "mine.py:f", "--metric mine.py:f: the function must take one argument, a loaded m"),
        ("def f(", "mine.py:f", "cannot be loaded (SyntaxError"),
        ("import beside\nf = beside.f", "mine.py:f", "--metric f failed: RuntimeError: of the file beside"),
    ],
)
def test_metrics_of_the_command_line(
    text: str, option: str, complaint: str, model: Path, data: Path, tmp_path: Path, cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(text)
    Path("beside.py").write_text("def f(model):\n    raise RuntimeError('of the file beside')\n")
    words = ("--macs", 0.5, "--data", data, *SMALL, "--metric", option)
    assert complaint in cli("search", model, "out.onnx", *words).refusal()
    assert (
        "name it with --metric" in cli("search", model, "o.onnx", *words[:-2], "--lower-is-better").refusal()
    )


def test_what_a_metric_prints_is_no_part_of_the_report(model: Path, data: Path, tmp_path: Path) -> None:
    """Whoever prints it: Python, C, a child process, or what keeps it until the end."""
    mine = tmp_path / "mine.py"
    mine.write_text(TALKING)
    words = ("search", model, tmp_path / "out.onnx", "--macs", 0.5, "--cost", "macs", "--json", "-")
    done = spawn(*command(*words, "--data", data, "--metric", f"{mine}:f"))
    assert done.code == 0, done
    assert json.loads(done.out)["best"]["metric"]["before"] == 0.5
    for where in ("loaded", "called"):
        for who in ("Python", "the true standard output", "C", "a child"):
            assert f"{where}: {who}\n" in done.err
