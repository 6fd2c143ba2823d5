"""What does rank do?

One Conv made by hand, on a photo: four filters of 5×5 on RGB, each of them a colour times an oriented edge,

    W(d) = colour(d) ⊗ (cos θ(d) · x + sin θ(d) · y),    x = level ⊗ edge,  y = edge ⊗ level

where `level` and `edge` are Laws' vectors (Laws 1980), and x and y steer to any angle θ (Freeman and Adelson
1991). Three filters see brightness, at 0°, 60° and 90°; one sees red against green, at 60°. So the ranks are
known:

* Tucker: 2 on the input side (brightness, red–green) and 3 on the output side, for the three brightness
  filters are combinations of two. Exact from rank 3 on.
* CP: 4. Either colour needs x and y, which makes four components. Fewer do not do: unfolded as (outputs,
  rows) × (colours, columns) the weight is a matrix of rank 4, and a CP component is one of rank 1.

Each rank is rewritten by onnxdecomp and run by ONNX Runtime. The table says how far the output is off and
what becomes of its range of values; `results/toy.png` shows the feature maps.

    python -m bench.toy [--ranks 1 2 3 4]
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, save
from PIL import Image

import onnxdecomp
from bench.results import RESULTS, write_results
from onnxdecomp.runtime import open_in_onnxruntime

Floats = NDArray[np.float64]

NAME = "edges"
SIZE = (128, 150)  # of the photo, width and height
LEVEL, EDGE = np.array([1.0, 4, 6, 4, 1]), np.array([-1.0, -2, 0, 2, 1])
BRIGHTNESS, RED_GREEN = np.array([1.0, 1, 1]) / 3, np.array([1.0, -1, 0]) / 3
FILTERS = (
    ("brightness", BRIGHTNESS, 0),
    ("brightness", BRIGHTNESS, 60),
    ("brightness", BRIGHTNESS, 90),
    ("red – green", RED_GREEN, 60),
)
# The smallest ranks at which each decomposition is exact: (input, output).
EXACT = {"tucker2": onnxdecomp.Ranks(2, 3), "cp": onnxdecomp.Ranks(4, 4)}
TITLES = {
    "tucker2": "Tucker-2: R channels on either side of a 5×5 Conv",
    "cp": "CP: R channels through 5×1 and 1×5 depthwise Convs",
}
NOTES = """\
Three filters see brightness,
one sees red against green.

Tucker-2 is exact from R = 3:
two filters make the three of
brightness. At R = 1 all three
show one map, more or less of it.

CP is exact from R = 4, with
fewer weights: each step adds
one separable filter."""
CAPTION = (
    "A row is one filter and its feature map: blue below 0, white 0, red above, one scale per row. "
    "“Off by” is ‖map − original‖ / ‖original‖."
)
TITLE = "What rank does: one Conv of four edge filters, decomposed"
CELL, HEAD, FOOT = 1.06, 1.0, 0.35  # inches: one map's width, and the margins above and below
INK, FAINT = "#222222", "#777777"


def weight() -> Floats:
    """The filters, (4, 3, 5, 5)."""
    x, y = np.outer(LEVEL, EDGE), np.outer(EDGE, LEVEL)
    scale = np.abs(x).sum() / 2  # outputs of an image in 0–1 stay in −1–1
    angles = [math.radians(angle) for _, _, angle in FILTERS]
    kernels = [(math.cos(angle) * x + math.sin(angle) * y) / scale for angle in angles]
    colours = [colour for _, colour, _ in FILTERS]
    return np.stack(
        [np.multiply.outer(colour, kernel) for colour, kernel in zip(colours, kernels, strict=True)]
    )


def assert_ranks(tensor: Floats) -> None:
    """The ranks are those that the text at the top claims."""

    def rank(*rows: int) -> int:
        columns = [axis for axis in range(4) if axis not in rows]
        matrix = tensor.transpose(*rows, *columns).reshape(math.prod(tensor.shape[i] for i in rows), -1)
        return int(np.linalg.matrix_rank(matrix))

    assert (rank(1), rank(0)) == (EXACT["tucker2"].input, EXACT["tucker2"].output)
    assert rank(0, 2) == EXACT["cp"].output


def model(tensor: Floats, shape: Sequence[int]) -> ModelProto:
    """One Conv with the weight `tensor` for inputs of `shape`, without padding."""
    node = helper.make_node("Conv", ["photo", "weight"], ["maps"], name=NAME)
    out = [shape[0], len(tensor), shape[2] - tensor.shape[2] + 1, shape[3] - tensor.shape[3] + 1]
    graph = helper.make_graph(
        [node],
        "toy",
        [helper.make_tensor_value_info("photo", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(tensor.astype(np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def photo() -> Image.Image:
    """Rear Admiral Grace Hopper, 1984: public domain, shipped with Matplotlib."""
    path = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
    return Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What one decomposition made of the Conv.

    Attributes:
        method: "tucker2", "cp", or "original".
        rank: asked for.
        params: weights of the chain.
        weight_error: ‖W − Ŵ‖ / ‖W‖ of the stored factors.
        maps: the output, (4, H, W).
    """

    method: str
    rank: int
    params: int
    weight_error: float
    maps: Floats

    def mse(self, original: Outcome) -> float:
        """Mean squared difference from the original's output."""
        return float(((self.maps - original.maps) ** 2).mean())

    def row(self, original: Outcome) -> dict[str, Any]:
        """The entry of the table."""
        mse = self.mse(original)
        statistics = {name: getattr(self.maps, name)() for name in ("min", "max", "mean", "std")}
        return {
            "method": self.method,
            "rank": self.rank or "",
            "params": self.params,
            "weight_error": float(f"{self.weight_error:.3g}"),
            "output_mse": float(f"{mse:.3g}"),
            "output_mse_share": float(f"{mse / (original.maps**2).mean():.3g}"),
            **{name: round(float(value), 5) for name, value in statistics.items()},
        }


