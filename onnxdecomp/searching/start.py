"""What a study begins with: measured once, by the process that makes it, and used by all that take part."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.planning import Plan, Unit, label
from onnxdecomp.searching.figures import Figures
from onnxdecomp.timing import Speedup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """What was known when a study was made.

    Whoever takes part uses these figures in the place of its own: levels of modules follow from them, so with
    noise, or another BLAS, the same levels would mean something else.

    Attributes:
        units: per unit its name and the labels of its choices.
        seconds: of each unit; None where nothing was timed.
        losses: of each unit.
        notes: what is to be said of these.
        plan: the best that the search had found: it is tried first, and what it costs is the budget.
        speedup: of its model; None where nothing was timed.
        original_seconds: the original's median time, likewise.
        machine: what the times were measured on, JSON values; None where nothing was timed.
        token: tells this start from one that another process would have made.
    """

    units: tuple[tuple[str, tuple[str, ...]], ...] = ()
    seconds: tuple[Figures, ...] | None = None
    losses: tuple[Figures, ...] = ()
    notes: tuple[str, ...] = ()
    plan: Plan
    speedup: Speedup | None = None
    original_seconds: float | None = None
    machine: Mapping[str, Any] | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def require_units(self, units: Sequence[Unit], study: str) -> None:
        """Refuse to go on where the figures are not those of `units`.

        Raises:
            UsageError: another version of this package weighs other choices.
        """
        if self.units != named_units(units):
            raise UsageError(
                f"study {study} weighs other choices than this version does; choose another `study`"
            )

    def to_attributes(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """As JSON values: all but the figures, and the figures of each unit, which may be many."""
        head = {
            "token": self.token,
            "notes": list(self.notes),
            "plan": self.plan.to_dict(),
            "speedup": self.speedup.to_dict() if self.speedup is not None else None,
            "original_seconds": self.original_seconds,
            "machine": dict(self.machine) if self.machine is not None else None,
            "units": len(self.units),
        }
        seconds: Sequence[Figures | None] = self.seconds or [None] * len(self.units)
        units = [
            {"unit": name, "choices": list(labels), "seconds": _written(times), "losses": _written(losses)}
            for (name, labels), times, losses in zip(self.units, seconds, self.losses, strict=True)
        ]
        return head, units

    @classmethod
    def of(cls, head: Mapping[str, Any], units: Sequence[Mapping[str, Any]]) -> Start:
        """The start that `to_attributes` wrote."""
        seconds = [_read(each["seconds"]) for each in units if each["seconds"] is not None]
        speedup = {name: _high(value) for name, value in (head["speedup"] or {}).items()}
        return cls(
            units=tuple((each["unit"], tuple(each["choices"])) for each in units),
            seconds=tuple(seconds) if seconds else None,
            losses=tuple(_read(each["losses"]) for each in units),
            notes=tuple(head["notes"]),
            plan=Plan.from_dict(head["plan"]),
            speedup=Speedup(**speedup) if speedup else None,
            original_seconds=head["original_seconds"],
            machine=head["machine"],
            token=head["token"],
        )


def named_units(units: Sequence[Unit]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Per unit its name and the labels of its choices."""
    return tuple((unit.name, tuple(map(label, unit.choices))) for unit in units)


def _written(figures: Figures | None) -> list[float | None] | None:
    """Of the unit as it is and with each choice; JSON knows no infinity, which is None."""
    if figures is None:
        return None
    return [value if math.isfinite(value) else None for value in (figures.kept, *figures.choices)]


def _read(values: Sequence[float | None]) -> Figures:
    kept, *choices = map(_high, values)
    return Figures(kept=kept, choices=tuple(choices))


def _high(value: float | None) -> float:
    return math.inf if value is None else value
