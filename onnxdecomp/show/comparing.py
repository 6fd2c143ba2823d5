"""How far two models are apart, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from onnxdecomp.comparing import Check, Comparison, Fidelity, Quality, Selection
from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import escape, sentence


def quality_view(quality: Quality) -> RenderableType:
    """How far the outputs are apart on held-out samples, and the accuracy where there are labels."""
    parts: list[RenderableType] = [
        f"\nfitted to {quality.fitted} samples; on {quality.held_out} others the outputs differ by\n",
        fidelity_table(quality.outputs),
        *_selections(quality.selections),
    ]
    if quality.accuracy is not None:
        before, after = quality.accuracy
        parts.append(f"\ntop-1 accuracy on these: {before:.1%} → {after:.1%}")
    return Group(*parts)


def check_view(outcome: Check) -> RenderableType:
    """The check's verdict, and how far the outputs on random inputs are apart."""
    if not outcome.outputs:
        return check_line(outcome)
    return Group(
        f"{_verdict(outcome)}; on random inputs their outputs differ by\n",
        fidelity_table(outcome.outputs),
        *_selections(outcome.selections),
        *([f"\n{escape(outcome.reason)}"] if outcome.reason else []),
    )


def check_line(outcome: Check) -> str:
    """The check's verdict, and what it does not cover."""
    if outcome.status != "passed":
        return f"\nnot checked: {sentence(outcome.reason or '')}"
    return f"{_verdict(outcome)}\n{escape(outcome.reason)}" if outcome.reason else _verdict(outcome)


def _verdict(outcome: Check) -> str:
    return f"\ncheck passed: both models run in {outcome.engine}"


def comparison_view(found: Comparison) -> RenderableType:
    """What both models ran on, and how far the outputs are apart."""
    what = "random inputs" if found.samples is None else f"the samples in {escape(str(found.samples))}"
    parts: list[RenderableType] = [
        f"on {what}, the outputs differ by\n",
        fidelity_table(found.outputs),
        *_selections(found.selections),
    ]
    parts += [f"\n{escape(found.note)}"] if found.note else []
    return Group(*parts)


def _selections(found: Sequence[Selection]) -> list[RenderableType]:
    """How much of what one model selects the other does, too; nothing where neither selects."""
    if not found:
        return []
    columns = [
        Column(title="selected", holds="names"),
        Column(title="by", holds="names", rank=1),
        Column(title="items", right=True),
        Column(title="in the other", right=True),
        Column(title="in common", right=True),
    ]
    rows = [(each.name, each.op, str(each.before), str(each.after), str(each.common)) for each in found]
    return ["", Listing(columns, rows)]


def fidelity_table(outputs: Sequence[Fidelity]) -> Listing:
    """One row for each output."""
    columns = [
        Column(title="output", holds="names"),
        Column(title="relative L2", right=True),
        Column(title="SNR dB", right=True, rank=2),
        Column(title="max abs", right=True, rank=1),
        Column(title="cosine", right=True, rank=3),
        Column(title="top-1 agreement", right=True),
    ]
    broken = any(each.new_nonfinite for each in outputs)
    if broken:
        columns.append(Column(title="new NaN or Inf", right=True))
    rows = []
    for each in outputs:
        values = (each.relative_l2, each.snr_db, each.max_abs, each.cosine)
        numbers = ("–" if v is None else f"{v:.3g}" for v in values)
        agreement = "–" if each.top1_agreement is None else f"{each.top1_agreement:.1%}"
        rows.append((each.name, *numbers, agreement, *([str(each.new_nonfinite)] if broken else [])))
    return Listing(columns, rows)
