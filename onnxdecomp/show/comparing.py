"""How far two models are apart, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.comparing import Check, Comparison, Fidelity, Quality
from onnxdecomp.show.text import escape, sentence


def quality_view(quality: Quality) -> RenderableType:
    """How far the outputs are apart on held-out samples, and the accuracy where there are labels."""
    parts: list[RenderableType] = [
        f"\nfitted to {quality.fitted} samples; on {quality.held_out} others the outputs differ by\n",
        fidelity_table(quality.outputs),
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
        f"{check_line(outcome)}; on random inputs their outputs differ by\n", fidelity_table(outcome.outputs)
    )


def check_line(outcome: Check) -> str:
    """The check's verdict alone."""
    if outcome.status != "passed":
        return f"\nnot checked: {sentence(outcome.reason or '')}"
    return f"\ncheck passed: both models run in {outcome.engine}"


def comparison_view(found: Comparison) -> RenderableType:
    """What both models ran on, and how far the outputs are apart."""
    what = "random inputs" if found.samples is None else f"the samples in {escape(str(found.samples))}"
    parts: list[RenderableType] = [f"on {what}, the outputs differ by\n", fidelity_table(found.outputs)]
    parts += [f"\n{escape(found.note)}"] if found.note else []
    return Group(*parts)


def fidelity_table(outputs: Sequence[Fidelity]) -> Table:
    """One row for each output."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("output", overflow="fold")
    for name in ("relative L2", "SNR dB", "max abs", "cosine", "top-1 agreement"):
        table.add_column(name, justify="right")
    broken = any(each.new_nonfinite for each in outputs)
    if broken:
        table.add_column("new NaN or Inf", justify="right")
    for each in outputs:
        values = (each.relative_l2, each.snr_db, each.max_abs, each.cosine)
        agreement = "–" if each.top1_agreement is None else f"{each.top1_agreement:.1%}"
        numbers = ("–" if v is None else f"{v:.3g}" for v in values)
        table.add_row(escape(each.name), *numbers, agreement, *([str(each.new_nonfinite)] if broken else []))
    return table
