"""One worker of a study that many share: start it as often as there are machines.

python examples/shared_study.py in.onnx samples.npz out.onnx postgresql+psycopg://user@host/name

The first makes the study, the others join it, whenever they come. One that was killed is started again with
the same words and goes on; all of them end with the same model. Other databases do, and a journal on a disk
that all share: journal:study.log.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxdecomp


def main() -> None:
    """Take part, then write the best model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("storage")
    parser.add_argument("--trials", type=int, default=40, help="of all workers together")
    parser.add_argument("--macs", type=float, default=0.5, help="what is to be left of the Convs' arithmetic")
    given = parser.parse_args()

    samples = onnxdecomp.open_samples(given.samples, given.model)
    result = onnxdecomp.search(
        given.model,
        onnxdecomp.Goal("macs", given.macs),
        samples=onnxdecomp.SampleSets.draw(samples),
        cost="macs",  # with measured times, workers must be machines of one kind
        trials=onnxdecomp.Trials(number=given.trials, storage=given.storage),
    )
    result.save(given.output)
    if result.study is not None and result.best is not None:
        print(f"{len(result.study.trials)} trials of all workers; the best model: {result.best.line()}")
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
