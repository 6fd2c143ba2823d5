"""What `onnxdecomp bench` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from onnxdecomp.show.text import escape, si
from onnxdecomp.timing import Cell, Kernel, Layer, LayerTable, Speedup, cell_rows


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
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("model", overflow="fold")
    rows = cell_rows(cell)
    copies = any(row["copies_ms"] is not None for row in rows)
    names = ("median ms", "min", "p90", "p99", "samples/s", "load ms", "peak memory", "file")
    for name in (*names, *(["copies ms"] if copies else [])):
        table.add_column(name, justify="right")
    for row in rows:
        times = (row[name] for name in ("median_ms", "min_ms", "p90_ms", "p99_ms"))
        table.add_row(
            escape(row["model"]),
            *(f"{value:.3f}" for value in times),
            f"{row['throughput_per_s']:.4g}",
            f"{row['load_ms']:.0f}",
            si(row["peak_memory_bytes"], "B"),
            si(row["file_bytes"], "B"),
            *([f"{row['copies_ms']:.3f}"] if copies else []),
        )
    verdicts = [
        f"{escape(name)}: {verdict(found)}"
        for name, found in zip(cell.names[1:], cell.speedups(), strict=True)
    ]
    return Group(head, table, *verdicts)


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
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("layer", overflow="fold", ratio=3)
    for i, name in enumerate(found.names):
        table.add_column(f"ms in {escape(name)}", justify="right")
        table.add_column("kernels", overflow="fold", ratio=2)
        if i:
            table.add_column("faster", justify="right")
    for layer in found.layers:
        cells = []
        for m, kernels in enumerate(layer.kernels):
            cells += [f"{1e3 * layer.seconds(m):.3f}" if kernels else "–", _kernels(kernels)]
            cells += [_faster(layer, m)] if m else []
        table.add_row(escape(layer.name), *cells)
    lines = []
    for m, (shown, own) in enumerate(zip(map(escape, found.names), found.profiles, strict=True)):
        lines.append(
            f"{shown}: layers {1e3 * own.seconds:.3f} ms, {own.seconds / own.session:.0%} of the profiled "
            f"session; layout conversions: {own.reorders}"
        )
        slower = [escape(layer.name) for layer in found.layers if layer.slower(m)]
        lines += [f"slower in {shown}: {', '.join(slower)}"] if slower else []
    return Group("\nper layer; * in the blocked NCHWc layout\n", table, "", *lines)


def _faster(layer: Layer, model: int) -> str:
    ratio = layer.speedup(model)
    if ratio is None:
        return "–"
    return f"[red]{ratio:.2f}× SLOWER[/red]" if layer.slower(model) else f"{ratio:.2f}×"


def _kernels(kernels: Sequence[Kernel]) -> str:
    counted = Counter(f"{kernel.op}{'*' if kernel.blocked else ''}" for kernel in kernels)
    return ", ".join(f"{count} {op}" if count > 1 else op for op, count in counted.items())
