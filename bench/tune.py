"""What does tuning win back, from how many samples, in how many minutes?

Rewrites trained networks (Tucker-2 on their larger kernels), fits the factors to a few images in closed form,
and tunes them with some more, none of which is a test image; sets top-1 on test images beside that of the
original, of plain factors and of fitted ones. The drop from the original is paired: both see the same images.
Each original must have its known accuracy.

Rows that an earlier run has measured, of other samples or seeds, stay in the table: long ones can be added
one by one. The networks and images lie in a folder `shared` beside the checkout, or in --data-folder. Run it
on a quiet machine: what is won in a given time depends on it.

    python -m bench.tune [--models NAME …] [--samples 256 …] [--seeds 0 1] [--time-limit 600] [--steps N]
        [--labels] [--data-folder FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxdecomp
from bench.quality import DATA_FOLDER, NETWORKS, Network, cifar10, imagenet, outputs, require_data, tracker
from bench.results import earlier_rows, write_results
from onnxdecomp import Policy, Samples, SampleSets, Tuning
from onnxdecomp.ir import load
from onnxdecomp.progress import Progress, ProgressEvent
from onnxdecomp.sampling import spared

Row = dict[str, Any]

# Shares of each mode's channels.
RANKS = {"cifar10_resnet20": 0.5, "cifar10_resnet56": 0.5, "vgg16_cifar10": 0.25, "imagenet_resnet50": 0.25}
PLAIN, FITTED, TUNED = "plain", "fitted", "tuned"
KEY = ("kind", "samples", "seed", "labels")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exam:
    """A network, and images to tune with and to test on.

    Attributes:
        path: of the original.
        pool: images that may be fitted to and tuned with.
        tested: the test images.
        labels: their classes.
        found: what the original says of them, shape (images, classes).
    """

    path: Path
    pool: Samples
    tested: Samples
    labels: np.ndarray
    found: np.ndarray

    def judge(self, path: Path) -> Row:
        """How far the model at `path` is from the original on the test images, and how often it is right."""
        found = outputs(path, self.tested)
        right, before = (each.argmax(axis=1) == self.labels for each in (found, self.found))
        drop = before.astype(int) - right.astype(int)
        error = np.linalg.norm(found - self.found) / np.linalg.norm(self.found)
        return {
            "top1": round(float(right.mean()), 4),
            "top1_original": round(float(before.mean()), 4),
            "drop": round(float(drop.mean()), 4),
            # Half of a 95 % interval of the paired drop.
            "drop_interval": round(float(1.96 * drop.std() / np.sqrt(len(drop))), 4),
            "agreement": round(float((found.argmax(axis=1) == self.found.argmax(axis=1)).mean()), 4),
            "relative_l2": round(float(error), 4),
        }


def open_exam(name: str, network: Network, folder: Path) -> Exam:
    """The exam of one network, whose accuracy must be the known one."""
    path = folder / "models" / f"{name}.onnx"
    reader = cifar10 if network.images == "cifar10" else imagenet
    count = 5000 if network.images == "cifar10" else network.fit_samples
    images = reader(folder / "data", load(path).proto, count, None)
    exam = Exam(
        path=path,
        pool=images.fitted,
        tested=images.tested,
        labels=images.labels,
        found=outputs(path, images.tested),
    )
    top1 = float((exam.found.argmax(axis=1) == exam.labels).mean())
    assert abs(top1 - network.accuracy) < 0.02, (name, top1)
    return exam


def told(label: str) -> Progress:
    """Says how far tuning is, on a line of its own for each look."""
    begun = time.perf_counter()

    def tell(event: ProgressEvent) -> None:
        if event.stage == "tuning" and event.item is not None:
            seconds = time.perf_counter() - begun
            print(f"  {label}: {event.done} of {event.total}, {seconds:.0f} s, {event.item}", flush=True)

    return tell


def drawn(pool: Samples, count: int, seed: int) -> Samples:
    """So many images of the pool, others for each seed."""
    order = np.random.default_rng([seed, count]).permutation(len(pool))
    return pool.subset(sorted(int(i) for i in order[:count]))


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """All rows of one network; files go to `folder`."""
    network = NETWORKS[name]
    exam = open_exam(name, network, arguments.data_folder)
    policy, rank = Policy(method="tucker2", align=network.align), RANKS[name]
    print(f"{name}: top-1 {exam.judge(exam.path)['top1']} on {len(exam.tested)} images", flush=True)
    plain = onnxdecomp.rewrite(exam.path, rank, policy=policy)
    plain.save(folder / "plain.onnx")
    yield row_of(exam, folder / "plain.onnx", PLAIN, 0, 0, None, 0.0)
    for seed in arguments.seeds:
        for count in arguments.samples:
            chosen = drawn(exam.pool, count, seed)
            began = time.perf_counter()
            few = chosen.subset(range(min(len(chosen) - spared(chosen), network.fit_samples)))
            sets = SampleSets(fitted=few, held_out=exam.tested, trained=chosen)
            fitted = onnxdecomp.rewrite(
                exam.path, rank, policy=policy, data=few, progress=tracker(f"{name} {count}")
            )
            fitted.save(folder / "fitted.onnx")
            spent = time.perf_counter() - began
            yield row_of(exam, folder / "fitted.onnx", FITTED, len(few), seed, None, spent)
            for labels in (None, classes(exam, chosen)) if arguments.labels else (None,):
                began = time.perf_counter()
                how = Tuning(time_limit=arguments.time_limit, steps=arguments.steps, seed=seed)
                tuned = onnxdecomp.tune(
                    exam.path, folder / "fitted.onnx", sets, labels=labels, tuning=how, progress=told(name)
                )
                tuned.save(folder / "tuned.onnx")
                seconds = spent + time.perf_counter() - began
                limit, with_labels = arguments.time_limit, labels is not None
                yield row_of(
                    exam, folder / "tuned.onnx", TUNED, count, seed, tuned, seconds, limit, with_labels
                )


def classes(exam: Exam, chosen: Samples) -> np.ndarray:
    """Those of the file that the images lie in, one for every image that it holds."""
    assert exam.pool.path is not None and exam.pool.path.suffix == ".npz", "their classes are not known"
    with np.load(exam.pool.path) as arrays:
        found: np.ndarray = arrays["y"]
    assert len(found) == chosen.total
    return found


def row_of(
    exam: Exam,
    path: Path,
    kind: str,
    samples: int,
    seed: int,
    tuned: onnxdecomp.TuneResult | None,
    seconds: float,
    limit: float | str = "",
    labels: bool = False,
) -> Row:
    """One line of the table."""
    return {
        "kind": kind,
        "samples": samples,
        "seed": seed,
        "labels": int(labels),
        **exam.judge(path),
        "time_limit": limit,
        "steps": tuned.steps if tuned is not None else 0,
        "held_out_before": tuned.outputs[0].before if tuned is not None else None,
        "held_out_after": tuned.outputs[0].after if tuned is not None else None,
        "minutes": round(seconds / 60, 2),
    }


def in_order(row: Row) -> tuple[int, int, int, int]:
    """By kind, then by samples."""
    kinds = (PLAIN, FITTED, TUNED)
    return kinds.index(row["kind"]), int(row["labels"]), int(row["samples"]), int(row["seed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(RANKS), default=list(RANKS))
    parser.add_argument("--samples", nargs="+", type=int, default=[64, 256, 1000, 5000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds of tuning")
    parser.add_argument("--steps", type=int, help="of tuning at most; default: as many as there is time for")
    parser.add_argument("--labels", action="store_true", help="tune with the images' classes, too")
    parser.add_argument("--data-folder", type=Path, default=DATA_FOLDER, help=f"default: {DATA_FOLDER}")
    arguments = parser.parse_args()
    require_data(arguments.data_folder, arguments.models)
    for name in arguments.models:
        rows: list[Row] = []
        with tempfile.TemporaryDirectory() as scratch:
            for row in measure(name, arguments, Path(scratch)):
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
                # After each row: what is done is safe.
                question = f"tune-{name}"
                table = sorted([*rows, *earlier_rows(question, rows, KEY)], key=in_order)
                path = write_results(question, table, {"rank": RANKS[name]})
        print(path)


if __name__ == "__main__":
    main()
