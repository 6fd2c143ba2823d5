"""What `onnxdecomp bench` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType

from onnxdecomp.show.tables import Column, Listing
from onnxdecomp.show.text import escape, si
from onnxdecomp.timing import Cell, Kernel, Layer, LayerTable, Speedup, cell_rows

_COLUMNS = (
    Column(title="model", holds="names"),
    Column(title="median ms", right=True),
    Column(title="min", right=True, rank=6),
    Column(title="p90", right=True, rank=3),
    Column(title="p99", right=True, rank=4),
    Column(title="samples/s", right=True, rank=1),
    Column(title="load ms", right=True, rank=7),
    Column(title="peak memory", right=True, rank=2),
    Column(title="file", right=True, rank=8),
)


def cell_view(cell: Cell) -> RenderableType:
    """One setting: a row per model, then the verdicts."""
    setting = cell.setting
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    assumed = " (assumed: give --batch)" if cell.assumed else ""
    options = "".join(f", {key}={value}" for key, value in setting.options.items())
    precision = f", {setting.precision}" if setting.provider.gpu else ""
    head = f"\n{setting.provider.short}, {threads}, batch {cell.batch}{assumed}{precision}{escape(options)}"
    if cell.done < 1:
        head += f"  (stopped at {cell.done:.0%})"
    found = cell_rows(cell)
    copies = any(row["copies_ms"] is not None for row in found)
    columns = [*_COLUMNS, *([Column(title="copies ms", right=True, rank=5)] if copies else [])]
    rows = [
        (
            row["model"],
            *(f"{row[name]:.3f}" for name in ("median_ms", "min_ms", "p90_ms", "p99_ms")),
            f"{row['throughput_per_s']:.4g}",
            f"{row['load_ms']:.0f}",
            si(row["peak_memory_bytes"], "B"),
            si(row["file_bytes"], "B"),
            *([f"{row['copies_ms']:.3f}"] if copies else []),
        )
        for row in found
    ]
    verdicts = [
        f"{escape(name)}: {verdict(speedup)}"
        for name, speedup in zip(cell.names[1:], cell.speedups(), strict=True)
    ]
    return Group(head, Listing(columns, rows), *verdicts)


def verdict(found: Speedup) -> str:
    """The comparison in words: what may be said of it, and how sure it is."""
    if found.low == 0:
        return f"{found.ratio:.3f}×, from one launch: no interval"
    interval = f"95 % interval {found.low:.3f}–{found.high:.3f}"
    if not found.measurable:
        return f"no measurable difference ({found.ratio:.3f}×, {interval})"
    if found.ratio >= 1:
        return f"{found.ratio:.2f}× faster ({interval})"
    return f"{1 / found.ratio:.2f}× SLOWER ({found.ratio:.3f}×, {interval})"


def layers_view(found: LayerTable) -> RenderableType:
    """Time per layer in every model, what runs there, and which layers got slower."""
    columns = [Column(title="layer", holds="names")]
    for i, name in enumerate(found.names):
        columns.append(Column(title=f"ms in {name}", right=True))
        columns.append(Column(title="kernels", holds="words", rank=1))
        if i:
            columns.append(Column(title="faster", right=True))
    rows = []
    for layer in found.layers:
        cells = []
        for m, kernels in enumerate(layer.kernels):
            cells += [f"{1e3 * layer.seconds(m):.3f}" if kernels else "–", _kernels(kernels)]
            cells += [_faster(layer, m)] if m else []
        rows.append((layer.name, *cells))
    lines = []
    for m, (shown, own) in enumerate(zip(map(escape, found.names), found.profiles, strict=True)):
        lines.append(
            f"{shown}: layers {1e3 * own.seconds:.3f} ms, {own.seconds / own.session:.0%} of the profiled "
            f"session; layout conversions: {own.reorders}"
        )
        slower = [escape(layer.name) for layer in found.layers if layer.slower(m)]
        lines += [f"slower in {shown}: {', '.join(slower)}"] if slower else []
    return Group("\nper layer; * in the blocked NCHWc layout\n", Listing(columns, rows), "", *lines)


def _faster(layer: Layer, model: int) -> str:
    ratio = layer.speedup(model)
    if ratio is None:
        return "–"
    return f"[red]{ratio:.2f}× SLOWER[/red]" if layer.slower(model) else f"{ratio:.2f}×"


def _kernels(kernels: Sequence[Kernel]) -> str:
    counted = Counter(f"{kernel.op}{'*' if kernel.blocked else ''}" for kernel in kernels)
    return ", ".join(f"{count} {op}" if count > 1 else op for op, count in counted.items())
