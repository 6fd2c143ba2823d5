"""Pictures, drawn with matplotlib (extra "plot")."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.errors import MissingExtraError, UsageError
from onnxdecomp.planning import SiteSpectra
from onnxdecomp.searching import SearchResult, front_points, uniform
from onnxdecomp.timing import BenchResult, Cell, LayerTable, cell_rows
from onnxdecomp.tuning import TuneResult


def require_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before any work is done.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the ending is neither .png nor .svg.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--plot {path}: end the name with .png or .svg")
    _figure_class()


def _figure_class() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise MissingExtraError('matplotlib is not installed: pip install "onnxdecomp[plot]"') from error


def plot_spectra(found: Sequence[SiteSpectra], path: Path) -> None:
    """Draw the share of energy kept against the share of channels, one curve per site, one panel per mode.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(10, 4.5), layout="constrained")
    colours = importlib.import_module("matplotlib").colormaps["viridis"]
    panels = figure.subplots(1, 2, sharey=True)
    for mode, (panel, title) in enumerate(zip(panels, ("input mode", "output mode"), strict=True)):
        for i, each in enumerate(found):
            kept = each.modes[mode].kept()
            share = np.linspace(0, 1, len(kept))
            panel.plot(share, kept, color=colours(i / max(len(found) - 1, 1)), linewidth=1, alpha=0.8)
        panel.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
        panel.set(title=title, xlabel="rank / channels", xlim=(0, 1), ylim=(0, 1.01))
        panel.set_xticks([0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1], ["0", "1/8", "1/4", "1/2", "3/4", "1"])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of the squared singular values kept")
    mappable = importlib.import_module("matplotlib.cm").ScalarMappable(cmap=colours)
    mappable.set_clim(1, max(len(found), 2))
    figure.colorbar(mappable, ax=panels, label="site, in graph order")
    figure.suptitle(f"{len(found)} sites: the faster a curve rises, the lower the rank that will do")
    figure.savefig(path, dpi=130)


def plot_tuning(found: TuneResult, path: Path) -> None:
    """Draw the error on samples held out over the steps; the state that was taken is marked.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    points = [(steps, error) for steps, error in found.curve if np.isfinite(error)]
    if points:
        panel.plot(*zip(*points, strict=True), marker=".", linewidth=1)
        best = min(points, key=itemgetter(1))
        panel.plot(*best, marker="o", color="C3", linestyle="none", label=f"taken: {best[1]:.3g}")
        panel.legend()
    panel.set(xlabel="steps", ylabel="squared error of the outputs / variance", yscale="log")
    panel.grid(alpha=0.3, which="both")
    fitted, held_out = found.samples
    panel.set_title(f"on {held_out} samples held out of {fitted + held_out}")
    figure.savefig(path, dpi=130)


def plot_bench(result: BenchResult, path: Path) -> None:
    """Draw the time of every layer where that was measured, else of every model.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if result.layers is not None:
        _plot_layers(result.layers, path)
    else:
        _plot_times(result.cells, path)


def _plot_times(cells: Sequence[Cell], path: Path) -> None:
    """Draw the median latency of every model, one group of bars per setting; whiskers from minimum to p90."""
    rows = [row for cell in cells for row in cell_rows(cell)]
    labels = [f"{r['model']}\n{r['provider']}, threads {r['threads']}, batch {r['batch']}" for r in rows]
    figure = _figure_class()(figsize=(8, 0.6 + 0.55 * len(rows)), layout="constrained")
    panel = figure.subplots()
    medians = np.array([row["median_ms"] for row in rows])
    below = medians - [row["min_ms"] for row in rows]
    above = np.array([row["p90_ms"] for row in rows]) - medians
    colours = [f"C{i}" for cell in cells for i in range(len(cell.names))]
    panel.barh(labels, medians, xerr=(below, above), color=colours, capsize=3)
    panel.invert_yaxis()
    panel.set_xlabel("ms per run: median, from minimum to 90th percentile")
    panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def _plot_layers(found: LayerTable, path: Path) -> None:
    """Draw the time of every layer in every model; the names of layers that got slower are red."""
    names, layers = found.names, found.layers
    figure = _figure_class()(figsize=(10, 0.8 + 0.28 * len(layers)), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(layers))
    height = 0.8 / len(names)
    for m, name in enumerate(names):
        times = [1e3 * layer.seconds(m) for layer in layers]
        panel.barh(places + height * (m - (len(names) - 1) / 2), times, height, label=name)
    panel.set_yticks(places, [layer.name for layer in layers], fontsize=7)
    for layer, text in zip(layers, panel.get_yticklabels(), strict=True):
        text.set_color("red" if any(layer.slower(m) for m in range(1, len(names))) else "black")
    panel.invert_yaxis()
    panel.set_xlabel("ms per run, ONNX Runtime's profile")
    panel.grid(axis="x", alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=130)


def plot_search(outcome: SearchResult, path: Path) -> None:
    """Draw the outputs' error against the cost of the sites: the front, uniform ranks, and what was tried.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(7, 5), layout="constrained")
    panel = figure.subplots()
    whole = outcome.solution.kept_cost or 1.0
    lines = {
        "front, predicted": front_points(outcome.solution),
        "uniform ranks, predicted": uniform(outcome.solution.weighed),
    }
    for (name, points), style in zip(lines.items(), ("-", ":"), strict=True):
        panel.plot([cost / whole for cost, _ in points], [error for _, error in points], style, label=name)
    panel.plot(1, 0, "k*", markersize=12, label="original")
    for each in outcome.tried:
        if each.error is not None:
            chosen = each is outcome.best
            cost = outcome.solution.weighed.cost(each.plan) / whole
            panel.plot(
                cost,
                each.error,
                "o",
                color="tab:red" if chosen else "0.6",
                label="chosen, measured" if chosen else None,
            )
    panel.set_xlabel(f"{outcome.measure} of the sites, of the original's")
    panel.set_ylabel("relative error of the outputs")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=130)