def run(proto: ModelProto, pixels: Floats) -> Floats:
    """The output of a model for one image, computed by ONNX Runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        save(proto, path)
        (maps,) = open_in_onnxruntime(path).run({"photo": pixels.astype(np.float32)})["maps"]
    return np.asarray(maps, np.float64)


def decomposed(proto: ModelProto, pixels: Floats, method: str, rank: int) -> Outcome:
    """The Conv rewritten by `method` at `rank`, or the most it can have, and run."""
    limit = (
        onnxdecomp.Ranks(min(rank, 3), min(rank, 4)) if method == "tucker2" else onnxdecomp.Ranks(rank, rank)
    )
    result = onnxdecomp.rewrite(proto, plan=onnxdecomp.Plan({NAME: onnxdecomp.Choice(method, limit)}))
    (site,) = result.sites
    assert site.errors is not None and site.after[0] is not None
    return Outcome(
        method=method,
        rank=rank,
        params=site.after[0],
        weight_error=site.errors.weight,
        maps=run(result.model, pixels),
    )


def assert_exact(proto: ModelProto, pixels: Floats, original: Outcome) -> None:
    """At the known ranks nothing is lost."""
    for method, ranks in EXACT.items():
        outcome = decomposed(proto, pixels, method, ranks.output or 0)
        assert outcome.weight_error < 1e-6, (method, outcome.weight_error)
        assert np.abs(outcome.maps - original.maps).max() < 1e-5, method


def draw(image: Image.Image, tensor: Floats, original: Outcome, outcomes: Sequence[Outcome]) -> Image.Image:
    """The photo and the filters, the original's feature maps, and those of every decomposition."""
    groups = [[outcome for outcome in outcomes if outcome.method == method] for method in TITLES]
    columns: list[Outcome | None] = [original]
    for group in groups:
        columns += [None, *group]
    widths = [2.0, 0.6, *(0.18 if column is None else 1.0 for column in columns)]
    size = np.array([sum(widths) * CELL, len(FILTERS) * CELL * SIZE[1] / SIZE[0] + HEAD + FOOT])
    with rc_context({"font.size": 8.5, "text.color": INK}):
        figure = Figure((size[0], size[1]), dpi=130)
        edges = {"left": 0.008, "right": 0.992, "bottom": FOOT / size[1], "top": 1 - HEAD / size[1]}
        grid = figure.add_gridspec(len(FILTERS), len(widths), width_ratios=widths, **edges)
        grid.update(wspace=0.05, hspace=0.05)
        draw_left(figure, grid, image, tensor)
        for i, column in enumerate(columns, 2):
            if column is not None:
                draw_column(figure, grid, i, column, original)
        for group in groups:
            first = 2 + columns.index(group[0])
            draw_bracket(figure, grid, (first, first + len(group) - 1), TITLES[group[0].method])
        figure.text(edges["left"], 0.985, TITLE, fontsize=13, weight="bold", va="top")
        figure.text(edges["left"], 0.012, CAPTION, color=FAINT, va="bottom")
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    picture = Image.open(stream).convert("RGB")
    # A palette makes a fifth of the bytes.
    return picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)


