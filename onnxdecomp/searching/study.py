"""A search over levels by measured loss: an Optuna study (extra "search") that can be shared and resumed.

One objective: multivariate TPE under a budget (Watanabe and Hutter 2023, "c-TPE"; Falkner, Klein and Hutter
2018, "BOHB"). Both objectives at once: NSGA-II (Deb et al. 2002, IEEE Transactions on Evolutionary
Computation 6).
"""

from __future__ import annotations

import importlib
import math
import os
import re
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxdecomp.errors import MissingExtraError, StoppedError, UsageError, first_line

Levels = Mapping[str, int]

_HEARTBEAT_S, _GRACE_S = 30, 120
_LOCK_S = 60  # how long one process waits for another to leave an SQLite file
_MOST_POPULATION = 50


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched: `modules` maps a module's name to how many levels it has, 0 to n - 1."""

    modules: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, number in self.modules.items():
            if number < 1:
                raise UsageError(f"module {name} has no levels to choose from")


@dataclass(frozen=True, slots=True)
class Scored:
    """What levels come to; both finite, or the trial is no answer."""

    loss: float
    cost: float


class PrunedError(Exception):
    """Raised by `evaluate` where `report` said that a trial is not worth finishing."""


Report = Callable[[int, float], bool]
Evaluate = Callable[[Levels, Report], Scored]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyResult:
    """What all processes of a study have found so far.

    Attributes:
        name: the study's.
        best: least loss within the budget; None where no trial was within it.
        front: the trials that no other beats in both cost and loss, by ascending cost.
        trials: how many there are by state: complete, pruned, fail, running, waiting.
        stopped: what interrupted this process, for the caller to raise again.
    """

    name: str
    best: tuple[dict[str, int], Scored] | None
    front: list[tuple[dict[str, int], Scored]]
    trials: dict[str, int]
    stopped: StoppedError | KeyboardInterrupt | None = None


def run_study(
    space: Space,
    evaluate: Evaluate,
    *,
    trials: int,
    budget: float | None,
    seeds: Sequence[Levels],
    storage: str | None,
    name: str | None,
    seed: int = 0,
    deadline: float | None = None,
    front: bool = False,
    fingerprint: str,
) -> StudyResult:
    """Try levels until the study has as many finished trials, or time is up.

    Levels that the study has scored before are not evaluated again. Processes that share a study may
    together finish a trial more than asked for each, never fewer.

    Args:
        space: what to search.
        evaluate: gives loss and cost; may report its loss so far under a rising step, and raise
            `PrunedError` where the answer is True.
        trials: complete and pruned ones, over all processes and earlier runs.
        budget: the highest cost allowed.
        seeds: levels to try first.
        storage: a database's URL, or journal:PATH; None keeps the study in memory.
        name: the study's; None derives it from the fingerprint.
        seed: repeats a study in memory. Processes that share one must not draw alike, so it is unused there.
        deadline: `time.monotonic()` after which no trial begins.
        front: seek the whole trade-off, not the least loss alone; nothing is pruned then.
        fingerprint: tells models, data and candidates apart.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: a storage that cannot be used, or a study that belongs to something else.
    """
    optuna = _optuna()
    for levels in seeds:
        fits = all(0 <= level < space.modules.get(module, 0) for module, level in levels.items())
        if not fits or levels.keys() != space.modules.keys():
            raise UsageError("the levels to try first are not of the modules that are searched")
    with _storage(storage) as opened:
        study = _study(opened, name, fingerprint, budget, front)
        study.sampler = _sampler(optuna, seed if storage is None else None, trials, front)
        study.pruner = optuna.pruners.NopPruner() if front else optuna.pruners.MedianPruner()
        stopped = None
        try:
            _fail_dead(study)
            if _finished(study) < trials:
                _enqueue(study, seeds)
            while _finished(study) < trials and (deadline is None or time.monotonic() < deadline):
                _one_trial(study, space, evaluate, budget, front)
        except (StoppedError, KeyboardInterrupt) as error:
            stopped = error
        return _result(study, budget, stopped)


