"""How far two models' outputs are apart on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from onnxdecomp.comparing.tally import Fidelity, Tally
from onnxdecomp.errors import CheckError
from onnxdecomp.ir import InputShapes, load
from onnxdecomp.runtime import Feeds, Outputs, open_in_onnxruntime, random_feeds


def compare_outputs(pairs: Iterable[tuple[Outputs, Outputs]]) -> list[Fidelity]:
    """The fidelity of each output over pairs of runs (a, b).

    Raises:
        CheckError: b lacks an output of a, or one changed its shape or type.
    """
    tallies: dict[str, Tally] = {}
    for a, b in pairs:
        if missing := sorted(set(a) - set(b)):
            raise CheckError(f"output '{missing[0]}' is missing from the second model")
        for name, value in a.items():
            if isinstance(value, np.ndarray | np.generic):
                tallies.setdefault(name, Tally(name)).add(np.asarray(value), np.asarray(b[name]))
    return [tally.fidelity() for tally in tallies.values()]


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    feeds: Iterable[Feeds] | None = None,
    *,
    input_shapes: InputShapes | None = None,
) -> list[Fidelity]:
    """Run the models at paths `a` and `b` in ONNX Runtime on the same inputs.

    Args:
        a: the reference.
        b: the model judged against it; it must have the inputs of `a`.
        feeds: sets of inputs; None makes up one set of random ones.
        input_shapes: for random inputs with unknown dimensions.

    Returns:
        One Fidelity per output of `a`.

    Raises:
        ModelError, RunError, MissingExtraError: a model does not load or run.
        UsageError: random inputs cannot be made up for unknown dimensions.
        CheckError: an output is missing or changed its shape or type.
    """
    model = load(a).proto
    load(b)  # an input that is damaged is told apart from one that a runtime refuses
    sets = feeds if feeds is not None else [random_feeds(model, input_shapes or {})]
    first, second = open_in_onnxruntime(Path(a)), open_in_onnxruntime(Path(b))
    return compare_outputs((first.run(each), second.run(each)) for each in sets)