def draw_left(figure: Figure, grid: GridSpec, image: Image.Image, tensor: Floats) -> None:
    """The photo, and beside each row its filter."""
    axes = bare(figure, grid, slice(0, 2), 0)
    axes.imshow(image)
    axes.set_anchor("N")
    bare(figure, grid, slice(2, 4), 0).text(0, 0.92, NOTES, va="top", linespacing=1.35)
    extent = np.abs(tensor).max(axis=(1, 2, 3))
    for i, (colour, _, angle) in enumerate(FILTERS):
        axes = bare(figure, grid, i, 1)
        axes.imshow(0.5 + 0.5 * (tensor[i] / extent[i]).transpose(1, 2, 0))
        axes.text(
            0.5, -0.08, f"{colour}\n{angle}°", transform=axes.transAxes, ha="center", va="top", fontsize=7.5
        )


def draw_column(figure: Figure, grid: GridSpec, column: int, outcome: Outcome, original: Outcome) -> None:
    """The feature maps of one outcome, each row in the colours of the original's range."""
    for i, (maps, exact) in enumerate(zip(outcome.maps, original.maps, strict=True)):
        limit = np.percentile(np.abs(exact), 99)
        axes = bare(figure, grid, i, column)
        axes.imshow(maps, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_frame_on(True)
        for spine in axes.spines.values():
            spine.set(color="#cccccc", linewidth=0.6)
        if outcome is not original:
            error = float(np.linalg.norm(maps - exact) / np.linalg.norm(exact))
            text = "exact" if error < 1e-4 else f"off by {error:.0%}"
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(0.97, 0.025, text, transform=axes.transAxes, ha="right", va="bottom", size=7, bbox=box)
        if not i:
            name = "original" if outcome is original else f"R = {outcome.rank}"
            axes.set_title(f"{name}\n{outcome.params} weights", fontsize=8.5, color=INK, pad=4)


def draw_bracket(figure: Figure, grid: GridSpec, columns: tuple[int, int], title: str) -> None:
    """A title over several columns."""
    left, right = (grid[0, column].get_position(figure) for column in columns)
    y = left.y1 + 0.42 / figure.get_size_inches()[1]
    figure.add_artist(Line2D([left.x0, right.x1], [y, y], color=FAINT, linewidth=0.8))
    figure.text((left.x0 + right.x1) / 2, y + 0.008, title, ha="center", va="bottom", fontsize=9.5)


def bare(figure: Figure, grid: GridSpec, rows: int | slice, column: int) -> Axes:
    """Axes without ticks and frame."""
    axes = figure.add_subplot(grid[rows, column])
    axes.set(xticks=[], yticks=[], frame_on=False)
    return axes


def line(values: Mapping[str, Any]) -> str:
    """One line of the printed table."""
    return "".join(f"{value!s:>{14 if i else 9}}" for i, value in enumerate(values.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 3, 4])
    ranks = parser.parse_args().ranks
    image, tensor = photo(), weight()
    assert_ranks(tensor)
    pixels = np.asarray(image, np.float64).transpose(2, 0, 1)[None] / 255
    proto = model(tensor, pixels.shape)
    original = Outcome(
        method="original", rank=0, params=tensor.size, weight_error=0.0, maps=run(proto, pixels)
    )
    assert_exact(proto, pixels, original)
    outcomes = [decomposed(proto, pixels, method, rank) for method in TITLES for rank in ranks]
    rows = [outcome.row(original) for outcome in (original, *outcomes)]
    print(line({name: name for name in rows[0]}), *map(line, rows), sep="\n")
    print(write_results("toy", rows, {"photo": "grace_hopper.jpg", "size": SIZE}))
    picture = RESULTS / "toy.png"
    draw(image, tensor, original, outcomes).save(picture, optimize=True)
    print(picture)


if __name__ == "__main__":
    main()
