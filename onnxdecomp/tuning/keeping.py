"""A descent on disk: from where it stands it goes on as if it had never ended."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.ir import Array, write_file

_FORMAT = "onnxdecomp tuning 1"
_HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Where a descent stands.

    Attributes:
        steps: done.
        looks: done.
        seconds: since all began.
        restarted: whether it has diverged once.
        limit: loss that is beyond recovery; 0 before the first step.
        curve: steps done, and the error on the samples held out, at every look.
        arrays: of the parameters, of the best ones so far, and of the optimiser, by kind and name.
    """

    steps: int
    looks: int
    seconds: float
    restarted: bool
    limit: float
    curve: tuple[tuple[int, float], ...]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that a descent is kept in.

    Attributes:
        path: of the file.
        identity: of what is tuned, with which samples and how.
    """

    path: Path
    identity: str

    def save(self, state: State) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputError: the folder is missing, read-only or full.
        """
        figures = {each.name: getattr(state, each.name) for each in fields(state) if each.name != "arrays"}
        head = {"format": _FORMAT, "identity": self.identity, **figures}
        arrays = {_HEAD: np.array(json.dumps(head)), **state.arrays}

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]

        write_file(self.path, write, set())

    def load(self) -> State | None:
        """What was kept; None where there is no file.

        Raises:
            UsageError: it is no checkpoint, or of something else.
        """
        if not self.path.exists():
            return None
        where = f"`checkpoint` {self.path}"
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            head = json.loads(str(arrays.pop(_HEAD)))
            known = head.pop("format") == _FORMAT
            identity = head.pop("identity")
        except OSError as error:
            raise UsageError(f"{where}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"{where}: this is no checkpoint of tuning; name another file") from error
        if not known or identity != self.identity:
            raise UsageError(
                f"{where}: it is of other models, other samples or other options; name another file"
            )
        curve = tuple((int(steps), float(error)) for steps, error in head.pop("curve"))
        return State(**head, curve=curve, arrays=arrays)


def identity_of(parts: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """What tells one descent from another: JSON values, and arrays by name."""
    made = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name in sorted(arrays):
        made.update(name.encode())
        made.update(np.ascontiguousarray(arrays[name]).tobytes())
    return made.hexdigest()
