"""What `onnxdecomp tune` prints."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Group, RenderableType

from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import UNKNOWN, sentence
from onnxdecomp.tuning import Gap, TuneResult

_GAPS = (
    Column(title="relative error of", holds="names"),
    Column(title="what it is"),
    Column(title="before", right=True),
    Column(title="after", right=True),
)


def tune_view(found: TuneResult) -> RenderableType:
    """What was trained, how far both models are apart now, and what was not possible."""
    fitted, held_out = found.samples
    rows = [*(_row(gap, "output") for gap in found.outputs), *(_row(gap, "inside") for gap in found.inner)]
    parts: list[RenderableType] = [
        f"{len(found.trained)} weights trained in {found.steps} steps of {found.seconds:.0f} s on {fitted} "
        f"samples; on {held_out} others\n",
        Listing(_GAPS, rows),
    ]
    if found.agreement is not None:
        before, after = found.agreement
        parts.append(f"class as the original's: {before:.1%} before, {after:.1%} after")
    if found.accuracy is not None:
        original, before, after = found.accuracy
        parts.append(f"accuracy: {before:.1%} before, {after:.1%} after; the original's {original:.1%}")
    parts += [f"note: {sentence(note)}" for note in found.notes]
    if not found.improved:
        parts.append("\nthe outputs came no nearer to the original's: the model stays as it was")
    return Group(*parts)


def tuned_view(found: TuneResult) -> RenderableType:
    """The same, where it stands behind the outcome of a rewrite."""
    return Group("\ntuned after that:", tune_view(replace(found, notes=tuned_notes(found))))


def tuned_notes(found: TuneResult) -> tuple[str, ...]:
    """What is to be said of it behind a rewrite or a search, whose own time limit is another one."""
    return tuple(note.replace("`time_limit`", "`Tuning.time_limit`") for note in found.notes)


def _row(gap: Gap, what: str) -> tuple[str, ...]:
    figures = (UNKNOWN if error is None else f"{error:.3g}" for error in (gap.before, gap.after))
    return (gap.name, what, *figures)
