"""Make an image classifier smaller: fit it to photos, measure it on others, and keep it if it is still good.

python examples/classifier.py model.onnx photos labels.csv small.onnx --rank 0.5 --most-lost 0.02
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnxdecomp

# What the network was trained on: here the mean and the deviation of ImageNet's pixels.
PIXELS = onnxdecomp.Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def main() -> None:
    """Fit, measure, and write the new model, or say why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("labels", help="CSV file of rows file,class")
    parser.add_argument("output", type=Path)
    parser.add_argument("--rank", default="0.5")
    parser.add_argument("--most-lost", type=float, default=0.02, help="of the accuracy")
    given = parser.parse_args()

    photos = onnxdecomp.open_samples(given.photos, given.model, preprocessing=PIXELS)
    sets = onnxdecomp.SampleSets.draw(photos, count=256, labels=given.labels)
    result = onnxdecomp.rewrite(given.model, given.rank, data=sets.fitted)
    onnxdecomp.check(given.model, result.rewritten)  # raises a CheckError where the new model is broken
    quality = onnxdecomp.measure_quality(
        given.model, result.rewritten, sets.held_out, fitted=len(sets.fitted), labels=sets.labels
    )

    before, after = quality.accuracy or (0.0, 0.0)
    print(f"parameters {result.totals.params}, multiply-accumulates {result.totals.macs}")
    print(f"accuracy {before:.3f} before, {after:.3f} after, on {quality.held_out} photos held out")
    if before - after > given.most_lost:
        sys.exit(
            f"more than {given.most_lost:.3f} is lost, nothing was written: try a higher rank or more photos"
        )
    result.save(given.output)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    try:
        main()
    except onnxdecomp.OnnxdecompError as error:
        sys.exit(str(error))  # one line that says what is wrong, where, and what to do
