"""Make a detector faster, judged by what matters of a detector: the objects that it still finds.

python examples/detector.py detector.onnx images.npz faster.onnx

The file of samples holds `images` as the model takes them, N×3×H×W, and `objects`, one box for each image as
x1, y1, x2, y2 in pixels. The model answers with `boxes` (N, A, 4) and `scores` (N, A).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import onnxdecomp

Floats = NDArray[np.float32]
BATCH = 32


def overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of boxes, shape (N, 4) each."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1)
    return np.asarray(shared / np.maximum(areas - shared, 1e-9), np.float32)


def main() -> None:
    """Search, judge, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--macs", type=float, default=0.5, help="what is to be left of the Convs' arithmetic")
    given = parser.parse_args()

    stored = np.load(given.samples)
    images, objects = stored["images"], stored["objects"]
    # What factors are fitted to must not judge them.
    half = len(images) // 2
    samples = onnxdecomp.open_samples([{"images": images[:half]}], given.model)

    def found(model: onnxdecomp.Runner) -> float:
        """The share of the objects that the best box of their image covers by half or more."""
        hits: list[NDArray[np.bool_]] = []
        for start in range(half, len(images), BATCH):
            stop = min(start + BATCH, len(images))
            outputs = model.run({"images": images[start:stop]})
            best = outputs["scores"].argmax(axis=1)
            boxes = outputs["boxes"][np.arange(stop - start), best]
            hits.append(overlap(boxes, objects[start:stop]) >= 0.5)
        return float(np.concatenate(hits).mean())

    result = onnxdecomp.search(
        given.model,
        onnxdecomp.Goal("macs", given.macs),
        samples=onnxdecomp.SampleSets.draw(samples),
        metric=found,
        cost="macs",  # leave this out to choose by measured time
    )
    result.save(given.output)
    score = result.best.score if result.best is not None else None
    if score is not None:
        print(f"objects found: {score.before:.1%} before, {score.after:.1%} after")
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
