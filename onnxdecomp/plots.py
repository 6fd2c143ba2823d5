"""Pictures, drawn with matplotlib (extra "plot")."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.errors import MissingExtraError, UsageError
from onnxdecomp.survey_spectra import SiteSpectra


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
