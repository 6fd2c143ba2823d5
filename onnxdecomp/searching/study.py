"""A study that processes share and go on with: who may take part, and with which figures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.searching.cache import digest
from onnxdecomp.searching.start import Start
from onnxdecomp.searching.storage import Storage, load_optuna, open_storage
from onnxdecomp.searching.task import Trials

# The attributes of a study: what it is about, and, when all else is there, what it begins with.
_ASKED, _START = "onnxdecomp", "onnxdecomp start"
# Two processes may both find that nothing is there yet; after that long they see who wrote last.
_SETTLE_S = 1.0
# What to say of a study that was made for something else, by what differs.
_OTHERS = {
    "format": "by another version of this package",
    "model": "for another model",
    "samples": "for other samples",
    "goal": "for {theirs}, not {ours}",
    "metric": "for another `metric`",
    "tuning": "with another `tuning`",
    "cost": "with another `cost`",
    "setting": "for another setting ({theirs})",
    "policy": "for other choices ({theirs})",
    "shapes": "for other `input_shapes`",
    "freeze": "with another `freeze_weights`",
}


class Study:
    """One study in a storage.

    Attributes:
        name: its name there.
        start: what it was begun with; None before that.
    """

    def __init__(
        self,
        storage: Storage,
        name: str | None,
        asked: Mapping[str, Any],
        machine: Mapping[str, Any] | None = None,
        *,
        front: bool = False,
    ) -> None:
        """
        Args:
            storage: where it lies.
            name: of the study; None derives one from `asked`.
            asked: what it is about, JSON values: whoever asks for anything else is refused.
            machine: what times are measured on here; None where nothing is timed.
            front: whether the whole trade-off between loss and cost is sought, not the least loss alone.

        Raises:
            UsageError: there is a study of that name, of something else or with times of another machine.
        """
        self._storage, self._asked, self._front = storage, dict(asked), front
        self.name = name or f"onnxdecomp-{digest(json.dumps(self._asked, sort_keys=True))}"
        self.start: Start | None = None
        with self.errors():
            self._look(machine)

    def errors(self) -> AbstractContextManager[None]:
        """Whatever goes wrong with its storage inside is a StorageError."""
        return self._storage.errors()

    def load(self) -> Any:
        """The study as Optuna knows it, made where there is none."""
        return load_optuna().create_study(
            storage=self._storage.optuna,
            study_name=self.name,
            directions=["minimize"] * (1 + self._front),
            load_if_exists=True,
        )

    def begin(self, own: Start) -> Start:
        """Begin the study with `own`; or, where another process was first, with what that one measured.

        Raises:
            StorageError: the storage fails.
            UsageError: as when it was opened.
        """
        with self.errors():
            self._look(own.machine)
            if self.start is None:
                self._write(own)
                if self._storage.line is not None:
                    time.sleep(_SETTLE_S)
                self._look(own.machine)
        if self.start is None or self.start.token == own.token:
            self.start = own
        return self.start

    def _look(self, machine: Mapping[str, Any] | None) -> None:
        """Claim the study, if nobody has, and learn what it was begun with, if it was."""
        study = self.load()
        known = study.user_attrs
        if _ASKED not in known:
            if study.get_trials(deepcopy=False) or len(study.directions) != 1 + self._front:
                raise UsageError(f"study {self.name} was not made by `search`; choose another `study`")
            study.set_user_attr(_ASKED, self._asked)
            return
        self._require_same(known[_ASKED])
        if _START not in known:
            return
        head = known[_START]
        start = Start.of(head, [known[_key(head["token"], i)] for i in range(head["units"])])
        if start.machine is not None and start.machine != machine:
            theirs, ours = (", ".join(map(_said, each.values())) for each in (start.machine, machine or {}))
            raise UsageError(
                f"study {self.name} has its times from {theirs}; here is {ours or 'nothing timed'}: "
                "take part from such a machine, or make a study with `cost` macs"
            )
        self.start = start

    def _require_same(self, theirs: Mapping[str, Any]) -> None:
        for name, ours in self._asked.items():
            if theirs.get(name) != ours:
                what = _OTHERS[name].format(theirs=_said(theirs.get(name)), ours=_said(ours))
                raise UsageError(f"study {self.name} was made {what}; choose another `study`")

    def _write(self, own: Start) -> None:
        study, (head, units) = self.load(), own.to_attributes()
        for i, figures in enumerate(units):
            study.set_user_attr(_key(own.token, i), figures)
        study.set_user_attr(_START, head)


@contextmanager
def open_study(
    trials: Trials, asked: Mapping[str, Any], machine: Mapping[str, Any] | None, *, front: bool
) -> Iterator[Study]:
    """The study of these trials; see `Study`.

    Raises:
        MissingExtraError: Optuna is not installed.
        StorageError: its storage cannot be opened, or fails while it is used.
        UsageError: as `Study`.
    """
    with open_storage(trials.storage) as storage:
        yield Study(storage, trials.study, asked, machine, front=front)


def _key(token: str, number: int) -> str:
    """The attribute that holds the figures of a unit."""
    return f"figures {token} {number}"


def _said(value: Any) -> str:
    """A JSON value in words."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name} {_said(each)}" for name, each in value.items() if each not in (None, {}, [])
        )
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return str(value)