def require_storage(storage: str | None) -> None:
    """Refuse a storage that cannot be used, before any work is done.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: the storage cannot be opened.
    """
    with _storage(storage):
        return


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise MissingExtraError('optuna is not installed: pip install "onnxdecomp[search]"') from error


def _sampler(optuna: Any, seed: int | None, trials: int, front: bool) -> Any:
    if front:
        size = min(max(trials // 5, 4), _MOST_POPULATION)
        return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
    return optuna.samplers.TPESampler(multivariate=True, seed=seed)


@contextmanager
def _storage(line: str | None) -> Iterator[Any]:
    """The storage, closed afterwards; what goes wrong with it on the way is one line that names it."""
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails is raised, not logged
    try:
        if line is None:
            yield optuna.storages.InMemoryStorage()
        elif line.startswith("journal:"):
            yield _journal(line)
        elif "://" in line:
            with _named(line):
                database = _database(line)
                try:
                    yield database
                finally:
                    database.remove_session()
                    database.engine.dispose()
        else:
            raise UsageError(
                f"--storage {line}: give a database's URL, as sqlite:///study.db, or journal:study.log"
            )
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _named(line: str) -> Iterator[None]:
    optuna, alchemy = _optuna(), importlib.import_module("sqlalchemy.exc")
    shown = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", line)  # passwords are not to be shown
    try:
        yield
    except alchemy.NoSuchModuleError as error:
        raise UsageError(f"--storage {shown}: no such kind of database is known") from error
    except alchemy.ArgumentError as error:
        raise UsageError(f"--storage {shown}: this is not a database's URL") from error
    except optuna.exceptions.StorageInternalError as error:
        raise UsageError(f"--storage {shown}: {first_line(error.__cause__ or error)}") from error
    except alchemy.SQLAlchemyError as error:
        raise UsageError(f"--storage {shown}: {first_line(error)}") from error


def _database(line: str) -> Any:
    optuna, alchemy = _optuna(), importlib.import_module("sqlalchemy.exc")
    connect = {"connect_args": {"timeout": _LOCK_S}} if line.startswith("sqlite") else {}
    for attempt in range(10):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.RDBStorage(
                    line, engine_kwargs=connect, heartbeat_interval=_HEARTBEAT_S, grace_period=_GRACE_S
                )
        except ImportError as error:
            scheme = line.split("://")[0]
            raise UsageError(f"--storage {scheme}://…: its Python driver is not installed") from error
        except RuntimeError as error:
            raise UsageError(f"--storage: {first_line(error)}") from error
        except (alchemy.OperationalError, alchemy.IntegrityError, alchemy.ProgrammingError) as error:
            # Another process may be creating the same tables.
            if attempt == 9 or not re.search("exist|unique|duplicate", str(error), re.IGNORECASE):
                raise
            time.sleep(0.2)
    raise AssertionError


def _journal(line: str) -> Any:
    journal = importlib.import_module("optuna.storages.journal")
    # Absolute, and with a lock that is a file: the other kind, a link, is never freed if its target is amiss.
    path = Path(line.removeprefix("journal:")).absolute()
    try:
        if path.exists():
            with path.open("rb") as file:
                if file.read(10) not in (b"", b'{"op_code"'):
                    raise UsageError(f"{path.name} is not a journal of Optuna's")
        lock = journal.JournalFileOpenLock(str(path))
        return _optuna().storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))
    except (OSError, UsageError) as error:
        raise UsageError(f"--storage {line}: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--storage {line}: the journal is damaged ({first_line(error)})") from error


def _study(opened: Any, name: str | None, fingerprint: str, budget: float | None, front: bool) -> Any:
    optuna = _optuna()
    goal = "front" if front else "loss"
    goal = goal if budget is None else f"{goal} at {budget!r}"
    name = name or f"onnxdecomp-{fingerprint[:16]}-{goal.replace(' ', '-')}"
    study = optuna.create_study(
        storage=opened,
        study_name=name,
        directions=["minimize"] * (1 + front),
        load_if_exists=True,
    )
    known = study.user_attrs
    if not known and not study.get_trials(deepcopy=False) and len(study.directions) == 1 + front:
        study.set_user_attr("goal", goal)
        study.set_user_attr("fingerprint", fingerprint)
        return study
    # A process killed between the two leaves the goal alone.
    if known.get("goal") == goal and "fingerprint" not in known:
        study.set_user_attr("fingerprint", fingerprint)
    elif known.get("fingerprint") != fingerprint:
        raise UsageError(f"study {name} belongs to another model or data; choose another --study")
    elif known.get("goal") != goal:
        raise UsageError(f"study {name} has another goal or budget; choose another --study")
    return study


