"""Does a rewritten PP-OCR still run inside the package it comes from, on a real scanned page?

Rewrites the detector and the recogniser, hands both to RapidOCR and reads scikit-image's scanned page. At
full rank the lines must be those of the original models; at the given rank they are shown.

    pip install rapidocr-onnxruntime==1.4.4 scikit-image
    python -m bench.ocr [--rank 0.75]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rapidocr_onnxruntime import RapidOCR
from skimage import data

import onnxdecomp
from models import fetch

DETECTOR, RECOGNISER = "ppocrv4_det_mobile", "ppocrv4_rec_mobile"


def read_page(**models: str) -> list[str]:
    """The lines RapidOCR reads on the page, with its own models or with those given."""
    page = np.repeat(data.page()[:, :, None], 3, axis=2)
    lines, _ = RapidOCR(**models)(page)
    return [text for _, text, _ in lines or []]


def rewritten(rank: str, policy: onnxdecomp.Policy, scratch: Path) -> dict[str, str]:
    """RapidOCR's options for both models rewritten at `rank`."""
    paths = {}
    for option, name in (("det_model_path", DETECTOR), ("rec_model_path", RECOGNISER)):
        paths[option] = str(scratch / f"{name}-{rank}.onnx")
        onnxdecomp.rewrite(fetch(name), rank, policy=policy).save(paths[option])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", default="0.75")
    rank = parser.parse_args().rank
    original = read_page()
    print("original models:", *original, sep="\n  ")
    with tempfile.TemporaryDirectory() as scratch:
        exact = onnxdecomp.Policy(align=1, min_channels=1, allow_slower=True)
        if read_page(**rewritten("in=1.0,out=1.0", exact, Path(scratch))) != original:
            raise SystemExit("at full rank the lines differ")
        print("full rank: the same lines")
        lines = read_page(**rewritten(rank, onnxdecomp.Policy(), Path(scratch)))
    print(f"rank {rank}:", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
