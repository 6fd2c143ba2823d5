"""A real pretrained network before and after: `make demo`.

U²-Net-P marks what stands out in a picture. It is rewritten twice: at a quarter of the channels everywhere,
and at half of them where that costs the weights least. The table shows what this gains and what it costs;
the picture shows it to the eye. No sample is used to fit anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

import onnxdecomp
from models import ModelsError, export, fetch
from onnxdecomp.ir import load
from onnxdecomp.runtime import Engine, Feeds, cpu_name, open_in_onnxruntime, random_feeds
from onnxdecomp.show import si
from onnxdecomp.timing import Budget, Contestant, Launch, medians, race, speedup

Floats = NDArray[np.float64]

FOLDER = Path("demo")
SIDE = 320
BUDGET = Budget(runs=15)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Half rank is worth it where it keeps 64 % of a weight's energy: 1 − 0.6².
MOST_ERROR = 0.6


def main() -> None:
    """Rewrite, measure, print, draw."""
    console = Console(highlight=False)
    FOLDER.mkdir(exist_ok=True)
    original = model_to_rewrite(console)
    variants = {
        "rank 0.25": onnxdecomp.rewrite(original, 0.25),
        "rank 0.5, where it costs least": gentle(original),
    }
    files = {name: FOLDER / f"{original.stem}-{i}.onnx" for i, name in enumerate(variants, 1)}
    for name, result in variants.items():
        result.save(files[name])
    pretrained = original.stem == "u2netp"
    photo = example_photo() if pretrained else None
    feeds = preprocess(photo) if photo is not None else random_feeds(load(original).proto, {})
    paths = {"original": original, **files}
    outputs = {name: first_output(path, feeds) for name, path in paths.items()}
    contestants = [Contestant(path=path, feeds=feeds) for path in paths.values()]
    with console.status("timing, one thread"):
        times = dict(zip(paths, race(contestants, Engine(threads=1), BUDGET), strict=True))
    console.print(before_after(original.stem, variants, times, outputs))
    for name, path in files.items():
        console.print(f"{name}: {path}")
    if photo is not None:
        show(photo, list(outputs.values())).save(FOLDER / "u2netp.png")
        console.print(f"photo, then the masks in the order of the table: {FOLDER / 'u2netp.png'}")


def model_to_rewrite(console: Console) -> Path:
    """U²-Net-P, or where it cannot be had a network exported here."""
    try:
        return fetch("u2netp")
    except ModelsError as error:
        console.print(
            f"{error}\nU²-Net-P cannot be had: a U-Net with random weights, exported here, stands in."
        )
        return export("unet", FOLDER / "unet.onnx")


def gentle(original: Path) -> onnxdecomp.Result:
    """Half rank for the Convs whose weights lose less than `MOST_ERROR` by it: a plan out of a rewrite."""
    everywhere = onnxdecomp.rewrite(original, 0.5)
    errors = {report.site.name: report.errors for report in everywhere.sites}
    cheap = {
        name: choice
        for name, choice in everywhere.plan.sites.items()
        if (found := errors[name]) is not None and found.weight < MOST_ERROR
    }
    return onnxdecomp.rewrite(original, plan=onnxdecomp.Plan(cheap or everywhere.plan.sites))


def example_photo() -> Image.Image:
    """Rear Admiral Grace Hopper, 1984: public domain, shipped with Matplotlib."""
    path = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
    return Image.open(path).convert("RGB").resize((SIDE, SIDE))


def preprocess(photo: Image.Image) -> Feeds:
    """The photo as U²-Net's input: NCHW, scaled to 0–1, then ImageNet's mean and standard deviation."""
    pixels = (np.asarray(photo, np.float64) / 255 - MEAN) / STD
    return {"input.1": pixels.transpose(2, 0, 1)[None].astype(np.float32)}


def first_output(path: Path, feeds: Feeds) -> Floats:
    """The model's first output: for U²-Net the fused mask, 1×1×H×W in 0–1."""
    values: Floats = next(iter(open_in_onnxruntime(path).run(feeds).values())).astype(np.float64)
    return values


def overlap(a: Floats, b: Floats) -> float:
    """Intersection over union of two masks at one half."""
    return float(((a > 0.5) & (b > 0.5)).sum() / max(((a > 0.5) | (b > 0.5)).sum(), 1))


def before_after(
    model: str,
    variants: Mapping[str, onnxdecomp.Result],
    times: Mapping[str, Sequence[Launch]],
    outputs: Mapping[str, Floats],
) -> Table:
    """One column per variant, the original first."""
    table = Table(
        title=f"{model}, one thread of {cpu_name()}, ONNX Runtime {version('onnxruntime')}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for name in ("", "original", *variants):
        table.add_column(name, justify="right" if name else "left")
    before = next(iter(variants.values())).totals
    first, *rest = (milliseconds(medians(times[name])) for name in ("original", *variants))
    results = list(variants.values())
    gains = [speedup(times["original"], times[name]) for name in variants]
    overlaps = [overlap(outputs["original"], outputs[name]) for name in variants]
    for label, left, right in (
        ("Convs rewritten", "", [f"{len(r.plan.sites)} of {len(r.sites)}" for r in results]),
        ("parameters", si(before.params[0]), [si(r.totals.params[1]) for r in results]),
        ("MACs", si(before.macs[0]), [si(r.totals.macs[1]) for r in results]),
        ("file", si(before.nbytes[0], "B"), [si(r.totals.nbytes[1], "B") for r in results]),
        ("latency, median", first, rest),
        ("speed-up", "", [f"{gain.ratio:.2f}×" for gain in gains]),
        ("  95 % interval", "", [f"{gain.low:.2f}–{gain.high:.2f}×" for gain in gains]),
        ("overlap with the original mask", "", [f"{each:.0%}" for each in overlaps]),
    ):
        table.add_row(label, left, *right)
    return table


def milliseconds(seconds: float) -> str:
    """`seconds` as text."""
    return f"{1e3 * seconds:.1f} ms"


def show(photo: Image.Image, masks: Sequence[Floats]) -> Image.Image:
    """The photo and the masks in a row."""
    strip = Image.new("RGB", (SIDE * (1 + len(masks)), SIDE))
    strip.paste(photo, (0, 0))
    for i, mask in enumerate(masks, 1):
        strip.paste(Image.fromarray((mask[0, 0].clip(0, 1) * 255).astype(np.uint8)), (i * SIDE, 0))
    return strip


if __name__ == "__main__":
    main()