def _states() -> Any:
    return _optuna().trial.TrialState


def _finished(study: Any) -> int:
    states = (_states().COMPLETE, _states().PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def _fail_dead(study: Any) -> None:
    """Give up the trials of processes of this machine that are no more; others go by their heartbeat."""
    for trial in study.get_trials(deepcopy=False, states=(_states().RUNNING,)):
        host, process = trial.user_attrs.get("process", (None, None))
        if host == socket.gethostname() and os.name == "posix" and not _alive(process):
            with suppress(ValueError, _optuna().exceptions.UpdateFinishedTrialError):
                study.tell(trial.number, state=_states().FAIL)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _enqueue(study: Any, seeds: Sequence[Levels]) -> None:
    """Queue what no trial has tried; one that failed, or whose process is no more, has not."""
    had = [
        trial.system_attrs.get("fixed_params", trial.params)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != _states().FAIL
    ]
    for levels in seeds:
        if dict(levels) not in had:
            had.append(dict(levels))
            study.enqueue_trial(dict(levels), user_attrs={"seed": True})


def _one_trial(study: Any, space: Space, evaluate: Evaluate, budget: float | None, front: bool) -> None:
    optuna = _optuna()
    current: list[Any] = []
    scored = False

    def objective(trial: Any) -> float | tuple[float, float]:
        nonlocal scored
        current.append(trial)
        trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
        levels = {name: trial.suggest_int(name, 0, number - 1) for name, number in space.modules.items()}

        def report(step: int, loss: float) -> bool:
            if front or trial.user_attrs.get("seed"):
                return False
            trial.report(loss, step)
            return bool(trial.should_prune())

        found = _known(study, levels)
        if found is None:
            try:
                found = evaluate(levels, report)
            except PrunedError as error:
                raise optuna.TrialPruned from error
        scored = True
        loss, cost = (math.inf if math.isnan(value) else float(value) for value in (found.loss, found.cost))
        trial.set_user_attr("cost", cost)
        if budget is not None:
            trial.set_constraint("cost", cost - budget)
        return (loss, cost) if front else loss

    try:
        study.optimize(objective, n_trials=1)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        # Another process took this one for dead, as after a machine slept, and gave the trial up.
        if not scored:
            raise
    except BaseException:
        for trial in current:
            # Whatever happens here, what stopped the search is what matters.
            with suppress(Exception):
                study.tell(trial, state=_states().FAIL, skip_if_finished=True)
        raise


def _known(study: Any, levels: Levels) -> Scored | None:
    for trial in study.get_trials(deepcopy=False, states=(_states().COMPLETE,)):
        if trial.params == levels and "cost" in trial.user_attrs:
            return Scored(trial.values[0], trial.user_attrs["cost"])
    return None


def _result(
    study: Any, budget: float | None, stopped: StoppedError | KeyboardInterrupt | None
) -> StudyResult:
    trials = study.get_trials(deepcopy=False)
    found = [
        (dict(trial.params), Scored(trial.values[0], trial.user_attrs["cost"]))
        for trial in trials
        if trial.state == _states().COMPLETE and "cost" in trial.user_attrs
    ]
    found = [each for each in found if math.isfinite(each[1].loss) and math.isfinite(each[1].cost)]
    front: list[tuple[dict[str, int], Scored]] = []
    for each in sorted(found, key=lambda each: (each[1].cost, each[1].loss)):
        if not front or each[1].loss < front[-1][1].loss:
            front.append(each)
    within = [each for each in front if budget is None or each[1].cost <= budget]
    return StudyResult(
        name=study.study_name,
        best=within[-1] if within else None,
        front=front,
        trials=dict(Counter(trial.state.name.lower() for trial in trials)),
        stopped=stopped,
    )
