"""What is known of a unit's choices, as one figure each."""

from __future__ import annotations

from dataclasses import dataclass

from onnxdecomp.planning import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A figure of a unit as it is, and with each of its choices: a cost, or what is lost of the outputs.

    Attributes:
        kept: as it is; nothing is lost then.
        choices: with each of the unit's choices; infinite where it cannot be taken.
        measured: of losses, (choice, loss) where the error was sent through the model.
        note: what is to be said of it, None for nothing.
    """

    kept: float = 0.0
    choices: tuple[float, ...]
    measured: tuple[tuple[Choice, float], ...] = ()
    note: str | None = None
